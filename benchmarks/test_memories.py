"""The memory look-up: a grid beside VQ and attention, as the number of entries grows."""

import importlib.util
import sys

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.machine import output_of
from benchmarks.memories import CHANNELS, MEMORIES, MOST_DISTANCES, POINTS, tensors
from benchmarks.timing import run

ENTRIES = [64, 256, 1024, 4096]
LONG = [16_384, 65_536]


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize(
    "entries", [*ENTRIES, *(pytest.param(n, marks=pytest.mark.long) for n in LONG)]
)
def test_look_up(benchmark: BenchmarkFixture, entries: int, name: str) -> None:
    if name == "vector-quantize-pytorch":
        if importlib.util.find_spec("vector_quantize_pytorch") is None:
            pytest.skip("vector-quantize-pytorch is not installed")
        if entries * POINTS > MOST_DISTANCES:
            pytest.skip("it would need many gigabytes")
    features, memory = tensors(entries)
    peak = output_of(sys.executable, "-m", "benchmarks.memories", name, str(entries))
    benchmark.group = f"look-up of {POINTS} features in {entries} entries, {CHANNELS} channels"
    benchmark.name = name
    benchmark.extra_info.update(
        memory=name,
        entries=entries,
        channels=CHANNELS,
        points=POINTS,
        peak_bytes=int(peak) if peak else None,
    )
    with torch.no_grad():
        run(benchmark, lambda: MEMORIES[name](features, memory))
