"""An ablation of our own: local memories that interpolate on simplices, beside linear ones."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import markdown
from benchmarks.paper import dims
from benchmarks.paper.files import write_records
from benchmarks.paper.metrics import METRICS, measured, measured_record
from benchmarks.paper.runs import Runs
from benchmarks.paper.trained_run import load_run
from benchmarks.paper.variants import Variant
from crad.model.memories import ContinuousMemory, InterpolationName
from crad_kernels import GridMemory

RESOLUTIONS = ((8, 8), (4, 4, 4), (4, 4, 4, 4), (2,) * 6)
"""The grids."""

_POINTS = 4096  # features of 16 images of 16 x 16
_ROUNDS = 20


def variant(resolution: tuple[int, ...], interpolation: InterpolationName) -> Variant:
    """The detector of `dims` with this grid."""
    return replace(dims.variant(resolution), interpolation=interpolation)


_NAMES: tuple[InterpolationName, ...] = ("linear", "simplex")
VARIANTS = tuple(variant(each, name) for each in RESOLUTIONS for name in _NAMES)
"""The detectors."""


def make(runs: Runs, folder: Path) -> str:
    """Write ``simplex.csv`` and ``simplex.json``; give the table in Markdown.

    Args:
        runs: finished.
        folder: to write into.

    Raises:
        OSError: a file cannot be written.
    """
    rows, records = [], []
    for each in VARIANTS:
        resolution, name = each.local_resolution, each.interpolation
        memory = load_run(replace(runs, seeds=runs.seeds[:1]), each).model.local_representation
        assert isinstance(memory, ContinuousMemory)
        milliseconds = 1e3 * look_up_seconds(memory.memory)
        found = {metric: measured(runs.results(each), metric) for metric in METRICS}
        corners = 2 ** len(resolution) if name == "linear" else len(resolution) + 1
        grid = " x ".join(map(str, resolution))
        cells = ["-" if value is None else str(value) for value in found.values()]
        rows.append([grid, name, str(corners), *cells, f"{milliseconds:.2f}"])
        for metric, value in found.items():
            records.append(
                {"grid": grid, "interpolation": name, "metric": metric, **measured_record(value)}
            )
    write_records(folder / "simplex", records)
    columns = ["grid", "interpolation", "entries a point", *METRICS, "look-up, ms"]
    table = "\n".join(markdown.table(columns, rows))
    return (
        f"{table}\n\n*Look-up*: {_POINTS} random points in the trained memory, forward and "
        f"backward; the least of {_ROUNDS} repetitions."
    )


def look_up_seconds(memory: GridMemory) -> float:
    """The least time of a forward and backward pass, of the processor where one thread computes."""
    device = memory.weight.device
    alone = torch.get_num_threads() == 1 and device.type == "cpu"
    now = time.process_time if alone else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    ndim = memory.weight.ndim - 1
    places = 2 * torch.rand(_POINTS, ndim, generator=generator) - 1
    coords = places.to(device).requires_grad_()
    grad = torch.randn(_POINTS, memory.weight.shape[-1], generator=generator).to(device)
    least = float("inf")
    for _ in range(_ROUNDS):
        started = now()
        memory(coords).backward(grad)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        least = min(least, now() - started)
    return least
