"""Finding the classes and images of a data set on disk."""

import os
from collections.abc import Sequence
from pathlib import Path

from crad.data.demo import DEMO_NAMES, demo_dataset
from crad.data.folders import Folder, natural_key, not_used
from crad.data.layouts import LAYOUTS
from crad.data.samples import Dataset, Sample
from crad.errors import DataError, OutputError
from crad.files import full_path

__all__ = [
    "Dataset",
    "Sample",
    "check_apart",
    "check_outside_classes",
    "find_dataset",
    "full_source",
]

# Folders of a class, in any layout: what it has, and what other folders hardly have.
_IN_A_CLASS = ("train", "test", "Data")
_MARKS_OF_A_CLASS = ("train/good", "test/good", "ground_truth", "Data/Images")

_LONGEST_NAME = 200  # bytes of the name of a class, to which files add; 255 are allowed


def find_dataset(
    source: str | os.PathLike[str], *, classes: Sequence[str] = (), need_train: bool = True
) -> Dataset:
    """Find the classes and images of a data set; no image is opened, and nothing is copied.

    What else is in the folder is an error, or counted in `Dataset.left_out`.

    Args:
        source: a folder in one of the `LAYOUTS`, which is detected; or the name of a generated set,
            which is written on first use.
        classes: names of the wanted classes, empty for all. Others are not searched.
        need_train: False accepts classes without training images, as evaluation does.

    Raises:
        DataError: the folder or a class is missing, a class has no images or a name that cannot be
            used, images or masks are where they would be misunderstood, or a folder cannot be read.
    """
    root = demo_dataset(source) if source in DEMO_NAMES else Path(os.path.expanduser(source))
    if not root.is_dir():
        problem = "it is a file" if root.exists() else "there is no such folder"
        layouts = "; or ".join(each.DESCRIPTION for each in reversed([*LAYOUTS.values()]))
        raise DataError(
            f"data: cannot use '{root}': {problem}; give a folder in the layout {layouts}"
        )
    *_, last = LAYOUTS.values()
    folder = Folder(root)
    layout = next((each for each in LAYOUTS.values() if each.matches(folder)), last)
    found = layout.find_classes(folder)
    if unknown := [name for name in classes if name not in found]:
        raise DataError(
            f"classes: no class '{unknown[0]}' in '{root}'; choose from {', '.join(found)}"
        )
    names = sorted(set(classes) or found, key=natural_key)
    for name in names:
        _check_class(name, root)
    splits = [found[name](need_train) for name in names]
    train = tuple(sample for split in splits for sample in split[0])
    test = tuple(sample for split in splits for sample in split[1])
    used = [file for sample in (*train, *test) for file in (sample.path, sample.mask) if file]
    left_out = not_used(
        folder,
        [*used, *(root / table for table in layout.TABLES)],
        passed_over={root / name for name in found if name not in names},
        rule=layout.RULE,
    )
    if source in DEMO_NAMES and Path(source).is_dir():
        left_out += (f"not used: the folder './{source}'; for it, give --data ./{source}",)
    return Dataset(root, tuple(names), train, test, left_out)


def _check_class(name: str, root: Path) -> None:
    """Refuse a class whose name cannot be printed in a line, or be part of a file's name."""
    if not name.isprintable():
        problem = "has a line break or another character that cannot be printed"
    elif len(os.fsencode(name)) > _LONGEST_NAME:
        problem = f"has more than {_LONGEST_NAME} bytes"
    else:
        return
    raise DataError(f"classes: the name {name!r} of a class in '{root}' {problem}; rename it")


def check_apart(output: Path, source: str, *, option: str = "--output") -> None:
    """Refuse an output folder among the images of a data set.

    Args:
        output: the folder; it need not exist.
        source: as for `find_dataset`.
        option: that names the folder.

    Raises:
        OutputError: the output is the folder of the data set, or lies in one of its classes.
    """
    root, folder = full_path(source), full_path(output)
    if source in DEMO_NAMES or not folder.is_relative_to(root):
        return
    places = [folder, *folder.parents]
    within = places[: places.index(root)]  # from the output up to the data, which are not in it
    held = [(place / name).is_dir() for place in (*within, root) for name in _IN_A_CLASS]
    if not within or any(held):
        raise OutputError(
            f"{option.removeprefix('--')}: '{output}' lies among the images of '{root}'; choose "
            f"another folder with {option}"
        )


def check_outside_classes(output: Path, *, is_earlier: bool) -> None:
    """Refuse an output folder in a class of any data set, or with classes in it.

    Args:
        output: the folder; it need not exist.
        is_earlier: whether it is one of an earlier command, whose folders may mirror classes.

    Raises:
        OutputError: it is one of these.
    """
    folder = full_path(output)
    places = [*folder.parents]
    if not is_earlier:
        places += [folder, *(folder.iterdir() if folder.is_dir() else ())]
    for place in places:
        if any((place / name).is_dir() for name in _MARKS_OF_A_CLASS):
            raise OutputError(
                f"output: '{output}' lies among the images of '{place}'; choose another folder "
                "with --output"
            )


def full_source(source: str) -> str:
    """The name of a generated set, or the full path of a folder."""
    return source if source in DEMO_NAMES else str(full_path(source))
