"""Images and masks of any origin (file, Pillow image, array, tensor), converted to RGB."""

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from crad.errors import ImageError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in lower case; the case of a suffix does not matter."""

MaskResize = Literal["nearest", "bilinear", "any"]
"""How a mask is resized, as `open_mask` says."""

_OVERSHOOT = 1e-3  # floats this far out of [0, 1], as of a resampling filter, are clipped
_warning_filters = threading.Lock()  # these are global to the process, not to a thread


def natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    """Sort key that orders ``img2`` before ``img10``."""
    pieces = re.findall(r"(\D*)(\d*)", name.casefold())
    return [(text, int(digits or -1)) for text, digits in pieces], name


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files directly in a folder, in natural order, without hidden ones.

    A broken link is listed, so that opening it is an error.
    """
    return _visible(
        Path(folder), lambda path: path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()
    )


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder in natural order, without hidden ones; none if it is missing."""
    return _visible(folder, Path.is_dir) if folder.is_dir() else []


def _visible(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    found = (path for path in folder.iterdir() if not path.name.startswith(".") and wanted(path))
    return sorted(found, key=lambda path: natural_key(path.name))


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read the first image of a file as 8-bit RGB, converted as by `to_rgb`.

    Args:
        path: an image file of any format that Pillow reads, with any suffix.

    Raises:
        ImageError: the file is missing, empty, truncated, no image, or too large to be genuine.
    """
    with _reading(path):
        return _rgb(_load(path))


def open_mask(
    path: str | os.PathLike[str], size: int | None = None, resize: MaskResize = "nearest"
) -> npt.NDArray[np.bool_]:
    """Read a ground-truth mask: True where a pixel is above zero in any channel but alpha.

    So masks of 0 and 1, of 0 and 255, of class ids and of coloured regions are read alike. JPEG
    blurs the edges of a mask, so its threshold is half white.

    Args:
        path: an image file.
        size: side in pixels of the square to resize to; None keeps the height and width.
        resize: ``"nearest"`` takes the nearest pixel; ``"bilinear"`` resizes as `to_tensor` does,
            with a threshold of one half; ``"any"`` makes a pixel True if any pixel of its area is.

    Returns:
        Bool array (size, size), or (height, width).

    Raises:
        ImageError: as for `open_image`.
    """
    with _reading(path):
        image = _load(path)
        threshold = 127 if image.format == "JPEG" else 0
        image = ImageOps.exif_transpose(image)
        if image.mode not in ("1", "L") and not image.mode.startswith(("I", "F")):
            image = _rgb(image)
        levels = np.asarray(image).astype(np.float32)
        mask = (levels if levels.ndim == 2 else levels.max(axis=2)) > threshold
        if size is None:
            return mask
        if resize == "any":
            return _any(_any(mask, size).T, size).T
        white = Image.fromarray(_to_8_bit(mask))
        return np.asarray(white.resize((size, size), Image.Resampling[resize.upper()])) > 127


def _any(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """Resize along the first axis: True if any row that a new row covers, in part too, is."""
    counts = np.pad(np.cumsum(mask, axis=0), ((1, 0), (0, 0)))
    edges = np.arange(size + 1) * len(mask)
    found: npt.NDArray[np.bool_] = counts[-(-edges[1:] // size)] > counts[edges[:-1] // size]
    return found


def to_rgb(image: Image.Image | npt.NDArray[Any] | torch.Tensor) -> Image.Image:
    """Convert an image in memory to 8-bit RGB.

    Greyscale is repeated over the three channels, alpha is dropped, and 16-bit values are scaled
    from [0, 65535], also in Pillow's 32-bit mode ``I``, in which it opens many 16-bit files. A
    scale guessed from the values of an image would make the scores of two images incomparable.

    Args:
        image: a Pillow image of any mode (EXIF orientation is applied); an array (H, W) or
            (H, W, 1, 3 or 4) of bool, uint8, uint16 or float in [0, 1]; or a tensor
            (1, 3 or 4, H, W) of the same types.

    Raises:
        ImageError: the shape, type or range is wrong.
        TypeError: `image` is none of the three.
    """
    if isinstance(image, Image.Image):
        with _reading(getattr(image, "filename", None) or "(in memory)"):
            return _rgb(image)
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise TypeError(
            "to_rgb(): expected a Pillow image, a NumPy array or a tensor, "
            f"but got {type(image).__name__}"
        )
    shape = tuple(image.shape)
    if isinstance(image, torch.Tensor):
        expected = "a tensor of shape (1, 3 or 4, height, width)"
        fits = len(shape) == 3 and shape[0] in (1, 3, 4)
    else:
        expected = "an array of shape (height, width) or (height, width, 1, 3 or 4)"
        fits = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if not fits or 0 in shape:
        raise ImageError(f"to_rgb(): expected {expected}, at least one pixel, but got {shape}")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().movedim(0, -1)
        image = (image.float() if image.is_floating_point() else image).numpy()
    levels = np.atleast_3d(_to_8_bit(image))
    pixels = np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels))


def to_tensor(image: Image.Image, size: int) -> torch.Tensor:
    """Resize an RGB image to a square (bilinear, antialiased, not cropped) and make it a tensor.

    Returns:
        Float32 tensor (3, size, size) in [0, 1], contiguous.
    """
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().float() / 255


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong in the block into an `ImageError` that names the image."""
    try:
        yield
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
            limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
            reason = (
                f"it has more than {limit} million pixels; cut it into tiles, or raise "
                "PIL.Image.MAX_IMAGE_PIXELS if the file is to be trusted"
            )
        elif isinstance(error, UnidentifiedImageError):
            reason = "not an image, or of a format Pillow does not know"
        raise ImageError(f"cannot read image '{os.fspath(path)}': {reason}") from error


def _load(path: str | os.PathLike[str]) -> Image.Image:
    """Decode a file completely, and close it."""
    with Path(path).open("rb") as file:
        if not file.peek(1):
            raise ImageError("the file is empty")
        with _warning_filters, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file)
        image.load()
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB, as `to_rgb` says."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image)
        if image.mode == "I":
            if levels.min() < 0 or levels.max() > 65535:
                raise ImageError(
                    f"pixels are 32-bit integers from {levels.min()} to {levels.max()}, expected 0 "
                    "to 65535; save it with 8 or 16 bits a pixel"
                )
            levels = levels.astype(np.uint16)
        image = Image.fromarray(_to_8_bit(levels))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of a palette's transparency
    return image.convert("RGB")


def _to_8_bit(levels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale bool, uint8, uint16 or float in [0, 1] to uint8, with rounding."""
    if levels.dtype == np.bool_:
        return levels.astype(np.uint8) * np.uint8(255)
    if levels.dtype == np.uint8:
        return levels
    if levels.dtype.kind == "u" and levels.dtype.itemsize == 2:
        return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if levels.dtype.kind == "f":
        low, high = float(levels.min()), float(levels.max())
        if not np.isfinite([low, high]).all():  # both are NaN if any pixel is
            raise ImageError("some float pixels are NaN or infinite, expected 0 to 1; replace them")
        if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
            raise ImageError(
                f"float pixels range from {low:g} to {high:g}, expected 0 to 1; divide by the "
                "largest value a pixel can have"
            )
        scaled: npt.NDArray[np.uint8] = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
        return scaled
    raise ImageError(
        f"pixels of type {levels.dtype}; expected bool, uint8, uint16 or float in [0, 1]"
    )
