"""Sheets of pictures that a person can judge a detector by."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from crad.data.decoding import DEFAULT_DECODING, Decoding
from crad.data.images import open_image
from crad.png import write_png
from crad.report.heat_maps import colour, colour_scale, heat_map, levels_of, some_pixels
from crad.scoring.prediction import Prediction

_CELL = 176  # side in pixels of the box that a picture is fitted into
_GAP = 8
_MARGIN = 20
_LABEL = 148
_LABEL_HEIGHT = 64
_COLUMNS = ("image", "truth", "anomaly map", "overlay")
_INK = (32, 33, 36)
_FAINT = (110, 113, 120)
_EMPTY = (236, 237, 239)

_Corner: TypeAlias = tuple[int, int]
_Ink: TypeAlias = tuple[int, int, int]


def write_sheet(
    file: Path,
    class_name: str,
    predictions: Iterable[Prediction],
    *,
    rows: int = 8,
    note: str | None = None,
    decoding: Decoding = DEFAULT_DECODING,
) -> None:
    """Write image, truth, anomaly map and overlay of the first test images of each kind as a PNG.

    All maps share the `colour_scale` of all normal test images or, if there are none, of the first
    ``rows`` images of each kind. Without images, there is no sheet.
    """
    kinds: Counter[str | None] = Counter()
    kept = []
    normal = []
    for image in predictions:
        kinds[image.defect] += 1
        if not image.is_anomaly:
            normal.append(some_pixels(image.scored_map))
        if kinds[image.defect] <= rows:  # more of a kind are never shown
            kept.append(image)
    if kept:
        write_png(file, _sheet(class_name, kept, normal, rows, note, decoding))


def _choose(images: Sequence[Prediction], rows: int) -> list[Prediction]:
    """Pick rows: defects in turn by kind, shown in their order, then about a quarter normal."""
    normal = [image for image in images if not image.is_anomaly]
    kinds: dict[str | None, list[Prediction]] = {}
    for image in images:
        if image.is_anomaly:
            kinds.setdefault(image.defect, []).append(image)
    in_turn = [image for turn in zip_longest(*kinds.values()) for image in turn if image]
    n_normal = min(len(normal), max(rows // 4, rows - len(in_turn)))
    return sorted(in_turn[: rows - n_normal], key=images.index) + normal[:n_normal]


def _sheet(
    class_name: str,
    images: Sequence[Prediction],
    normal: Sequence[npt.NDArray[np.float32]],
    rows: int,
    note: str | None,
    decoding: Decoding,
) -> Image.Image:
    low, high = colour_scale(normal or [image.scored_map for image in images])
    source = f"{len(normal)} normal test images" if normal else "these images; none is normal"
    chosen = [(image, _row(image, low, high, decoding)) for image in _choose(images, rows)]
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


def _row(image: Prediction, low: float, high: float, decoding: Decoding) -> list[Image.Image]:
    """Draw the four pictures of a row, in the proportions of the image."""
    assert image.path is not None  # test images are files
    original = open_image(image.path, decoding)
    scale = _CELL / max(original.size)
    size = (max(1, round(original.width * scale)), max(1, round(original.height * scale)))
    original = original.resize(size, Image.Resampling.LANCZOS)
    if image.truth is None:
        truth = Image.new("RGB", size, _EMPTY)
        _text(ImageDraw.Draw(truth), (10, size[1] // 2 - 8), "not known", 13, _FAINT, _CELL)
    else:
        mask = Image.fromarray(image.truth.astype(np.uint8) * np.uint8(255))
        truth = mask.resize(size, Image.Resampling.BILINEAR).convert("RGB")
    levels = levels_of(image.scored_map, low, high).resize(size, Image.Resampling.BICUBIC)
    return [original, truth, colour(levels), heat_map(original, image.scored_map, low, high)]


def _row_label(draw: ImageDraw.ImageDraw, corner: _Corner, image: Prediction) -> None:
    x, y = corner
    width = _LABEL - 14
    _text(draw, (x, y), image.defect or "", 17, _INK, width)
    _text(draw, (x, y + 24), f"score {image.score:.4g}", 14, _INK, width)
    _text(draw, (x, y + 45), image.path.name if image.path else "", 12, _FAINT, width)


def _foot(sheet: Image.Image, corner: _Corner, low: float, high: float, source: str) -> None:
    """Draw the colour scale, its ends, and where it comes from."""
    x, y = corner
    draw = ImageDraw.Draw(sheet)
    ramp_x = x + _text(draw, (x, y), f"{low:.4g}", 13, _INK, _CELL) + 8
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (14, 1)))
    sheet.paste(colour(ramp), (ramp_x, y + 1))
    _text(draw, (ramp_x + 264, y), f"{high:.4g} and above", 13, _INK, _CELL)
    origin = f"one colour scale for all rows, from the pixels of {source}"
    _text(draw, (x, y + 24), origin, 13, _FAINT, sheet.width - x - _MARGIN)


def _text(
    draw: ImageDraw.ImageDraw, corner: _Corner, text: str, size: int, ink: _Ink, width: int
) -> int:
    """Write one line, cut short where it would be wider than ``width``; return its width."""
    font = ImageFont.load_default(size)
    # A file name may hold line breaks, and bytes that are no character.
    shown = text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    while draw.textlength(shown, font) > width and len(text) > 1:
        text = text[:-1]
        shown = text + "..."
    draw.text(corner, shown, ink, font)
    return round(draw.textlength(shown, font))
