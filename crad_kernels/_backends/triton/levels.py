"""The operators of several levels: grids of different sizes, packed one behind the other.

A sample is one launch, and so is its backward pass: the gradient of the values is added atomically.
See `launch` for what holds for all operators.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from crad_kernels._backends.triton import launch, plan
from crad_kernels._backends.triton.kernels.levels import (
    sample_levels_backward_kernel,
    sample_levels_kernel,
)
from crad_kernels._backends.triton.kernels.options import levels_of
from crad_kernels._level_operators import empty_gradients, empty_sample


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
    _run(
        sample_levels_backward_kernel,
        *call,
        grad_output=grad_output.contiguous(),
        grad_values=grad_values.zero_() if want_values else None,
        grad_coords=grad_coords if want_coords else None,
    )
    return grad_values, grad_coords
