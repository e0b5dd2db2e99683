"""The search itself: its examples, and its time."""

from types import SimpleNamespace

import pytest
from hypothesis import strategies

import tests.fuzz.search
from tests.fuzz.search import Fuzzer, search


def test_all_examples_run_and_count_in_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    now = 0.0

    def check(case: str) -> list[object]:
        nonlocal now
        checked.append(case)
        now += 0.02
        return []

    monkeypatch.setattr(tests.fuzz.search, "time", SimpleNamespace(monotonic=lambda: now))

    examples = ["example 1", "example 2"]
    search(Fuzzer(strategies.just("drawn"), check, examples), seconds=0.01)
    assert checked == examples
    checked.clear()
    search(Fuzzer(strategies.just("drawn"), check, examples), seconds=2)
    assert checked[:2] == examples
    assert "drawn" in checked[2:]
