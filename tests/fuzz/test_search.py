"""The search itself: its examples, and its time."""

import time

from hypothesis import strategies

from tests.fuzz.search import Fuzzer, search


def test_all_examples_run_and_count_in_the_time() -> None:
    checked: list[str] = []

    def check(case: str) -> list[object]:
        checked.append(case)
        time.sleep(0.02 * case.startswith("example"))
        return []

    examples = ["example 1", "example 2"]
    search(Fuzzer(strategies.just("drawn"), check, examples), seconds=0.01)
    assert checked == examples
    checked.clear()
    search(Fuzzer(strategies.just("drawn"), check, examples), seconds=2)
    assert checked[:2] == examples
    assert "drawn" in checked[2:]
