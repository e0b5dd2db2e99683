"""The pictures of an image in a page: as it is, its anomaly map, the map over it, and the truth."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from crad.data.decoding import Decoding
from crad.data.images import open_image
from crad.png import write_jpeg, write_png
from crad.report.heat_maps import colour, heat_map, levels_of, outline
from crad.scoring.prediction import Prediction

_OUTLINE = (0, 255, 255)  # which no heat map has
_SIDE = 448  # of the box that a picture is fitted into, in pixels; smaller ones stay


def draw(
    prediction: Prediction,
    files: Mapping[str, Path],
    decoding: Decoding,
    colour_scale: tuple[float, float],
) -> dict[str, bool]:
    """Write pictures of an image.

    Args:
        prediction: of an image that is a file.
        files: where to, by what they show: ``image``, ``truth``, ``anomaly map`` or ``overlay``.
        decoding: how the image is read.
        colour_scale: of its map.

    Returns:
        For each of ``files`` whether it is there; the truth may not be known.

    Raises:
        ImageError: the image cannot be read any more.
        StorageError: a file cannot be written.
    """
    assert prediction.path is not None
    image = open_image(prediction.path, decoding)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    if "image" in files:
        write_jpeg(files["image"], image)
    if "anomaly map" in files:
        levels = levels_of(prediction.scored_map, *colour_scale)
        resized = levels.resize(image.size, Image.Resampling.BICUBIC)
        write_jpeg(files["anomaly map"], colour(resized))
    if "overlay" in files:
        overlay = heat_map(image, prediction.scored_map, *colour_scale)
        if prediction.anomaly_mask is not None:
            overlay.paste(_OUTLINE, mask=outline(prediction.anomaly_mask, image.size))
        write_jpeg(files["overlay"], overlay)
    if "truth" in files and prediction.truth is not None:
        mask = Image.fromarray(prediction.truth.astype(np.uint8) * np.uint8(255))
        write_png(files["truth"], mask.resize(image.size), durable=False)
    return {title: title != "truth" or prediction.truth is not None for title in files}
