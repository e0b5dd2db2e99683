"""Images of the training set that may not be normal after all."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from crad.data.samples import Sample

_FEWEST = 5  # images that tell what is usual
_FAR = 3.5  # robust standard deviations above the median; docs/decisions.md has what that finds
_LEAST_DEVIATION = 0.05  # of the logarithm: a twentieth of the score


@dataclass(frozen=True)
class Suspect:
    """A training image that scores far above the others of its class.

    Attributes:
        sample: the image.
        score: its anomaly score.
        times: the score as a multiple of the median of those it is compared with.
        number: its place among the images that were searched, from 0.
    """

    sample: Sample
    score: float
    times: float
    number: int


def find_suspects(samples: Iterable[Sample], scores: Iterable[float]) -> list[Suspect]:
    """Find images whose score is an outlier among those of their class, worst first.

    The logarithm of the score is further above the median than 3.5 times the standard deviation
    that the median deviation stands for. A class with fewer than five images has none.

    Args:
        samples: images that were all trained on, or all not.
        scores: one for each, above 0.
    """
    by_class: dict[str | None, list[tuple[int, Sample, float]]] = defaultdict(list)
    for number, (sample, score) in enumerate(zip(samples, scores, strict=True)):
        by_class[sample.class_name].append((number, sample, score))
    found = [each for members in by_class.values() for each in _outliers(members)]
    return sorted(found, key=lambda suspect: -suspect.times)


def _outliers(members: Sequence[tuple[int, Sample, float]]) -> list[Suspect]:
    if len(members) < _FEWEST:
        return []
    levels = np.log(np.maximum([score for *_, score in members], np.finfo(np.float64).tiny))
    above = levels - np.median(levels)
    deviation = max(1.4826 * float(np.median(np.abs(above))), _LEAST_DEVIATION)
    return [
        Suspect(sample, score, float(np.exp(each)), number)
        for (number, sample, score), each in zip(members, above, strict=True)
        if each > _FAR * deviation
    ]
