"""The gradient of the coordinates; and that of the values of a large grid, added atomically."""

import triton
import triton.language as tl

from crad_kernels._backends.triton.kernels.corners import (
    UNROLLED,
    corner_entry,
    corner_weight,
    locate,
)
from crad_kernels._backends.triton.kernels.tiles import (
    CHANGING,
    block_of_points,
    item_of,
    product_of,
    tile_of,
)


@triton.jit(do_not_specialize=CHANGING)
def grad_coords_kernel(
    grad_output,
    values,
    coords,
    seed,
    jitter_std,
    parts,
    points,
    points_per_item,
    entries,
    groups,
    blocks_per_tile,
    size,
    OPTIONS: tl.constexpr,
    SHARED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """A program sums a tile of channels for a block of points.

    It reads the gradient of the output once for some corners TOGETHER.
    """
    NDIM: tl.constexpr = OPTIONS.ndim
    CORNERS: tl.constexpr = OPTIONS.corners
    ACCUMULATOR: tl.constexpr = OPTIONS.accumulator
    TOGETHER: tl.constexpr = CORNERS if CORNERS <= 9 else 8
    channels = product_of(groups, GROUP)
    point, part, begin, end = block_of_points(
        channels, blocks_per_tile, BLOCK_POINTS, BLOCK_CHANNELS
    )
    exists = point < points
    taps, finite = locate(coords, point, exists, seed, jitter_std, size, OPTIONS)
    first_row = item_of(point, points_per_item, SHARED) * entries
    lane = tl.arange(0, BLOCK_CHANNELS)
    total = ()
    for _ in tl.static_range(NDIM):
        total = total + (tl.zeros((BLOCK_POINTS,), ACCUMULATOR),)
    for corner in range(0, CORNERS, TOGETHER):
        products = ()
        for _ in tl.static_range(TOGETHER):
            products = products + (tl.zeros((BLOCK_POINTS, BLOCK_CHANNELS), ACCUMULATOR),)
        for start in range(begin, end, BLOCK_CHANNELS):
            here = (lane < end - start)[None, :]
            written = tile_of(grad_output, point, channels, start, lane)
            grad = tl.load(written, mask=exists[:, None] & here, other=0.0).to(ACCUMULATOR)
            sums = ()
            for i in tl.static_range(TOGETHER):
                entry, inside = corner_entry(corner + i, taps, finite, size, OPTIONS)
                read = tile_of(values, first_row + entry, channels, start, lane)
                value = tl.load(read, mask=inside[:, None] & here, other=0.0)
                sums = sums + (tl.fma(grad, value.to(ACCUMULATOR), products[i]),)
            products = sums
        for i in tl.static_range(TOGETHER):
            entry, inside = corner_entry(corner + i, taps, finite, size, OPTIONS)
            # Outside, the gradient has been multiplied by zero, which it may be too large for.
            product = tl.where(inside, tl.sum(products[i], 1), 0.0)
            sums = ()
            for axis in tl.static_range(NDIM):
                weight = corner_weight(corner + i, taps, axis, OPTIONS)
                sums = sums + (total[axis] + weight * product,)
            total = sums
    for axis in tl.static_range(NDIM):
        tl.store(
            parts + (part * points + point) * NDIM + (NDIM - 1 - axis),
            tl.where(finite, total[axis], float("nan")).to(parts.dtype.element_ty),
            mask=exists,
        )


@triton.jit(do_not_specialize=CHANGING)
def atomic_grad_values_kernel(
    grad_output,
    coords,
    seed,
    jitter_std,
    grad_values,
    points,
    points_per_item,
    entries,
    groups,
    blocks_per_tile,
    size,
    OPTIONS: tl.constexpr,
    SHARED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """A program adds a tile of channels for a block of points."""
    CORNERS: tl.constexpr = OPTIONS.corners
    channels = product_of(groups, GROUP)
    point, _, begin, end = block_of_points(channels, blocks_per_tile, BLOCK_POINTS, BLOCK_CHANNELS)
    taps, finite = locate(coords, point, point < points, seed, jitter_std, size, OPTIONS)
    first_row = item_of(point, points_per_item, SHARED) * entries
    lane = tl.arange(0, BLOCK_CHANNELS)
    for start in range(begin, end, BLOCK_CHANNELS):
        here = lane < end - start
        grad = tl.load(
            tile_of(grad_output, point, channels, start, lane),
            mask=finite[:, None] & here[None, :],
            other=0.0,
        ).to(OPTIONS.accumulator)
        for corner in tl.range(
            0, CORNERS, loop_unroll_factor=CORNERS if CORNERS <= UNROLLED else 1
        ):
            entry, inside = corner_entry(corner, taps, finite, size, OPTIONS)
            weight = corner_weight(corner, taps, -1, OPTIONS)
            tl.atomic_add(
                tile_of(grad_values, first_row + entry, channels, start, lane),
                weight[:, None] * grad,
                mask=inside[:, None] & here[None, :],
                sem="relaxed",
            )
