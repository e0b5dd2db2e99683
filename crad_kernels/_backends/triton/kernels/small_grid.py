"""A grid that is held in registers: its sample and its gradient are products of matrices."""

import triton
import triton.language as tl

from crad_kernels._backends.triton.axis import entry_at, tap_weight
from crad_kernels._backends.triton.kernels.corners import (
    corner_entry,
    corner_weight,
    locate,
    position_of,
)
from crad_kernels._backends.triton.kernels.forward import gathered
from crad_kernels._backends.triton.kernels.tiles import (
    CHANGING,
    chunk_of_item,
    product_of,
    tile_of,
)


@triton.jit
def places_of(entry, size, OPTIONS: tl.constexpr):
    """Where entries lie along each axis."""
    places = ()
    for axis in tl.static_range(OPTIONS.ndim - 1, -1, -1):
        places = (entry % size[axis],) + places
        entry = entry // size[axis]
    return places


@triton.jit
def weight_tile(places, taps, size, OPTIONS: tl.constexpr):
    """The weights ``(entries, points)`` of entries, at their places, in the samples of points.

    All zero for a point whose index is not finite.
    """
    if OPTIONS.mode == "simplex":
        weights = weights_by_corner(places, taps, size, OPTIONS)
    else:
        weights = weights_by_axis(places, taps, size, OPTIONS)
    return weights


@triton.jit
def weights_by_corner(places, taps, size, OPTIONS: tl.constexpr):
    """For corners that are no products."""
    base = taps[0]
    row = places[0].to(tl.int64)
    for axis in tl.static_range(1, OPTIONS.ndim):
        row = row * size[axis] + places[axis]
    weights = tl.zeros((row.shape[0], base[0].shape[0]), OPTIONS.accumulator)
    for corner in tl.static_range(OPTIONS.corners):
        entry, inside = corner_entry(corner, taps, base[0] == base[0], size, OPTIONS)
        weight = corner_weight(corner, taps, -1, OPTIONS)
        read = (row[:, None] == entry[None, :]) & inside[None, :]
        weights += tl.where(read, weight[None, :], 0.0)
    return weights


@triton.jit
def weights_by_axis(places, taps, size, OPTIONS: tl.constexpr):
    """For corners that are products of the taps of every axis."""
    NDIM: tl.constexpr = OPTIONS.ndim
    base, distance, slope, _ = taps
    weights = None
    for axis in tl.static_range(NDIM - 1, -1, -1):
        along = tl.zeros((places[axis].shape[0], base[axis].shape[0]), OPTIONS.accumulator)
        for tap in tl.static_range(OPTIONS.taps):
            position = position_of(base[axis], tap, size[axis], axis, OPTIONS)
            read = places[axis][:, None] == entry_at(position, size[axis]).to(tl.int32)[None, :]
            weight = tap_weight(
                tap,
                distance[axis],
                slope[axis],
                OPTIONS.mode,
                OPTIONS.derivative >> 4 * axis & 15,
            ).to(OPTIONS.accumulator)
            # Where taps are padded one by one, two may read one entry.
            if OPTIONS.mode == "cubic" or OPTIONS.padding[axis] == "circular":
                along += tl.where(read, weight[None, :], 0.0)
            else:
                along = tl.where(read, weight[None, :], along)
        weights = along if axis == NDIM - 1 else weights * along
    return weights


@triton.jit
def multiplied(a, b, total, OPTIONS: tl.constexpr):
    """The product of two matrices, added to a total if there is one; never in TF32."""
    return tl.dot(a, b, acc=total, input_precision="ieee", out_dtype=OPTIONS.accumulator)


@triton.jit(do_not_specialize=CHANGING)
def dense_sample_kernel(
    values,
    coords,
    seed,
    jitter_std,
    output,
    points_per_item,
    entries,
    groups,
    chunk,
    size,
    OPTIONS: tl.constexpr,
    ENTRIES: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The sample by points of many corners.

    A program holds a tile of the channels of all entries for a chunk of points.
    """
    channels = product_of(groups, GROUP)
    _, item, begin, end, first = chunk_of_item(channels, points_per_item, chunk, BLOCK_CHANNELS)
    lane = tl.arange(0, BLOCK_CHANNELS)
    here = lane < channels - first
    entry = tl.arange(0, ENTRIES)
    places = places_of(entry, size, OPTIONS)
    tile = tl.load(
        tile_of(values, item * entries + entry, channels, first, lane),
        mask=(entry < entries)[:, None] & here[None, :],
        other=0.0,
    ).to(OPTIONS.accumulator)
    # A product of matrices spreads NaN and infinities to points that do not read them: they are
    # left out of it, and points that read one have what is gathered.
    bounded = tl.abs(tile) < float("inf")
    all_bounded = tl.min(tl.min(bounded.to(tl.int32), 1), 0)
    tile = tl.where(bounded, tile, 0.0)
    for start in range(begin, end, BLOCK_POINTS):
        in_item = start + tl.arange(0, BLOCK_POINTS)
        point = item * points_per_item + in_item
        exists = in_item < end
        taps, finite = locate(coords, point, exists, seed, jitter_std, size, OPTIONS)
        weights = weight_tile(places, taps, size, OPTIONS)
        total = multiplied(tl.trans(weights), tile, None, OPTIONS)
        if all_bounded == 0:
            wild = gathered(
                values, item * entries, taps, finite, here, channels, first, lane, size, OPTIONS
            )
            total = tl.where(tl.abs(wild) < float("inf"), total, wild)
        total = tl.where(finite[:, None], total, float("nan"))
        tl.store(
            tile_of(output, point, channels, first, lane),
            total.to(output.dtype.element_ty),
            mask=exists[:, None] & here[None, :],
        )


@triton.jit
def sum_of_products(
    grad_output,
    coords,
    seed,
    jitter_std,
    begin,
    end,
    item,
    points_per_item,
    channels,
    first,
    lane,
    places,
    size,
    OPTIONS: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    WILD_APART: tl.constexpr,
):
    """The gradient ``(entries, lanes)`` by points of an item, in order.

    A product of matrices spreads NaN and infinities to entries that the point does not read. With
    WILD_APART they are left out of it, and added one point at a time.
    """
    total = tl.zeros((places[0].shape[0], lane.shape[0]), OPTIONS.accumulator)
    for start in range(begin, end, BLOCK_POINTS):
        in_item = start + tl.arange(0, BLOCK_POINTS)
        point = item * points_per_item + in_item
        exists = in_item < end
        taps, _ = locate(coords, point, exists, seed, jitter_std, size, OPTIONS)
        weights = weight_tile(places, taps, size, OPTIONS)
        grad = tl.load(
            tile_of(grad_output, point, channels, first, lane),
            mask=exists[:, None] & (lane < channels - first)[None, :],
            other=0.0,
        ).to(OPTIONS.accumulator)
        if WILD_APART:
            bounded = tl.abs(grad) < float("inf")
            total = multiplied(weights, tl.where(bounded, grad, 0.0), total, OPTIONS)
            for number in range(BLOCK_POINTS):
                this = tl.arange(0, BLOCK_POINTS) == number
                weight = tl.sum(tl.where(this[None, :], weights, 0.0), 1)[:, None]
                wild = tl.sum(tl.where(this[:, None] & ~bounded, grad, 0.0), 0)[None, :]
                total += tl.where(weight != 0, weight * wild, 0.0)
        else:
            total = multiplied(weights, grad, total, OPTIONS)
    return total


@triton.jit(do_not_specialize=CHANGING)
def owned_grad_values_kernel(
    grad_output,
    coords,
    seed,
    jitter_std,
    parts,
    points_per_item,
    entries,
    groups,
    chunk,
    size,
    OPTIONS: tl.constexpr,
    ENTRIES: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The gradient: a program owns a tile of its channels for a chunk of points.

    It holds the tile in registers and adds a product of matrices for each block of its points, in
    order. The tiles of chunks are `parts`, to be summed.
    """
    channels = product_of(groups, GROUP)
    part, item, begin, end, first = chunk_of_item(channels, points_per_item, chunk, BLOCK_CHANNELS)
    lane = tl.arange(0, BLOCK_CHANNELS)
    entry = tl.arange(0, ENTRIES)
    places = places_of(entry, size, OPTIONS)
    total = sum_of_products(
        grad_output,
        coords,
        seed,
        jitter_std,
        begin,
        end,
        item,
        points_per_item,
        channels,
        first,
        lane,
        places,
        size,
        OPTIONS,
        BLOCK_POINTS,
        False,
    )
    # All is summed again where that makes a difference.
    if tl.min(tl.min((tl.abs(total) < float("inf")).to(tl.int32), 1), 0) == 0:
        total = sum_of_products(
            grad_output,
            coords,
            seed,
            jitter_std,
            begin,
            end,
            item,
            points_per_item,
            channels,
            first,
            lane,
            places,
            size,
            OPTIONS,
            BLOCK_POINTS,
            True,
        )
    tl.store(
        tile_of(parts, part * entries + entry, channels, first, lane),
        total,
        mask=(entry < entries)[:, None] & (lane < channels - first)[None, :],
    )
