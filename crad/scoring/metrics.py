"""How well scores and maps tell defects from normal.

Exactly: no score is binned, but those of the normal pixels of a class that has very many.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
from skimage.measure import label

from crad.scoring.prediction import Prediction

FPR_LIMIT = 0.3
"""The false positive rate up to which AUPRO is taken."""

_CHUNK = 2**18  # pixels looked up, or counted, at once

MOST_PIXELS = 2**27
"""Pixels of the maps of a class up to which each normal score is kept (0.5 GB).

Of more, normal scores are counted in bins whose ends differ by at most 1 / 8192 of themselves; an
anomalous score in a bin is equal to those in it. Memory then does not grow with them.
"""

_BIN_BITS = 22  # of the bits of a float32: the sign, the exponent and 13 of the fraction

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "image": {"image_auroc": "AUROC", "image_ap": "AP", "image_f1_max": "F1max"},
    "pixel": {
        "pixel_auroc": "AUROC",
        "pixel_ap": "AP",
        "pixel_f1_max": "F1max",
        "pixel_aupro": "AUPRO",
    },
}
"""The metrics, each named after a field of `Ranking`, with the titles of their columns."""

METRIC_NAMES = tuple(name for columns in COLUMNS.values() for name in columns)

ClassMetrics: TypeAlias = dict[str, float | None]
"""The metrics of one class, None where they cannot be measured, with ``n_train`` and ``n_test``."""


class Metrics(TypedDict):
    """The metrics of each class, and their means over the classes that have them."""

    classes: dict[str, ClassMetrics]
    mean: dict[str, float | None]


class EpochMetrics(Metrics):
    """The metrics after an epoch, counted from 1; in the separate setting, one of each class."""

    epoch: int | dict[str, int]


class Ranking(NamedTuple):
    """How well scores rank anomalous above normal, all in [0, 1].

    Attributes:
        auroc: area under the ROC curve: how often an anomalous score is above a normal one, ties
            counting half. A value below 0.5 stands as it is.
        ap: average precision, the area under the steps of the precision-recall curve, not under
            lines between its points. Equivalent to `sklearn.metrics.average_precision_score`.
        f1_max: the largest F1 = 2 TP / (2 TP + FP + FN) of any threshold; equal scores are on the
            same side of it.
        aupro: area under the curve of the mean overlap with the regions over the false positive
            rate, linear between its points, up to `FPR_LIMIT` and divided by it; None without
            regions. Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.
    """

    auroc: float
    ap: float
    f1_max: float
    aupro: float | None


def measure_ranking(
    anomalous: npt.NDArray[np.floating],
    normal: npt.NDArray[np.floating],
    region_sizes: npt.NDArray[np.integer] | None = None,
) -> Ranking | None:
    """Measure how well scores, sorted in place, rank (P,) anomalous above (N,) normal ones.

    ``region_sizes`` (P,) are numbers of pixels, of the region that each anomalous pixel is in. The
    result is None if all scores are of one kind.
    """
    return _rank(anomalous, _Sorted(normal), region_sizes)


class _Sorted:
    """Scores, one by one; they are sorted in place."""

    def __init__(self, scores: npt.NDArray[np.floating]) -> None:
        scores.sort()
        self._scores = scores
        self.n = len(scores)

    def at_least(self, bounds: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """How many are at least as high as each bound."""
        return self.n - np.searchsorted(self._scores, bounds)

    def above(self, bounds: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """How many are higher than each bound."""
        return self.n - np.searchsorted(self._scores, bounds, side="right")


class _Counted:
    """float32 scores in bins; those of a bin are equal."""

    def __init__(self) -> None:
        self._counts = np.zeros(2**_BIN_BITS + 1, np.int64)
        self._at_least: npt.NDArray[np.int64] | None = None
        self.n = 0

    def add(self, scores: npt.NDArray[np.float32]) -> None:
        for start in range(0, len(scores), _CHUNK):
            bins = _bins(scores[start : start + _CHUNK])
            lowest = int(bins.min())
            counts = np.bincount(bins - lowest)
            self._counts[lowest : lowest + len(counts)] += counts
        self.n += len(scores)
        self._at_least = None

    def at_least(self, bounds: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """How many are at least as high as each bound, or in its bin."""
        return self._sums()[_bins(bounds)]

    def above(self, bounds: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        """How many are in higher bins than each bound."""
        return self._sums()[_bins(bounds) + 1]

    def _sums(self) -> npt.NDArray[np.int64]:
        if self._at_least is None:
            self._at_least = np.cumsum(self._counts[::-1])[::-1]
        return self._at_least


def _bins(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The bins of scores, in their order."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.int32)  # -0 is 0
    # Of negative numbers, the larger have the lower bits.
    ordered = np.where(bits < 0, ~bits & 0x7FFFFFFF, bits.astype(np.int64) + 2**31)
    return ordered >> (32 - _BIN_BITS)


def _rank(
    anomalous: npt.NDArray[np.floating],
    normal: _Sorted | _Counted,
    region_sizes: npt.NDArray[np.integer] | None,
) -> Ranking | None:
    """See `measure_ranking`."""
    # All four are sums, or a maximum, over the anomalous scores: between two of these, a lower
    # threshold only adds false positives, which lowers F1 and gains neither recall nor overlap.
    n_anomalous, n_normal = len(anomalous), normal.n
    if not n_anomalous or not n_normal:
        return None
    order = None if region_sizes is None else np.argsort(anomalous)
    anomalous.sort()
    roc = ap = f1_max = overlap = n_regions = 0.0
    for start in range(0, n_anomalous, _CHUNK):
        scores = anomalous[start : start + _CHUNK]
        # With the score as threshold: anomalous and normal scores at least as high, and normal
        # ones that are higher.
        true = n_anomalous - np.searchsorted(anomalous, scores)
        false, above = normal.at_least(scores), normal.above(scores)
        roc += float(np.sum(n_normal - (above + false) / 2))
        ap += float(np.sum(true / (true + false)))
        f1_max = max(f1_max, float(np.max(2 * true / (true + false + n_anomalous))))
        if region_sizes is not None and order is not None:
            weights = 1 / region_sizes[order[start : start + _CHUNK]]
            overlap += float(np.sum(weights * _area(above / n_normal, false / n_normal)))
            n_regions += float(np.sum(weights))
    return Ranking(
        roc / n_anomalous / n_normal,
        ap / n_anomalous,
        f1_max,
        None if region_sizes is None else overlap / round(n_regions) / FPR_LIMIT,
    )


def _area(begin: npt.NDArray[np.float64], end: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Area up to `FPR_LIMIT` under what an anomalous pixel adds to the overlap of its region.

    That rises from 0 to 1 between the false positive rates before and after its score.
    """
    rise = np.minimum(end, FPR_LIMIT) - np.minimum(begin, FPR_LIMIT)
    slope = rise / np.maximum(end - begin, np.finfo(np.float64).tiny)
    area: npt.NDArray[np.float64] = slope * rise / 2 + FPR_LIMIT - np.minimum(end, FPR_LIMIT)
    return area


def measure_class(images: Iterable[Prediction], *, n_train: int, n_test: int) -> ClassMetrics:
    """Measure the ``n_test`` test images of a class; pixels are those whose truth is known.

    Raises:
        ValueError: a score or map is not finite, or its shape differs from that of its truth.
    """
    scores: dict[bool, list[float]] = {True: [], False: []}
    pixels: _Pixels | None = None
    for image in images:
        _check(image)
        scores[image.is_anomaly].append(image.score)
        if image.truth is not None:
            pixels = pixels or _Pixels(n_test)
            pixels.add(image, image.truth)
    rankings = {
        "image": measure_ranking(np.array(scores[True]), np.array(scores[False])),
        "pixel": pixels.measure() if pixels else None,
    }
    metrics: ClassMetrics = {
        name: getattr(rankings[of], name.removeprefix(f"{of}_"), None)
        for of, columns in COLUMNS.items()
        for name in columns
    }
    return {**metrics, "n_train": n_train, "n_test": n_test}


class _Pixels:
    """The pixels of a class. Maps may differ in shape."""

    def __init__(self, n_images: int) -> None:
        self._n_images = n_images
        self._anomalous: list[npt.NDArray[np.float32]] = []
        self._region_sizes: list[npt.NDArray[np.int64]] = []
        self._normal = np.empty(0, np.float32)  # which only takes memory as it is filled
        self._n_normal = 0
        self._counted: _Counted | None = None

    def add(self, image: Prediction, truth: npt.NDArray[np.bool_]) -> None:
        self._add_normal(image.scored_map[~truth], self._n_images * truth.size)
        if truth.any():
            regions = label(truth, connectivity=2)[truth]  # pixels at a corner are connected
            self._anomalous.append(image.scored_map[truth])
            self._region_sizes.append(np.bincount(regions)[regions])

    def _add_normal(self, scores: npt.NDArray[np.float32], expected: int) -> None:
        """Add the scores of an image of a class that is expected to have so many pixels."""
        if self._counted is None and expected > MOST_PIXELS:
            self._counted = _Counted()
            self._counted.add(self._normal[: self._n_normal])
            self._normal = np.empty(0, np.float32)
        if self._counted:
            self._counted.add(scores)
            return
        if len(self._normal) < expected:  # it is larger than all before it
            former, self._normal = self._normal, np.empty(expected, np.float32)
            self._normal[: self._n_normal] = former[: self._n_normal]
        self._normal[self._n_normal : self._n_normal + len(scores)] = scores
        self._n_normal += len(scores)

    def measure(self) -> Ranking | None:
        if not self._anomalous:
            return None
        normal = self._counted or _Sorted(self._normal[: self._n_normal])
        return _rank(np.concatenate(self._anomalous), normal, np.concatenate(self._region_sizes))


def summarise(classes: Mapping[str, ClassMetrics]) -> Metrics:
    """Put the mean over classes beside the metrics of each class, given by name."""
    mean: dict[str, float | None] = {}
    for name in METRIC_NAMES:
        measured = [value for entry in classes.values() if (value := entry[name]) is not None]
        mean[name] = float(np.mean(measured)) if measured else None
    return {"classes": dict(classes), "mean": mean}


def better(best: EpochMetrics | None, other: EpochMetrics) -> EpochMetrics:
    """Choose between two epochs by mean image AUROC, then by mean pixel AUROC; the first if equal.

    What cannot be measured counts as 0.
    """

    def quality(epoch: EpochMetrics) -> tuple[float, float]:
        return epoch["mean"]["image_auroc"] or 0, epoch["mean"]["pixel_auroc"] or 0

    return max([best, other], key=quality) if best else other


def _check(image: Prediction) -> None:
    path = image.path
    if not np.isfinite(image.score):
        raise ValueError(f"the score of '{path}' is {image.score}, not a finite number")
    if not np.isfinite(image.scored_map).all():
        raise ValueError(f"the anomaly map of '{path}' holds NaN or infinite values")
    if image.truth is not None and image.truth.shape != image.scored_map.shape:
        raise ValueError(
            f"the anomaly map of '{path}' has shape {image.scored_map.shape}, "
            f"but its truth {image.truth.shape}"
        )
