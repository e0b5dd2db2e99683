"""Finding a data set on disk: folders in the MVTec AD layout.

ROOT/<class>/train/good/*.png                           normal images to learn from
ROOT/<class>/test/good/*.png                            normal images to test on
ROOT/<class>/test/<defect>/NNN.png                      images with a defect
ROOT/<class>/ground_truth/<defect>/NNN_mask.png         where the defect is (optional)
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crad.images import (
    IMAGE_SUFFIXES,
    ImageError,
    MaskResize,
    find_images,
    natural_key,
    open_mask,
)

__all__ = ["DataError", "Dataset", "MaskError", "Sample", "find_dataset", "subfolders"]

GOOD = "good"
MASKS = "ground_truth"


class DataError(ValueError):
    """A folder that is not the data set it should be; the message names it and the way out."""


class MaskError(ImageError):
    """A mask that cannot be read; the message names it and its image."""


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes:
        path: the image file.
        class_name: the product it shows.
        defect: the kind of defect, ``"good"`` for a normal image.
        mask: the ground-truth mask file; None for a normal image, or where there is none.
    """

    path: Path
    class_name: str
    defect: str
    mask: Path | None = None

    @property
    def is_anomaly(self) -> bool:
        """True if the image has a defect."""
        return self.defect != GOOD

    def truth(self, size: int, resize: MaskResize = "nearest") -> npt.NDArray[np.bool_] | None:
        """Read which pixels are defective: bool (size, size); None where that is not known.

        Args:
            size: side of the square in pixels.
            resize: how the mask comes to it, as for `crad.images.open_mask`.

        Raises:
            MaskError: the mask cannot be read.
        """
        if self.mask is not None:
            try:
                return open_mask(self.mask, size, resize)
            except ImageError as error:
                raise MaskError(f"mask of '{self.path}': {error}") from error
        return None if self.is_anomaly else np.zeros((size, size), dtype=np.bool_)


@dataclass(frozen=True)
class Dataset:
    """The images of one or more classes.

    Attributes:
        root: the folder.
        classes: class names in natural order.
        train: normal images to learn from, grouped by class.
        test: images to test on, grouped by class; may be empty.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


def find_dataset(root: str | os.PathLike[str], *, need_train: bool = True) -> Dataset:
    """Find the classes and images of a folder in the MVTec AD layout; no image is opened.

    A class is a folder that holds ``train`` or ``test``; `root` may itself be one class. Other
    folders and hidden files are passed over. The mask of ``test/<defect>/NNN.png`` is
    ``ground_truth/<defect>/NNN_mask.png`` or ``NNN.png``, with any image suffix.

    Args:
        root: the folder.
        need_train: False accepts classes without normal images to learn from, as evaluation does.

    Raises:
        DataError: no such folder, no class in it, a class without images, or images or masks that
            lie where they would silently be left out.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        problem = "it is a file" if root.exists() else "no such folder"
        raise DataError(f"data: cannot use '{root}': {problem}; give a folder of {_LAYOUT}")
    if _is_class(root):
        folders = {root.resolve().name: root}
    else:
        folders = {folder.name: folder for folder in subfolders(root) if _is_class(folder)}
    if not folders:
        raise DataError(f"data: no classes in '{root}'; expected {_LAYOUT}")
    train: list[Sample] = []
    test: list[Sample] = []
    for name, folder in folders.items():
        class_train = _train_samples(folder, name)
        class_test = _test_samples(folder, name)
        if need_train and not class_train:
            good = folder / "train" / GOOD
            missing = "no images in" if good.is_dir() else "no folder"
            raise DataError(
                f"train: {missing} '{good}' (expected {', '.join(IMAGE_SUFFIXES)}); "
                f"add normal images there or remove the folder '{folder}'"
            )
        if not class_train and not class_test:
            raise DataError(
                f"test: no images in '{folder / 'test'}'; add some or remove '{folder}'"
            )
        train += class_train
        test += class_test
    return Dataset(root, tuple(folders), tuple(train), tuple(test))


_LAYOUT = "<class>/train/good/*.png, with <class>/test/{good,<defect>}/*.png to test on"


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder in natural order, without hidden ones; none if it is missing."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(found, key=lambda path: natural_key(path.name))


def _is_class(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def _train_samples(folder: Path, class_name: str) -> list[Sample]:
    good = folder / "train" / GOOD
    if not good.is_dir():
        return []
    return [Sample(path, class_name, GOOD) for path in find_images(good)]


def _test_samples(folder: Path, class_name: str) -> list[Sample]:
    test = folder / "test"
    if test.is_dir() and (loose := find_images(test)):
        raise DataError(
            f"test: '{loose[0]}' lies in no sub-folder; move normal images to '{test / GOOD}' and "
            f"others to '{test / '<defect>'}'"
        )
    if test.is_dir():
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
    """Refuse masks of a class that would silently be left out."""
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
                "images; rename one after the other, or remove the masks"
            )


def _masks(folder: Path, images: list[Path]) -> dict[Path, Path]:
    """Match the masks in a folder to images by name."""
    by_stem = {path.stem: path for path in find_images(folder)} if folder.is_dir() else {}
    masks = {}
    for image in images:
        mask = by_stem.get(f"{image.stem}_mask") or by_stem.get(image.stem)
        if mask is not None:
            masks[image] = mask
    if by_stem and images and not masks:
        raise DataError(
            f"test: no mask in '{folder}' is named after an image: expected "
            f"'{images[0].stem}_mask.png' for '{images[0]}'; rename the masks or remove the folder"
        )
    return masks
