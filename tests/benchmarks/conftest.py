"""What all tests of the benchmarks share."""

import pytest

from benchmarks.detectors import costs


@pytest.fixture(autouse=True)
def rough_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each time once: no test looks at how long something took."""
    monkeypatch.setattr(costs, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(costs, "LEAST_REPEATS", 1)
