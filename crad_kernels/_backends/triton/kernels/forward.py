"""The sample of any grid: entries are gathered."""

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


@triton.jit
def gathered(
    values, first_row, taps, finite, here, channels, start, lane, size, OPTIONS: tl.constexpr
):
    """The sums ``(points, lanes)`` over corners; points read the grid whose first row is given."""
    CORNERS: tl.constexpr = OPTIONS.corners
    total = tl.zeros((finite.shape[0], lane.shape[0]), OPTIONS.accumulator)
    for corner in tl.range(0, CORNERS, loop_unroll_factor=CORNERS if CORNERS <= UNROLLED else 1):
        entry, inside = corner_entry(corner, taps, finite, size, OPTIONS)
        weight = corner_weight(corner, taps, -1, OPTIONS)
        value = tl.load(
            tile_of(values, first_row + entry, channels, start, lane),
            mask=inside[:, None] & here[None, :],
            other=0.0,
        )
        total = tl.fma(weight[:, None], value.to(OPTIONS.accumulator), total)
    return total


@triton.jit(do_not_specialize=CHANGING)
def sample_kernel(
    values,
    coords,
    seed,
    jitter_std,
    output,
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
    """A program gathers a tile of channels for a block of points."""
    channels = product_of(groups, GROUP)
    point, _, begin, end = block_of_points(channels, blocks_per_tile, BLOCK_POINTS, BLOCK_CHANNELS)
    exists = point < points
    taps, finite = locate(coords, point, exists, seed, jitter_std, size, OPTIONS)
    first_row = item_of(point, points_per_item, SHARED) * entries
    lane = tl.arange(0, BLOCK_CHANNELS)
    for start in range(begin, end, BLOCK_CHANNELS):
        here = lane < end - start
        total = gathered(
            values, first_row, taps, finite, here, channels, start, lane, size, OPTIONS
        )
        total = tl.where(finite[:, None], total, float("nan"))
        tl.store(
            tile_of(output, point, channels, start, lane),
            total.to(output.dtype.element_ty),
            mask=exists[:, None] & here[None, :],
        )
