"""Ways to sample a shared grid with jittered coordinates: ours, and what torch offers.

A peer takes values ``(*size, C)``, coords ``(*points, D)`` and the standard deviation of the
jitter, and gives ``(*points, C)``.
"""

import itertools
from collections.abc import Callable
from functools import cache, partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

import crad_kernels
from benchmarks.cases import Case

Peer = Callable[[Tensor, Tensor, float], Tensor]


def _jittered(coords: Tensor, jitter_std: float) -> Tensor:
    return coords + jitter_std * torch.randn_like(coords) if jitter_std else coords


def sample_by(backend: str, values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """One call of this package."""
    return crad_kernels.sample(values, coords, jitter_std=jitter_std, backend=backend)


def grid_sample_repeated(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """`F.grid_sample` as CRAD calls it: the grid repeated for every image of the batch."""
    batch, ndim = coords.shape[0], coords.shape[-1]
    # The parameter of that model is (1, C, *size); the move is a view of ours.
    grid = values.movedim(-1, 0).contiguous()[None].repeat(batch, *(1,) * (ndim + 1))
    places = _jittered(coords, jitter_std).reshape(batch, *(1,) * (ndim - 1), -1, ndim)
    out = F.grid_sample(grid, places, align_corners=False)
    return out.flatten(2).movedim(1, -1).reshape(*coords.shape[:-1], -1)


def grid_sample_flat(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """`F.grid_sample` with all points in a batch of one."""
    ndim = coords.shape[-1]
    places = _jittered(coords, jitter_std).reshape(1, *(1,) * (ndim - 1), -1, ndim)
    out = F.grid_sample(values.movedim(-1, 0)[None], places, align_corners=False)
    return out.flatten(2)[0].T.reshape(*coords.shape[:-1], -1)


@cache
def _corners(size: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Size, strides in entries, and the steps from the lowest corner to all; copied there once."""
    strides = [prod(size[axis + 1 :]) for axis in range(len(size))]
    steps = list(itertools.product((0, 1), repeat=len(size)))
    length, stride, step = (torch.tensor(n, device=device) for n in (size, strides, steps))
    return length, stride, step


def embedding_bag(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """`F.embedding_bag` over the corners, torch's fused gather and weighted sum."""
    ndim = coords.shape[-1]
    length, strides, steps = _corners(tuple(values.shape[:-1]), values.device)
    points = _jittered(coords, jitter_std).reshape(-1, ndim).flip(-1)
    index = ((points + 1) * length - 1) / 2
    low = index.detach().floor()
    fraction = index - low
    corner = low.to(torch.int64)[:, None] + steps
    inside = ((corner >= 0) & (corner < length)).all(-1)
    entry = (corner.clamp(min=0).minimum(length - 1) * strides).sum(-1)
    along = torch.where(steps.bool(), fraction[:, None], 1 - fraction[:, None])
    weight = along.prod(-1) * inside
    out = F.embedding_bag(
        entry, values.reshape(-1, values.shape[-1]), per_sample_weights=weight, mode="sum"
    )
    return out.reshape(*coords.shape[:-1], -1)


def peers(device: str) -> dict[str, Peer]:
    """All by name that run on this type of device."""
    return {
        **{
            f"crad_kernels {name}": partial(sample_by, name)
            for name, backend in crad_kernels.backends().items()
            if backend.takes(torch.device(device), 2)
        },
        "F.grid_sample as CRAD calls it": grid_sample_repeated,
        "F.grid_sample flat": grid_sample_flat,
        "F.embedding_bag": embedding_bag,
    }


def why_not(name: str, case: Case) -> str | None:
    """Why a peer is left out of a case, if it is."""
    ndim = len(case.size)
    if name.startswith("F.grid_sample") and ndim not in (2, 3):
        return "F.grid_sample takes 2 or 3 dimensions"
    gathered = 2**ndim * prod(case.points) * case.channels
    if name == "crad_kernels reference" and gathered > 100_000_000:
        return "the reference would need many gigabytes"
    return None


def grad_output_of(name: str, grad_output: Tensor) -> Tensor:
    """The gradient in the layout in which a peer is given it."""
    if name == "F.grid_sample as CRAD calls it":
        # The model that calls it so goes on channels first.
        return grad_output.movedim(-1, 1).contiguous().movedim(1, -1)
    return grad_output


def check(peer: Peer, case: Case, device: str = "cpu") -> None:
    """Raise unless a peer computes without jitter what we compute, and its gradients."""
    values, coords, grad_output = case.tensors(device)
    out = peer(values, coords, 0.0)
    gradients = torch.autograd.grad(out, (values, coords), grad_output)
    ours = crad_kernels.sample(values, coords)
    wanted = torch.autograd.grad(ours, (values, coords), grad_output)
    pairs = zip((out.detach(), *gradients), (ours.detach(), *wanted), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
