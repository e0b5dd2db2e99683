"""The raw layout of VisA, that of its archive.

ROOT/split_csv/1cls.csv                                 object,split,label,image,mask
ROOT/<class>/Data/Images/{Normal,Anomaly}/NNN.JPG       images
ROOT/<class>/Data/Masks/Anomaly/NNN.png                 class ids; above 0 is a defect

Each line of the table is an image: its class, ``train`` or ``test``, ``normal`` or ``anomaly``, and
the paths of image and mask below ROOT. No file is in two lines.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from crad.data.folders import Folder
from crad.data.samples import GOOD, Sample, Split
from crad.errors import DataError
from crad.files import full_path, irregular

DESCRIPTION = "VisA as its archive has it"
_TABLE = PurePosixPath("split_csv", "1cls.csv")
RULE = f"images and masks in '{_TABLE}'"
TABLES: tuple[str, ...] = (str(_TABLE),)
_COLUMNS = ("object", "split", "label", "image", "mask")
_IMAGES = PurePosixPath("Data", "Images")
_MASKS = PurePosixPath("Data", "Masks")
_DEFECTS = {"normal": GOOD, "anomaly": "anomaly"}


def matches(root: Folder) -> bool:
    """Whether a folder has the layout, or would have it if its table were not missing."""
    if (root.path / _TABLE).exists() or os.path.isdir(root.path / _IMAGES):
        return True
    return any(os.path.isdir(folder.path / _IMAGES) for folder in root.folders)


def find_classes(root: Folder) -> dict[str, Callable[[bool], Split]]:
    """Read the table; the files of a class are checked when its images are asked for."""
    table = root.path / _TABLE
    if kind := irregular(table):
        raise DataError(f"data: '{table}' is {kind}; extract it from the archive again")
    if not table.exists():
        raise DataError(_without_table(root.path))
    splits: dict[str, Split] = defaultdict(lambda: ([], []))
    lines: dict[Path, int] = {}  # line number of each file
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
                raise DataError(
                    f"data: '{table}' has no column {', '.join(missing)}; its first line should be "
                    f"{','.join(_COLUMNS)}"
                )
            for row in reader:
                cells = {name: (row[name] or "").strip() for name in _COLUMNS}
                try:
                    sample = _sample(root.path, cells)
                    for path in filter(None, (sample.path, sample.mask)):
                        if first := lines.get(path):
                            name = path.relative_to(root.path)
                            raise ValueError(f"'{name}' is in line {first} already")
                        lines[path] = reader.line_num
                except ValueError as error:
                    raise DataError(
                        f"data: '{table}', line {reader.line_num}: {error}; correct the table, or "
                        "extract it from the archive again"
                    ) from error
                train, test = splits[cells["object"]]
                (train if cells["split"] == "train" else test).append(sample)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"data: '{table}' is not a CSV text file ({error}); extract it from the archive again"
        ) from error
    if not splits:
        raise DataError(f"data: '{table}' has no lines; extract it from the archive again")
    return {name: partial(_checked, table, name, *split) for name, split in splits.items()}


def holds_masks(folder: Path) -> bool:
    """Whether a folder is ``Data/Masks`` of a class."""
    above = folder.parent
    return PurePosixPath(above.name, folder.name) == _MASKS and (above / _IMAGES.name).is_dir()


def _without_table(root: Path) -> str:
    """The error message for a folder without the table."""
    if (root / _IMAGES).is_dir():
        folder = full_path(root)
        return (
            f"data: '{root}' is one class of VisA; give the folder above it, with the class: "
            f"--data {folder.parent} --classes {folder.name}"
        )
    return (
        f"data: '{root}' holds classes in the layout of VisA, but no file '{_TABLE}', which says "
        "what to train and to test on; take it from the archive"
    )


def _sample(root: Path, cells: dict[str, str]) -> Sample:
    """The image of a line of the table; a `ValueError` says what is wrong with the line."""
    for name, words in (("split", ("train", "test")), ("label", tuple(_DEFECTS))):
        if cells[name] not in words:
            raise ValueError(f"expected {name} to be {' or '.join(words)}, but got '{cells[name]}'")
    name = cells["object"]
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"expected object to be the name of a class, but got '{name}'")
    defect = _DEFECTS[cells["label"]]
    if defect != GOOD and cells["split"] == "train":
        raise ValueError(
            "a training image with the label anomaly; training takes normal images only"
        )
    if defect == GOOD and cells["mask"]:
        raise ValueError("a normal image with a mask")
    mask = _inside(root, "mask", cells["mask"]) if cells["mask"] else None
    return Sample(_inside(root, "image", cells["image"]), name, defect, mask)


def _inside(root: Path, column: str, text: str) -> Path:
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"expected {column} to be a path below '{root}', but got '{text}'")
    return root / path


def _checked(
    table: Path, name: str, train: list[Sample], test: list[Sample], need_train: bool
) -> Split:
    """The samples of a class, whose files must all exist."""
    if need_train and not train:
        raise DataError(
            f"train: '{table}' lists no training image of class '{name}'; name only the other "
            "classes with --classes"
        )
    samples = train + test
    files = [file for sample in samples for file in (sample.path, sample.mask) if file]
    if missing := [file for file in files if not file.exists()]:
        raise DataError(
            f"data: {len(missing)} of the {len(files)} files of class '{name}' in '{table}' are "
            f"missing, the first is '{missing[0]}'; extract the archive again, or choose other "
            "classes with --classes"
        )
    return train, test
