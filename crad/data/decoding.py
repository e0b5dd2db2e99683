"""Opening image files, and decoding them in their full depth."""

import io
import math
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import (
    ExifTags,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from crad.errors import ImageError, UsageError
from crad.files import irregular

BIT_DEPTHS = range(8, 17)
"""Bits that the values of 16-bit pixels may have."""

MAX_MEGAPIXELS = 89.478485
"""Default limit of an image's million pixels, which is Pillow's."""

_WIDTH, _HEIGHT, _BITS_PER_SAMPLE = 256, 257, 258  # tags of TIFF
_PHOTOMETRIC, _EXTRA_SAMPLES = 262, 338
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_REDUCTIONS = (8, 4, 2)  # that a JPEG decoder offers
_KEPT = 4  # pixels that a reduced image has at least for one that is needed, along each side
_pillow_limit = threading.Lock()  # it is global to the process, not to a thread


@dataclass(frozen=True)
class Decoding:
    """How the pixels of images are read.

    Args:
        bit_depth: of 16-bit pixels, whose values are scaled from [0, 2 ** bit_depth - 1].
        max_megapixels: an image of more million pixels is refused.
        reduced: whether a JPEG file is decoded at a half, a quarter or an eighth of its size where
            four times as many pixels remain along each side as the image is resized to.

    Raises:
        UsageError: one of them is out of range.
    """

    bit_depth: int = 16
    max_megapixels: float = MAX_MEGAPIXELS
    reduced: bool = False

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
class RawImage:
    """An image before its conversion to RGB.

    Attributes:
        image: decoded by Pillow, before its EXIF orientation.
        colours: (H, W, C) uint16 before that orientation, where Pillow would keep 8 bits of them.
        own_range: whether `image` is scaled to 65535 from the range that its file states.
        has_more: whether the file has further pages or frames.
        reduction: pixels of the file for one of the image, along each side.
    """

    image: Image.Image
    colours: npt.NDArray[np.uint16] | None
    own_range: bool
    has_more: bool = False
    reduction: int = 1

    @property
    def is_deep(self) -> bool:
        """Whether the bit depth counts."""
        deep = self.colours is not None or self.image.mode.startswith("I")
        return deep and not self.own_range

    @property
    def white_is_zero(self) -> bool:
        """Whether zero stands for white. Pillow inverts such images of up to 8 bits, no others."""
        tags = getattr(self.image, "tag_v2", {})
        return self.image.mode.startswith(("I", "F")) and tags.get(_PHOTOMETRIC) == 0

    def upright(self, image: Image.Image) -> Image.Image:
        """Apply the EXIF orientation to an image that was made from the pixels of this one."""
        orientation = self.image.getexif().get(ExifTags.Base.Orientation, 1)
        image.getexif()[ExifTags.Base.Orientation] = orientation
        return ImageOps.exif_transpose(image)


def opened_by_pillow(image: Image.Image) -> RawImage:
    """Take an image that somebody has opened with Pillow.

    Raises:
        ImageError: Pillow would drop half of its 16-bit colours.
    """
    if _has_deep_colours(image):
        raise ImageError("Pillow keeps 8 of the 16 bits of its colours; give the name of the file")
    return RawImage(image, None, _own_range(image))


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong in the block into an `ImageError` that names the image."""
    try:
        yield
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image, or of a format Pillow does not know"
        raise ImageError(f"cannot read image '{os.fspath(path)}': {reason}") from error


def decode(
    path: str | os.PathLike[str],
    max_megapixels: float,
    *,
    only_deep: bool = False,
    resized: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
) -> RawImage:
    """Decode the first image of a file, and close it.

    Args:
        path: an image file of any format that Pillow reads, with any suffix. PNG, TIFF and PPM
            files of 16-bit colours are read in their full depth.
        max_megapixels: as of `Decoding`.
        only_deep: leaves out the pixels of an image for which the bit depth does not count.
        resized: gives the height and width that an image of a height and width will be resized to,
            so that a much larger one may be reduced, as `Decoding` says; None reduces none.

    Raises:
        Exception: of any kind; `reading` makes it an `ImageError`.
    """
    with _opened(path, max_megapixels) as (file, image):
        # The second image of a MPO is a preview or another view of the same photograph.
        has_more = image.format != "MPO" and getattr(image, "is_animated", False)
        raw = RawImage(image, None, _own_range(image), has_more)
        if resized and isinstance(image, JpegImagePlugin.JpegImageFile):
            raw = replace(raw, reduction=_reduce(image, resized))
        if isinstance(image, ImageFile.ImageFile) and _has_deep_colours(image):
            raw = replace(raw, colours=_deep_colours(file, image))
            image.getexif()  # as long as the file is open
        elif raw.is_deep or not only_deep:
            image.load()
        return raw


def _reduce(
    image: JpegImagePlugin.JpegImageFile,
    resized: Callable[[tuple[int, int]], tuple[int, int]],
) -> int:
    """Have an image decoded at a fraction of its size, if that may be; give what divides it."""
    width, height = image.size
    sizes = [(width, height), resized((height, width))[::-1]]
    if _is_turned(image):
        sizes[1] = resized((width, height))
    for divisor in _REDUCTIONS:
        if all(
            length % divisor == 0 and length >= _KEPT * divisor * needed
            for length, needed in zip(*sizes, strict=True)
        ):
            image.draft(None, (width // divisor, height // divisor))
            return divisor
    return 1


def _is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation exchanges height and width."""
    # The method of a PNG would look for pixels if there is no EXIF.
    return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in range(5, 9)


def largest_deep_value(path: str | os.PathLike[str], decoding: Decoding) -> int | None:
    """The largest value of a file with 16-bit pixels; None for any other, which is not decoded.

    Raises:
        ImageError: as for `decode`.
    """
    with reading(path):
        raw = decode(path, decoding.max_megapixels, only_deep=True)
        if not raw.is_deep:
            return None
        levels = np.asarray(raw.image) if raw.colours is None else raw.colours
        return int(levels.max())


def displayed_size(path: str | os.PathLike[str], decoding: Decoding) -> tuple[int, int]:
    """Height and width of an image after its EXIF orientation; its pixels are not decoded.

    Raises:
        ImageError: as for `decode`, as far as the rest of the file tells.
    """
    with reading(path), _opened(path, decoding.max_megapixels) as (file, image):
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # some versions of Pillow turn it
            width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
        if image.format == "PNG":
            image = _png_without_pixels(file)
        return (width, height) if _is_turned(image) else (height, width)


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


def _png_without_pixels(file: BinaryIO) -> PngImagePlugin.PngImageFile:
    """Open what a PNG file says before and after its pixels; Pillow stops before them."""
    file.seek(0)
    kept = [file.read(8)]
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"fdAT", b"IEND"):  # Pillow, too, reads no further than the first frame
            break
        if kind == b"IDAT":
            file.seek(length + 4, os.SEEK_CUR)
        else:
            kept += [head, file.read(length + 4)]
    return PngImagePlugin.PngImageFile(io.BytesIO(b"".join([*kept, _PNG_END])))
