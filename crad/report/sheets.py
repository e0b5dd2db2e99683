"""Pictures a person can judge a detector by: heat maps, and sheets of them."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from crad.data.images import open_image
from crad.files import write_atomically
from crad.scoring.metrics import ScoredImage

__all__ = ["colour_scale", "heat_map", "scale_images", "write_sheets"]

# Dark blue, violet, red, orange, yellow: lightness rises all the way, so that the order shows
# in greyscale and to colour-blind eyes too.
_ANCHORS = [
    (13, 12, 46),
    (58, 21, 104),
    (116, 30, 117),
    (173, 45, 103),
    (222, 73, 72),
    (246, 124, 38),
    (252, 183, 60),
    (255, 240, 96),
]
_AT = np.linspace(0, 255, len(_ANCHORS))
_COLOURS = np.stack(
    [np.interp(np.arange(256), _AT, channel) for channel in zip(*_ANCHORS, strict=True)], axis=1
)
_PALETTE = np.rint(_COLOURS).astype(np.uint8).tobytes()

# How opaque a colour lies on its image: not at all in the lowest fifth, where nearly all of a
# normal image is, so that the image shows unchanged there.
_OPACITY = [round(255 * 0.75 * min(1.0, max(0.0, (level - 50) / 100))) for level in range(256)]

_CELL = 176  # side in pixels of the box that a picture is fitted into
_GAP = 8
_MARGIN = 20
_LABEL = 148
_LABEL_HEIGHT = 64
_COLUMNS = ("image", "truth", "anomaly map", "overlay")
_INK = (32, 33, 36)
_FAINT = (110, 113, 120)
_EMPTY = (236, 237, 239)


def scale_images(count: int) -> list[int]:
    """Choose, evenly among so many training images, those whose maps set the colour scale."""
    most = 64
    return [int(number) for number in np.linspace(0, count - 1, min(most, count))]


def colour_scale(maps: Iterable[npt.NDArray[np.float32]]) -> tuple[float, float]:
    """Choose a colour scale from the anomaly maps of normal images.

    Args:
        maps: float maps of normal images, at least one, of any shape.

    Returns:
        (low, high): the median of all pixels, and three times as far above it as their 99.5 %
        quantile is. So normal images keep to the lower third of the colours.
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
    levels = _levels(anomaly_map, low, high).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(_colour(levels), image, levels.point(_OPACITY))


def write_sheets(
    folder: str | os.PathLike[str],
    images: Iterable[ScoredImage],
    *,
    rows: int = 8,
    note: str | None = None,
) -> list[Path]:
    """Write a sheet for each class: image, truth, anomaly map and overlay of some test images.

    About a quarter of the rows are normal images, the others go round the kinds of defect; within a
    kind the first images are taken, so that no score decides what is shown. All maps of a sheet
    share one colour scale, stated at its foot: `colour_scale` of all normal test images of the
    class or, if there are none, of the first ``rows`` images of each kind.

    Args:
        folder: where ``<class>.png`` is written; made if missing.
        images: scored test images, of any classes; those that are not needed are not held.
        rows: the most images on a sheet.
        note: a line for the foot of each sheet.

    Returns:
        The files written, in the order in which their classes first appear.

    Raises:
        ImageError: an image cannot be read any more.
        OSError: a sheet cannot be written.
    """
    by_class: dict[str, list[ScoredImage]] = {}
    kinds: Counter[tuple[str, str]] = Counter()
    for image in images:
        kind = (image.sample.class_name, image.sample.defect)
        kinds[kind] += 1
        # The colour scale needs all normal images, but more defects of a kind are never shown.
        if kinds[kind] <= rows or not image.sample.is_anomaly:
            by_class.setdefault(image.sample.class_name, []).append(image)
    written = []
    for class_name, found in by_class.items():
        sheet = _sheet(class_name, found, rows, note)
        path = Path(folder) / f"{class_name}.png"
        write_atomically(path, partial(sheet.save, format="PNG"))
        written.append(path)
    return written


def _levels(anomaly_map: npt.NDArray[np.float32], low: float, high: float) -> Image.Image:
    """Scale a map to 0 ... 255; a scale without extent splits just above `low`."""
    high = max(high, float(np.nextafter(np.float32(low), np.float32(np.inf))))
    position = (np.clip(anomaly_map.astype(np.float64), low, high) - low) / (high - low)
    return Image.fromarray(np.rint(255 * position).astype(np.uint8))


def _colour(levels: Image.Image) -> Image.Image:
    coloured = levels.copy()
    coloured.putpalette(_PALETTE)
    return coloured.convert("RGB")


def _choose(images: Sequence[ScoredImage], rows: int) -> list[ScoredImage]:
    """Pick rows: defects in turn by kind and normal images, shown in their order, normal last."""
    normal = [image for image in images if not image.sample.is_anomaly]
    kinds: dict[str, list[ScoredImage]] = {}
    for image in images:
        if image.sample.is_anomaly:
            kinds.setdefault(image.sample.defect, []).append(image)
    in_turn = [image for turn in zip_longest(*kinds.values()) for image in turn if image]
    n_normal = min(len(normal), max(rows // 4, rows - len(in_turn)))
    return sorted(in_turn[: rows - n_normal], key=images.index) + normal[:n_normal]


def _sheet(
    class_name: str, images: Sequence[ScoredImage], rows: int, note: str | None
) -> Image.Image:
    normal = [image.anomaly_map for image in images if not image.sample.is_anomaly]
    low, high = colour_scale(normal or [image.anomaly_map for image in images])
    source = f"{len(normal)} normal test images" if normal else "these images; none is normal"
    chosen = [(image, _row(image, low, high)) for image in _choose(images, rows)]
    heights = [max(_LABEL_HEIGHT, pictures[0].height) for _, pictures in chosen]

    left = _MARGIN + _LABEL
    columns = [left + column * (_CELL + _GAP) for column in range(len(_COLUMNS))]
    width = columns[-1] + _CELL + _MARGIN
    top = _MARGIN + 62
    foot = top + sum(heights) + _GAP * len(heights) + 10
    sheet = Image.new("RGB", (width, foot + (82 if note else 60)), "white")
    draw = ImageDraw.Draw(sheet)

    _text(draw, (_MARGIN, _MARGIN - 4), class_name, 24, _INK, width - 2 * _MARGIN)
    for x, title in zip(columns, _COLUMNS, strict=True):
        _text(draw, (x, top - 22), title, 14, _FAINT, _CELL)
    y = top
    for (image, pictures), height in zip(chosen, heights, strict=True):
        _row_label(draw, (_MARGIN, y + (height - _LABEL_HEIGHT) // 2), image)
        for x, picture in zip(columns, pictures, strict=True):
            inset = ((_CELL - picture.width) // 2, (height - picture.height) // 2)
            sheet.paste(picture, (x + inset[0], y + inset[1]))
        y += height + _GAP
    _foot(sheet, (left, foot), low, high, source)
    if note:
        _text(draw, (left, foot + 46), note, 13, _INK, width - left - _MARGIN)
    return sheet


def _row(image: ScoredImage, low: float, high: float) -> list[Image.Image]:
    """Draw the four pictures of a row, in the proportions of the image."""
    original = open_image(image.sample.path)
    scale = _CELL / max(original.size)
    size = (max(1, round(original.width * scale)), max(1, round(original.height * scale)))
    original = original.resize(size, Image.Resampling.LANCZOS)
    if image.truth is None:
        truth = Image.new("RGB", size, _EMPTY)
        _text(ImageDraw.Draw(truth), (10, size[1] // 2 - 8), "not known", 13, _FAINT, _CELL)
    else:
        mask = Image.fromarray(image.truth.astype(np.uint8) * np.uint8(255))
        truth = mask.resize(size, Image.Resampling.BILINEAR).convert("RGB")
    levels = _levels(image.anomaly_map, low, high).resize(size, Image.Resampling.BICUBIC)
    return [original, truth, _colour(levels), heat_map(original, image.anomaly_map, low, high)]


def _row_label(draw: ImageDraw.ImageDraw, corner: tuple[int, int], image: ScoredImage) -> None:
    x, y = corner
    width = _LABEL - 14
    _text(draw, (x, y), image.sample.defect, 17, _INK, width)
    _text(draw, (x, y + 24), f"score {image.score:.4g}", 14, _INK, width)
    _text(draw, (x, y + 45), image.sample.path.name, 12, _FAINT, width)


def _foot(
    sheet: Image.Image, corner: tuple[int, int], low: float, high: float, source: str
) -> None:
    """Draw the colour scale, its ends, and where it comes from."""
    x, y = corner
    draw = ImageDraw.Draw(sheet)
    start = f"{low:.4g}"
    _text(draw, (x, y), start, 13, _INK, _CELL)
    x += round(draw.textlength(start, _font(13))) + 8
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (14, 1)))
    sheet.paste(_colour(ramp), (x, y + 1))
    _text(draw, (x + 264, y), f"{high:.4g} and above", 13, _INK, _CELL)
    _text(
        draw,
        (corner[0], y + 24),
        f"one colour scale for all rows, from the pixels of {source}",
        13,
        _FAINT,
        sheet.width - corner[0] - _MARGIN,
    )


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    width: int,
) -> None:
    """Write one line, cut short where it would be wider than `width`."""
    font = _font(size)
    # A file name may hold line breaks, and bytes that are no character.
    shown = text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    while draw.textlength(shown, font) > width and len(text) > 1:
        text = text[:-1]
        shown = text + "..."
    draw.text(corner, shown, colour, font)
