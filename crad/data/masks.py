"""Ground-truth masks: reading and resizing them."""

import os
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from crad.data.decoding import DEFAULT_DECODING, Decoding, RawImage, decode, reading
from crad.data.frames import ImageSize, frame_of
from crad.errors import ImageError, UsageError

MaskResize = Literal["nearest", "bilinear", "any"]
"""How a mask is resized, as `resize_mask` says."""

_BLURRING = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")


def open_mask(
    path: str | os.PathLike[str],
    size: ImageSize | None = None,
    resize: MaskResize = "nearest",
    decoding: Decoding = DEFAULT_DECODING,
) -> npt.NDArray[np.bool_]:
    """Read a ground-truth mask: True where a pixel is above zero in any channel.

    So masks of 0 and 1, of 0 and 255, of class ids, of 16 bits and of coloured regions are read
    alike. Formats that may blur edges, such as JPEG, have a threshold of half white.

    Where alpha differs, transparent pixels are no defect, and if the others all have one colour,
    all of them are: a mask may be drawn in alpha alone. In a palette, index 0 is no defect, and
    all others are; but if index 0 has a colour and another index in use is black, black is none.

    Args:
        path: an image file with one image.
        size: that of the images, to resize to as `resize_mask` does; None keeps the height and
            width.
        resize: as for `resize_mask`.
        decoding: its largest size holds for masks too.

    Returns:
        Bool array (H, W).

    Raises:
        ImageError: as for `crad.data.images.decode_file`, or the file has further pages or frames.
        UsageError: there is no such way to resize.
    """
    _check_resize(resize)
    with reading(path):
        raw = decode(path, decoding.max_megapixels)
        if raw.has_more:
            raise ImageError("it has further pages or frames; save a mask as one image")
        mask = np.asarray(raw.upright(_white(_marked(raw)))) > 0
    return mask if size is None else resize_mask(mask, size, resize)


def resize_mask(
    mask: npt.NDArray[np.bool_], size: ImageSize, resize: MaskResize = "nearest"
) -> npt.NDArray[np.bool_]:
    """Resize a mask as its image is.

    Args:
        mask: True where there is a defect, of the height and width of its image.
        size: that of the images: the side of a square, a height and a width, or a frame, of which
            the result is the part that the image takes, without padding.
        resize: ``"nearest"`` takes the nearest pixel; ``"bilinear"`` resizes as images are, with a
            threshold of one half; ``"any"`` takes a pixel for defective if any pixel that its area
            touches is, so that no defect vanishes.

    Raises:
        UsageError: there is no such way to resize.
    """
    _check_resize(resize)
    rows, columns = mask.shape
    height, width = frame_of(size).content((rows, columns))
    if resize == "any":
        return _any_below(_any_below(mask, height).T, width).T
    resized = _white(mask).resize((width, height), Image.Resampling[resize.upper()])
    return np.asarray(resized) > 127


def _marked(raw: RawImage) -> npt.NDArray[np.bool_]:
    """The region of a mask, as `open_mask` says, before the EXIF orientation."""
    image = raw.image
    levels: npt.NDArray[Any]
    if raw.colours is not None:
        levels = raw.colours
    elif image.mode in ("P", "PA"):
        levels = np.asarray(image.convert("RGBA"))
    elif image.mode in ("1", "L", "LA", "RGBA") or image.mode.startswith(("I", "F")):
        levels = np.atleast_3d(np.asarray(image))
        if raw.white_is_zero:
            levels = (1 if image.mode == "F" else 65535) - levels
    else:
        levels = np.asarray(image.convert("RGB"))
    if image.mode == "F" and np.isnan(levels).any():
        raise ImageError("some pixels are NaN; set them to 0 or 1")
    has_alpha = levels.shape[2] in (2, 4)
    colours = levels[..., :-1] if has_alpha else levels
    marked: npt.NDArray[np.bool_] = np.any(
        colours > (127 if image.format in _BLURRING else 0), axis=2
    )
    opaque: npt.NDArray[np.bool_] = levels[..., -1] > 0
    if has_alpha and np.ptp(levels[..., -1]) > 0:
        shown = colours[opaque]
        return opaque if np.ptp(shown, axis=0).max() == 0 else marked & opaque
    if image.mode in ("P", "PA"):
        first_is_black = not any((image.getpalette() or [0, 0, 0])[:3])
        if first_is_black or marked.all():
            return np.asarray(image.getchannel(0)) > 0
    return marked


def _any_below(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """Resize the rows of a mask: True where any row that the new one touches is."""
    counts = np.pad(np.cumsum(mask, axis=0), ((1, 0), (0, 0)))
    edges = np.arange(size + 1) * len(mask)
    first, last = edges[:-1] // size, -(-edges[1:] // size)
    return np.asarray(counts[last] > counts[first])


def _white(mask: npt.NDArray[np.bool_]) -> Image.Image:
    """A picture of a mask: white where it is True."""
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(255))


def _check_resize(resize: str) -> None:
    choices = get_args(MaskResize)
    if resize not in choices:
        raise UsageError(f"resize: expected one of {', '.join(choices)}, but got {resize!r}")
