"""What a detector says of each test image, beside what is true."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from crad.data.samples import Sample
from crad.scoring.prediction import Prediction

Outcome = Literal["miss", "false alarm", "right"]


@dataclass(frozen=True)
class Verdict:
    """A test image with its decision, without its map.

    Attributes:
        number: its place among all test images, from 0.
        sample: the image.
        score: its anomaly score, by the protocol that decides.
        threshold: the score above which it is a defect; None if the model has none.
        p_value: as of `Prediction`; None without calibration scores.
        boxes: of the regions that are marked, as of `Region`; None without a pixel threshold.
        margin: how far the score is above the threshold, in standard deviations of the scores of
            the normal test images of its class; without a threshold, above their mean.
    """

    number: int
    sample: Sample
    score: float
    threshold: float | None
    p_value: float | None = None
    boxes: tuple[tuple[int, int, int, int], ...] | None = None
    margin: float = field(default=0.0, compare=False)

    @property
    def is_defective(self) -> bool | None:
        """The decision; None without a threshold."""
        return None if self.threshold is None else self.score > self.threshold

    @property
    def outcome(self) -> Outcome | None:
        """Whether the decision is right; None without a threshold."""
        if self.is_defective is None:
            return None
        if self.is_defective == self.sample.is_anomaly:
            return "right"
        return "miss" if self.sample.is_anomaly else "false alarm"


def verdict_of(number: int, prediction: Prediction, threshold: float | None) -> Verdict:
    """The verdict on a test image; arguments as its attributes."""
    known = {name: getattr(prediction, name) for name in Sample.__dataclass_fields__}
    regions = prediction.regions
    boxes = None if regions is None else tuple(region.box for region in regions)
    return Verdict(number, Sample(**known), prediction.score, threshold, prediction.p_value, boxes)


def with_margins(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Set the margins of all test images, in their order."""
    by_class: dict[str | None, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_class[verdict.sample.class_name].append(verdict)
    found = []
    for members in by_class.values():
        normal = [each.score for each in members if not each.sample.is_anomaly]
        scores = normal if len(normal) > 1 else [each.score for each in members]
        middle, unit = statistics.fmean(scores), statistics.pstdev(scores) or 1.0
        for each in members:
            origin = middle if each.threshold is None else each.threshold
            found.append(replace(each, margin=(each.score - origin) / unit))
    return sorted(found, key=lambda each: each.number)


@dataclass(frozen=True)
class Section:
    """Some test images that are shown with pictures.

    Attributes:
        title: what they have in common.
        shown: the first of them.
        total: how many there are.
    """

    title: str
    shown: Sequence[Verdict]
    total: int


def choose_sections(
    verdicts: Sequence[Verdict], *, misses: int = 150, false_alarms: int = 100, others: int = 50
) -> list[Section]:
    """Choose what is shown: misses, false alarms, then the nearest calls, the worst ones first.

    Without thresholds, it is the defects of the lowest scores, then normal images of the highest.

    Args:
        verdicts: of all test images.
        misses: the most that are shown.
        false_alarms: as well.
        others: as well.
    """

    def section(title: str, found: list[Verdict], most: int) -> Section:
        return Section(title, found[:most], len(found))

    ordered = sorted(verdicts, key=lambda each: each.margin)
    if all(each.threshold is None for each in ordered):
        defective = [each for each in ordered if each.sample.is_anomaly]
        normal = [each for each in reversed(ordered) if not each.sample.is_anomaly]
        return [
            section("Defects, the lowest scores first", defective, others),
            section("Good images, the highest scores first", normal, others),
        ]
    missed = [each for each in ordered if each.outcome == "miss"]
    alarms = [each for each in reversed(ordered) if each.outcome == "false alarm"]
    right = sorted(
        (each for each in ordered if each.outcome == "right"), key=lambda each: abs(each.margin)
    )
    return [
        section("Missed defects, the worst first", missed, misses),
        section("False alarms, the worst first", alarms, false_alarms),
        section("Right decisions, the nearest to the threshold first", right, others),
    ]
