"""The two metrics of the paper: mean, standard deviation and values over seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from crad.report.results import Results

METRICS = {"detection": "image_auroc", "localization": "pixel_auroc"}
"""The paper's names of image and pixel AUROC, and the keys in `results.json`."""


@dataclass(frozen=True)
class Measured:
    """Statistics of a number over seeds.

    Attributes:
        mean: over the seeds.
        std: standard deviation with n - 1 in the denominator; None for one seed.
        values: one for each seed.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The statistics of at least one value."""
        values = tuple(values)
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, values)

    def __str__(self) -> str:
        """As in 98.62 ± 0.07."""
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


def measured(
    runs: Sequence[Results], metric: str, class_name: str | None = None
) -> Measured | None:
    """A metric of a detector over seeds, in percent; None if it was not measured.

    Args:
        runs: the results of each seed.
        metric: a key of `METRICS`.
        class_name: a class, or None for the mean over classes.
    """
    key = METRICS[metric]
    found: list[Any] = [
        run["mean"] if class_name is None else run["classes"][class_name] for run in runs
    ]
    values = [entry[key] for entry in found]
    if None in values:
        return None
    return Measured.of(100 * value for value in values)


def measured_record(value: Measured | None) -> dict[str, Any]:
    """The statistics as columns of a record."""
    return {
        "mean": value and round(value.mean, 4),
        "std": value and value.std and round(value.std, 4),
        "seeds": [round(each, 4) for each in value.values] if value else [],
    }
