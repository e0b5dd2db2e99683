"""How many epochs a rival is trained for: those that were published, or what a time allows."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.detectors import clock

_WARM_UP = 1  # steps that are not timed
STEPS = 3
"""Steps by which a pace is measured, with those that are not timed."""


@dataclass(frozen=True)
class Epochs:
    """How long a method was trained.

    Attributes:
        run: epochs.
        published: epochs that its authors train for; None where that depends on the images.
    """

    run: int
    published: int | None = None


def choose(published: int, minutes: float | None, seconds_per_epoch: Callable[[], float]) -> Epochs:
    """Choose the number of epochs, at least 1.

    Args:
        published: what the authors take, and the most.
        minutes: that training may take; None takes as long as it needs.
        seconds_per_epoch: measures the pace, which is only needed for a time.
    """
    if minutes is None:
        return Epochs(published, published)
    fitting = int(60 * minutes / seconds_per_epoch())
    return Epochs(max(1, min(published, fitting)), published)


def pace(step: Callable[[], None]) -> float:
    """Seconds that a training step takes."""
    for _ in range(_WARM_UP):
        step()
    started = clock.now()
    for _ in range(STEPS - _WARM_UP):
        step()
    return (clock.now() - started) / (STEPS - _WARM_UP)
