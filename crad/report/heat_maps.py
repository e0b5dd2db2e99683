"""Heat maps: an anomaly map in colour, over its image."""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFilter

# Dark blue, violet, red, orange, yellow: lightness rises all the way, so that the order shows
# in greyscale and to colour-blind eyes too.
_ANCHORS = ["0d0c2e", "3a1568", "741e75", "ad2d67", "de4948", "f67c26", "fcb73c", "fff060"]
_AT = np.linspace(0, 255, len(_ANCHORS))
_CHANNELS = zip(*map(bytes.fromhex, _ANCHORS), strict=True)
_COLOURS = np.stack([np.interp(np.arange(256), _AT, each) for each in _CHANNELS], axis=1)
_PALETTE = np.rint(_COLOURS).astype(np.uint8).tobytes()

# How opaque a colour lies on its image: not at all in the lowest fifth, where nearly all of a
# normal image is, so that the image shows unchanged there.
_OPACITY = [round(255 * 0.75 * min(1.0, max(0.0, (level - 50) / 100))) for level in range(256)]

_SCALE_PIXELS = 2**17  # of a map, at most, for a colour scale


def some_pixels(scored_map: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Copy some pixels of a map, evenly chosen, for `colour_scale`; all of one of usual size."""
    step = math.ceil(math.sqrt(scored_map.size / _SCALE_PIXELS))
    return scored_map[::step, ::step].copy()


def colour_scale(maps: Iterable[npt.NDArray[np.float32]]) -> tuple[float, float]:
    """Choose a colour scale that keeps normal images to the lower third of the colours.

    Args:
        maps: float maps of normal images, at least one, of any shape.

    Returns:
        (low, high): the median of all pixels, and three times as far above it as their 99.5 %
        quantile is.
    """
    pixels = np.concatenate([np.ravel(anomaly_map) for anomaly_map in maps])
    low, usual = np.quantile(pixels, [0.5, 0.995], overwrite_input=True).tolist()
    return low, low + 3 * (usual - low)


def heat_map(
    image: Image.Image, anomaly_map: npt.NDArray[np.float32], low: float, high: float
) -> Image.Image:
    """Lay an anomaly map over its image in colour, the more opaque the more anomalous.

    Args:
        image: a Pillow image of mode RGB, of any size.
        anomaly_map: float (H, W), finite; stretched over the image whatever its size.
        low: the value that leaves the image unchanged, as all below it.
        high: the value that gets the last colour, as all above it.

    Returns:
        A new RGB image of the size of `image`.
    """
    levels = levels_of(anomaly_map, low, high).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(colour(levels), image, levels.point(_OPACITY))


def overlay(anomaly_map: npt.NDArray[np.float32], low: float, high: float) -> Image.Image:
    """Colour an anomaly map (H, W) as `heat_map` does, as an RGBA picture to lay over its image."""
    levels = levels_of(anomaly_map, low, high)
    picture = colour(levels)
    picture.putalpha(levels.point(_OPACITY))
    return picture


def outline(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> Image.Image:
    """Draw the pixels around the regions of a mask, resized to a width and height: mode L."""
    white = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize(size)
    clear = white.point([255 * (level > 127) for level in range(256)])
    return ImageChops.subtract(clear.filter(ImageFilter.MaxFilter(3)), clear)


def levels_of(anomaly_map: npt.NDArray[np.float32], low: float, high: float) -> Image.Image:
    """Scale a map to 0 ... 255, mode L; a scale without extent splits just above ``low``."""
    high = max(high, float(np.nextafter(np.float32(low), np.float32(np.inf))))
    position = (np.clip(anomaly_map.astype(np.float64), low, high) - low) / (high - low)
    return Image.fromarray(np.rint(255 * position).astype(np.uint8))


def colour(levels: Image.Image) -> Image.Image:
    """Colour a picture of mode L as heat maps are."""
    coloured = levels.copy()
    coloured.putpalette(_PALETTE)
    return coloured.convert("RGB")
