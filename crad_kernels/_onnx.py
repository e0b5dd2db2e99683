"""How the operators go to ONNX: as GridSample where it means the same, or else as gathers.

`torch.onnx.export(dynamo=True)` traces a program anew, with what it has translations for. While it
does, the operators' kernels for the Autograd key run these forms instead.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd

from crad_kernels import reference
from crad_kernels._schema import PADDING_MODES, Operators, Options, library, unpack

# In the order of PyTorch's enumeration.
_TORCH_MODES = ("linear", "nearest", "cubic")


def is_exporting() -> bool:
    """What `torch.onnx.is_in_onnx_export` returns of this exporter, without importing any."""
    flags = sys.modules.get("torch.onnx._internal.exporter._flags")
    return getattr(flags, "_is_onnx_exporting", False)


def install(operators: Operators) -> None:
    """Give the operator of the noise its form; `_derivatives` does so for the others."""

    def kernel(keys: Any, *args: Any) -> Any:
        if is_exporting():
            return reference.normals(*args)
        with _AutoDispatchBelowAutograd():
            return operators.normals.redispatch(keys & torch._C._after_autograd_keyset, *args)

    library.impl(operators.normals, kernel, "Autograd", with_keyset=True)


def refuse_derivative(*_: Any) -> Any:
    raise NotImplementedError(
        "sample(): ONNX has no operator for the derivative of a sample; name backend='reference' "
        "to export the operations of PyTorch that it is made of"
    )


def sample(
    values: Tensor, coords: Tensor, seed: Tensor | None, jitter_std: Tensor | None, options: int
) -> Tensor:
    unpacked = unpack(options, coords.shape[-1])
    if unpacked.derivative:
        refuse_derivative()
    if not _is_grid_sample(values, coords, unpacked):
        return reference.sample(values, coords, seed, jitter_std, unpacked)
    if seed is not None and jitter_std is not None:
        points = coords.reshape(-1, coords.shape[-1])
        noise = reference.normals(seed, points.shape[0], points.shape[1]).to(coords.dtype)
        coords = (points + jitter_std * noise).reshape(coords.shape)
    return _grid_sample(values, coords, unpacked)


def _is_grid_sample(values: Tensor, coords: Tensor, options: Options) -> bool:
    """Whether ONNX's GridSample, and that of its runtimes, has the same meaning.

    It has one padding for all axes. Its tensors have one dtype, and its cubic clamps the index
    under border padding, not the taps.
    ONNX Runtime has no cubic in 3-D, and reflects in an axis of one aligned entry to outside of it.
    Coordinates are normalized, to which indices are rounded: the nearest entry may be another then.
    Its corners are not aligned then, which matters to the reflection of indices alone.
    """
    mode, padding_mode, align_corners, *_, unit = options
    if not isinstance(padding_mode, str) or not isinstance(align_corners, bool):
        return False
    if unit == "index" and (mode == "nearest" or (padding_mode == "reflection" and align_corners)):
        return False
    if coords.dtype != (torch.float64 if values.dtype == torch.float64 else torch.float32):
        return False
    ndim = coords.shape[-1]
    if mode == "simplex" or padding_mode == "circular":
        return False
    if mode != "cubic":
        return ndim in (2, 3)
    same = padding_mode == "zeros" or (padding_mode == "reflection" and not align_corners)
    return ndim == 2 and same


def _grid_sample(values: Tensor, coords: Tensor, options: Options) -> Tensor:
    """The sample by GridSample.

    Of a coordinate far away or not finite, runtimes make an index that is undefined, or that they
    read outside of the grid with: it is replaced by one near the grid that is sampled alike.
    """
    mode, padding_mode, align_corners, *_, unit = options
    assert isinstance(padding_mode, str)
    assert isinstance(align_corners, bool)
    ndim = coords.shape[-1]
    size = values.shape[-1 - ndim : -1]
    finite = None
    if padding_mode == "zeros":
        finite = _index(coords, size, align_corners, unit).isfinite().all(-1, keepdim=True)
    if unit == "index":
        coords, align_corners = _normalized(coords, size), False
    if padding_mode == "zeros":
        near = torch.where(coords.isnan(), 0, coords).clamp(-8, 8)
    elif padding_mode == "border":
        near = torch.where(coords.isnan(), -1, coords).clamp(-1, 1)
    elif padding_mode == "reflection":
        near = _reflected(coords, size, align_corners)
        if mode != "cubic":
            padding_mode = "border"  # nothing is left to reflect
    else:
        raise AssertionError(f"{padding_mode} has no way to ONNX")
    batched = values.ndim == ndim + 2
    channels_first = (values if batched else values[None]).movedim(-1, 1).to(coords.dtype)
    grid = near if batched else near[None]
    if grid.ndim != ndim + 2:
        points = math.prod(grid.shape[1:-1])
        grid = grid.reshape(grid.shape[0], points, *(1,) * (ndim - 1), ndim)
    out = _by_onnx(channels_first, grid, mode, padding_mode, align_corners)
    out = out.movedim(1, -1).reshape(*coords.shape[:-1], values.shape[-1])
    return (out if finite is None else torch.where(finite, out, torch.nan)).to(values.dtype)


def _index(coords: Tensor, size: Sequence[int], align_corners: bool, unit: str) -> Tensor:
    """Fractional positions, one for each component."""
    pairs = zip(coords.unbind(-1), reversed(size), strict=True)
    return torch.stack(
        [reference.index_of(x, length, align_corners, unit) for x, length in pairs], -1
    )


def _normalized(index: Tensor, size: Sequence[int]) -> Tensor:
    """The coordinates of indices, -1 and 1 being the borders of the outer entries."""
    pairs = zip(index.unbind(-1), reversed(size), strict=True)
    return torch.stack([(2 * u + 1) / length - 1 for u, length in pairs], -1)


def _reflected(coords: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Coordinates in the grid that reflection samples as these."""
    distance = torch.fmod((coords + 1).abs(), 4)
    mirrored = torch.where(distance > 2, 4 - distance, distance) - 1
    inside = torch.where(coords.abs() <= 1, coords, mirrored)
    ones = torch.ones_like(coords[..., 0])
    first = torch.stack(
        [-ones if align_corners else ones / length - 1 for length in reversed(size)], -1
    )
    usable = _index(coords, size, align_corners, "normalized").abs() < 2.0**31
    return torch.where(usable, inside, first)


def _by_onnx(
    values: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    """GridSample; shapes as in `torch.nn.functional.grid_sample`."""
    if grid.shape[-1] == 2:
        out: Tensor = torch.ops.aten.grid_sampler_2d(
            values,
            grid,
            _TORCH_MODES.index(mode),
            PADDING_MODES.index(padding_mode),
            align_corners,
        )
        return out
    from torch.onnx import ops  # only while it exports

    return ops.symbolic(
        "GridSample",
        (values, grid),
        {"mode": mode, "padding_mode": padding_mode, "align_corners": int(align_corners)},
        dtype=values.dtype,
        shape=(*values.shape[:2], *grid.shape[1:-1]),
        version=20,
    )
