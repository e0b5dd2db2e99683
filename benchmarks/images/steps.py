"""The calls that are timed, and the check that they give the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import crad_kernels
from benchmarks import peers
from benchmarks.images.cases import BOTH, COORDS, FORWARD, VALUES, Case

Sample = Callable[[Tensor, Tensor], Tensor]
Tensors = Sequence[tuple[Tensor, Tensor, Tensor]]
Results = list[tuple[Tensor, ...]]

_WRONG_SHARE = 1e-3
"""Of results that may differ: where rounding moves a point across an edge, nearest jumps."""

_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Of a result, relative to it, that torch's result in float32 does not have."""


def ours(case: Case) -> Sample:
    """`crad_kernels.grid_sample` with the arguments of a case."""
    return partial(
        crad_kernels.grid_sample,
        mode=case.mode,
        padding_mode=case.padding,
        align_corners=False,
        jitter_std=case.jitter_std,
    )


def torchs(case: Case) -> Sample:
    """`F.grid_sample` with the arguments of a case; beyond three axes, gathers in torch."""
    if len(case.sizes[0]) > 3:
        return lambda values, grid: peers.gathers(
            values[0].movedim(0, -1), grid[0], case.jitter_std
        ).movedim(-1, 0)[None]
    sample = partial(F.grid_sample, mode=case.mode, padding_mode=case.padding, align_corners=False)
    if not case.jitter_std:
        return sample
    return lambda values, grid: sample(values, grid + case.jitter_std * torch.randn_like(grid))


def step(tensors: Tensors, sample: Sample, what: str) -> Callable[[], Results]:
    """One step of a case.

    Args:
        tensors: of the case.
        sample: what is called.
        what: one of the steps of the case.

    Returns:
        It; it gives, for each input, the result and the gradients that were asked for.
    """
    inputs = []
    for values, grid, grad in tensors:
        values = values.detach().requires_grad_(what in (BOTH, VALUES))
        grid = grid.detach().requires_grad_(what in (BOTH, COORDS))
        inputs.append((values, grid, [each for each in (values, grid) if each.requires_grad], grad))

    def forward() -> Results:
        return [(sample(values, grid),) for values, grid, _, _ in inputs]

    def backward() -> Results:
        found = []
        for values, grid, wanted, grad in inputs:
            out = sample(values, grid)
            found.append((out.detach(), *torch.autograd.grad(out, wanted, grad)))
        return found

    return forward if what == FORWARD else backward


def check(case: Case, tensors: Tensors) -> None:
    """Compare ours with torch's, without jitter.

    Half-precision results are compared with those of torch in float32. The slope of an
    interpolation jumps at the entries, where the points of the identity lie, so gradients by these
    coordinates are not compared.

    Raises:
        AssertionError: more than one result in a thousand differs by more than the rounding of an
            index allows.
    """
    case = replace(case, jitter_std=0.0)
    what = FORWARD if case.steps == (FORWARD,) else BOTH
    found = step(tensors, ours(case), what)()
    expected = step([[*map(torch.Tensor.float, each)] for each in tensors], torchs(case), what)()  # type: ignore[misc]
    half = _ROUNDING[case.dtype]
    for size, got, wanted in zip(case.sizes, found, expected, strict=True):
        for number, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
            if number == 2 and case.flow == "identity":
                continue
            index = 16 * max(size) * 2.0**-23 * float(theirs.std(correction=0))
            bound = index + 1e-5 + half * theirs.abs()
            wrong = float(((mine.float() - theirs).abs() > bound).float().mean())
            assert wrong <= _WRONG_SHARE, f"{case}: {100 * wrong:.2f} % of the results differ"
