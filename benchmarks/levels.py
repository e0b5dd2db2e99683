"""Several levels in one call, beside a call for each.

``python -m benchmarks.levels [--threads N] [--points N] [--rounds N] [--device cuda]``

Prints milliseconds, the fastest of some rounds, and how many times as long each of the others takes
as `crad_kernels.sample_levels`: the median over the rounds, of which each runs all of them. On one
thread the time is that of the processor, which other programs change little.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import gathers
from crad_kernels import level_resolutions, sample, sample_levels

Call = Callable[[Tensor, list[tuple[int, ...]], Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Levels whose resolutions grow by one factor, as those of instant-ngp.

    Attributes:
        ndim: number of axes.
        finest: resolution of the last of the levels; that of the first is 16.
        channels: of an entry.
        levels: how many.
    """

    ndim: int
    finest: int
    channels: int = 2
    levels: int = 16

    def __str__(self) -> str:
        return (
            f"{self.levels} levels, 16 to {self.finest} in {self.ndim}-D, {self.channels} channels"
        )

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Entries per axis of each level."""
        grown = level_resolutions(self.levels, 16, self.finest)
        return [(resolution,) * self.ndim for resolution in grown]

    def tensors(self, points: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Values, coords anywhere in the grids, and the output's gradient."""
        generator = torch.Generator().manual_seed(0)
        entries = sum(map(math.prod, self.sizes))
        values = torch.randn(entries, self.channels, generator=generator)
        coords = torch.rand(points, self.ndim, generator=generator) * 2 - 1
        grad_output = torch.randn(points, self.levels * self.channels, generator=generator)
        return values.to(device), coords.to(device), grad_output.to(device)


CASES = (Case(2, 512), Case(3, 128))


def level_by_level(take: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """A sample of each level, and what concatenates them."""

    def call(values: Tensor, sizes: list[tuple[int, ...]], coords: Tensor) -> Tensor:
        levels = values.split([math.prod(size) for size in sizes])
        parts = [
            take(part.view(*size, -1), coords) for part, size in zip(levels, sizes, strict=True)
        ]
        return torch.cat(parts, -1)

    return call


def _grid_sample(values: Tensor, coords: Tensor) -> Tensor:
    places = coords.view(1, *(1,) * (coords.shape[-1] - 1), *coords.shape)
    return F.grid_sample(values.movedim(-1, 0)[None], places, align_corners=False)[0].flatten(1).T


CALLS: dict[str, Call] = {
    "sample_levels": sample_levels,
    "sample, each": level_by_level(sample),
    "F.grid_sample, each": level_by_level(_grid_sample),
    "composed gathers": level_by_level(lambda values, coords: gathers(values, coords, 0.0)),
}
DIRECTIONS = ("forward", "forward + backward")


def step(
    call: Call, case: Case, tensors: tuple[Tensor, Tensor, Tensor], direction: str
) -> list[Tensor]:
    """The result, and with a backward pass the gradients of values and coords."""
    values, coords, grad_output = tensors
    if direction == "forward":
        with torch.no_grad():
            return [call(values, case.sizes, coords)]
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = call(leaves[0], case.sizes, leaves[1])
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_output)]


def clock_of(device: str) -> Callable[[], float]:
    """What to time calls on a device with."""
    if device == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def measure(
    case: Case, points: int, rounds: int, direction: str, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every call in every round; all must give the same results."""
    clock = clock_of(device)
    tensors = case.tensors(points, device)
    expected = step(sample_levels, case, tensors, direction)
    for call in CALLS.values():
        for got, wanted in zip(step(call, case, tensors, direction), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))
    seconds: dict[str, list[float]] = {name: [] for name in CALLS}
    for _ in range(rounds):
        for name, call in CALLS.items():
            start = clock()
            step(call, case, tensors, direction)
            seconds[name].append(clock() - start)
    return seconds


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.levels", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--points", type=int, default=1 << 17)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for case in CASES:
        for direction in DIRECTIONS:
            sys.stdout.write(f"{case}, {options.points:,} points, {direction}\n")
            seconds = measure(case, options.points, options.rounds, direction, options.device)
            ours = seconds["sample_levels"]
            for name, theirs in seconds.items():
                times = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
                sys.stdout.write(f"  {name:20} {1e3 * min(theirs):8.1f} ms {times:6.2f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
