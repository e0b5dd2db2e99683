"""The operators: tensors in, launches, tensors out.

Tensors that do not fit together are refused; results are contiguous. Nothing here copies to the
device, or waits for it unless `tuning` does, so a CUDA graph can capture all of it. The order of
sums depends on shapes and dtypes alone.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from crad_kernels._backends.triton import plan
from crad_kernels._backends.triton.kernels.backward import (
    atomic_grad_values_kernel,
    grad_coords_kernel,
)
from crad_kernels._backends.triton.kernels.backward_in_order import corners_kernel, pieces_kernel
from crad_kernels._backends.triton.kernels.forward import sample_kernel
from crad_kernels._backends.triton.kernels.normals import normals_kernel
from crad_kernels._backends.triton.kernels.options import Options, corners_of, options_of
from crad_kernels._backends.triton.kernels.small_grid import (
    dense_sample_kernel,
    owned_grad_values_kernel,
)
from crad_kernels._backends.triton.plan import (
    GATHERING,
    HOLDING,
    Configuration,
    Plan,
    Problem,
)
from crad_kernels._backends.triton.tuning import fastest
from crad_kernels._schema import (
    along_each,
    check_call,
    check_grad_output,
    check_normals,
    unpack,
)

# Here alone: what torch.compile traces calls no cache.
unpacked = lru_cache(maxsize=256)(unpack)


def run(kernel: Any, programs: int, device: torch.device, warps: int = 4, **arguments: Any) -> None:
    """Launch so many programs of a kernel on the device of its tensors."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](**arguments, num_warps=warps, enable_fp_fusion=False)


def known_of(options: int, ndim: int, wide: bool) -> Options:
    """What the compiler knows of a call with these options."""
    mode, padding_mode, align_corners, _, derivative, unit = unpacked(options, ndim)
    # In the order of the axes, which is the reverse of that of the components.
    padding = along_each(padding_mode, ndim)[::-1]
    aligned = along_each(align_corners, ndim)[::-1]
    return options_of(ndim, mode, padding, aligned, unit, derivative, wide)


def arguments_of(
    coords: Tensor, seed: Tensor | None, jitter_std: Tensor | None
) -> dict[str, Tensor | None]:
    """The arguments of kernels that locate points; seed and jitter_std are None together."""
    return {
        "coords": coords.contiguous(),
        "seed": seed,
        "jitter_std": None if jitter_std is None else jitter_std.contiguous(),
    }


@dataclass(frozen=True)
class _Call:
    """What the kernels of a call share."""

    problem: Problem
    accumulator: torch.dtype
    device: torch.device
    kind: tuple[Hashable, ...]
    arguments: dict[str, Any]

    def run(self, kernel: Any, plan: Plan, **tensors: Any) -> None:
        """Launch a kernel that locates points."""
        arguments = {**plan.arguments, **self.arguments, **tensors}
        run(kernel, plan.programs, self.device, plan.warps, **arguments)

    def fastest(
        self,
        kernel: str,
        configurations: Sequence[Configuration],
        launch: Callable[[Configuration], None],
    ) -> Configuration:
        """The configuration to launch a kernel with."""
        if not self.problem.worth_tuning:
            return configurations[0]
        return fastest((kernel, *self.kind), self.device, configurations, launch)


def _call(
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    options: int,
) -> _Call:
    ndim = coords.shape[-1]
    size = tuple(values.shape[-1 - ndim : -1])
    batch = values.shape[0] if values.ndim == ndim + 2 else 1
    points = coords.numel() // ndim
    wide = values.dtype == torch.float64
    numbers = (batch, prod(size), values.shape[-1], points)
    known = known_of(options, ndim, wide)
    return _Call(
        Problem(*numbers, ndim, corners_of(unpacked(options, ndim).mode, ndim), 8 if wide else 4),
        torch.float64 if wide else torch.float32,
        coords.device,
        (
            *(values.dtype, coords.dtype, seed is not None, known),
            *(number.bit_length() for number in numbers),
        ),
        {
            **arguments_of(coords, seed, jitter_std),
            "points_per_item": points // max(batch, 1),
            "entries": prod(size),
            "size": size,
            "OPTIONS": known,
        },
    )


def sample(
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    options: int,
) -> Tensor:
    """The sample: gathered, or as a product of matrices (`Problem.dense`)."""
    check_call(values, coords, seed, jitter_std, options)
    call = _call(values, coords, seed, jitter_std, options)
    problem = call.problem
    output = values.new_empty(*coords.shape[:-1], problem.channels)
    if problem.empty:
        return output
    values = values.contiguous()

    def gather(configuration: Configuration) -> None:
        chosen = plan.gathering(problem, configuration)
        call.run(sample_kernel, chosen, values=values, output=output)

    def multiply(configuration: Configuration) -> None:
        chosen = plan.holding(problem, configuration, summed=False)
        call.run(dense_sample_kernel, chosen, values=values, output=output)

    if problem.dense:
        multiply(call.fastest("dense_sample", HOLDING, multiply))
    else:
        gather(call.fastest("sample", GATHERING, gather))
    return output


def sample_backward(
    grad_output: Tensor,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    options: int,
    want_values: bool,
    want_coords: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of sum(grad_output * sample(values, coords)); empty if not wanted."""
    check_call(values, coords, seed, jitter_std, options)
    check_grad_output(grad_output, values, coords)
    call = _call(values, coords, seed, jitter_std, options)
    grad_output = grad_output.contiguous()
    if call.problem.empty:
        return (
            values.new_zeros(values.shape if want_values else 0),
            coords.new_zeros(coords.shape if want_coords else 0),
        )
    if not want_values:
        grad_values = values.new_empty(0)
    elif call.problem.small:
        grad_values = _owned_grad_values(call, grad_output, values)
    elif unpacked(options, coords.shape[-1]).deterministic:
        grad_values = _sorted_grad_values(call, grad_output, values)
    else:
        grad_values = _atomic_grad_values(call, grad_output, values)
    grad_coords = _grad_coords(call, grad_output, values, coords) if want_coords else None
    return grad_values, coords.new_empty(0) if grad_coords is None else grad_coords


def _grad_coords(call: _Call, grad_output: Tensor, values: Tensor, coords: Tensor) -> Tensor:
    """Partial sums of tiles of channels, summed in order: the same bits in every run."""
    chosen = plan.grad_coords(call.problem)
    parts = coords.new_empty(chosen.parts, *coords.shape)
    values = values.contiguous()
    call.run(grad_coords_kernel, chosen, grad_output=grad_output, values=values, parts=parts)
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _owned_grad_values(call: _Call, grad_output: Tensor, values: Tensor) -> Tensor:
    """Partial sums of chunks of points, summed in order: the same bits in every run."""
    problem = call.problem
    chunks = plan.holding(problem, HOLDING[0], summed=True).parts
    shape = (problem.batch, chunks, problem.entries, problem.channels)
    parts = values.new_empty(shape, dtype=call.accumulator)

    def launch(configuration: Configuration) -> None:
        chosen = plan.holding(problem, configuration, summed=True)
        call.run(owned_grad_values_kernel, chosen, grad_output=grad_output, parts=parts)

    launch(call.fastest("owned_grad_values", HOLDING, launch))
    total = parts if chunks == 1 else parts.sum(1)
    return total.to(values.dtype).view(values.shape)


def _atomic_grad_values(call: _Call, grad_output: Tensor, values: Tensor) -> Tensor:
    """Sums in whatever order the device comes to."""
    grad_values = values.new_empty(values.shape, dtype=call.accumulator)

    def launch(configuration: Configuration) -> None:
        call.run(
            atomic_grad_values_kernel,
            plan.gathering(call.problem, configuration),
            grad_output=grad_output,
            grad_values=grad_values,
        )

    configuration = call.fastest("atomic_grad_values", GATHERING, launch)
    grad_values.zero_()  # of what was added while it was timed, too
    launch(configuration)
    return grad_values.to(values.dtype)


def _sorted_grad_values(call: _Call, grad_output: Tensor, values: Tensor) -> Tensor:
    """Sums in order of a stable sort of the pairs of a point and a corner, by the row they read.

    Some points at a time, so that beside the result and its gradient it takes no more memory than
    `plan.SORTED_BYTES`.
    """
    problem = call.problem
    grad_values = values.new_zeros(values.shape, dtype=call.accumulator)
    key = torch.int32 if plan.short_keys(problem) else torch.int64
    outside = problem.batch * problem.entries
    chunk = plan.sorted_points(problem)
    for first in range(0, problem.points, chunk):
        points = min(chunk, problem.points - first)
        pairs = points * problem.corners
        rows = values.new_empty(pairs, dtype=key)
        weights = values.new_empty(pairs, dtype=call.accumulator)
        call.run(
            corners_kernel,
            plan.flat(points, 128),
            rows=rows,
            weights=weights,
            first_point=first,
            outside=outside,
            SHARED=problem.batch == 1,
        )
        rows, order = torch.sort(rows, stable=True)
        _add_terms(call, grad_values, grad_output, rows, order, weights, first, outside)
    return grad_values.to(values.dtype)


def _add_terms(
    call: _Call,
    grad_values: Tensor,
    terms: Tensor,
    rows: Tensor,
    order: Tensor | None,
    weights: Tensor | None,
    first_point: int,
    outside: int,
) -> None:
    """Add to each row the terms of it, in levels: the partial sums of one are terms of the next."""
    for terms_of_level in plan.levels(len(rows)):
        chosen = plan.pieces(call.problem, terms_of_level)
        part_rows = rows.new_empty(chosen.parts)
        parts = grad_values.new_empty(chosen.parts, call.problem.channels)
        run(
            pieces_kernel,
            chosen.programs,
            call.device,
            chosen.warps,
            terms=terms,
            rows=rows,
            order=order,
            weights=weights,
            grad_values=grad_values,
            part_rows=part_rows,
            parts=parts,
            first_point=first_point,
            outside=outside,
            OPTIONS=call.arguments["OPTIONS"],
            **chosen.arguments,
        )
        terms, rows, order, weights, first_point = parts, part_rows, None, None, 0


def normals(seed: Tensor, points: int, ndim: int) -> Tensor:
    """The normals of the jitter, float32 ``(points, ndim)``."""
    check_normals(seed, points, ndim)
    result = seed.new_empty(points, ndim, dtype=torch.float32)
    if points:
        chosen = plan.flat(points, 1024)
        run(
            normals_kernel,
            chosen.programs,
            seed.device,
            seed=seed,
            normals=result,
            NDIM=ndim,
            **chosen.arguments,
        )
    return result
