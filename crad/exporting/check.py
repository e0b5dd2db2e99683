"""Whether an exported file says what its detector says, on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crad.scoring.prediction import Prediction

TOLERANCE = 1e-4
"""By how much the scores of a file of float32 numbers may differ, relative to the detector's."""


@dataclass(frozen=True)
class Agreement:
    """How far two detectors agree on some images.

    Attributes:
        n_images: number of images.
        score_error: the largest difference of two scores, relative to the detector's.
        map_error: the largest difference of two maps, relative to the largest value of a map.
        n_changed: images that are decided or classified otherwise. An image whose scores are
            within the tolerance on both sides of its threshold does not count.
    """

    n_images: int
    score_error: float
    map_error: float
    n_changed: int


def compare(
    expected: Sequence[Prediction], got: Sequence[Prediction], tolerance: float
) -> Agreement:
    """Compare the predictions of two detectors on the same images.

    Args:
        expected: of the detector.
        got: of the file.
        tolerance: as for `TOLERANCE`.
    """
    scores = np.array([[each.score for each in both] for both in (expected, got)])
    errors = np.abs(scores[1] - scores[0]) / np.maximum(np.abs(scores[0]), np.finfo(float).tiny)
    top = max(float(np.abs(each.scored_map).max()) for each in expected) or 1.0
    map_errors = [
        float(np.abs(one.scored_map - other.scored_map).max())
        for one, other in zip(expected, got, strict=True)
    ]
    changed = 0
    for one, other in zip(expected, got, strict=True):
        if one.class_name != other.class_name:
            changed += 1
        elif one.decision != other.decision:
            near = [
                max(abs(one.score - limit), abs(other.score - limit)) <= tolerance * abs(limit)
                for limit in (one.threshold, one.uncertain_above)
                if limit is not None
            ]
            changed += not any(near)
    return Agreement(len(expected), float(errors.max()), max(map_errors) / top, changed)
