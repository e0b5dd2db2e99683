"""The operators of several levels: grids of different sizes, packed one behind the other.

A sample is one launch, and so is its backward pass: the gradient of the values is added atomically.
Where it is to be deterministic, it is taken level by level, as that of a sample, and only that of
the coordinates in one launch. See `launch` for what holds for all operators.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crad_kernels._backends.triton import launch, plan
from crad_kernels._backends.triton.kernels.levels import (
    sample_levels_backward_kernel,
    sample_levels_kernel,
)
from crad_kernels._backends.triton.kernels.options import levels_of
from crad_kernels._level_operators import each_size, empty_gradients, empty_sample, split


def _run(
    kernel: Any,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    flat: Sequence[int],
    options: int,
    **tensors: Tensor | None,
) -> None:
    """Launch a kernel, once."""
    ndim, channels = coords.shape[-1], values.shape[-1]
    levels = levels_of(ndim, tuple(flat))
    chosen = plan.taking_levels(coords.numel() // ndim, len(flat) // ndim, channels)
    launch.run(
        kernel,
        chosen.programs,
        coords.device,
        chosen.warps,
        values=values.contiguous(),
        OPTIONS=launch.known_of(options, ndim, wide=False),
        LEVELS=levels,
        **launch.arguments_of(coords, seed, jitter_std),
        **chosen.arguments,
        **tensors,
    )


def sample_levels(values: Tensor, coords: Tensor, *rest: Any) -> Tensor:
    """The sample of all levels."""
    output = empty_sample("triton", values, coords, *rest)
    if output.numel():
        _run(sample_levels_kernel, values, coords, *rest, output=output)
    return output


def sample_levels_backward(
    grad_output: Tensor,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    flat: Sequence[int],
    options: int,
    want_values: bool,
    want_coords: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of sum(grad_output * sample_levels(values, coords)); empty if not wanted."""
    call = (values, coords, seed, jitter_std, flat, options)
    grad_values, grad_coords = empty_gradients(
        "triton", grad_output, *call, want_values, want_coords
    )
    if not grad_output.numel():
        return grad_values.zero_(), grad_coords.zero_()
    in_order = want_values and launch.unpacked(options, coords.shape[-1]).deterministic
    if in_order:
        grad_values = _level_by_level(grad_output, *call)
    else:
        grad_values.zero_()
    if want_coords or not in_order:
        _run(
            sample_levels_backward_kernel,
            *call,
            grad_output=grad_output.contiguous(),
            grad_values=grad_values if want_values and not in_order else None,
            grad_coords=grad_coords if want_coords else None,
        )
    return grad_values, grad_coords


def _level_by_level(
    grad_output: Tensor,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    flat: Sequence[int],
    options: int,
) -> Tensor:
    """The gradient of the values, each level's by the kernels that its size calls for."""
    levels = split(values, each_size(flat, coords.shape[-1]))
    columns = grad_output.tensor_split(len(levels), -1)
    points = (coords, seed, jitter_std, options)
    gradients = [
        launch.sample_backward(column, level, *points, True, False)[0].flatten(0, -2)
        for column, level in zip(columns, levels, strict=True)
    ]
    return torch.cat(gradients)
