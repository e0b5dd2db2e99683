"""Levels are timed beside what gives the same results."""

import pytest

from benchmarks import levels


@pytest.mark.parametrize("direction", levels.DIRECTIONS)
def test_measures_what_agrees(direction: str) -> None:
    seconds = levels.measure(levels.Case(2, 20, levels=3), 40, 2, direction)
    assert {name: len(rounds) for name, rounds in seconds.items()} == dict.fromkeys(levels.CALLS, 2)
