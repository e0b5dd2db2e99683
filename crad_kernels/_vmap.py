"""How the operators run on a batch of their arguments: the rules of `torch.vmap`.

Every rule ends in the same operators on other shapes. The noise of a point depends on its number,
which batching would change, so jitter is added to the coordinates beforehand: each slice has the
noise that it would have alone.
"""

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from crad_kernels._schema import Operators, library


def _front(tensor: Tensor, dim: int | None) -> Tensor:
    """The tensor with its batch axis, if it has one, in front."""
    return tensor if dim is None else tensor.movedim(dim, 0)


def _all(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The same for every slice where there is no batch axis: it is expanded to one, in front."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _without_jitter(
    ops: Operators,
    in_dims: tuple[int | None, int | None, int | None],
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
) -> tuple[Tensor, int | None]:
    """Coordinates with their noise, and their batch axis; `in_dims` are those of the tensors."""
    coords_dim, seed_dim, std_dim = in_dims
    if seed is None or jitter_std is None:
        return coords, coords_dim
    coords = _front(coords, coords_dim)
    *points, ndim = coords.shape if coords_dim is None else coords.shape[1:]
    seeds = [seed] if seed_dim is None else seed.unbind(seed_dim)
    noise = torch.stack([ops.normals(each, prod(points), ndim) for each in seeds])
    noise = noise.to(coords.dtype).reshape(len(seeds), *points, ndim)
    stds = jitter_std[None] if std_dim is None else jitter_std.movedim(std_dim, 0)
    moved = coords + stds.reshape(len(stds), *(1,) * len(points), ndim) * noise
    return (moved[0], None) if in_dims == (None, None, None) else (moved, 0)


def sample(
    ops: Operators,
    info: Any,
    in_dims: tuple[Any, ...],
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    *options: Any,
) -> tuple[Tensor, int]:
    """The sample of a batch, and its batch axis."""
    values_dim = in_dims[0]
    coords, coords_dim = _without_jitter(ops, in_dims[1:4], coords, seed, jitter_std)
    values, coords = _front(values, values_dim), _front(coords, coords_dim)
    ndim = coords.shape[-1]
    shared = values.ndim - (values_dim is not None) == ndim + 1
    if values_dim is None:
        # More points: of the one grid, or of the grid of each item.
        where = 0 if shared else 1
        return ops.sample(values, coords.movedim(0, where), None, None, *options), where
    if coords_dim is None:
        # More channels.
        channels = values.shape[-1]
        values = values.movedim(0, -2).flatten(-2)
        out = ops.sample(values, coords, None, None, *options)
        out = out.unflatten(-1, (info.batch_size, channels))
        return out, out.ndim - 2
    if shared:
        return ops.sample(values, coords, None, None, *options), 0
    out = ops.sample(values.flatten(0, 1), coords.flatten(0, 1), None, None, *options)
    return out.unflatten(0, values.shape[:2]), 0


def sample_backward(
    ops: Operators,
    info: Any,
    in_dims: tuple[Any, ...],
    grad_output: Tensor,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    *options: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
    """The gradients of a batch, and their batch axes."""
    grad_dim, values_dim = in_dims[:2]
    want_values, want_coords = options[-2:]
    coords, coords_dim = _without_jitter(ops, in_dims[2:5], coords, seed, jitter_std)
    coords = _all(coords, coords_dim, info.batch_size)
    grad_output = _all(grad_output, grad_dim, info.batch_size)
    shared = values.ndim - (values_dim is not None) == coords.shape[-1] + 1
    if values_dim is None and not want_values:
        # More points: of the one grid, or of the grid of each item.
        where = 0 if shared else 1
        grad_output, coords = grad_output.movedim(0, where), coords.movedim(0, where)
        result = ops.sample_backward(grad_output, values, coords, None, None, *options)
        return result, (None, where)
    values = _all(values, values_dim, info.batch_size)
    dims = (0 if want_values else None, 0 if want_coords else None)
    if shared:
        return ops.sample_backward(grad_output, values, coords, None, None, *options), dims
    tensors = (tensor.flatten(0, 1) for tensor in (grad_output, values, coords))
    result = ops.sample_backward(*tensors, None, None, *options)
    to_values, to_coords = (
        gradient.unflatten(0, values.shape[:2]) if wanted else gradient
        for gradient, wanted in zip(result, (want_values, want_coords), strict=True)
    )
    return (to_values, to_coords), dims


def _normals(
    ops: Operators, info: Any, in_dims: tuple[Any, ...], seed: Tensor, points: int, ndim: int
) -> tuple[Tensor, int]:
    return torch.stack([ops.normals(each, points, ndim) for each in seed.unbind(in_dims[0])]), 0


def install(ops: Operators) -> None:
    """Give the operators of a backend their rules."""
    for operator, rule in (
        (ops.sample, sample),
        (ops.sample_backward, sample_backward),
        (ops.normals, _normals),
    ):
        torch.library.register_vmap(operator, partial(rule, ops), lib=library)
