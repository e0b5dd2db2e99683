"""The operators of `crad_kernels.sample_levels`, and what they are composed of.

A sample of several levels is the concatenation of the samples of each. So are its derivatives of
every order, the rules of `torch.vmap` and the form in ONNX: level by level those of `sample`. The
operators do the sample and its first derivatives at once, for what `fits`, on the backends cpu,
cuda and triton; but for the gradient of values where it is to be deterministic and they would add
it atomically.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from crad_kernels import _derivatives, _onnx, _schema, _vmap
from crad_kernels._schema import Operators, along_each, library

_SCHEMAS = {
    "sample_levels": (
        "(Tensor values, Tensor coords, Tensor? seed, Tensor? jitter_std, int[] sizes, int options)"
        " -> Tensor"
    ),
    "sample_levels_backward": (
        "(Tensor grad_output, Tensor values, Tensor coords, Tensor? seed, Tensor? jitter_std, "
        "int[] sizes, int options, bool want_values, bool want_coords) -> (Tensor, Tensor)"
    ),
}

# What csrc/operator/level_call.h takes, csrc/cuda/levels.h, and, of code, Triton's kernels.
MOST_LEVELS = {"cpu": math.inf, "cuda": 32, "triton": 32}
_ATOMIC = ("cuda", "triton")  # backends whose operators add gradients of values atomically
_MOST_AXES = 4
_MOST_CHANNELS = 8
_MOST_ENTRIES_ALONG = 1 << 24
_MOST_ELEMENTS = 1 << 30  # of a level


def fits(
    backend: str,
    values: Tensor,
    coords: Tensor,
    sizes: Sequence[Sequence[int]],
    mode: str,
    padding_mode: str | Sequence[str],
) -> bool:
    """Whether a backend has operators that take this call, whose arguments fit together."""
    ndim, channels = coords.shape[-1], values.shape[-1]
    return (
        len(sizes) <= MOST_LEVELS.get(backend, 0)
        and values.dtype == coords.dtype == torch.float32
        and ndim <= _MOST_AXES
        and 1 <= channels <= _MOST_CHANNELS
        and mode == "linear"
        and "circular" not in along_each(padding_mode, ndim)
        and all(
            min(size) >= 2
            and max(size) <= _MOST_ENTRIES_ALONG
            and prod(size) * channels <= _MOST_ELEMENTS
            for size in sizes
        )
    )


# ---- level by level ----


def each_size(flat: Sequence[int], ndim: int) -> list[Sequence[int]]:
    """The sizes of the levels, of which the operators are given one list."""
    return [flat[i : i + ndim] for i in range(0, len(flat), ndim)]


def split(values: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The levels as values of `sample`: views, whose gradients become one by one copy."""
    *batch, _, channels = values.shape
    parts = values.split([prod(size) for size in sizes], -2)
    return [part.view(*batch, *size, channels) for part, size in zip(parts, sizes, strict=True)]


def compose(
    sample: Any,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    flat: Sequence[int],
    options: int,
) -> Tensor:
    """The sample of all levels by `sample` of each. With one seed for all: a point moves once."""
    levels = split(values, each_size(flat, coords.shape[-1]))
    return torch.cat([sample(level, coords, seed, jitter_std, options) for level in levels], -1)


def _pack(levels: Sequence[Tensor], ndim: int) -> Tensor:
    """The levels, or their gradients, as `split` was given them."""
    return torch.cat([level.flatten(-1 - ndim, -2) for level in levels], -2)


def _pack_all(levels: Sequence[Tensor | None], ndim: int) -> Tensor | None:
    given = [level for level in levels if level is not None]
    return _pack(given, ndim) if given else None


def _levels_of(
    sizes: Sequence[Sequence[int]], *packed: Tensor | None
) -> Iterator[tuple[Tensor | None, ...]]:
    """The levels of several packed tensors together; None of None."""
    none: list[Tensor | None] = [None] * len(sizes)
    return zip(*(none if t is None else split(t, sizes) for t in packed), strict=True)


def _columns(sizes: Sequence[Sequence[int]], tensor: Tensor | None) -> Sequence[Tensor | None]:
    """The columns of every level of a result."""
    return [None] * len(sizes) if tensor is None else tensor.tensor_split(len(sizes), -1)


# ---- derivatives: see _derivatives.py ----


@dataclass
class Levels:
    """The operators of a backend, or the shortest ways to call them with their derivatives."""

    sample_levels: Any
    sample_levels_backward: Any


def _in_order(backend: str, options: int, want_values: bool) -> bool:
    """Whether a gradient of values is taken level by level, for the operator adds it atomically."""
    return want_values and backend in _ATOMIC and bool(options & _schema.DETERMINISTIC)


def _vjp(
    backend: str,
    ops: Operators,
    levels: Levels,
    needs: Sequence[bool],
    args: Sequence[Any],
    grad: Tensor | None,
) -> list[Tensor | None]:
    if grad is None:
        return []
    for_values, for_coords, _, for_std = needs
    values, coords, seed, std, flat, options = args
    want_coords = for_coords or for_std
    in_order = _in_order(backend, options, for_values)
    if want_coords or not in_order:
        to_values, to_coords = levels.sample_levels_backward(
            grad, *args, for_values and not in_order, want_coords
        )
    if in_order:
        sizes = each_size(flat, coords.shape[-1])
        points = (coords, seed, std, options)
        parts = [
            ops.sample_backward(column, level, *points, True, False)[0]
            for column, level in zip(_columns(sizes, grad), split(values, sizes), strict=True)
        ]
        to_values = _pack(parts, coords.shape[-1])
    return [
        to_values if for_values else None,
        to_coords if for_coords else None,
        None,
        _derivatives.to_std(ops, to_coords, coords, seed) if for_std else None,
    ]


def _jvp(ops: Operators, args: Sequence[Any], tangents: Sequence[Tensor | None]) -> Tensor:
    values, coords, *noise, flat, options = args
    d_values, *others = tangents
    of_levels = _levels_of(each_size(flat, coords.shape[-1]), values, d_values)
    parts = [
        _derivatives.sample_jvp(ops, (level, coords, *noise, options), (d_level, *others))
        for level, d_level in of_levels
    ]
    return torch.cat(parts, -1)


def _backward_vjp(
    ops: Operators,
    needs: Sequence[bool],
    args: Sequence[Any],
    to_values: Tensor | None,
    to_coords: Tensor | None,
) -> list[Tensor | None]:
    grad, values, *points, flat, options, want_values, want_coords = args
    ndim = points[0].shape[-1]
    sizes = each_size(flat, ndim)
    wanted = (options, want_values, want_coords)
    to_values = to_values if want_values else None  # which is of no entries else
    terms = [
        _derivatives.sample_backward_vjp(
            ops, needs, (column, level, *points, *wanted), to_level, to_coords
        )
        for column, (level, to_level) in zip(
            _columns(sizes, grad), _levels_of(sizes, values, to_values), strict=True
        )
    ]
    of_grad, of_values, of_coords, _, of_std = zip(*terms, strict=True)
    return [
        torch.cat(of_grad, -1) if of_grad[0] is not None else None,
        _pack_all(of_values, ndim),
        _derivatives.sum_of(of_coords),
        None,
        _derivatives.sum_of(of_std),
    ]


def _backward_jvp(
    ops: Operators, args: Sequence[Any], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    grad, values, *points, flat, options, want_values, want_coords = args
    d_grad, d_values, *others = tangents
    ndim = points[0].shape[-1]
    sizes = each_size(flat, ndim)
    terms = [
        _derivatives.sample_backward_jvp(
            ops,
            (column, level, *points, options, want_values, want_coords),
            (d_column, d_level, *others),
        )
        for column, d_column, (level, d_level) in zip(
            _columns(sizes, grad),
            _columns(sizes, d_grad),
            _levels_of(sizes, values, d_values),
            strict=True,
        )
    ]
    of_values, of_coords = zip(*terms, strict=True)
    total = _derivatives.sum_of(of_coords)
    assert total is not None
    return _pack(of_values, ndim) if want_values else values.new_zeros(0), total


# ---- torch.vmap: see _vmap.py ----


def _front(tensor: Any, dim: int | None) -> Any:
    return tensor if dim is None else tensor.movedim(dim, 0)


def _vmap_sample(
    ops: Operators,
    info: Any,
    in_dims: tuple[Any, ...],
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    flat: Sequence[int],
    options: int,
) -> tuple[Tensor, int]:
    values_dim, coords_dim, seed_dim, std_dim, *_ = in_dims
    ndim = _front(coords, coords_dim).shape[-1]
    dims = (None if values_dim is None else 0, coords_dim, seed_dim, std_dim, None)
    parts = []
    for level in split(_front(values, values_dim), each_size(flat, ndim)):
        out, dim = _vmap.sample(ops, info, dims, level, coords, seed, jitter_std, options)
        parts.append(_front(out, dim))
    return torch.cat(parts, -1), 0


def _vmap_backward(
    ops: Operators,
    info: Any,
    in_dims: tuple[Any, ...],
    grad_output: Tensor,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    flat: Sequence[int],
    *options: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
    grad_dim, values_dim, *point_dims = in_dims[:5]
    want_values, want_coords = options[-2:]
    ndim = _front(coords, point_dims[0]).shape[-1]
    sizes = each_size(flat, ndim)
    grad_output, values = _front(grad_output, grad_dim), _front(values, values_dim)
    front = (None if grad_dim is None else 0, None if values_dim is None else 0)
    of_values, of_coords = [], []
    for column, level in zip(_columns(sizes, grad_output), split(values, sizes), strict=True):
        results, dims = _vmap.sample_backward(
            *(ops, info, (*front, *point_dims), column, level, coords, seed, jitter_std, *options)
        )
        of_values.append(_front(results[0], dims[0]))
        of_coords.append(_front(results[1], dims[1]))
    to_values = _pack(of_values, ndim) if want_values else values.new_empty(0)
    to_coords = sum(of_coords[1:], of_coords[0]) if want_coords else coords.new_empty(0)
    return (to_values, to_coords), (0 if want_values else None, 0 if want_coords else None)


# ---- operators ----


def _check(
    backend: str,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    flat: Sequence[int],
    options: int,
) -> None:
    """Raise unless these are arguments of the operators."""
    _schema.check_dense("sample_levels()", "values", values)
    _schema.check_dense("sample_levels()", "coords", coords)
    ndim = coords.shape[-1] if coords.ndim else 0
    if ndim == 0 or not flat or len(flat) % ndim or values.ndim != 2:
        raise ValueError("sample_levels(): expected values, coords and sizes that fit together")
    sizes = each_size(flat, ndim)
    mode, padding_mode, _, _, derivative, unit = _schema.unpack(options, ndim)
    if min(flat) < 1 or values.shape[0] != sum(map(prod, sizes)):
        raise ValueError("sample_levels(): expected values to have the entries of all levels")
    if (
        not fits(backend, values, coords, sizes, mode, padding_mode)
        or derivative
        or unit != "normalized"
    ):
        raise ValueError("sample_levels(): expected a call that the operators take")
    # Which looks at all but the entries: one row of them, for the first level.
    first = values[:1].expand(prod(sizes[0]), values.shape[1]).view(*sizes[0], values.shape[1])
    _schema.check_call(first, coords, seed, jitter_std, options)


def empty_sample(backend: str, values: Tensor, coords: Tensor, *rest: Any) -> Tensor:
    """Memory for the result of `sample_levels`, whose arguments are checked."""
    _check(backend, values, coords, *rest)
    levels = len(rest[2]) // coords.shape[-1]
    return values.new_empty((*coords.shape[:-1], levels * values.shape[-1]))


def empty_gradients(backend: str, grad_output: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Memory for the results of `sample_levels_backward`, whose arguments are checked."""
    *call, want_values, want_coords = args
    values, coords = args[:2]
    if _in_order(backend, call[-1], want_values):
        raise ValueError("sample_levels_backward(): expected no deterministic gradient of values")
    shape = empty_sample(backend, *call).shape
    _schema.check_like(
        "sample_levels_backward()", "grad_output", grad_output, shape, values.dtype, values.device
    )
    return (
        values.new_empty(values.shape if want_values else 0),
        coords.new_empty(coords.shape if want_coords else 0),
    )


def install(backend: str, operators: Operators, calls: Operators) -> tuple[Levels, Levels]:
    """Define the operators of a backend; return them, and the shortest ways to call them.

    Args:
        backend: whose they are.
        operators: of `sample`.
        calls: the shortest ways to call these.
    """
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    for name, fake in (
        ("sample_levels", empty_sample),
        ("sample_levels_backward", empty_gradients),
    ):
        library.define(f"{name}.{backend}{_SCHEMAS[name]}", tags=tags)
        torch.library.register_fake(
            f"crad_kernels::{name}.{backend}", partial(fake, backend), lib=library
        )
    levels = Levels(
        getattr(torch.ops.crad_kernels.sample_levels, backend),
        getattr(torch.ops.crad_kernels.sample_levels_backward, backend),
    )
    for operator, rule in (
        (levels.sample_levels, _vmap_sample),
        (levels.sample_levels_backward, _vmap_backward),
    ):
        torch.library.register_vmap(operator, partial(rule, operators), lib=library)
    short = Levels(levels.sample_levels, None)
    short.sample_levels_backward = _derivatives.install_operator(
        levels.sample_levels_backward,
        5,
        lambda *_: None,  # they have been `sample_levels`'s
        partial(_backward_vjp, calls),
        partial(_backward_jvp, calls),
        _onnx.refuse_derivative,
    )
    short.sample_levels = _derivatives.install_operator(
        levels.sample_levels,
        4,
        partial(_check, backend),
        partial(_vjp, backend, calls, short),
        partial(_jvp, calls),
        partial(compose, _onnx.sample),
    )
    return levels, short
