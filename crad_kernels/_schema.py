"""Defines the operators: their schemas, and their shapes for the compiler."""

from collections.abc import Callable
from dataclasses import dataclass
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


def _sample_fake(values: Tensor, coords: Tensor, *_: Any) -> Tensor:
    return values.new_empty(*coords.shape[:-1], values.shape[-1])


def _sample_backward_fake(
    grad_output: Tensor, values: Tensor, coords: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    want_values, want_coords = args[-2:]
    return (
        values.new_empty(values.shape if want_values else 0),
        coords.new_empty(coords.shape if want_coords else 0),
    )


def _philox_fake(counter: Tensor, key: Tensor) -> Tensor:
    return counter.new_empty(counter.shape)


def _normals_fake(seed: Tensor, points: int, ndim: int) -> Tensor:
    return seed.new_empty(points, ndim, dtype=torch.float32)


_FAKES: dict[str, Callable[..., Any]] = {
    "sample": _sample_fake,
    "sample_backward": _sample_backward_fake,
    "philox": _philox_fake,
    "normals": _normals_fake,
}


def define(backend: str) -> Operators:
    """Define the operators of a backend, which then implements them."""
    operators = {}
    for name, schema in _SCHEMAS.items():
        overload = f"{name}.{backend}"
        library.define(overload + schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.register_fake(f"crad_kernels::{overload}", _FAKES[name], lib=library)
        operators[name] = getattr(getattr(torch.ops.crad_kernels, name), backend)
    return Operators(**operators)
