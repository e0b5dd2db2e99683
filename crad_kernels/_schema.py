"""Defines the operators: their schemas, and their shapes for the compiler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

# In the order of the enumerations in csrc/core/axis.h.
MODES = ("nearest", "linear", "cubic")
PADDING_MODES = ("zeros", "border", "reflection")

library = torch.library.Library("crad_kernels", "DEF")

_SCHEMAS = {
    "sample": (
        "(Tensor values, Tensor coords, Tensor? seed, Tensor? jitter_std, int mode, "
        "int padding_mode, bool align_corners, bool deterministic, int derivative) -> Tensor"
    ),
    "sample_backward": (
        "(Tensor grad_output, Tensor values, Tensor coords, Tensor? seed, Tensor? jitter_std, "
        "int mode, int padding_mode, bool align_corners, bool deterministic, int derivative, "
        "bool want_values, bool want_coords) -> (Tensor, Tensor)"
    ),
    # The jitter by itself: for `torch.vmap`, which cannot leave it to the kernels, and the tests.
    "philox": "(Tensor counter, Tensor key) -> Tensor",
    "normals": "(Tensor seed, SymInt points, int ndim) -> Tensor",
}


@dataclass
class Operators:
    """The operators of one backend, each an overload named after it: ``sample.cpu``."""

    sample: Any
    sample_backward: Any
    philox: Any
    normals: Any


def _contiguous(shape: Sequence[int], values: Tensor, coords: Tensor) -> Tensor:
    return values.new_empty(shape)


def _laid_out_as(shape: Sequence[int], values: Tensor, coords: Tensor) -> Tensor:
    """Channels first if ``values`` are so, or else channels last."""
    axis = values.ndim - 1 - coords.shape[-1]
    if values.is_contiguous() or not values.movedim(-1, axis).is_contiguous():
        return values.new_empty(shape)
    *others, channels = shape
    return values.new_empty(*others[:axis], channels, *others[axis:]).movedim(axis, -1)


def _sample_fake(empty: Callable[..., Tensor], values: Tensor, coords: Tensor, *_: Any) -> Tensor:
    return empty((*coords.shape[:-1], values.shape[-1]), values, coords)


def _sample_backward_fake(
    empty: Callable[..., Tensor], grad_output: Tensor, values: Tensor, coords: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    want_values, want_coords = args[-2:]
    return (
        empty(values.shape, values, coords) if want_values else values.new_empty(0),
        coords.new_empty(coords.shape if want_coords else 0),
    )


def _philox_fake(counter: Tensor, key: Tensor) -> Tensor:
    return counter.new_empty(counter.shape)


def _normals_fake(seed: Tensor, points: int, ndim: int) -> Tensor:
    return seed.new_empty(points, ndim, dtype=torch.float32)


def define(backend: str) -> Operators:
    """Define the operators of a backend, which then implements them."""
    # A result of the CPU's lies in memory as values do; a GPU's is contiguous.
    empty = _laid_out_as if backend == "cpu" else _contiguous
    fakes: dict[str, Callable[..., Any]] = {
        "sample": partial(_sample_fake, empty),
        "sample_backward": partial(_sample_backward_fake, empty),
        "philox": _philox_fake,
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
