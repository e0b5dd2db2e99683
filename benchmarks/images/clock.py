"""Times of steps that take turns, so that what else the machine does meets them alike."""

import time
from collections.abc import Callable, Sequence

_SHORTEST = 1e-4
"""Seconds; a step that takes less is repeated and its time divided."""


def fastest(steps: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """The least time of each step in seconds, over 5 to 100 rounds in which each is run.

    Args:
        steps: at least one.
        seconds: for all rounds, where more than five fit.
    """
    for step in steps:
        step()
    first = [_time(step, 1) for step in steps]
    repeats = [max(1, int(_SHORTEST / max(each, 1e-9))) for each in first]
    total = sum(each * n for each, n in zip(first, repeats, strict=True))
    least = [float("inf")] * len(steps)
    order = [*range(len(steps))]
    for _ in range(max(5, min(100, int(seconds / total)))):
        for number in order:
            least[number] = min(least[number], _time(steps[number], repeats[number]))
        order.reverse()
    return least


def _time(step: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats
