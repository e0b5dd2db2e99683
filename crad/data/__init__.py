"""Finding the classes and images of a data set on disk."""

import os
from collections.abc import Sequence
from pathlib import Path

from crad.data.demo import DEMO_NAMES, demo_dataset
from crad.data.images import natural_key
from crad.data.layouts import LAYOUTS
from crad.data.samples import Dataset, Sample
from crad.errors import DataError, OutputError

__all__ = ["Dataset", "Sample", "check_apart", "find_dataset", "full_source"]

_IN_A_CLASS = ("train", "test", "Data")  # folders of a class, in any layout


def find_dataset(
    source: str | os.PathLike[str], *, classes: Sequence[str] = (), need_train: bool = True
) -> Dataset:
    """Find the classes and images of a data set; no image is opened, and nothing is copied.

    Args:
        source: a folder in one of the `LAYOUTS`, which is detected; or the name of a generated set,
            which is written on first use.
        classes: names of the wanted classes, empty for all. Other folders are not searched.
        need_train: False accepts classes without training images, as evaluation does.

    Raises:
        DataError: the folder or a class is missing, a class has no images, or images or masks are
            where they would silently be ignored.
    """
    root = demo_dataset(source) if source in DEMO_NAMES else Path(source).expanduser()
    if not root.is_dir():
        problem = "it is a file" if root.exists() else "there is no such folder"
        layouts = "; or ".join(each.DESCRIPTION for each in reversed([*LAYOUTS.values()]))
        raise DataError(
            f"data: cannot use '{root}': {problem}; give a folder in the layout {layouts}"
        )
    *_, last = LAYOUTS.values()
    layout = next((each for each in LAYOUTS.values() if each.matches(root)), last)
    found = layout.find_classes(root)
    if unknown := [name for name in classes if name not in found]:
        raise DataError(
            f"classes: no class '{unknown[0]}' in '{root}'; choose from {', '.join(found)}"
        )
    names = sorted(set(classes) or found, key=natural_key)
    splits = [found[name](need_train) for name in names]
    train = tuple(sample for split in splits for sample in split[0])
    test = tuple(sample for split in splits for sample in split[1])
    return Dataset(root, tuple(names), train, test)


def check_apart(output: Path, source: str) -> None:
    """Refuse an output folder among the images of a data set.

    Args:
        output: the folder; it need not exist.
        source: as for `find_dataset`.

    Raises:
        OutputError: the output is the folder of the data set, or lies in one of its classes.
    """
    root, folder = Path(source).expanduser().resolve(), output.resolve()
    if source in DEMO_NAMES or not folder.is_relative_to(root):
        return
    places = [folder, *folder.parents]
    within = places[: places.index(root)]  # from the output up to the data, which are not in it
    held = [(place / name).is_dir() for place in (*within, root) for name in _IN_A_CLASS]
    if not within or any(held):
        raise OutputError(
            f"output: '{output}' lies among the images of '{root}'; choose another folder with "
            "--output"
        )


def full_source(source: str) -> str:
    """The name of a generated set, or the full path of a folder."""
    return source if source in DEMO_NAMES else str(Path(source).expanduser().resolve())
