"""From coordinates to taps, and from taps to corners: which entry each reads, and its weight."""

import triton
import triton.language as tl

from crad_kernels._backends.triton.axis import (
    base_of,
    entry_at,
    padded,
    tap_position,
    tap_weight,
    unpadded_index,
    wrapped_base,
)
from crad_kernels._backends.triton.jitter import jitter_normal
from crad_kernels._backends.triton.plan import UNROLLED as _UNROLLED

UNROLLED = tl.constexpr(_UNROLLED)


@triton.jit
def locate(coords, point, exists, seed, jitter_std, size, OPTIONS: tl.constexpr):
    """The taps of points, and which of them exist and have a finite index."""
    NDIM: tl.constexpr = OPTIONS.ndim
    base = ()
    distance = ()
    slope = ()
    finite = exists
    for axis in tl.static_range(NDIM):
        coord = tl.load(coords + point * NDIM + (NDIM - 1 - axis), mask=exists, other=0.0)
        if seed is not None:
            normal = jitter_normal(tl.load(seed), point, NDIM - 1 - axis)
            coord += tl.load(jitter_std + (NDIM - 1 - axis)) * normal.to(coord.dtype)
        at, along = unpadded_index(coord, size[axis], OPTIONS.align_corners[axis], OPTIONS.unit)
        if OPTIONS.padding[axis] == "zeros":
            finite = finite & (tl.abs(at) < float("inf"))
        at, along = padded(
            at,
            along,
            size[axis],
            OPTIONS.mode,
            OPTIONS.padding[axis],
            OPTIONS.align_corners[axis],
        )
        start = base_of(at, OPTIONS.mode)
        base = base + (wrapped_base(start, size[axis], OPTIONS.padding[axis]),)
        distance = distance + (at - start,)
        slope = slope + (along,)
    step = walk(base, distance, size, OPTIONS) if OPTIONS.mode == "simplex" else ()
    return (base, distance, slope, step), finite


@triton.jit
def walk(base, distance, size, OPTIONS: tl.constexpr):
    """The number of the step along each axis, in the walk through the corners of a simplex.

    By descending distance from the base, along the lower component first where two are equal; the
    walk leaves the grid last.
    """
    NDIM: tl.constexpr = OPTIONS.ndim
    key = ()
    for axis in tl.static_range(NDIM):
        second = entry_at(position_of(base[axis], 1, size[axis], axis, OPTIONS), size[axis])
        leaves = (distance[axis] <= 0) & ((second < 0) | (second >= size[axis]))
        key = key + (tl.where(leaves, -1.0, distance[axis]),)
    step = ()
    for axis in tl.static_range(NDIM):
        number = tl.zeros(base[0].shape, tl.int32)
        for other in tl.static_range(NDIM):
            if other > axis:
                number += (key[other] >= key[axis]).to(tl.int32)
            elif other < axis:
                number += (key[other] > key[axis]).to(tl.int32)
        step = step + (number,)
    return step


@triton.jit
def position_of(base, tap, size, axis: tl.constexpr, OPTIONS: tl.constexpr):
    """The position of the entry that a tap reads along an axis: it may lie outside the grid."""
    return tap_position(
        base, tap, size, OPTIONS.mode, OPTIONS.padding[axis], OPTIONS.align_corners[axis]
    )


@triton.jit
def tap_of(corner, taps, axis: tl.constexpr, OPTIONS: tl.constexpr):
    """The tap of a corner along an axis."""
    if OPTIONS.mode == "simplex":
        tap = (taps[3][axis] < corner).to(tl.int32)
    else:
        tap = corner // OPTIONS.taps**axis % OPTIONS.taps
    return tap


@triton.jit
def corner_entry(corner, taps, finite, size, OPTIONS: tl.constexpr):
    """The entry that a corner reads, and whether it lies inside the grid."""
    base = taps[0]
    entry = tl.zeros(finite.shape, tl.int64)
    inside = finite
    for axis in tl.static_range(OPTIONS.ndim):
        tap = tap_of(corner, taps, axis, OPTIONS)
        along = entry_at(position_of(base[axis], tap, size[axis], axis, OPTIONS), size[axis])
        inside = inside & (along >= 0) & (along < size[axis])
        entry = entry * size[axis] + along
    return entry, inside


@triton.jit
def corner_weight(corner, taps, differentiated: tl.constexpr, OPTIONS: tl.constexpr):
    """The weight of a corner, differentiated once more along an axis, or (-1) along none."""
    _, distance, slope, step = taps
    if OPTIONS.mode == "simplex":
        weight = walk_weight(corner, distance, slope, step, differentiated, OPTIONS)
    else:
        weight = tl.full(distance[0].shape, 1.0, OPTIONS.accumulator)
        for axis in tl.static_range(OPTIONS.ndim):
            along = tap_weight(
                tap_of(corner, taps, axis, OPTIONS),
                distance[axis],
                slope[axis],
                OPTIONS.mode,
                (OPTIONS.derivative >> 4 * axis & 15) + (axis == differentiated),
            )
            weight *= along.to(OPTIONS.accumulator)
    return weight


@triton.jit
def walk_weight(corner, distance, slope, step, differentiated: tl.constexpr, OPTIONS: tl.constexpr):
    """The weight of a corner of a simplex: the distance of its step less that of the next one.

    It is linear in each distance, which has a term of its own: second derivatives are 0.
    """
    weight = tl.zeros(distance[0].shape, distance[0].dtype)
    if OPTIONS.derivative == 0 and differentiated == -1:
        weight += tl.where(corner == 0, 1.0, 0.0)
        for axis in tl.static_range(OPTIONS.ndim):
            weight += tl.where(step[axis] == corner - 1, distance[axis], 0.0)
            weight -= tl.where(step[axis] == corner, distance[axis], 0.0)
    else:
        for axis in tl.static_range(OPTIONS.ndim):
            if (OPTIONS.derivative == 0 and differentiated == axis) or (
                differentiated == -1 and OPTIONS.derivative == 1 << 4 * axis
            ):
                weight += tl.where(step[axis] == corner - 1, slope[axis], 0.0)
                weight -= tl.where(step[axis] == corner, slope[axis], 0.0)
    return weight.to(OPTIONS.accumulator)
