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
    return (base, distance, slope), finite


@triton.jit
def position_of(base, tap, size, axis: tl.constexpr, OPTIONS: tl.constexpr):
    """The position of the entry that a tap reads along an axis: it may lie outside the grid."""
    return tap_position(
        base, tap, size, OPTIONS.mode, OPTIONS.padding[axis], OPTIONS.align_corners[axis]
    )


@triton.jit
def corner_entry(corner, taps, finite, size, OPTIONS: tl.constexpr):
    """The entry that a corner reads, and whether it lies inside the grid."""
    base, _, _ = taps
    entry = tl.zeros(finite.shape, tl.int64)
    inside = finite
    for axis in tl.static_range(OPTIONS.ndim):
        tap = corner // OPTIONS.taps**axis % OPTIONS.taps
        along = entry_at(position_of(base[axis], tap, size[axis], axis, OPTIONS), size[axis])
        inside = inside & (along >= 0) & (along < size[axis])
        entry = entry * size[axis] + along
    return entry, inside


@triton.jit
def corner_weight(corner, taps, differentiated: tl.constexpr, OPTIONS: tl.constexpr):
    """The weight of a corner, differentiated once more along an axis, or (-1) along none."""
    _, distance, slope = taps
    weight = tl.full(distance[0].shape, 1.0, OPTIONS.accumulator)
    for axis in tl.static_range(OPTIONS.ndim):
        along = tap_weight(
            corner // OPTIONS.taps**axis % OPTIONS.taps,
            distance[axis],
            slope[axis],
            OPTIONS.mode,
            (OPTIONS.derivative >> 4 * axis & 15) + (axis == differentiated),
        )
        weight *= along.to(OPTIONS.accumulator)
    return weight
