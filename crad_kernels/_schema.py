"""Defines the operators: their schemas, and their shapes for the compiler."""

from typing import Any

import torch
from torch import Tensor

# In the order of the enumerations in csrc/core/axis.h.
MODES = ("nearest", "linear", "cubic")
PADDING_MODES = ("zeros", "border", "reflection")

library = torch.library.Library("crad_kernels", "DEF")
library.define(
    "sample(Tensor values, Tensor coords, Tensor? seed, Tensor? jitter_std, int mode, "
    "int padding_mode, bool align_corners, int derivative) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
library.define(
    "sample_backward(Tensor grad_output, Tensor values, Tensor coords, Tensor? seed, "
    "Tensor? jitter_std, int mode, int padding_mode, bool align_corners, int derivative, "
    "bool want_values, bool want_coords) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
# The jitter by itself: for `torch.vmap`, which cannot leave it to the kernels, and for the tests.
library.define("philox(Tensor counter, Tensor key) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
library.define(
    "normals(Tensor seed, SymInt points, int ndim) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)

sample = torch.ops.crad_kernels.sample.default
sample_backward = torch.ops.crad_kernels.sample_backward.default
philox = torch.ops.crad_kernels.philox.default
normals = torch.ops.crad_kernels.normals.default


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


def _normals_fake(seed: Tensor, points: int, ndim: int) -> Tensor:
    return seed.new_empty(points, ndim, dtype=torch.float32)


def _philox_fake(counter: Tensor, key: Tensor) -> Tensor:
    return counter.new_empty(counter.shape)


for name, fake in (
    ("sample", _sample_fake),
    ("sample_backward", _sample_backward_fake),
    ("philox", _philox_fake),
    ("normals", _normals_fake),
):
    torch.library.register_fake(f"crad_kernels::{name}", fake, lib=library)
