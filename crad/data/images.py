"""Images of any origin (file, Pillow image, array, tensor), converted to RGB."""

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from crad.data.decoding import (
    DEFAULT_DECODING,
    Decoding,
    RawImage,
    decode,
    opened_by_pillow,
    reading,
)
from crad.data.frames import Frame, ImageSize, frame_of
from crad.data.tiles import TileGrid
from crad.errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

ChannelOrder = Literal["rgb", "bgr"]
"""The order of the channels of an array or a tensor; ``"bgr"`` also stands for BGRA."""

_OVERSHOOT = 1e-3  # floats this far out of [0, 1], as of a resampling filter, are clipped


@dataclass(frozen=True)
class DecodedFile:
    """The first image of a file.

    Attributes:
        image: 8-bit RGB, upright.
        has_more: whether the file has further pages or frames, which are not used.
        reduction: pixels of the file for one of the image, along each side.
    """

    image: Image.Image
    has_more: bool
    reduction: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image of the file."""
        return self.reduction * self.image.height, self.reduction * self.image.width


def open_image(path: str | os.PathLike[str], decoding: Decoding = DEFAULT_DECODING) -> Image.Image:
    """Read the first image of a file as 8-bit RGB; otherwise as `decode_file`."""
    return decode_file(path, decoding).image


def decode_file(
    path: str | os.PathLike[str],
    decoding: Decoding = DEFAULT_DECODING,
    frame: Frame | None = None,
) -> DecodedFile:
    """Read the first image of a file, converted as by `to_rgb`.

    Args:
        path: an image file of any format that Pillow reads, with any suffix. PNG, TIFF and PPM
            files of 16-bit colours are read in their full depth.
        decoding: how.
        frame: what the image, or its tiles, will be brought to; a much larger image may then be
            reduced.

    Raises:
        ImageError: the file is missing, no regular file, empty, truncated, no image, too large, or
            has values beyond the bit depth.
    """
    with reading(path):
        resized = frame.resized if frame and decoding.reduced else None
        raw = decode(path, decoding.max_megapixels, resized=resized)
        return DecodedFile(_picture(raw, decoding.bit_depth), raw.has_more, raw.reduction)


def to_rgb(
    image: "Image.Image | npt.NDArray[Any] | Tensor",
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
        with reading(getattr(image, "filename", None) or "(in memory)"):
            if not image.width or not image.height:
                raise ImageError(f"it has {image.width} x {image.height} pixels")
            return _picture(opened_by_pillow(image), decoding.bit_depth)
    if is_tensor(image):
        if not _is_plain(image):
            raise ImageError(
                f"to_rgb(): a tensor of type {image.dtype}, layout {image.layout}, on "
                f"{image.device}; expected a dense one of bool, uint8, uint16 or float in [0, 1]"
            )
        expected = "a tensor of shape (1, 3 or 4, height, width)"
        fits = image.ndim == 3 and image.shape[0] in (1, 3, 4)
    elif isinstance(image, np.ndarray):
        expected = "an array of shape (height, width) or (height, width, 1, 3 or 4)"
        fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    else:
        raise TypeError(
            "to_rgb(): expected a Pillow image, a NumPy array or a tensor, "
            f"but got {type(image).__name__}"
        )
    shape = tuple(image.shape)
    if not fits or 0 in shape:
        raise ImageError(f"to_rgb(): expected {expected}, at least one pixel, but got {shape}")
    levels: npt.NDArray[Any]
    if is_tensor(image):
        last = image.detach().cpu().movedim(0, -1)
        levels = (last.float() if last.is_floating_point() else last).numpy()
    else:
        levels = np.asarray(image)
    pixels = _three_channels(_to_8_bit(levels, decoding.bit_depth))
    if channel_order == "bgr":
        pixels = pixels[..., ::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))


def is_tensor(value: object) -> "TypeGuard[Tensor]":
    """Whether a value is a tensor of PyTorch, which is not imported to tell."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_plain(tensor: "Tensor") -> bool:
    """Whether a tensor has values that NumPy can have."""
    is_dense = is_strided(tensor) and not tensor.is_nested and not tensor.is_meta
    return is_dense and not tensor.is_quantized and not tensor.is_complex()


def is_strided(tensor: "Tensor") -> bool:
    """Whether a tensor is a dense one."""
    return bool(tensor.layout == sys.modules["torch"].strided)


def check_channel_order(channel_order: str) -> None:
    """Refuse what is no order of channels.

    Raises:
        UsageError: it is neither ``"rgb"`` nor ``"bgr"``.
    """
    if not isinstance(channel_order, str) or channel_order not in get_args(ChannelOrder):
        raise UsageError(f"channel_order: expected 'rgb' or 'bgr', but got {channel_order!r}")


def to_frame(image: Image.Image, size: ImageSize) -> npt.NDArray[np.uint8]:
    """Bring an RGB image to a frame (bilinear, antialiased, not cropped).

    Args:
        image: of any size; all images are resized here, whatever they come from.
        size: the side of a square, a height and a width, or a frame.

    Returns:
        Array (H, W, 3).
    """
    frame = frame_of(size)
    height, width = frame.content((image.height, image.width))
    return _framed(image.resize((width, height), Image.Resampling.BILINEAR), frame)


def tile_to_frame(
    image: Image.Image, frame: Frame, grid: TileGrid, place: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Bring a tile of an RGB image to a frame, as `to_frame` does with an image.

    Neighbouring tiles have the same pixels where they overlap.

    Args:
        image: of any size, the whole of it.
        frame: with a tiling.
        grid: the tiles of the image.
        place: the first row and column of the tile, in cells.

    Returns:
        Array (H, W, 3).
    """
    assert frame.stride
    (top, left), (height, width) = place, grid.part
    across, down = image.width / grid.columns, image.height / grid.rows  # pixels of a cell
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    box = (*box[:2], min(box[2], image.width), min(box[3], image.height))  # but for rounding
    size = width * frame.stride, height * frame.stride
    return _framed(image.resize(size, Image.Resampling.BILINEAR, box), frame)


def _framed(content: Image.Image, frame: Frame) -> npt.NDArray[np.uint8]:
    """The pixels of an image; the rest of the frame has its mean colour."""
    pixels = np.array(content)
    height, width = pixels.shape[:2]
    if (height, width) != (frame.height, frame.width):
        inner, pixels = pixels, np.empty((frame.height, frame.width, 3), np.uint8)
        pixels[:] = np.rint(inner.mean(axis=(0, 1)))
        pixels[:height, :width] = inner
    return pixels


def _picture(raw: RawImage, bit_depth: int) -> Image.Image:
    """Convert any Pillow mode, or 16-bit colours, to RGB, as `to_rgb` says."""
    image, depth = raw.image, 16 if raw.own_range else bit_depth
    if raw.colours is not None:
        pixels = np.ascontiguousarray(_three_channels(_to_8_bit(raw.colours, depth)))
        return raw.upright(Image.fromarray(pixels))
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
        grey = _to_8_bit(levels, depth)
        image = Image.fromarray(~grey if raw.white_is_zero else grey)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of a palette's transparency
    return image.convert("RGB")


def _three_channels(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Repeat grey (H, W) or (H, W, 1 or 2), and drop alpha."""
    levels = np.atleast_3d(levels)
    return np.repeat(levels[..., :1], 3, axis=2) if levels.shape[2] < 3 else levels[..., :3]


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
