"""How long a run trains, by what is given, a time or a rule, and how fast it learns meanwhile."""

import math
from dataclasses import dataclass

from crad.words import count

_FAST = 0.8  # of the epochs; the rest learns at a tenth of the rate

_SEEN = 25_600  # images that all epochs together see, if there are at most _FEW
_FEW = 1000  # of more images, the number seen grows with the root of their number
_MOST_EPOCHS = 200  # of a rule; fewer images than 128 are not seen more often

FEWEST_STEPS = 100
"""Steps of a training; with fewer, a detector may miss most defects: see docs/studies.md."""


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


def warn_if_short(epochs: int, steps: int, minutes: float | None) -> str | None:
    """Say that a run is too short to give a useful detector; None if it is not.

    Args:
        epochs: of the run.
        steps: in an epoch.
        minutes: that training was given; None if it was given no time.
    """
    if epochs * steps >= FEWEST_STEPS:
        return None
    way_out = f"give --epochs {math.ceil(FEWEST_STEPS / steps)} or more"
    if minutes is not None:
        way_out = f"leave --minutes out, or {way_out}"
    return (
        f"warning: {count(epochs * steps, 'training step')} in all, and with fewer than "
        f"{FEWEST_STEPS} a detector may miss most defects; {way_out}"
    )


def learning_rate_factor(epoch: int, epochs: int) -> float:
    """What the learning rates are multiplied by.

    Args:
        epoch: counted from 0.
        epochs: of the run.
    """
    return 1.0 if epoch < _n_fast(epochs) else 0.1


def other_rates(done: int, former: int, new: int) -> range:
    """The epochs that had another learning rate than they would have in a run of another length.

    Args:
        done: epochs trained.
        former: epochs that the run was to have.
        new: epochs that it is to have.

    Returns:
        Those epochs, counted from 1; empty if training goes on as if it had begun that way.
    """
    first, last = sorted((_n_fast(former), _n_fast(new)))
    return range(first + 1, min(last, done) + 1)


def _n_fast(epochs: int) -> int:
    return round(_FAST * epochs)


def describe(epochs: int, pace: Pace) -> str:
    """Say how long a run will take."""
    seconds = epochs * pace.epoch
    time = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    return (
        f"training: {epochs} epochs of {pace.steps} steps, about {time} on this machine "
        "(--minutes M takes another time, --epochs N another number)"
    )
