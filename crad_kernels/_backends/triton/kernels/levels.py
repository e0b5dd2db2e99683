"""Several levels: grids of different sizes, sampled at the same points."""

import triton
import triton.language as tl

from crad_kernels._backends.triton.kernels.corners import (
    corner_entry,
    corner_weight,
    locate,
)
from crad_kernels._backends.triton.kernels.forward import gathered
from crad_kernels._backends.triton.kernels.tiles import CHANGING, tile_of


@triton.jit
def pairs_of(
    points, begin, LEVELS: tl.constexpr, BLOCK_POINTS: tl.constexpr, BLOCK_LEVELS: tl.constexpr
):
    """The pairs of a point and a level that a program takes: levels from `begin` on.

    The points, the levels, and whether there are both.
    """
    pair = tl.arange(0, BLOCK_POINTS * BLOCK_LEVELS)
    point = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + pair // BLOCK_LEVELS
    level = begin + pair % BLOCK_LEVELS
    return point, level, (point < points) & (level < LEVELS.number)


@triton.jit
def grid_of(level, NDIM: tl.constexpr, LEVELS: tl.constexpr):
    """The first entry and the size of levels; where there is none, those of the first level."""
    first = tl.zeros(level.shape, tl.int64)
    size = ()
    for axis in tl.static_range(NDIM):
        size = size + (tl.full(level.shape, LEVELS.size[axis], tl.int32),)
    for other in tl.static_range(1, LEVELS.number):
        first = tl.where(level == other, LEVELS.first[other], first)
        sizes = ()
        for axis in tl.static_range(NDIM):
            along = LEVELS.size[other * NDIM + axis]
            sizes = sizes + (tl.where(level == other, along, size[axis]),)
        size = sizes
    return first, size


@triton.jit(do_not_specialize=CHANGING)
def sample_levels_kernel(
    values,
    coords,
    seed,
    jitter_std,
    output,
    points,
    OPTIONS: tl.constexpr,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_LEVELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """A program gathers all levels for a block of points."""
    lane = tl.arange(0, BLOCK_CHANNELS)
    here = lane < CHANNELS
    for begin in range(0, LEVELS.number, BLOCK_LEVELS):
        point, level, exists = pairs_of(points, begin, LEVELS, BLOCK_POINTS, BLOCK_LEVELS)
        first, size = grid_of(level, OPTIONS.ndim, LEVELS)
        taps, finite = locate(coords, point, exists, seed, jitter_std, size, OPTIONS)
        row = point * LEVELS.number + level
        for start in range(0, CHANNELS, BLOCK_CHANNELS):
            total = gathered(
                values, first, taps, finite, here, CHANNELS, start, lane, size, OPTIONS
            )
            total = tl.where(finite[:, None], total, float("nan"))
            tl.store(tile_of(output, row, CHANNELS, start, lane), total, mask=exists[:, None])


@triton.jit(do_not_specialize=CHANGING)
def sample_levels_backward_kernel(
    grad_output,
    values,
    coords,
    seed,
    jitter_std,
    grad_values,
    grad_coords,
    points,
    OPTIONS: tl.constexpr,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_LEVELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """A program adds to the gradient of the values, and sums that of the coordinates of its points.

    One of the gradients may be None: it is not wanted.
    """
    NDIM: tl.constexpr = OPTIONS.ndim
    CORNERS: tl.constexpr = OPTIONS.corners
    ACCUMULATOR: tl.constexpr = OPTIONS.accumulator
    lane = tl.arange(0, BLOCK_CHANNELS)
    of_points = ()
    for _ in tl.static_range(NDIM):
        of_points = of_points + (tl.zeros((BLOCK_POINTS,), ACCUMULATOR),)
    for begin in range(0, LEVELS.number, BLOCK_LEVELS):
        point, level, exists = pairs_of(points, begin, LEVELS, BLOCK_POINTS, BLOCK_LEVELS)
        first, size = grid_of(level, NDIM, LEVELS)
        taps, finite = locate(coords, point, exists, seed, jitter_std, size, OPTIONS)
        row = point * LEVELS.number + level
        total = ()
        for _ in tl.static_range(NDIM):
            total = total + (tl.zeros(exists.shape, ACCUMULATOR),)
        for start in range(0, CHANNELS, BLOCK_CHANNELS):
            written = tile_of(grad_output, row, CHANNELS, start, lane)
            grad = tl.load(written, mask=exists[:, None], other=0.0)
            for corner in tl.range(0, CORNERS, loop_unroll_factor=CORNERS):
                entry, inside = corner_entry(corner, taps, finite, size, OPTIONS)
                if grad_values is not None:
                    weight = corner_weight(corner, taps, -1, OPTIONS)
                    tl.atomic_add(
                        tile_of(grad_values, first + entry, CHANNELS, start, lane),
                        weight[:, None] * grad,
                        mask=inside[:, None],
                        sem="relaxed",
                    )
                if grad_coords is not None:
                    read = tile_of(values, first + entry, CHANNELS, start, lane)
                    value = tl.load(read, mask=inside[:, None], other=0.0)
                    # Outside, the gradient has been multiplied by zero, which it may be too large
                    # for.
                    product = tl.where(inside, tl.sum(grad * value, 1), 0.0)
                    sums = ()
                    for axis in tl.static_range(NDIM):
                        weight = corner_weight(corner, taps, axis, OPTIONS)
                        sums = sums + (total[axis] + weight * product,)
                    total = sums
        if grad_coords is not None:
            sums = ()
            for axis in tl.static_range(NDIM):
                own = tl.where(finite, total[axis], tl.where(exists, float("nan"), 0.0))
                own = tl.reshape(own, (BLOCK_POINTS, BLOCK_LEVELS))
                sums = sums + (of_points[axis] + tl.sum(own, 1),)
            of_points = sums
    if grad_coords is not None:
        point = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
        for axis in tl.static_range(NDIM):
            tl.store(
                grad_coords + point * NDIM + (NDIM - 1 - axis),
                of_points[axis],
                mask=point < points,
            )
