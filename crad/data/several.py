"""A data set with classes that lie elsewhere, as those that were added to a model."""

import os
from collections.abc import Sequence
from pathlib import Path

from crad.data import find_dataset
from crad.data.folders import natural_key
from crad.data.samples import Dataset
from crad.errors import DataError
from crad.files import full_path
from crad.words import enumerate_some

_PARTS = ("train", "test")  # folders of a class


def find_class(folder: str | os.PathLike[str], *, need_train: bool = True) -> Dataset:
    """Find the images of one class in a folder of its own.

    Args:
        folder: of the class, in the layout of MVTec AD; its name is that of the class.
        need_train: as for `crad.data.find_dataset`.

    Raises:
        DataError: as for `crad.data.find_dataset`, or it is not the folder of a class.
    """
    path = full_path(folder)
    if path.is_dir() and not any((path / part).is_dir() for part in _PARTS):
        inner = [each.name for each in path.iterdir() if (each / _PARTS[0]).is_dir()]
        held = f" but of classes ({enumerate_some(sorted(inner))})" if inner else ""
        raise DataError(
            f"data: '{path}' is not the folder of a class{held}; give one that has train/good/*.png"
        )
    return find_dataset(path, need_train=need_train)


def find_datasets(
    source: str, added: Sequence[str] = (), *, classes: Sequence[str] = (), need_train: bool = True
) -> Dataset:
    """Find the classes of a data set, and those in folders elsewhere.

    Args:
        source: as for `crad.data.find_dataset`.
        added: folders of one class each, as for `find_class`.
        classes: as for `crad.data.find_dataset`; of the added ones too.
        need_train: as for `crad.data.find_dataset`.

    Raises:
        DataError: as for `crad.data.find_dataset` and `find_class`.
    """
    others = {}
    for folder in added:
        name = Path(folder).name
        if not classes or name in classes:
            others[name] = find_class(folder, need_train=need_train)
    parts = [*others.values()]
    wanted = [name for name in classes if name not in others]
    if wanted or not classes:
        parts.insert(0, find_dataset(source, classes=wanted, need_train=need_train))
    if len(parts) == 1:
        return parts[0]
    by_class = sorted(
        ((name, part) for part in parts for name in part.classes),
        key=lambda pair: natural_key(pair[0]),
    )
    return Dataset(
        Path(os.path.commonpath([part.root.absolute() for part in parts])),
        tuple(name for name, _ in by_class),
        tuple(each for name, part in by_class for each in part.train if each.class_name == name),
        tuple(each for name, part in by_class for each in part.test if each.class_name == name),
        tuple(line for part in parts for line in part.left_out),
        roots={name: part.root for name, part in by_class},
    )
