"""How well scores and maps tell defects from normal: AUROC per class and its mean."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from crad.data import Sample

__all__ = ["ClassMetrics", "MeanMetrics", "Metrics", "ScoredImage", "auroc", "summarise"]


class ClassMetrics(TypedDict):
    """The metrics of one class, in [0, 1]; None where they cannot be measured."""

    image_auroc: float | None
    pixel_auroc: float | None
    n_train: int
    n_test: int


class MeanMetrics(TypedDict):
    """The mean over the classes in which a metric can be measured; None if that is none."""

    image_auroc: float | None
    pixel_auroc: float | None


class Metrics(TypedDict):
    """The parts ``classes`` and ``mean`` of ``results.json``."""

    classes: dict[str, ClassMetrics]
    mean: MeanMetrics


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """A test image with what a detector says of it.

    Attributes:
        sample: the image.
        score: its anomaly score; higher is more anomalous.
        anomaly_map: float (S, S), a score for each pixel.
        truth: bool (S, S), True on a defect; None where that is not known.
    """

    sample: Sample
    score: float
    anomaly_map: npt.NDArray[np.float32]
    truth: npt.NDArray[np.bool_] | None


def auroc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Compute the area under the ROC curve, exactly (no binning of scores).

    Equivalent to `sklearn.metrics.roc_auc_score` where that is defined. A value below 0.5 is
    returned as it is.

    Args:
        labels: bool, any shape; True is anomalous.
        scores: floats of the same number; higher is more anomalous.

    Returns:
        A number in [0, 1]; None if the labels are all equal, or there are none.

    Raises:
        ValueError: the numbers of labels and scores differ, or a score is not finite.
    """
    truth = np.asarray(labels, dtype=np.bool_).ravel()
    values = np.asarray(scores).ravel()
    if truth.size != values.size:
        raise ValueError(f"auroc(): {truth.size} labels, but {values.size} scores")
    if not np.isfinite(values).all():
        raise ValueError("auroc(): a score is NaN or infinite")
    if truth.all() or not truth.any():
        return None
    return float(roc_auc_score(truth, values))


def summarise(images: Iterable[ScoredImage], n_train: Mapping[str, int]) -> Metrics:
    """Measure each class, and the mean over classes.

    The pixel AUROC of a class is over all pixels of its test images whose truth is known: normal
    images, and defects with a mask.

    Args:
        images: the scored test images of all classes, in any order; maps of one class may differ in
            size.
        n_train: the classes, in the order wanted, with the number of training images of each.

    Raises:
        ValueError: a score or map is not finite, or its shape is not that of its truth; the message
            names the image.
        KeyError: an image is of a class that `n_train` does not hold.
    """
    by_class: dict[str, list[ScoredImage]] = {name: [] for name in n_train}
    for image in images:
        _check(image)
        by_class[image.sample.class_name].append(image)
    classes = {name: _measure(found, n_train[name]) for name, found in by_class.items()}
    return {
        "classes": classes,
        "mean": {
            "image_auroc": _mean(entry["image_auroc"] for entry in classes.values()),
            "pixel_auroc": _mean(entry["pixel_auroc"] for entry in classes.values()),
        },
    }


def _check(image: ScoredImage) -> None:
    path = image.sample.path
    if not np.isfinite(image.score):
        raise ValueError(f"the score of '{path}' is {image.score}, not a finite number")
    if not np.isfinite(image.anomaly_map).all():
        raise ValueError(f"the anomaly map of '{path}' holds NaN or infinite values")
    if image.truth is not None and image.truth.shape != image.anomaly_map.shape:
        raise ValueError(
            f"the anomaly map of '{path}' has shape {image.anomaly_map.shape}, "
            f"but its truth {image.truth.shape}"
        )


def _measure(images: list[ScoredImage], n_train: int) -> ClassMetrics:
    known = [(image.truth, image.anomaly_map) for image in images if image.truth is not None]
    return {
        "image_auroc": auroc(
            [image.sample.is_anomaly for image in images], [image.score for image in images]
        ),
        # Normal images alone have truth but no positive; then there is nothing to gather.
        "pixel_auroc": auroc(
            np.concatenate([truth.ravel() for truth, _ in known]),
            np.concatenate([anomaly_map.ravel() for _, anomaly_map in known]),
        )
        if any(truth.any() for truth, _ in known)
        else None,
        "n_train": n_train,
        "n_test": len(images),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None
