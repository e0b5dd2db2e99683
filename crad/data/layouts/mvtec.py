"""The layout of MVTec AD.

ROOT/<class>/train/good/*.png                           normal images to learn from
ROOT/<class>/test/good/*.png                            normal images to test on
ROOT/<class>/test/<defect>/NNN.png                      images with a defect
ROOT/<class>/ground_truth/<defect>/NNN_mask.png         where the defect is (optional)

A class is a folder that holds ``train`` or ``test``. Other folders and hidden files are ignored.
The mask of ``test/<defect>/NNN.png`` is ``ground_truth/<defect>/NNN_mask.png`` or
``NNN.png``, with any image suffix.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from crad.data.images import IMAGE_SUFFIXES, find_images, subfolders
from crad.data.samples import GOOD, Sample, Split
from crad.errors import DataError

MASKS = "ground_truth"
DESCRIPTION = "<class>/train/good/*.png, with <class>/test/{good,<defect>}/*.png to test on"


def matches(root: Path) -> bool:
    """Whether a folder has the layout; it may itself be one class."""
    return _is_class(root) or any(_is_class(folder) for folder in subfolders(root))


def find_classes(root: Path) -> dict[str, Callable[[bool], Split]]:
    """Find the classes in a folder, which may itself be one."""
    if _is_class(root):
        folders = {root.resolve().name: root}
    else:
        folders = {folder.name: folder for folder in subfolders(root) if _is_class(folder)}
    if not folders:
        raise DataError(f"data: no classes in '{root}'; expected {DESCRIPTION}")
    return {name: partial(_read_class, folder, name) for name, folder in folders.items()}


def _read_class(folder: Path, name: str, need_train: bool) -> Split:
    good = folder / "train" / GOOD
    train = [Sample(path, name, GOOD) for path in find_images(good)] if good.is_dir() else []
    test = _test_samples(folder, name)
    if need_train and not train:
        missing = "no images in" if good.is_dir() else "no folder"
        raise DataError(
            f"train: {missing} '{good}' (expected {', '.join(IMAGE_SUFFIXES)}); "
            f"add normal images there or remove the folder '{folder}'"
        )
    if not train and not test:
        raise DataError(f"test: no images in '{folder / 'test'}'; add some or remove '{folder}'")
    return train, test


def _is_class(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def _test_samples(folder: Path, class_name: str) -> list[Sample]:
    test = folder / "test"
    if not test.is_dir():
        return []
    if loose := find_images(test):
        raise DataError(
            f"test: '{loose[0]}' is not in a sub-folder; move normal images to '{test / GOOD}' and "
            f"others to '{test / '<defect>'}'"
        )
    _check_masks(folder)
    samples: list[Sample] = []
    for defect in subfolders(test):
        if defect.name != GOOD and defect.name.casefold() == GOOD:
            raise DataError(f"test: '{defect}' would count as a defect; rename it to '{GOOD}'")
        paths = find_images(defect)
        masks = {} if defect.name == GOOD else _masks(folder / MASKS / defect.name, paths)
        samples += [Sample(path, class_name, defect.name, masks.get(path)) for path in paths]
    return samples


def _check_masks(folder: Path) -> None:
    """Refuse masks of a class that would silently be ignored."""
    for other in subfolders(folder):
        plain = "".join(filter(str.isalnum, other.name.casefold()))
        if plain == "groundtruth" and other.name != MASKS:
            raise DataError(
                f"test: masks are expected in '{folder / MASKS}', not in '{other}'; rename it"
            )
    for masks in subfolders(folder / MASKS):
        defect = folder / "test" / masks.name
        if not defect.is_dir() and find_images(masks):
            raise DataError(
                f"test: there are masks in '{masks}', but there is no folder '{defect}' with their "
                "images; rename one to match the other, or remove the masks"
            )


def _masks(folder: Path, images: list[Path]) -> dict[Path, Path]:
    """Match the masks in a folder to images by name."""
    by_stem = {path.stem: path for path in find_images(folder)} if folder.is_dir() else {}
    masks = {
        image: mask
        for image in images
        if (mask := by_stem.get(f"{image.stem}_mask") or by_stem.get(image.stem))
    }
    if by_stem and images and not masks:
        raise DataError(
            f"test: no mask in '{folder}' is named after an image: expected "
            f"'{images[0].stem}_mask.png' for '{images[0]}'; rename the masks or remove the folder"
        )
    return masks
