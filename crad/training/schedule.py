"""The number of epochs of a run for which none is given: by a time, or by a rule."""

import math
from dataclasses import dataclass

_SEEN = 25_600  # images that all epochs together see, if there are at most _FEW
_FEW = 1000  # of more images, the number seen grows with the root of their number
_MOST_EPOCHS = 200  # of a rule; fewer images than 128 are not seen more often


@dataclass(frozen=True)
class Pace:
    """How fast a run is on this machine.

    Attributes:
        steps: in an epoch.
        step: seconds a step takes.
        rest: seconds an epoch takes besides, for thresholds.
    """

    steps: int
    step: float
    rest: float

    @property
    def epoch(self) -> float:
        """Seconds an epoch takes."""
        return self.steps * self.step + self.rest


def choose_epochs(pace: Pace, n_images: int, minutes: float | None) -> int:
    """Choose the number of epochs, at least 1.

    Args:
        pace: of the run.
        n_images: to train on.
        minutes: that training may take; None takes a number that does not depend on the machine,
            so that the same options give the same model.
    """
    if minutes is not None:
        return max(1, math.floor(60 * minutes / pace.epoch))
    seen = _SEEN * max(1.0, math.sqrt(n_images / _FEW))
    return max(1, min(round(seen / n_images), _MOST_EPOCHS))


def describe(epochs: int, pace: Pace) -> str:
    """Say how long a run will take."""
    seconds = epochs * pace.epoch
    time = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return (
        f"training: {epochs} epochs of {pace.steps} steps, about {time} on this machine "
        "(--minutes M takes another time, --epochs N another number)"
    )
