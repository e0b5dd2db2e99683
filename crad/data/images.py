"""Images and masks of any origin (file, Pillow image, array, tensor), converted to RGB."""

import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import (
    ExifTags,
    Image,
    ImageFile,
    ImageOps,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from crad.errors import ImageError, UsageError
from crad.files import irregular

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in lower case; the case of a suffix does not matter."""

MaskResize = Literal["nearest", "bilinear", "any"]
"""How a mask is resized, as `resize_mask` says."""

ChannelOrder = Literal["rgb", "bgr"]
"""The order of the channels of an array or a tensor; ``"bgr"`` also stands for BGRA."""

BIT_DEPTHS = range(8, 17)
"""Bits that the values of 16-bit pixels may have."""

MAX_MEGAPIXELS = 89.478485
"""Default limit of an image's million pixels, which is Pillow's."""

_OVERSHOOT = 1e-3  # floats this far out of [0, 1], as of a resampling filter, are clipped
_BLURRING = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
_BITS_PER_SAMPLE, _EXTRA_SAMPLES = 258, 338  # tags of TIFF
_pillow_limit = threading.Lock()  # it is global to the process, not to a thread


@dataclass(frozen=True)
class Decoding:
    """How the pixels of images are read.

    Args:
        bit_depth: of 16-bit pixels, whose values are scaled from [0, 2 ** bit_depth - 1].
        max_megapixels: an image of more million pixels is refused.

    Raises:
        UsageError: one of them is out of range.
    """

    bit_depth: int = 16
    max_megapixels: float = MAX_MEGAPIXELS

    def __post_init__(self) -> None:
        if not isinstance(self.bit_depth, Integral) or self.bit_depth not in BIT_DEPTHS:
            raise UsageError(f"bit_depth: expected 8 to 16, but got {self.bit_depth!r}")
        if not isinstance(self.max_megapixels, Real) or not 0 < self.max_megapixels < math.inf:
            raise UsageError(
                f"max_megapixels: expected a number above 0, but got {self.max_megapixels!r}"
            )


DEFAULT_DECODING = Decoding()
"""16 bits, and Pillow's limit."""


@dataclass(frozen=True)
class DecodedFile:
    """The first image of a file.

    Attributes:
        image: 8-bit RGB, upright.
        has_more: whether the file has further pages or frames, which are not used.
    """

    image: Image.Image
    has_more: bool


def natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    """Sort key that orders ``img2`` before ``img10``."""
    pieces = re.findall(r"(\D*)(\d*)", name.casefold())
    return [(text, int(digits or -1)) for text, digits in pieces], name


def open_image(path: str | os.PathLike[str], decoding: Decoding = DEFAULT_DECODING) -> Image.Image:
    """Read the first image of a file as 8-bit RGB; otherwise as `decode_file`."""
    return decode_file(path, decoding).image


def decode_file(path: str | os.PathLike[str], decoding: Decoding = DEFAULT_DECODING) -> DecodedFile:
    """Read the first image of a file, converted as by `to_rgb`.

    Args:
        path: an image file of any format that Pillow reads, with any suffix. PNG, TIFF and PPM
            files of 16-bit colours are read in their full depth.
        decoding: how.

    Raises:
        ImageError: the file is missing, no regular file, empty, truncated, no image, too large, or
            has values beyond the bit depth.
    """
    with _reading(path):
        raw = _load(path, decoding.max_megapixels)
        return DecodedFile(_picture(raw, decoding.bit_depth), raw.has_more)


def largest_deep_value(path: str | os.PathLike[str], decoding: Decoding) -> int | None:
    """The largest value of a file with 16-bit pixels; None for any other, which is not decoded.

    Raises:
        ImageError: as for `decode_file`.
    """
    with _reading(path):
        raw = _load(path, decoding.max_megapixels, only_deep=True)
        if not raw.is_deep:
            return None
        levels = np.asarray(raw.image) if raw.colours is None else raw.colours
        return int(levels.max())


def displayed_size(path: str | os.PathLike[str], decoding: Decoding) -> tuple[int, int]:
    """Height and width of an image after its EXIF orientation, from the header of the file.

    Raises:
        ImageError: as for `decode_file`, as far as the header tells.
    """
    with _reading(path), _opened(path, decoding.max_megapixels) as (_, image):
        # The method of a PNG would decode all of it for an orientation that comes last.
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def open_mask(
    path: str | os.PathLike[str],
    size: int | None = None,
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
        size: side in pixels of the square to resize to, as `resize_mask` does; None keeps the
            height and width.
        resize: as for `resize_mask`.
        decoding: its largest size holds for masks too.

    Returns:
        Bool array (size, size), or (height, width).

    Raises:
        ImageError: as for `decode_file`, or the file has further pages or frames.
    """
    with _reading(path):
        raw = _load(path, decoding.max_megapixels)
        if raw.has_more:
            raise ImageError("it has further pages or frames; save a mask as one image")
        white = Image.fromarray(_to_8_bit(_marked(raw)))
        mask = np.asarray(_upright(white, raw.image)) > 0
    return mask if size is None else resize_mask(mask, size, resize)


def resize_mask(
    mask: npt.NDArray[np.bool_], size: int, resize: MaskResize = "nearest"
) -> npt.NDArray[np.bool_]:
    """Resize a mask (H, W) to a square.

    Args:
        mask: True where there is a defect.
        size: side in pixels.
        resize: ``"nearest"`` takes the nearest pixel; ``"bilinear"`` resizes as `to_tensor` does,
            with a threshold of one half; ``"any"`` takes a pixel for defective if any pixel that
            its area touches is, so that no defect vanishes.
    """
    if resize == "any":
        return _any_below(_any_below(mask, size).T, size).T
    white = Image.fromarray(_to_8_bit(mask))
    return np.asarray(white.resize((size, size), Image.Resampling[resize.upper()])) > 127


def to_rgb(
    image: Image.Image | npt.NDArray[Any] | torch.Tensor,
    decoding: Decoding = DEFAULT_DECODING,
    channel_order: ChannelOrder = "rgb",
) -> Image.Image:
    """Convert an image in memory to 8-bit RGB.

    Greyscale is repeated over the three channels, alpha is dropped, a palette becomes its colours,
    and 16-bit values are scaled from [0, 2 ** bit depth - 1], also in Pillow's 32-bit mode ``I``,
    in which it opens many 16-bit files. A scale guessed from the values of an image would make the
    scores of two images incomparable.

    Args:
        image: a Pillow image of any mode (EXIF orientation is applied); an array (H, W) or
            (H, W, 1, 3 or 4) of bool, uint8, uint16 or float in [0, 1]; or a tensor
            (1, 3 or 4, H, W) of the same types. Channels are RGB or RGBA.
        decoding: its bit depth counts.
        channel_order: ``"bgr"`` takes the channels of an array or a tensor for BGR or BGRA, as of
            OpenCV; a Pillow image names its channels itself.

    Raises:
        ImageError: the shape, type or range is wrong, or Pillow would drop half of 16-bit colours.
        TypeError: `image` is none of the three.
        UsageError: there is no such order of channels.
    """
    check_channel_order(channel_order)
    if isinstance(image, Image.Image):
        with _reading(getattr(image, "filename", None) or "(in memory)"):
            if not image.width or not image.height:
                raise ImageError(f"it has {image.width} x {image.height} pixels")
            if _has_deep_colours(image):
                raise ImageError(
                    "Pillow keeps 8 of the 16 bits of its colours; give the name of the file"
                )
            return _picture(_Raw(image, None, _own_range(image)), decoding.bit_depth)
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise TypeError(
            "to_rgb(): expected a Pillow image, a NumPy array or a tensor, "
            f"but got {type(image).__name__}"
        )
    if isinstance(image, torch.Tensor) and not _is_plain(image):
        raise ImageError(
            f"to_rgb(): a tensor of type {image.dtype}, layout {image.layout}, on {image.device}; "
            "expected a dense one of bool, uint8, uint16 or float in [0, 1]"
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
    pixels = _three_channels(_to_8_bit(image, decoding.bit_depth))
    if channel_order == "bgr":
        pixels = pixels[..., ::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values that NumPy can have."""
    is_dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
    return is_dense and not tensor.is_quantized and not tensor.is_complex()


def check_channel_order(channel_order: str) -> None:
    """Refuse what is no order of channels.

    Raises:
        UsageError: it is neither ``"rgb"`` nor ``"bgr"``.
    """
    if not isinstance(channel_order, str) or channel_order not in get_args(ChannelOrder):
        raise UsageError(f"channel_order: expected 'rgb' or 'bgr', but got {channel_order!r}")


def to_tensor(image: Image.Image, size: int) -> torch.Tensor:
    """Resize an RGB image to a square (bilinear, antialiased, not cropped) and make it a tensor.

    Returns:
        Float32 tensor (3, size, size) in [0, 1], contiguous.
    """
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().float() / 255


@dataclass(frozen=True)
class _Raw:
    """An image before its conversion to RGB.

    Attributes:
        image: decoded by Pillow, before its EXIF orientation.
        colours: (H, W, C) uint16 before that orientation, where Pillow would keep 8 bits of them.
        own_range: whether `image` is scaled to 65535 from the range that its file states.
        has_more: as in `DecodedFile`.
    """

    image: Image.Image
    colours: npt.NDArray[np.uint16] | None
    own_range: bool
    has_more: bool = False

    @property
    def is_deep(self) -> bool:
        """Whether the bit depth counts."""
        deep = self.colours is not None or self.image.mode.startswith("I")
        return deep and not self.own_range


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong in the block into an `ImageError` that names the image."""
    try:
        yield
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image, or of a format Pillow does not know"
        raise ImageError(f"cannot read image '{os.fspath(path)}': {reason}") from error


@contextmanager
def _opened(
    path: str | os.PathLike[str], max_megapixels: float
) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """Open a file and read its header, in the block."""
    if kind := irregular(path):  # reading a FIFO would wait for ever
        raise ImageError(f"it is {kind}, not a regular file")
    with Path(path).open("rb") as file:
        if not file.peek(1):
            raise ImageError("the file is empty")
        with _pillow_limit:
            former, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(file)
            finally:
                Image.MAX_IMAGE_PIXELS = former
        megapixels = image.width * image.height / 1e6
        if megapixels > max_megapixels:
            raise ImageError(
                f"it has {megapixels:.4g} million pixels, more than the limit of "
                f"{max_megapixels:.4g} million; cut it into tiles, or raise --max-megapixels (in "
                "Python: max_megapixels) if the file is to be trusted"
            )
        yield file, image


def _load(path: str | os.PathLike[str], max_megapixels: float, *, only_deep: bool = False) -> _Raw:
    """Decode a file completely, or with ``only_deep`` if the bit depth counts, and close it."""
    with _opened(path, max_megapixels) as (file, image):
        # The second image of a MPO is a preview or another view of the same photograph.
        has_more = image.format != "MPO" and getattr(image, "is_animated", False)
        raw = _Raw(image, None, _own_range(image), has_more)
        if isinstance(image, ImageFile.ImageFile) and _has_deep_colours(image):
            raw = replace(raw, colours=_deep_colours(file, image))
            image.getexif()  # as long as the file is open
        elif raw.is_deep or not only_deep:
            image.load()
        return raw


def _own_range(image: Image.Image) -> bool:
    """Whether Pillow scales 16-bit values to 65535 from the range in the header."""
    if image.format == "PPM" and isinstance(image, ImageFile.ImageFile) and image.tile:
        arguments = image.tile[0].args
        return isinstance(arguments, tuple) and arguments[-1] != 65535
    return image.format == "JPEG2000"


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether Pillow keeps 8 of 16 bits of an image that is not decoded yet."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return False
    if image.mode.startswith(("I", "F")):
        return False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return bool(np.max(image.tag_v2.get(_BITS_PER_SAMPLE, 1)) > 8)
    arguments = image.tile[0].args
    if image.format == "PPM":
        return isinstance(arguments, tuple) and arguments[-1] == 65535
    return image.format == "PNG" and ";16" in str(arguments)


def _deep_colours(file: BinaryIO, image: ImageFile.ImageFile) -> npt.NDArray[np.uint16]:
    """Decode 16-bit colours (H, W, C), C being 2 to 4."""
    if image.format == "PNG":
        order = str(image.tile[0].args)
        if order.startswith("LA"):  # of four bytes a pixel, as RGBA
            return _png_bytes(file, "RGBA").view(">u2").astype(np.uint16)
        # Pillow keeps the high byte of each value, and by the wrong order of bytes the low one.
        low = _png_bytes(file, order.replace(";16B", ";16L"))
        return np.asarray(image).astype(np.uint16) * 256 + low
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        import tifffile

        premultiplied = image.tag_v2.get(_EXTRA_SAMPLES) == (1,)
        if image.mode not in ("RGB", "RGBA") or premultiplied:
            raise ImageError(
                f"16-bit colours of mode {image.mode} or with premultiplied alpha; save it as "
                "16-bit RGB"
            )
        file.seek(0)
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages[0]
            colours = page.asarray()
            planes_first = page.axes.startswith("S")
        return np.asarray(colours.transpose(1, 2, 0) if planes_first else colours, np.uint16)
    tile = image.tile[0]
    if tile.codec_name != "ppm":
        raise ImageError("16-bit colours written as text; save it as a PNG or TIFF file")
    file.seek(tile.offset)
    values = np.frombuffer(file.read(), ">u2", count=3 * image.width * image.height)
    return values.reshape(image.height, image.width, 3).astype(np.uint16)


def _png_bytes(file: BinaryIO, rawmode: str) -> npt.NDArray[np.uint8]:
    """Decode a PNG file as if its pixels lay in memory as ``rawmode`` says."""
    file.seek(0)
    image = PngImagePlugin.PngImageFile(file)
    image.tile = [tile._replace(args=rawmode) for tile in image.tile]
    return np.asarray(image)


def _picture(raw: _Raw, bit_depth: int) -> Image.Image:
    """Convert any Pillow mode, or 16-bit colours, to RGB, as `to_rgb` says."""
    image, depth = raw.image, 16 if raw.own_range else bit_depth
    if raw.colours is not None:
        pixels = np.ascontiguousarray(_three_channels(_to_8_bit(raw.colours, depth)))
        return _upright(Image.fromarray(pixels), image)
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
        image = Image.fromarray(_to_8_bit(levels, depth))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of a palette's transparency
    return image.convert("RGB")


def _upright(image: Image.Image, original: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of another image with the same pixels."""
    orientation = original.getexif().get(ExifTags.Base.Orientation, 1)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _three_channels(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Repeat grey (H, W) or (H, W, 1 or 2), and drop alpha."""
    levels = np.atleast_3d(levels)
    return np.repeat(levels[..., :1], 3, axis=2) if levels.shape[2] < 3 else levels[..., :3]


def _marked(raw: _Raw) -> npt.NDArray[np.bool_]:
    """The region of a mask, as `open_mask` says, before the EXIF orientation."""
    image = raw.image
    levels: npt.NDArray[Any]
    if raw.colours is not None:
        levels = raw.colours
    elif image.mode in ("P", "PA"):
        levels = np.asarray(image.convert("RGBA"))
    elif image.mode in ("1", "L", "LA", "RGBA") or image.mode.startswith(("I", "F")):
        levels = np.atleast_3d(np.asarray(image))
    else:
        levels = np.asarray(image.convert("RGB"))
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


def _to_8_bit(levels: npt.NDArray[Any], bit_depth: int = 16) -> npt.NDArray[np.uint8]:
    """Scale bool, uint8, uint16 or float in [0, 1] to uint8, with rounding."""
    if levels.dtype == np.bool_:
        return levels.astype(np.uint8) * np.uint8(255)
    if levels.dtype == np.uint8:
        return levels
    if levels.dtype.kind == "u" and levels.dtype.itemsize == 2:
        top, largest = 2**bit_depth - 1, int(levels.max())
        if largest > top:
            raise ImageError(
                f"its largest value is {largest}, beyond the {top} of bit depth {bit_depth}; "
                f"correct the image, or give --bit-depth {largest.bit_length()} (in Python: "
                "bit_depth)"
            )
        return np.asarray((levels.astype(np.uint32) * 255 + top // 2) // top, np.uint8)
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
