"""Ways to sample a shared grid with jittered coordinates: ours, and what torch offers.

A peer takes values ``(*size, C)``, coords ``(*points, D)`` and the standard deviation of the
jitter, and gives ``(*points, C)``.
"""

import itertools
from collections.abc import Callable
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

import crad_kernels

Peer = Callable[[Tensor, Tensor, float], Tensor]


def _jittered(coords: Tensor, jitter_std: float) -> Tensor:
    return coords + jitter_std * torch.randn_like(coords) if jitter_std else coords


def ours(backend: str, values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
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


def embedding_bag(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """`F.embedding_bag` over the corners, torch's fused gather and weighted sum."""
    ndim = coords.shape[-1]
    size = values.shape[:-1]
    points = _jittered(coords, jitter_std).reshape(-1, ndim).flip(-1)
    length = torch.tensor(size, dtype=points.dtype)
    index = ((points + 1) * length - 1) / 2
    low = index.detach().floor()
    fraction = index - low
    steps = torch.tensor(list(itertools.product((0, 1), repeat=ndim)))
    corner = low.to(torch.int64)[:, None] + steps
    inside = ((corner >= 0) & (corner < torch.tensor(size))).all(-1)
    strides = torch.tensor([prod(size[axis + 1 :]) for axis in range(ndim)])
    entry = (corner.clamp(min=0).minimum(torch.tensor(size) - 1) * strides).sum(-1)
    along = torch.where(steps.bool(), fraction[:, None], 1 - fraction[:, None])
    weight = along.prod(-1) * inside
    out = F.embedding_bag(
        entry, values.reshape(-1, values.shape[-1]), per_sample_weights=weight, mode="sum"
    )
    return out.reshape(*coords.shape[:-1], -1)


PEERS: dict[str, Peer] = {
    **{
        f"crad_kernels {name}": partial(ours, name)
        for name, backend in crad_kernels.backends().items()
        if backend.usable
    },
    "F.grid_sample as CRAD calls it": grid_sample_repeated,
    "F.grid_sample flat": grid_sample_flat,
    "F.embedding_bag": embedding_bag,
}


def why_not(name: str, ndim: int, elements: int) -> str | None:
    """Why a peer is left out of a case with so many axes and gathered elements, if it is."""
    if name.startswith("F.grid_sample") and ndim not in (2, 3):
        return "F.grid_sample takes 2 or 3 dimensions"
    if name == "crad_kernels reference" and elements > 100_000_000:
        return "the reference would need many gigabytes"
    return None
