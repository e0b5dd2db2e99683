"""Small calls that take every kernel of a backend, to run under a sanitizer.

``compute-sanitizer --tool memcheck python -m benchmarks.sanitizer_cases BACKEND [DEVICE]``

With a third argument, by so many processes. The reference computes on the CPU, so that no time goes
to the kernels of others.
"""

import itertools
import math
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from crad_kernels import sample, sample_levels
from crad_kernels._op import normals


@dataclass(frozen=True)
class Call:
    """A call of `crad_kernels.sample`; some of its coordinates are no places."""

    size: tuple[int, ...]
    channels: int
    points: int
    mode: str = "linear"
    dtype: torch.dtype = torch.float32
    padding_mode: str = "zeros"
    align_corners: bool = False
    deterministic: bool = False
    batch: int | None = None
    levels: int | None = None  # in one call of `crad_kernels.sample_levels`, each larger by one

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Of the levels."""
        return [tuple(each + level for each in self.size) for level in range(self.levels or 1)]


# Small grids with many points, few points with many channels, large grids; odd numbers everywhere.
SHAPES: tuple[tuple[tuple[int, ...], int, int], ...] = (
    ((9,), 5, 300),
    ((8, 8), 216, 700),
    ((3, 4, 2), 67, 300),
    ((2, 3), 67, 500),
    ((2, 3, 1, 2, 2, 1, 2, 3), 8, 100),
    ((4, 4), 5003, 9),
    ((2, 2, 2), 3000, 5),
    ((30_000,), 8, 500),
    ((130, 150), 16, 500),
    ((30, 31, 29), 7, 300),
)
# Size of the first level, levels, channels, points. Of many points, a thread takes several levels.
LEVELS: tuple[tuple[tuple[int, ...], int, int, int], ...] = (
    ((9,), 5, 1, 300),
    ((30, 4), 17, 2, 2000),
    ((7, 3, 4), 5, 8, 300),
    ((4, 2, 3, 3), 5, 3, 300),
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def calls() -> Iterator[Call]:
    """Every shape with every dtype and mode; the other options take turns."""
    turns = itertools.cycle(
        itertools.product(("zeros", "border", "reflection"), (False, True), (False, True))
    )
    for size, channels, points in SHAPES:
        kinds = [("linear", dtype) for dtype in DTYPES]
        kinds += [("nearest", torch.float32), ("simplex", torch.float32)]
        if len(size) <= 3:
            kinds.append(("cubic", torch.float32))
        for mode, dtype in kinds:
            yield Call(size, channels, points, mode, dtype, *next(turns))
    for size, channels, points in SHAPES:
        yield Call(size, channels, points, deterministic=True)
        yield Call(size, channels, points, batch=3)
    for (size, levels, channels, points), deterministic in itertools.product(LEVELS, (False, True)):
        yield Call(
            size,
            channels,
            points,
            padding_mode="border",
            deterministic=deterministic,
            levels=levels,
        )


def run(call: Call, backend: str, device: str) -> None:
    """Sample with jitter, differentiate, and compare with the reference on the CPU."""
    batch = () if call.batch is None else (call.batch,)
    shape = [*batch, *call.size]
    if call.levels:
        shape = [sum(map(math.prod, call.sizes))]
    values = torch.randn(*shape, call.channels, device=device, dtype=call.dtype)
    coords = torch.rand(*batch, call.points, len(call.size), device=device) * 3 - 1.5
    # The first component of the first points.
    nowhere = (math.nan, math.inf, -math.inf, 1e30, -1e30)
    coords[..., : len(nowhere), 0] = torch.tensor(nowhere, device=device)[: call.points]
    channels = call.channels * (call.levels or 1)
    grad_output = torch.randn(*coords.shape[:-1], channels, device=device, dtype=call.dtype)
    seed = torch.tensor(3, device=device)
    noise = normals(backend, seed, coords.numel() // coords.shape[-1], coords.shape[-1])
    moved = coords + 0.1 * noise.reshape(coords.shape)
    results = []
    for name, tensors, jitter_std in (
        (backend, (values, coords, grad_output), 0.1),
        ("reference", (values.cpu(), moved.cpu(), grad_output.cpu()), 0.0),
    ):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors[:2]]
        take = (
            partial(sample_levels, leaves[0], call.sizes)
            if call.levels
            else partial(sample, leaves[0])
        )
        out = take(
            leaves[1],
            mode=call.mode,
            padding_mode=call.padding_mode,
            align_corners=call.align_corners,
            deterministic=call.deterministic,
            jitter_std=jitter_std,
            seed=seed.to(tensors[1].device),
            backend=name,
        )
        gradients = torch.autograd.grad(out, leaves, tensors[2])
        results.append([result.detach().cpu() for result in (out, *gradients)])
    tolerance = 64 * max(torch.finfo(dtype).eps for dtype in (call.dtype, coords.dtype))
    for got, wanted in zip(*results, strict=True):
        scale = float(wanted.nan_to_num().abs().max())
        torch.testing.assert_close(
            got, wanted, rtol=0, atol=tolerance * max(scale, 1.0), equal_nan=True
        )


def run_part(backend: str, device: str, first: int, step: int) -> int:
    """Run every call at a distance of so many, from the first on; return their number."""
    torch.manual_seed(first)
    part = list(itertools.islice(calls(), first, None, step))
    for call in part:
        try:
            run(call, backend, device)
        except Exception as error:
            error.add_note(str(call))
            raise
    if device == "cuda":
        torch.cuda.synchronize()
    return len(part)


def main(backend: str, device: str = "cuda", processes: str = "1") -> None:
    """Run all calls on a backend."""
    number = int(processes)
    if number == 1:
        count = run_part(backend, device, 0, 1)
    else:
        jobs = [(backend, device, first, number) for first in range(number)]
        with multiprocessing.get_context("spawn").Pool(number) as pool:
            count = sum(pool.starmap(run_part, jobs, chunksize=1))
    sys.stdout.write(f"{count} calls, forward and backward, agree with the reference\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
