"""The images that an experiment uses: chosen by position or by class, never by score."""

from collections.abc import Sequence

import torch

from crad.data import Sample


def evenly(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Choose at most so many samples, evenly spaced, the first and the last included."""
    count = min(most, len(samples))
    chosen = torch.linspace(0, len(samples) - 1, count).round().long()
    return [samples[index] for index in chosen.tolist()]


def of_class(
    samples: Sequence[Sample], class_name: str | None, *, anomalous: bool = False
) -> list[int]:
    """The indices of the normal, or of the anomalous, samples of a class."""
    return [
        index
        for index, sample in enumerate(samples)
        if sample.class_name == class_name and sample.is_anomaly == anomalous
    ]
