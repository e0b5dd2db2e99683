"""Loops around the meaning in `axis` and `jitter`: one kernel for each way to do the work.

A program takes a block of points, or of what they add to. The corners of a point are the product of
its taps over the axes, the first axis the fastest to vary; its `taps` are, along each axis, the
position that they start from, the distance of the index from it, and the slope of the index.

Kernels are compiled without contraction of products and sums, so that an index is the same number
on every backend, and jitter the same as if it had been added before; sums over taps say `fma`.

Names of tensors, and numbers, are those of `launch`; in capitals is what the compiler knows. The
channels are `groups` of GROUP, from which it sees how rows are aligned.
"""

import triton
import triton.language as tl

from crad_kernels._backends.triton.axis import (
    base_of,
    entry_at,
    padded,
    tap_position,
    tap_weight,
    unpadded_index,
)
from crad_kernels._backends.triton.jitter import jitter_normal
from crad_kernels._backends.triton.jitter import philox as philox_words
from crad_kernels._backends.triton.plan import UNROLLED as _UNROLLED

UNROLLED = tl.constexpr(_UNROLLED)

# Numbers that change from call to call, and tell the compiler nothing that it can use.
_CHANGING = [
    "points",
    "points_per_item",
    "entries",
    "groups",
    "blocks_per_tile",
    "first_point",
    "chunk",
    "pairs",
    "outside",
]


@triton.jit
def product_of(number, constant: tl.constexpr):
    """A number of channels, which may be more than an int32 holds."""
    return number.to(tl.int64) * constant


@triton.jit
def locate(
    coords,
    point,
    exists,
    seed,
    jitter_std,
    size,
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
):
    """The taps of points, and which of them exist and have a finite index."""
    base = ()
    distance = ()
    slope = ()
    finite = exists
    for axis in tl.static_range(NDIM):
        coord = tl.load(coords + point * NDIM + (NDIM - 1 - axis), mask=exists, other=0.0)
        if seed is not None:
            normal = jitter_normal(tl.load(seed), point, NDIM - 1 - axis)
            coord += tl.load(jitter_std + (NDIM - 1 - axis)) * normal.to(coord.dtype)
        at, along = unpadded_index(coord, size[axis], ALIGN_CORNERS)
        if PADDING == "zeros":
            finite = finite & (tl.abs(at) < float("inf"))
        at, along = padded(at, along, size[axis], MODE, PADDING, ALIGN_CORNERS)
        start = base_of(at, MODE)
        base = base + (start,)
        distance = distance + (at - start,)
        slope = slope + (along,)
    return (base, distance, slope), finite


@triton.jit
def corner_entry(
    corner,
    taps,
    finite,
    size,
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
):
    """The entry that a corner reads, and whether it lies inside the grid."""
    base, _, _ = taps
    entry = tl.zeros(finite.shape, tl.int64)
    inside = finite
    for axis in tl.static_range(NDIM):
        tap = corner // TAPS**axis % TAPS
        position = tap_position(base[axis], tap, size[axis], MODE, PADDING, ALIGN_CORNERS)
        along = entry_at(position, size[axis])
        inside = inside & (along >= 0) & (along < size[axis])
        entry = entry * size[axis] + along
    return entry, inside


@triton.jit
def corner_weight(
    corner,
    taps,
    differentiated: tl.constexpr,
    dtype: tl.constexpr,
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):
    """The weight of a corner, differentiated once more along an axis, or (-1) along none."""
    _, distance, slope = taps
    weight = tl.full(distance[0].shape, 1.0, dtype)
    for axis in tl.static_range(NDIM):
        along = tap_weight(
            corner // TAPS**axis % TAPS,
            distance[axis],
            slope[axis],
            MODE,
            (DERIVATIVE >> 4 * axis & 15) + (axis == differentiated),
        )
        weight *= along.to(dtype)
    return weight


@triton.jit
def places_of(entry, size, NDIM: tl.constexpr):
    """Where entries lie along each axis."""
    places = ()
    for axis in tl.static_range(NDIM - 1, -1, -1):
        places = (entry % size[axis],) + places
        entry = entry // size[axis]
    return places


@triton.jit
def weight_tile(
    places,
    taps,
    size,
    dtype: tl.constexpr,
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):
    """The weights ``(entries, points)`` of entries, at their places, in the samples of points.

    All zero for a point whose index is not finite.
    """
    base, distance, slope = taps
    weights = None
    for axis in tl.static_range(NDIM - 1, -1, -1):
        along = tl.zeros((places[axis].shape[0], base[axis].shape[0]), dtype)
        for tap in tl.static_range(TAPS):
            position = tap_position(base[axis], tap, size[axis], MODE, PADDING, ALIGN_CORNERS)
            read = places[axis][:, None] == entry_at(position, size[axis]).to(tl.int32)[None, :]
            weight = tap_weight(
                tap, distance[axis], slope[axis], MODE, DERIVATIVE >> 4 * axis & 15
            ).to(dtype)
            if MODE == "cubic":  # where taps are padded one by one, two may read one entry
                along += tl.where(read, weight[None, :], 0.0)
            else:
                along = tl.where(read, weight[None, :], along)
        weights = along if axis == NDIM - 1 else weights * along
    return weights


@triton.jit
def item_of(point, points_per_item, SHARED: tl.constexpr):
    """The item of the batch whose grid points read; there is one where it is SHARED."""
    # A division of 64 bits takes as long as a point of few components takes to locate.
    return 0 if SHARED else point // points_per_item


@triton.jit
def tile_of(tensor, row, channels, start, lane):
    """The addresses of the channels from `start` on, a lane each, of rows of `channels`."""
    return (tensor + row * channels + start)[:, None] + lane[None, :]


@triton.jit
def gathered(
    values,
    first_row,
    taps,
    finite,
    here,
    channels,
    start,
    lane,
    size,
    dtype: tl.constexpr,
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):
    """The sums ``(points, lanes)`` over corners; points read the grid whose first row is given."""
    CORNERS: tl.constexpr = TAPS**NDIM
    total = tl.zeros((finite.shape[0], lane.shape[0]), dtype)
    for corner in tl.range(0, CORNERS, loop_unroll_factor=CORNERS if CORNERS <= UNROLLED else 1):
        entry, inside = corner_entry(
            corner, taps, finite, size, NDIM, MODE, PADDING, ALIGN_CORNERS, TAPS
        )
        weight = corner_weight(corner, taps, -1, dtype, NDIM, MODE, TAPS, DERIVATIVE)
        value = tl.load(
            tile_of(values, first_row + entry, channels, start, lane),
            mask=inside[:, None] & here[None, :],
            other=0.0,
        )
        total = tl.fma(weight[:, None], value.to(dtype), total)
    return total


@triton.jit(do_not_specialize=_CHANGING)
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
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    SHARED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The sample: a program gathers a tile of channels for a block of points."""
    channels = product_of(groups, GROUP)
    tile = product_of(blocks_per_tile, BLOCK_CHANNELS)
    tiles = tl.cdiv(channels, tile)
    program = tl.program_id(0).to(tl.int64)
    point = program // tiles * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    exists = point < points
    taps, finite = locate(
        coords, point, exists, seed, jitter_std, size, NDIM, MODE, PADDING, ALIGN_CORNERS
    )
    item = item_of(point, points_per_item, SHARED)
    begin = program % tiles * tile
    end = tl.minimum(begin + tile, channels)
    lane = tl.arange(0, BLOCK_CHANNELS)
    for start in range(begin, end, BLOCK_CHANNELS):
        here = lane < end - start
        total = gathered(
            values,
            item * entries,
            taps,
            finite,
            here,
            channels,
            start,
            lane,
            size,
            ACCUMULATOR,
            NDIM,
            MODE,
            PADDING,
            ALIGN_CORNERS,
            TAPS,
            DERIVATIVE,
        )
        total = tl.where(finite[:, None], total, float("nan"))
        tl.store(
            tile_of(output, point, channels, start, lane),
            total.to(output.dtype.element_ty),
            mask=exists[:, None] & here[None, :],
        )


@triton.jit
def held_by_program(channels, points_per_item, chunk, BLOCK_CHANNELS: tl.constexpr):
    """What a program that holds the entries of an item works on.

    The number of its item and chunk together, its item, the first point of its chunk in the item
    and the one after the last, and its first channel.
    """
    tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    chunks = tl.cdiv(points_per_item, chunk)
    program = tl.program_id(0).to(tl.int64)
    part = program // tiles
    begin = part % chunks * chunk
    end = tl.minimum(begin + chunk, points_per_item)
    return part, part // chunks, begin, end, program % tiles * BLOCK_CHANNELS


@triton.jit(do_not_specialize=_CHANGING)
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
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ENTRIES: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The sample of a small grid by points of many corners: a product of matrices.

    A program holds a tile of the channels of all entries for a chunk of points.
    """
    channels = product_of(groups, GROUP)
    _, item, begin, end, first = held_by_program(channels, points_per_item, chunk, BLOCK_CHANNELS)
    lane = tl.arange(0, BLOCK_CHANNELS)
    here = lane < channels - first
    entry = tl.arange(0, ENTRIES)
    places = places_of(entry, size, NDIM)
    tile = tl.load(
        tile_of(values, item * entries + entry, channels, first, lane),
        mask=(entry < entries)[:, None] & here[None, :],
        other=0.0,
    ).to(ACCUMULATOR)
    # A product of matrices spreads NaN and infinities to points that do not read them: they are
    # left out of it, and points that read one have what is gathered.
    bounded = tl.abs(tile) < float("inf")
    all_bounded = tl.min(tl.min(bounded.to(tl.int32), 1), 0)
    tile = tl.where(bounded, tile, 0.0)
    for start in range(begin, end, BLOCK_POINTS):
        in_item = start + tl.arange(0, BLOCK_POINTS)
        point = item * points_per_item + in_item
        exists = in_item < end
        taps, finite = locate(
            coords, point, exists, seed, jitter_std, size, NDIM, MODE, PADDING, ALIGN_CORNERS
        )
        weights = weight_tile(
            places,
            taps,
            size,
            ACCUMULATOR,
            NDIM,
            MODE,
            PADDING,
            ALIGN_CORNERS,
            TAPS,
            DERIVATIVE,
        )
        total = tl.dot(tl.trans(weights), tile, input_precision="ieee", out_dtype=ACCUMULATOR)
        if all_bounded == 0:
            wild = gathered(
                values,
                item * entries,
                taps,
                finite,
                here,
                channels,
                first,
                lane,
                size,
                ACCUMULATOR,
                NDIM,
                MODE,
                PADDING,
                ALIGN_CORNERS,
                TAPS,
                DERIVATIVE,
            )
            total = tl.where(tl.abs(wild) < float("inf"), total, wild)
        total = tl.where(finite[:, None], total, float("nan"))
        tl.store(
            tile_of(output, point, channels, first, lane),
            total.to(output.dtype.element_ty),
            mask=exists[:, None] & here[None, :],
        )


@triton.jit(do_not_specialize=_CHANGING)
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
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    SHARED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The gradient of the coordinates: a program sums a tile of channels for a block of points.

    It reads the gradient of the output once for some corners TOGETHER.
    """
    CORNERS: tl.constexpr = TAPS**NDIM
    TOGETHER: tl.constexpr = min(CORNERS, 8)
    channels = product_of(groups, GROUP)
    tile = product_of(blocks_per_tile, BLOCK_CHANNELS)
    tiles = tl.cdiv(channels, tile)
    program = tl.program_id(0).to(tl.int64)
    point = program // tiles * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    exists = point < points
    taps, finite = locate(
        coords, point, exists, seed, jitter_std, size, NDIM, MODE, PADDING, ALIGN_CORNERS
    )
    item = item_of(point, points_per_item, SHARED)
    begin = program % tiles * tile
    end = tl.minimum(begin + tile, channels)
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
                entry, inside = corner_entry(
                    corner + i, taps, finite, size, NDIM, MODE, PADDING, ALIGN_CORNERS, TAPS
                )
                read = tile_of(values, item * entries + entry, channels, start, lane)
                value = tl.load(read, mask=inside[:, None] & here, other=0.0)
                sums = sums + (tl.fma(grad, value.to(ACCUMULATOR), products[i]),)
            products = sums
        for i in tl.static_range(TOGETHER):
            entry, inside = corner_entry(
                corner + i, taps, finite, size, NDIM, MODE, PADDING, ALIGN_CORNERS, TAPS
            )
            # Outside, the gradient has been multiplied by zero, which it may be too large for.
            product = tl.where(inside, tl.sum(products[i], 1), 0.0)
            sums = ()
            for axis in tl.static_range(NDIM):
                weight = corner_weight(
                    corner + i, taps, axis, ACCUMULATOR, NDIM, MODE, TAPS, DERIVATIVE
                )
                sums = sums + (total[axis] + weight * product,)
            total = sums
    for axis in tl.static_range(NDIM):
        tl.store(
            parts + (program % tiles * points + point) * NDIM + (NDIM - 1 - axis),
            tl.where(finite, total[axis], float("nan")).to(parts.dtype.element_ty),
            mask=exists,
        )


@triton.jit
def factors(
    grad_output,
    coords,
    seed,
    jitter_std,
    in_item,
    end,
    item,
    points_per_item,
    channels,
    first,
    lane,
    places,
    size,
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Of a product that is a gradient: weights ``(entries, points)``, and ``(points, lanes)``."""
    point = item * points_per_item + in_item
    exists = in_item < end
    taps, _ = locate(
        coords, point, exists, seed, jitter_std, size, NDIM, MODE, PADDING, ALIGN_CORNERS
    )
    weights = weight_tile(
        places, taps, size, ACCUMULATOR, NDIM, MODE, PADDING, ALIGN_CORNERS, TAPS, DERIVATIVE
    )
    grad = tl.load(
        tile_of(grad_output, point, channels, first, lane),
        mask=exists[:, None] & (lane < channels - first)[None, :],
        other=0.0,
    )
    return weights, grad.to(ACCUMULATOR)


@triton.jit(do_not_specialize=_CHANGING)
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
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    ENTRIES: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The gradient of a small grid: a program owns a tile of its channels for a chunk of points.

    It holds the tile in registers and adds a product of matrices for each block of its points, in
    order. The tiles of chunks are `parts`, to be summed.
    """
    channels = product_of(groups, GROUP)
    part, item, begin, end, first = held_by_program(
        channels, points_per_item, chunk, BLOCK_CHANNELS
    )
    lane = tl.arange(0, BLOCK_CHANNELS)
    entry = tl.arange(0, ENTRIES)
    places = places_of(entry, size, NDIM)
    total = tl.zeros((ENTRIES, BLOCK_CHANNELS), ACCUMULATOR)
    for start in range(begin, end, BLOCK_POINTS):
        weights, grad = factors(
            grad_output,
            coords,
            seed,
            jitter_std,
            start + tl.arange(0, BLOCK_POINTS),
            end,
            item,
            points_per_item,
            channels,
            first,
            lane,
            places,
            size,
            NDIM,
            MODE,
            PADDING,
            ALIGN_CORNERS,
            TAPS,
            DERIVATIVE,
            ACCUMULATOR,
        )
        total = tl.dot(weights, grad, acc=total, input_precision="ieee", out_dtype=ACCUMULATOR)
    # A product of matrices spreads NaN and infinities to entries that the point does not read. Then
    # all is summed again: they are left out of it, and added one point at a time.
    if tl.min(tl.min((tl.abs(total) < float("inf")).to(tl.int32), 1), 0) == 0:
        total = tl.zeros((ENTRIES, BLOCK_CHANNELS), ACCUMULATOR)
        for start in range(begin, end, BLOCK_POINTS):
            weights, grad = factors(
                grad_output,
                coords,
                seed,
                jitter_std,
                start + tl.arange(0, BLOCK_POINTS),
                end,
                item,
                points_per_item,
                channels,
                first,
                lane,
                places,
                size,
                NDIM,
                MODE,
                PADDING,
                ALIGN_CORNERS,
                TAPS,
                DERIVATIVE,
                ACCUMULATOR,
            )
            bounded = tl.abs(grad) < float("inf")
            total = tl.dot(
                weights,
                tl.where(bounded, grad, 0.0),
                acc=total,
                input_precision="ieee",
                out_dtype=ACCUMULATOR,
            )
            for number in range(BLOCK_POINTS):
                this = tl.arange(0, BLOCK_POINTS) == number
                weight = tl.sum(tl.where(this[None, :], weights, 0.0), 1)[:, None]
                wild = tl.sum(tl.where(this[:, None] & ~bounded, grad, 0.0), 0)[None, :]
                total += tl.where(weight != 0, weight * wild, 0.0)
    tl.store(
        tile_of(parts, part * entries + entry, channels, first, lane),
        total,
        mask=(entry < entries)[:, None] & (lane < channels - first)[None, :],
    )


@triton.jit(do_not_specialize=_CHANGING)
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
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    SHARED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The gradient of a large grid: a program adds a tile of channels for a block of points."""
    CORNERS: tl.constexpr = TAPS**NDIM
    channels = product_of(groups, GROUP)
    tile = product_of(blocks_per_tile, BLOCK_CHANNELS)
    tiles = tl.cdiv(channels, tile)
    program = tl.program_id(0).to(tl.int64)
    point = program // tiles * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    taps, finite = locate(
        coords, point, point < points, seed, jitter_std, size, NDIM, MODE, PADDING, ALIGN_CORNERS
    )
    item = item_of(point, points_per_item, SHARED)
    begin = program % tiles * tile
    end = tl.minimum(begin + tile, channels)
    lane = tl.arange(0, BLOCK_CHANNELS)
    for start in range(begin, end, BLOCK_CHANNELS):
        here = lane < end - start
        grad = tl.load(
            tile_of(grad_output, point, channels, start, lane),
            mask=finite[:, None] & here[None, :],
            other=0.0,
        ).to(ACCUMULATOR)
        for corner in tl.range(
            0, CORNERS, loop_unroll_factor=CORNERS if CORNERS <= UNROLLED else 1
        ):
            entry, inside = corner_entry(
                corner, taps, finite, size, NDIM, MODE, PADDING, ALIGN_CORNERS, TAPS
            )
            weight = corner_weight(corner, taps, -1, ACCUMULATOR, NDIM, MODE, TAPS, DERIVATIVE)
            tl.atomic_add(
                tile_of(grad_values, item * entries + entry, channels, start, lane),
                weight[:, None] * grad,
                mask=inside[:, None] & here[None, :],
                sem="relaxed",
            )


@triton.jit(do_not_specialize=_CHANGING)
def corners_kernel(
    coords,
    seed,
    jitter_std,
    rows,
    weights,
    first_point,
    points,
    points_per_item,
    entries,
    outside,
    size,
    NDIM: tl.constexpr,
    MODE: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    TAPS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
):
    """The corners of points from `first_point` on: the row of the grid that each reads, its weight.

    Where it lies outside the grid, the row is `outside`, beyond all others.
    """
    CORNERS: tl.constexpr = TAPS**NDIM
    number = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    point = first_point + number
    exists = number < points
    taps, finite = locate(
        coords, point, exists, seed, jitter_std, size, NDIM, MODE, PADDING, ALIGN_CORNERS
    )
    item = item_of(point, points_per_item, SHARED)
    for corner in range(CORNERS):
        entry, inside = corner_entry(
            corner, taps, finite, size, NDIM, MODE, PADDING, ALIGN_CORNERS, TAPS
        )
        weight = corner_weight(corner, taps, -1, ACCUMULATOR, NDIM, MODE, TAPS, DERIVATIVE)
        row = tl.where(inside, item * entries + entry, outside).to(rows.dtype.element_ty)
        tl.store(rows + number * CORNERS + corner, row, mask=exists)
        tl.store(weights + number * CORNERS + corner, weight, mask=exists)


@triton.jit(do_not_specialize=_CHANGING)
def pieces_kernel(
    terms,
    rows,
    order,
    weights,
    grad_values,
    part_rows,
    parts,
    first_point,
    pairs,
    outside,
    groups,
    CORNERS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    GROUP: tl.constexpr,
    PIECE: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_PIECES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Adds to each row of the gradient the terms of it, which are next to one another in a list.

    `rows` says which row each term is of. A lane adds up a channel of a piece of the list, in
    order, and adds what it has to the row where all of the row's terms lie in the piece. What
    the piece has of a row that began before it, and of one that goes on behind it, are two `parts`,
    the terms of another such list: a row of many terms is shared by many programs.

    The first list is of pairs of a point and a corner, sorted by the row they read: `order` says
    which each is, and a term is the gradient of the point's output with the pair's weight.
    """
    channels = product_of(groups, GROUP)
    tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    program = tl.program_id(0).to(tl.int64)
    piece = program // tiles * BLOCK_PIECES + tl.arange(0, BLOCK_PIECES)
    start = program % tiles * BLOCK_CHANNELS
    lane = tl.arange(0, BLOCK_CHANNELS)
    here = (lane < channels - start)[None, :]
    begin = piece * PIECE
    exists = begin < pairs
    row = tl.load(rows + begin, mask=exists, other=-1)
    before = tl.load(rows + begin - 1, mask=exists & (begin > 0), other=-1)
    began_before = exists & (row == before)
    head = tl.where(began_before, row, outside).to(rows.dtype.element_ty)
    total = tl.zeros((BLOCK_PIECES, BLOCK_CHANNELS), ACCUMULATOR)
    last = row
    for first in range(0, PIECE, TOGETHER):
        # All of a group are on their way before the first is added.
        read = (row,)
        loaded = ()
        for i in tl.static_range(TOGETHER):
            place = begin + first + i
            within = (place < pairs) & (read[i] < outside)
            if order is None:
                term = tl.load(
                    tile_of(terms, place, channels, start, lane),
                    mask=within[:, None] & here,
                    other=0.0,
                )
            else:
                pair = tl.load(order + place, mask=within, other=0)
                weight = tl.load(weights + pair, mask=within, other=0.0)
                term = tl.load(
                    tile_of(terms, first_point + pair // CORNERS, channels, start, lane),
                    mask=within[:, None] & here,
                    other=0.0,
                )
                term = weight[:, None] * term.to(ACCUMULATOR)
            loaded = loaded + (term,)
            read = read + (tl.load(rows + place + 1, mask=place + 1 < pairs, other=-1),)
        for i in tl.static_range(TOGETHER):
            total += loaded[i]
            ends = read[i] != read[i + 1]
            if i == TOGETHER - 1:
                ends = ends | (first + TOGETHER == PIECE)
            inside = (begin + first + i < pairs) & (read[i] < outside)
            goes_on = ends & (read[i] == read[i + 1])
            to = tile_of(grad_values, read[i].to(tl.int64), channels, start, lane)
            whole = (ends & inside & ~began_before & ~goes_on)[:, None] & here
            tl.store(to, tl.load(to, mask=whole, other=0.0) + total, mask=whole)
            to = tile_of(parts, 2 * piece, channels, start, lane)
            tl.store(to, total, mask=(ends & inside & began_before)[:, None] & here)
            if i == TOGETHER - 1:
                # A row that neither begins nor ends here is a part once, and zero.
                rest = tl.where(began_before[:, None], 0.0, total)
                to = tile_of(parts, 2 * piece + 1, channels, start, lane)
                tl.store(to, rest, mask=(inside & goes_on)[:, None] & here)
                last = tl.where(inside & goes_on, read[i], outside).to(rows.dtype.element_ty)
            total = tl.where(ends[:, None], 0.0, total)
            began_before = began_before & ~ends
        row = read[TOGETHER]
    tl.store(part_rows + 2 * piece, head, mask=exists)
    tl.store(part_rows + 2 * piece + 1, last, mask=exists)


@triton.jit(do_not_specialize=_CHANGING)
def normals_kernel(seed, normals, points, NDIM: tl.constexpr, BLOCK_POINTS: tl.constexpr):
    """The normals of the jitter by themselves."""
    point = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    for component in tl.static_range(NDIM):
        normal = jitter_normal(tl.load(seed), point, component)
        tl.store(normals + point * NDIM + component, normal, mask=point < points)


@triton.jit(do_not_specialize=_CHANGING)
def philox_kernel(counter, key, words, points, BLOCK_POINTS: tl.constexpr):
    """The generator by itself, on counters ``(points, 4)`` and keys ``(points, 2)``."""
    point = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    exists = point < points
    low = tl.load(key + point * 2, mask=exists, other=0)
    high = tl.load(key + point * 2 + 1, mask=exists, other=0)
    counter += point * 4
    result = philox_words(
        low | high << 32,
        tl.load(counter, mask=exists, other=0),
        tl.load(counter + 1, mask=exists, other=0),
        tl.load(counter + 2, mask=exists, other=0),
        tl.load(counter + 3, mask=exists, other=0),
    )
    for i in tl.static_range(4):
        tl.store(words + point * 4 + i, result[i].to(tl.int64), mask=exists)
