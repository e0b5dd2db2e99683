"""The images that a command line names, one by one or by their folders."""

from collections.abc import Iterable
from pathlib import Path

from crad.data.folders import IMAGE_SUFFIXES, Folder
from crad.data.layouts import LAYOUTS
from crad.errors import DataError


def find_inputs(inputs: Iterable[Path]) -> tuple[dict[Path, Path], int]:
    """List images: those named, and those in folders named and their sub-folders.

    The masks of a data set below a folder are left out.

    Returns:
        Each image once, with its path relative to the folder that was named; and the number of
        masks left out.

    Raises:
        DataError: there is nothing by a name, or a folder holds no images or cannot be read.
    """
    found: dict[Path, Path] = {}
    n_masks = 0
    for given in inputs:
        if not given.is_dir():
            if not given.exists():
                raise DataError(f"images: there is no file or folder '{given}'")
            found[given] = Path(given.name)
            continue
        below, masks = _images_below(Folder(given))
        if not below:
            raise DataError(f"images: none in '{given}' (expected {', '.join(IMAGE_SUFFIXES)})")
        found |= {path: path.relative_to(given) for path in below}
        n_masks += masks
    return found, n_masks


def find_good(folder: Path) -> list[Path]:
    """List the good images in a folder and its sub-folders, to set thresholds with.

    Raises:
        DataError: there are none, or some of them are masks.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "is not there"
        raise DataError(f"good: '{folder}' {problem}; give a folder of good images")
    images = []
    for inner in Folder(folder).walk():
        if any(layout.holds_masks(inner.path) for layout in LAYOUTS.values()):
            raise DataError(
                f"good: '{inner.path}' holds masks, so there are defective images in '{folder}'; "
                "give a folder of good images alone"
            )
        images += inner.images
    if not images:
        raise DataError(f"good: no images in '{folder}' (expected {', '.join(IMAGE_SUFFIXES)})")
    return images


def _images_below(folder: Folder) -> tuple[list[Path], int]:
    """List the images in a folder and its sub-folders, and count the masks left out."""
    masks: list[Folder] = []

    def holds_masks(inner: Folder) -> bool:
        held = any(layout.holds_masks(inner.path) for layout in LAYOUTS.values())
        if held:
            masks.append(inner)
        return held

    images = [path for inner in folder.walk(skip=holds_masks) for path in inner.images]
    return images, sum(len(inner.images) for mask in masks for inner in mask.walk())
