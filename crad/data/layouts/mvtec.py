"""The layout of MVTec AD.

ROOT/<class>/train/good/*.png                           normal images to learn from
ROOT/<class>/test/good/*.png                            normal images to test on
ROOT/<class>/test/<defect>/NNN.png                      images with a defect
ROOT/<class>/ground_truth/<defect>/NNN_mask.png         where the defect is (optional)

A class is a folder that holds ``train`` or ``test``. Hidden files are ignored. The mask of
``test/<defect>/NNN.png`` is ``ground_truth/<defect>/NNN_mask.png`` or ``NNN.png``, with any image
suffix.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from crad.data.folders import IMAGE_SUFFIXES, Folder
from crad.data.samples import GOOD, Sample, Split
from crad.errors import DataError
from crad.files import full_path

MASKS = "ground_truth"
DESCRIPTION = "<class>/train/good/*.png, with <class>/test/{good,<defect>}/*.png to test on"
RULE = (
    "images directly in <class>/train/good and test/<defect>, and masks of defective ones in "
    "ground_truth/<defect>,"
)
TABLES: tuple[str, ...] = ()

_NORMAL = frozenset(
    (
        *("good", "goods", "ok", "okay", "normal", "normals", "nominal", "pass", "passed"),
        *("defectfree", "nodefect", "nodefects", "nondefective", "anomalyfree", "noanomaly"),
    )
)
"""What people call normal images, in letters alone; only `GOOD` is read as that."""


def matches(root: Folder) -> bool:
    """Whether a folder has the layout; it may itself be one class."""
    return _is_class(root.path) or any(_is_class(folder.path) for folder in root.folders)


def find_classes(root: Folder) -> dict[str, Callable[[bool], Split]]:
    """Find the classes in a folder, which may itself be one."""
    if _is_class(root.path):
        folders = {full_path(root.path).name: root}
    else:
        folders = {each.path.name: each for each in root.folders if _is_class(each.path)}
    if not folders:
        raise DataError(f"data: no classes in '{root.path}'; expected {DESCRIPTION}")
    return {name: partial(_read_class, folder, name) for name, folder in folders.items()}


def holds_masks(folder: Path) -> bool:
    """Whether a folder is ``ground_truth`` of a class."""
    return folder.name == MASKS and _is_class(folder.parent)


def _read_class(folder: Folder, name: str, need_train: bool) -> Split:
    for other in folder.folders:
        if (part := other.path.name.casefold()) in ("train", "test") and part != other.path.name:
            raise DataError(f"{part}: '{other.path}' would not be read; rename it to '{part}'")
    good = folder.at("train", GOOD)
    if not good.exists:
        for other in folder.at("train").folders:
            _check_name(other, "train", "would not be trained on")
    train = [Sample(path, name, GOOD) for path in good.images]
    test = _test_samples(folder, name)
    if need_train and not train:
        missing = "no images in" if good.exists else "no folder"
        raise DataError(
            f"train: {missing} '{good.path}'; add normal images directly there "
            f"({', '.join(IMAGE_SUFFIXES)}), or leave the class '{name}' out with --classes"
        )
    if not train and not test:
        raise DataError(
            f"test: no images in '{folder.path / 'test'}'; add some, or leave the class '{name}' "
            "out with --classes"
        )
    return train, test


def _is_class(folder: Path) -> bool:
    return any(os.path.isdir(folder / part) for part in ("train", "test"))


def _check_name(folder: Folder, part: str, what: str) -> None:
    """Refuse a folder of normal images by another name than `GOOD`."""
    name = folder.path.name
    if name != GOOD and "".join(filter(str.isalpha, name.casefold())) in _NORMAL:
        raise DataError(
            f"{part}: '{folder.path}' {what}; if its images are normal, rename it to '{GOOD}', or "
            f"move them into '{GOOD}'; otherwise give it another name"
        )


def _test_samples(folder: Folder, class_name: str) -> list[Sample]:
    test = folder.at("test")
    if not test.exists:
        return []
    if loose := test.images:
        raise DataError(
            f"test: '{loose[0]}' is not in a sub-folder; move normal images to "
            f"'{test.path / GOOD}' and others to '{test.path / '<defect>'}'"
        )
    _check_masks(folder)
    samples: list[Sample] = []
    for kind in test.folders:
        _check_name(kind, "test", "would count as a defect")
        defect = kind.path.name
        masks = {} if defect == GOOD else _masks(folder.at(MASKS, defect), kind)
        samples += [Sample(path, class_name, defect, masks.get(path)) for path in kind.images]
    return samples


def _check_masks(folder: Folder) -> None:
    """Refuse masks of a class that belong to no folder of images."""
    for other in folder.folders:
        plain = "".join(filter(str.isalnum, other.path.name.casefold()))
        if plain == "groundtruth" and other.path.name != MASKS:
            raise DataError(
                f"test: masks are expected in '{folder.path / MASKS}', not in '{other.path}'; "
                "rename it"
            )
    if loose := folder.at(MASKS).images:
        raise DataError(
            f"test: '{loose[0]}' is not in a sub-folder; move masks to "
            f"'{folder.path / MASKS / '<defect>'}', as their images are in 'test/<defect>'"
        )
    for masks in folder.at(MASKS).folders:
        defect = folder.at("test", masks.path.name)
        if not defect.exists and masks.images:
            raise DataError(
                f"test: there are masks in '{masks.path}', but there is no folder '{defect.path}' "
                "with their images; rename one to match the other, or remove the masks"
            )


def _masks(masks: Folder, images: Folder) -> dict[Path, Path]:
    """Match masks to images by name, each to one."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for mask in masks.images:
        by_stem[mask.stem].append(mask)
    image_of: dict[Path, Path] = {}
    for image in images.images:
        named = by_stem[f"{image.stem}_mask"] + by_stem[image.stem]
        if len(named) > 1:
            raise DataError(
                f"test: '{image}' has more than one mask: '{named[0]}' and '{named[1]}'; remove "
                "all but one"
            )
        for mask in named:
            if mask in image_of:
                raise DataError(
                    f"test: the mask '{mask}' is named after two images: '{image_of[mask]}' and "
                    f"'{image}'; rename one of them, and its mask"
                )
            image_of[mask] = image
    if strays := [mask for mask in masks.images if mask not in image_of]:
        example = images.images[0] if images.images else images.path / "NNN.png"
        raise DataError(
            f"test: {len(strays)} of {len(masks.images)} masks in '{masks.path}' are named after "
            f"no image, the first is '{strays[0]}'; expected '{example.stem}_mask.png' for "
            f"'{example}'; rename or remove them"
        )
    return {image: mask for mask, image in image_of.items()}
