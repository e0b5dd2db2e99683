"""How often a step is run to have a median."""

import time
from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture


def run(benchmark: BenchmarkFixture, step: Callable[[], object]) -> None:
    """Time a step: 15 to 100 rounds of it, or those of 1.5 seconds if it is long, at least 3."""
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    rounds = max(min(15, int(1.5 / seconds)), min(100, int(0.3 / seconds)), 3)
    iterations = max(int(1e-3 / seconds), 1)
    benchmark.pedantic(step, rounds=rounds, iterations=iterations)  # type: ignore[no-untyped-call]
