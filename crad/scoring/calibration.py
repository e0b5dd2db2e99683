"""Decisions: how unusual a score is, and from which on an image counts as defective.

Both come from the scores of normal images that the model was not trained on. An image is a defect
if its p-value is at most the false alarm rate: of any class, by any model.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from crad.data.samples import Sample
from crad.errors import UsageError
from crad.words import count

FALSE_ALARM_RATE = 0.01
"""Share of normal images that may be taken for defective, by default."""

_POOR = 0.1  # a threshold that more good images may exceed is hardly of use


@dataclass(frozen=True)
class Threshold:
    """The score above which an image is a defect, taken from ``n_images`` normal images."""

    score: float
    n_images: int

    @classmethod
    def from_scores(cls, scores: Sequence[float], false_alarm_rate: float) -> "Threshold":
        """Take the ceil((n + 1) (1 - rate))-th smallest of the scores of n normal images.

        A new normal image exceeds it with a probability of at most the rate, on average over
        calibration sets of n images. Below n = 1 / rate - 1 the largest score is taken, and the
        probability is at most 1 / (n + 1). Split conformal prediction: Angelopoulos and Bates, "A
        Gentle Introduction to Conformal Prediction", 2021, section 1; for outliers, Bates et al.,
        "Testing for outliers with conformal p-values", Annals of Statistics 2023, section 2.

        Args:
            scores: of images that were not trained on, at least one.
            false_alarm_rate: false alarms among normal images, in (0, 1).
        """
        count = len(scores)
        rank = math.ceil((count + 1) * (1 - false_alarm_rate) - 1e-9)  # but for rounding
        return cls(sorted(scores)[min(max(rank, 1), count) - 1], count)


class Thresholds(dict[str, Threshold]):
    """The thresholds of a model, by class."""

    def score_of(self, class_name: str | None) -> float | None:
        """The score above which an image of a class is defective; None without thresholds.

        For an unknown class it is the highest of all, so that no class has more false alarms than
        with its own.
        """
        if class_name is not None and class_name in self:
            return self[class_name].score
        return max((threshold.score for threshold in self.values()), default=None)


def promise(
    numbers: Iterable[int], false_alarm_rate: float, way: str = "give crad calibrate"
) -> str | None:
    """Say what rate of false alarms so many images a class promise; None if there are none.

    Args:
        numbers: of the images of each class that set its threshold; a class without any has none.
        false_alarm_rate: that is asked for.
        way: what takes more images.
    """
    held = sorted(number for number in numbers if number)
    if not held:
        return None
    fewest, most = held[0], held[-1]
    images = count(fewest, "normal image") if fewest == most else f"{fewest} to {most} images"
    least = 1 / (fewest + 1)
    if least <= false_alarm_rate + 1e-9:
        return (
            f"thresholds from {images} a class: at most {false_alarm_rate:.3g} of normal images "
            "like them are false alarms, as asked for"
        )
    needed = math.ceil(1 / false_alarm_rate - 1e-9) - 1
    return (
        f"thresholds from {images} a class promise a false alarm rate of {least:.3g} (1 in "
        f"{fewest + 1}), not {false_alarm_rate:.3g}, which takes {needed}: {way} as many "
        "good images"
    )


def warn_if_few(
    held: Mapping[str, int], normal: Mapping[str, int], false_alarm_rate: float
) -> str | None:
    """Say that a class has so few normal images that its threshold promises little; else None.

    Args:
        held: the number of images that set the threshold of each class; a class without any has
            no threshold.
        normal: the number of all normal images of each class.
        false_alarm_rate: that is asked for.
    """
    least = max(false_alarm_rate, _POOR) + 1e-9
    few = [name for name, number in held.items() if number and 1 / (number + 1) > least]
    if not few:
        return None
    worst = min(few, key=lambda name: held[name])
    others = f" (and {count(len(few) - 1, 'other')})" if few[1:] else ""
    n_held, n_normal = held[worst], normal[worst]
    line = (
        f"few normal images of class '{worst}'{others}: {n_held} of its {n_normal} set the "
        f"threshold, which 1 in {n_held + 1} good images may exceed; add images"
    )
    if n_held < n_normal:
        line += (
            f", or have all {n_normal} set it (1 in {n_normal + 1}) with --calibration-folds 5, in "
            "5 times the time"
        )
    return line


class Calibration(dict[str, tuple[float, ...]]):
    """Sorted scores of normal images that a model was not trained on, by class.

    From them follow a threshold for any rate, and the p-value of any score.
    """

    def thresholds(self, false_alarm_rate: float) -> Thresholds:
        """The threshold of each class, as `Threshold.from_scores` takes it."""
        return Thresholds(
            {name: Threshold.from_scores(each, false_alarm_rate) for name, each in self.items()}
        )

    def p_value(self, class_name: str | None, score: float) -> float | None:
        """Tell how unusual a score is among normal images of a class, in (0, 1].

        It is ``(1 + number of scores that are at least as high) / (n + 1)``: the conformal p-value
        (Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 2023).
        A new normal image has one of at most r with a probability of at most r, so it means the
        same for each class. A score is above the threshold for a rate if its p-value is at most
        that rate or ``1 / (n + 1)``, the smallest there is.

        If the class is not known, it is the largest of all. None for a class without scores.
        """
        chosen = self.values() if class_name is None else filter(None, [self.get(class_name)])
        values = ((1 + _at_least(each, score)) / (len(each) + 1) for each in chosen)
        return max(values, default=None)


def thresholds_at(
    stored: Thresholds,
    calibration: Calibration,
    stored_rate: float,
    rate: float | None,
    uncertain_rate: float | None,
) -> tuple[Thresholds, Thresholds | None]:
    """Give the thresholds for a rate, and for the one from which on decisions are uncertain.

    A class without calibration scores keeps its threshold.

    Args:
        stored: the thresholds of a model.
        calibration: its scores.
        stored_rate: of false alarms, that its thresholds are for.
        rate: that is asked for; None takes the stored one.
        uncertain_rate: up to which images are uncertain; None gives no thresholds for it.

    Raises:
        UsageError: a rate is out of range.
    """
    lower = stored_rate if rate is None else rate
    if not 0 < lower < 1:
        raise UsageError(f"false-alarm-rate: expected more than 0 and less than 1, but got {rate}")
    if uncertain_rate is not None and not lower < uncertain_rate < 1:
        raise UsageError(
            f"uncertain: expected more than the false alarm rate, {lower:.3g}, and less than 1, "
            f"but got {uncertain_rate}"
        )
    kept = {name: each for name, each in stored.items() if name not in calibration}
    thresholds = stored if rate is None else Thresholds(kept | calibration.thresholds(rate))
    if uncertain_rate is None:
        return thresholds, None
    return thresholds, Thresholds(kept | calibration.thresholds(uncertain_rate))


def _at_least(scores: Sequence[float], score: float) -> int:
    """How many of some sorted scores are at least as high as another one."""
    return len(scores) - bisect_left(scores, score)


def class_of(path: Path, classes: Collection[str]) -> str | None:
    """Tell the class of an image by the innermost folder it lies in that has the name of a class.

    Where there is one class, every image is of that. None if it cannot be told.
    """
    if len(classes) == 1:
        return next(iter(classes))
    return next((name for name in reversed(path.absolute().parts[:-1]) if name in classes), None)


def calibrate(
    samples: Iterable[Sample], scores: Iterable[float], contamination: float = 0.0
) -> Calibration:
    """Sort the scores of normal images by class.

    Args:
        samples: the images, which the model was not trained on.
        scores: one for each, as of `decision_scores`.
        contamination: share of them, in [0, 0.5), that may be defective after all. As many of the
            highest scores of each class, rounded up, are left out, but never all. Where they are
            of normal images, that share of normal images becomes false alarms, beside those of the
            false alarm rate.
    """
    by_class: dict[str, list[float]] = defaultdict(list)
    for sample, score in zip(samples, scores, strict=True):
        by_class[str(sample.class_name)].append(score)
    found = Calibration()
    for name, each in by_class.items():
        n_kept = max(len(each) - math.ceil(contamination * len(each) - 1e-9), 1)
        found[name] = tuple(sorted(each)[:n_kept])
    return found


class ClassDecisions(TypedDict):
    """What a threshold means on the test images of a class."""

    threshold: float
    n_calibration: int
    n_good: int
    false_alarms: int
    n_defective: int
    misses: int


class Decisions(TypedDict):
    """The part ``decisions`` of ``results.json``; scores are by ``protocol``."""

    protocol: str
    false_alarm_rate: float
    classes: dict[str, ClassDecisions]


def measure_decisions(
    samples: Iterable[Sample],
    scores: Iterable[float],
    thresholds: Thresholds,
    classes: Iterable[str],
) -> dict[str, ClassDecisions]:
    """Count the false alarms and the misses among test images, for each of ``classes``."""
    by_kind: dict[tuple[str | None, bool], list[float]] = defaultdict(list)
    for sample, score in zip(samples, scores, strict=True):
        by_kind[sample.class_name, sample.is_anomaly].append(score)
    found: dict[str, ClassDecisions] = {}
    for name in classes:
        threshold = thresholds.score_of(name)
        assert threshold is not None  # there is one of some class
        good, defective = by_kind[name, False], by_kind[name, True]
        found[name] = {
            "threshold": threshold,
            "n_calibration": thresholds[name].n_images if name in thresholds else 0,
            "n_good": len(good),
            "false_alarms": sum(score > threshold for score in good),
            "n_defective": len(defective),
            "misses": sum(score <= threshold for score in defective),
        }
    return found
