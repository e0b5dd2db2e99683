"""Defines the operators: their schemas, and their shapes for the compiler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

# In the order of the enumerations in csrc/core/axis.h; simplex, which is none of an axis, is last.
MODES = ("nearest", "linear", "cubic", "simplex")
PADDING_MODES = ("zeros", "border", "reflection", "circular")
COORDS_UNITS = ("normalized", "index")
_MODE_BITS = {mode: bits for bits, mode in enumerate(MODES)}
_PADDING_BITS = {mode: bits << 2 for bits, mode in enumerate(PADDING_MODES)}
_UNIT_BITS = {unit: bits << 6 for bits, unit in enumerate(COORDS_UNITS)}

VALUE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_COORD_DTYPES = (torch.float32, torch.float64)

library = torch.library.Library("crad_kernels", "DEF")

# Stands for a backend in the names of the operators that exported programs hold: ``sample.any``.
NEUTRAL = "any"

# The bit of a deterministic call in its options, and the first of its derivative and of how its
# components differ: see `pack`.
DETERMINISTIC = 1 << 5
DERIVATIVE = 8
_DIFFERENCES = 40
# Paddings and alignments that differ are of so many components at most. With more, all of the bits
# are the derivative's.
MOST_MIXED = 8

_SCHEMAS = {
    "sample": (
        "(Tensor values, Tensor coords, Tensor? seed, Tensor? jitter_std, int options) -> Tensor"
    ),
    "sample_backward": (
        "(Tensor grad_output, Tensor values, Tensor coords, Tensor? seed, Tensor? jitter_std, "
        "int options, bool want_values, bool want_coords) -> (Tensor, Tensor)"
    ),
    # The jitter by itself: for `torch.vmap`, which cannot leave it to the kernels, and the tests.
    "normals": "(Tensor seed, SymInt points, int ndim) -> Tensor",
}


_Padding: TypeAlias = str | Sequence[str]
_Alignment: TypeAlias = bool | Sequence[bool]


class Options(NamedTuple):
    """What `pack` puts into one integer; see there."""

    mode: str
    padding_mode: _Padding
    align_corners: _Alignment
    deterministic: bool
    derivative: int = 0
    coords_unit: str = "normalized"


def pack(
    mode: str,
    padding_mode: _Padding,
    align_corners: _Alignment,
    deterministic: bool,
    derivative: int = 0,
    coords_unit: str = "normalized",
) -> int:
    """The options of a call in one integer, for PyTorch takes 0.2 us for each that it is given.

    Padding and alignment have three bits, those of component 0. From bit 40 on follow three for
    each other component, which say in what it differs.

    Args:
        mode: as `crad_kernels.sample`.
        padding_mode: as `crad_kernels.sample`.
        align_corners: as `crad_kernels.sample`.
        deterministic: as `crad_kernels.sample`.
        derivative: of the weights: a hexadecimal digit holds its order along an axis, that of the
            first axis in the lowest.
        coords_unit: as `crad_kernels.sample`.
    """
    differences = 0
    if isinstance(padding_mode, str) and isinstance(align_corners, bool):
        along = _PADDING_BITS[padding_mode] | align_corners << 4
    else:
        ndim = 1 if isinstance(padding_mode, str) else len(padding_mode)
        ndim = ndim if isinstance(align_corners, bool) else len(align_corners)
        pairs = zip(along_each(padding_mode, ndim), along_each(align_corners, ndim), strict=True)
        along, *others = (_PADDING_BITS[padding] | aligned << 4 for padding, aligned in pairs)
        for component, other in enumerate(others):
            differences |= (along ^ other) >> 2 << 3 * component
    return (
        _MODE_BITS[mode]
        | along
        | DETERMINISTIC * deterministic
        | _UNIT_BITS[coords_unit]
        | derivative << DERIVATIVE
        | differences << _DIFFERENCES
    )


def unpack(options: int, ndim: int) -> Options:
    """The arguments of `pack`, of a call with so many components; tuples only where they differ."""
    mixed = ndim <= MOST_MIXED
    along = [options >> 2 & 7]
    for component in range(ndim - 1):
        difference = options >> _DIFFERENCES >> 3 * component & 7 if mixed else 0
        along.append(along[0] ^ difference)
    paddings = tuple(PADDING_MODES[bits & 3] for bits in along)
    alignments = tuple(bool(bits >> 2) for bits in along)
    derivative = options >> DERIVATIVE
    return Options(
        MODES[options & 3],
        paddings[0] if len(set(paddings)) == 1 else paddings,
        alignments[0] if len(set(alignments)) == 1 else alignments,
        bool(options & DETERMINISTIC),
        derivative & (1 << _DIFFERENCES - DERIVATIVE) - 1 if mixed else derivative,
        COORDS_UNITS[options >> 6 & 1],
    )


_Option = TypeVar("_Option", str, bool)


def along_each(option: _Option | Sequence[_Option], ndim: int) -> tuple[_Option, ...]:
    """An option of every component: the same, unless there is one for each."""
    if isinstance(option, str | bool):
        return (option,) * ndim
    return tuple(option)


@dataclass
class Operators:
    """The operators of one backend, each an overload named after it: ``sample.cpu``."""

    sample: Any
    sample_backward: Any
    normals: Any


def check_dense(function: str, name: str, tensor: object) -> None:
    """Raise unless this is a tensor whose elements all are somewhere in memory."""
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{function}: expected {name} to be a tensor, but got {type(tensor).__name__}"
        )
    if tensor.is_nested:
        raise TypeError(
            f"{function}: expected {name} to be one dense tensor, but got a nested one; give the "
            f"tensors of {name}.unbind() one by one"
        )
    if tensor.layout != torch.strided:
        raise TypeError(
            f"{function}: expected {name} to be dense, but got a tensor of {tensor.layout}; "
            f"convert it with {name}.to_dense()"
        )


def check_tensors(values: Tensor, coords: Tensor) -> None:
    """Raise unless the tensors fit together."""
    check_dense("sample()", "values", values)
    check_dense("sample()", "coords", coords)
    if coords.dtype not in _COORD_DTYPES:
        way = "torch.view_as_real(coords)" if coords.is_complex() else "coords.float()"
        if coords.is_quantized:
            way = "coords.dequantize()"
        raise TypeError(
            f"sample(): expected coords to be float32 or float64, but got {coords.dtype}; "
            f"convert them with {way}"
        )
    if values.dtype not in VALUE_DTYPES:
        raise TypeError(
            "sample(): expected values to be float64, float32, bfloat16 or float16, but got "
            f"{values.dtype}"
        )
    shape, points = values.shape, coords.shape
    if not points or points[-1] == 0:
        raise ValueError(
            "sample(): expected coords to have at least 1 component in its last axis, but got "
            f"coords of shape {tuple(points)}"
        )
    ndim = points[-1]
    batch_axes = len(shape) - 1 - ndim
    if batch_axes not in (0, 1):
        raise ValueError(
            f"sample(): expected values to have {ndim + 1} axes (*size, C), or {ndim + 2} axes "
            f"(B, *size, C), for coords with {ndim} components, but got values of shape "
            f"{tuple(shape)} and coords of shape {tuple(points)}"
        )
    if batch_axes and (len(points) < 2 or points[0] != shape[0]):
        raise ValueError(
            "sample(): expected coords to have the batch size of values in its first axis, but got "
            f"values of shape {tuple(shape)} and coords of shape {tuple(points)}"
        )
    if 0 in shape[batch_axes:-1]:
        raise ValueError(
            "sample(): expected values to have at least 1 entry along every axis, but got values "
            f"of shape {tuple(shape)}"
        )
    if values.device != coords.device:
        raise ValueError(
            "sample(): expected values and coords on one device, but got "
            f"{values.device} and {coords.device}"
        )


def check_call(
    values: Tensor, coords: Tensor, seed: Tensor | None, jitter_std: Tensor | None, options: int
) -> None:
    """Raise unless these are arguments of the operators: what `crad_kernels.sample` gives them."""
    check_tensors(values, coords)
    if (seed is None) != (jitter_std is None):
        raise ValueError("sample(): expected seed and jitter_std together, or neither")
    if seed is not None and jitter_std is not None:
        check_like("sample()", "seed", seed, (), torch.int64, coords.device)
        stds = (coords.shape[-1],)
        check_like("sample()", "jitter_std", jitter_std, stds, coords.dtype, coords.device)
    differences = coords.shape[-1] - 1 if coords.shape[-1] <= MOST_MIXED else 0
    if options not in range(1 << _DIFFERENCES + 3 * differences):
        raise ValueError(f"sample(): expected options as of pack(), but got {options}")


def check_grad_output(grad_output: Tensor, values: Tensor, coords: Tensor) -> None:
    """Raise unless this can be the gradient of the sample of tensors that fit together."""
    shape = (*coords.shape[:-1], values.shape[-1])
    check_like("sample_backward()", "grad_output", grad_output, shape, values.dtype, values.device)


def check_normals(seed: Tensor, points: int, ndim: int) -> None:
    """Raise unless these are arguments of `normals`."""
    check_dense("normals()", "seed", seed)
    check_like("normals()", "seed", seed, (), torch.int64, seed.device)
    if points < 0 or not 0 <= ndim <= 8:
        raise ValueError(
            "normals(): expected a number of points and at most 8 components, but got "
            f"{points} and {ndim}"
        )


def check_like(
    function: str,
    name: str,
    tensor: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise unless this is a dense tensor of this shape and dtype, on this device."""
    check_dense(function, name, tensor)
    given = tuple(tensor.shape), tensor.dtype, tensor.device
    if given != (tuple(shape), dtype, device):
        raise ValueError(
            f"{function}: expected {name} of shape {tuple(shape)} and {dtype} on {device}, but got "
            f"shape {given[0]} and {tensor.dtype} on {tensor.device}"
        )


def _contiguous(shape: Sequence[int], values: Tensor, coords: Tensor) -> Tensor:
    return values.new_empty(shape)


def _channels_axis(values: Tensor, coords: Tensor) -> int:
    """The axis in which a result that lies as ``values`` has its channels, if they moved there."""
    axis = values.ndim - 1 - coords.shape[-1]
    if values.is_contiguous() or not values.movedim(-1, axis).is_contiguous():
        return -1
    return axis


def _laid_out_as(shape: Sequence[int], values: Tensor, coords: Tensor) -> Tensor:
    """Channels first if ``values`` are so, or else channels last."""
    axis = _channels_axis(values, coords)
    if axis == -1:
        return values.new_empty(shape)
    *others, channels = shape
    return values.new_empty(*others[:axis], channels, *others[axis:]).movedim(axis, -1)


def lay_out_as(result: Tensor, values: Tensor, coords: Tensor) -> Tensor:
    """A result with channels first if ``values`` have them so, or else last; copied if need be."""
    axis = _channels_axis(values, coords)
    return result.movedim(-1, axis).contiguous().movedim(axis, -1)


def _sample_fake(empty: Callable[..., Tensor], *args: Any) -> Tensor:
    check_call(*args)
    values, coords = args[:2]
    return empty((*coords.shape[:-1], values.shape[-1]), values, coords)


def _sample_backward_fake(
    empty: Callable[..., Tensor], grad_output: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    *call, want_values, want_coords = args
    check_call(*call)
    values, coords = args[:2]
    check_grad_output(grad_output, values, coords)
    return (
        empty(values.shape, values, coords) if want_values else values.new_empty(0),
        coords.new_empty(coords.shape if want_coords else 0),
    )


def _normals_fake(seed: Tensor, points: int, ndim: int) -> Tensor:
    check_normals(seed, points, ndim)
    return seed.new_empty(points, ndim, dtype=torch.float32)


def define(backend: str) -> Operators:
    """Define the operators of a backend, which then implements them."""
    # A result of these lies in memory as values do; that of the others is contiguous.
    empty = _laid_out_as if backend in ("cpu", "cuda", NEUTRAL) else _contiguous
    fakes: dict[str, Callable[..., Any]] = {
        "sample": partial(_sample_fake, empty),
        "sample_backward": partial(_sample_backward_fake, empty),
        "normals": _normals_fake,
    }
    # The compiler must not lay values out in another way than it was told of.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    operators = {}
    for name, schema in _SCHEMAS.items():
        overload = f"{name}.{backend}"
        library.define(overload + schema, tags=tags)
        torch.library.register_fake(f"crad_kernels::{overload}", fakes[name], lib=library)
        operators[name] = getattr(getattr(torch.ops.crad_kernels, name), backend)
    return Operators(**operators)
