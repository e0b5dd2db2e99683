"""The gradient of the values of a large grid in a fixed order: corners are sorted, then added."""

import triton
import triton.language as tl

from crad_kernels._backends.triton.kernels.corners import corner_entry, corner_weight, locate
from crad_kernels._backends.triton.kernels.tiles import CHANGING, item_of, product_of, tile_of


@triton.jit(do_not_specialize=CHANGING)
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
    OPTIONS: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
):
    """The corners of points from `first_point` on: the row of the grid that each reads, its weight.

    Where it lies outside the grid, the row is `outside`, beyond all others.
    """
    CORNERS: tl.constexpr = OPTIONS.corners
    number = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    point = first_point + number
    exists = number < points
    taps, finite = locate(coords, point, exists, seed, jitter_std, size, OPTIONS)
    item = item_of(point, points_per_item, SHARED)
    for corner in range(CORNERS):
        entry, inside = corner_entry(corner, taps, finite, size, OPTIONS)
        weight = corner_weight(corner, taps, -1, OPTIONS)
        row = tl.where(inside, item * entries + entry, outside).to(rows.dtype.element_ty)
        tl.store(rows + number * CORNERS + corner, row, mask=exists)
        tl.store(weights + number * CORNERS + corner, weight, mask=exists)


@triton.jit(do_not_specialize=CHANGING)
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
    OPTIONS: tl.constexpr,
    GROUP: tl.constexpr,
    PIECE: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_PIECES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Adds to each row of the gradient its terms, which follow one another in a list.

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
    total = tl.zeros((BLOCK_PIECES, BLOCK_CHANNELS), OPTIONS.accumulator)
    last = row
    for first in range(0, PIECE, TOGETHER):
        # All loads of a group are on their way before its first term is added.
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
                    tile_of(terms, first_point + pair // OPTIONS.corners, channels, start, lane),
                    mask=within[:, None] & here,
                    other=0.0,
                )
                term = weight[:, None] * term.to(OPTIONS.accumulator)
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
                # Of a row that neither begins nor ends in the piece, this part is zero.
                rest = tl.where(began_before[:, None], 0.0, total)
                to = tile_of(parts, 2 * piece + 1, channels, start, lane)
                tl.store(to, rest, mask=(inside & goes_on)[:, None] & here)
                last = tl.where(inside & goes_on, read[i], outside).to(rows.dtype.element_ty)
            total = tl.where(ends[:, None], 0.0, total)
            began_before = began_before & ~ends
        row = read[TOGETHER]
    tl.store(part_rows + 2 * piece, head, mask=exists)
    tl.store(part_rows + 2 * piece + 1, last, mask=exists)
