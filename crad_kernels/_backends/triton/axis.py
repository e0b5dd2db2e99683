"""One axis of a sample: coordinate -> index -> padding -> taps; as `csrc/core/axis.h` has it.

Functions of tensors of any shape, in their dtype. Modes and paddings are names that the compiler
knows; `size`, a scalar, may be known to it or not. An index is a pair: a fractional position, and
its slope, how it moves with the coordinate.
"""

import triton
import triton.language as tl


@triton.jit
def unpadded_index(coord, size, align_corners: tl.constexpr, unit: tl.constexpr):
    """The index of a coordinate along an axis of `size` entries."""
    if unit == "index":
        at = coord
        slope = tl.full((), 1.0, coord.dtype)
    elif align_corners:
        last = tl.cast(size - 1, coord.dtype)
        at = (coord + 1) * 0.5 * last
        slope = last * 0.5
    else:
        length = tl.cast(size, coord.dtype)
        at = ((coord + 1) * length - 1) * 0.5
        slope = length * 0.5
    return at, slope


@triton.jit
def clamped(at, slope, size):
    """To [0, size - 1], NaN to 0; the slope is 0 where it clamps."""
    last = tl.cast(size - 1, at.dtype)
    slope = tl.where((at > 0) & (at < last), slope, 0.0)
    return tl.where(at > 0, tl.where(at < last, at, last), 0.0), slope


@triton.jit
def reflected(at, slope, size, align_corners: tl.constexpr):
    """Mirrored at -1/2 and size - 1/2, or at 0 and size - 1 with align_corners."""
    low = 0.0 if align_corners else -0.5
    span = tl.cast(size - 1 if align_corners else size, tl.int64)
    usable = (tl.abs(at) < 2147483648.0) & (span > 0)
    distance = tl.where(usable, at, 0.0) - low
    slope = tl.where(distance < 0, -slope, slope)
    distance = tl.abs(distance)
    # In integers, where the remainder is exact: a float's is not on every GPU.
    whole = tl.floor(distance)
    count = whole.to(tl.int64)
    turns = count // tl.maximum(span, 1)
    extra = (count - turns * span).to(at.dtype) + (distance - whole)
    odd = turns % 2 == 1
    mirrored = tl.where(odd, span.to(at.dtype) - extra, extra) + low
    slope = tl.where(odd, -slope, slope)
    return tl.where(usable, mirrored, 0.0), tl.where(usable, slope, 0.0)


@triton.jit
def padded_directly(at, slope, size, padding: tl.constexpr, align_corners: tl.constexpr):
    """The index after padding."""
    if padding == "reflection":
        at, slope = reflected(at, slope, size, align_corners)
    if padding != "zeros":
        at, slope = clamped(at, slope, size)
    return at, slope


@triton.jit
def kept_near(at, slope, size, padding: tl.constexpr):
    """An index that reads the same, near enough to the grid for its taps to be padded one by one.

    The slope is 0 where all of them read one entry.
    """
    if padding == "border":
        high = tl.cast(size, at.dtype)
        slope = tl.where((at >= -2) & (at <= high), slope, 0.0)
        at = tl.where(at == at, tl.where(at < -2, -2.0, tl.where(at > high, high, at)), 0.0)
    if padding == "reflection" or padding == "circular":
        near = tl.abs(at) < 2147483648.0
        slope = tl.where(near, slope, 0.0)
        at = tl.where(near, at, 0.0)
    return at, slope


@triton.jit
def padded(at, slope, size, mode: tl.constexpr, padding: tl.constexpr, align_corners: tl.constexpr):
    """The index that the taps are taken around.

    Circular padding pads the taps, as cubic does for any; the others pad the index.
    """
    if mode == "cubic" or padding == "circular":
        at, slope = kept_near(at, slope, size, padding)
    else:
        at, slope = padded_directly(at, slope, size, padding, align_corners)
    return at, slope


@triton.jit
def base_of(at, mode: tl.constexpr):
    """The position that the argument of the weights is the distance of the index from."""
    base = tl.floor(at)
    if mode == "nearest":  # half to even
        rest = at - base
        odd = base - 2 * tl.floor(base * 0.5)
        base += tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1)), 1.0, 0.0)
    return base


@triton.jit
def wrapped_base(base, size, padding: tl.constexpr):
    """The base of the same taps, in the grid where these repeat with it."""
    if padding == "circular":
        # In integers, where the remainder is exact: a float's is not on every GPU.
        whole = base.to(tl.int64)
        rest = whole - whole // size * size  # // may round down, or to 0
        rest = tl.where(rest < 0, rest + size, rest)
        inside = (base >= 0) & (base <= tl.cast(size - 1, base.dtype))
        base = tl.where(inside, base, rest.to(base.dtype))
    return base


@triton.jit
def tap_position(
    base, tap, size, mode: tl.constexpr, padding: tl.constexpr, align_corners: tl.constexpr
):
    """The position of the entry that a tap reads: it may lie outside the grid."""
    position = base + (tap - 1 if mode == "cubic" else tap)
    if padding == "circular":
        period = tl.cast(size, base.dtype)
        position = tl.where(position < 0, position + period, position)
        last = tl.cast(size - 1, base.dtype)
        position = tl.where(position > last, position - period, position)
        position, _ = clamped(position, 0.0, size)
    elif mode == "cubic":
        position, _ = padded_directly(position, 0.0, size, padding, align_corners)
    return position


@triton.jit
def entry_at(position, size):
    """The entry at a position, int64; not in [0, size) where there is none."""
    # Also keeps what is converted to an integer within its range.
    near = (position >= -4) & (position <= tl.cast(size, position.dtype))
    entry = tl.where(near, position, -4.0).to(tl.int64)
    # Past 2^24 entries, float32 may round the last position up, to where there is no entry.
    on_grid = position <= tl.cast(size - 1, position.dtype)
    return tl.where(on_grid, tl.minimum(entry, size - 1), entry)


@triton.jit
def cubic_convolution(order: tl.constexpr, inner: tl.constexpr, x):
    """Keys' cubic convolution at a distance of 0 to 1 (inner) or 1 to 2 entries, or a derivative.

    With a = -3/4, and with respect to the distance (Keys, IEEE TASSP 1981).
    """
    a = -0.75
    if order == 0:
        if inner:
            y = ((a + 2) * x - (a + 3)) * x * x + 1
        else:
            y = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    elif order == 1:
        y = (3 * (a + 2) * x - 2 * (a + 3)) * x if inner else (3 * a * x - 10 * a) * x + 8 * a
    elif order == 2:
        y = 6 * (a + 2) * x - 2 * (a + 3) if inner else 6 * a * x - 10 * a
    elif order == 3:
        y = tl.full(x.shape, 6 * (a + 2) if inner else 6 * a, x.dtype)
    else:
        y = tl.zeros(x.shape, x.dtype)
    return y


@triton.jit
def tap_weight(tap, t, slope, mode: tl.constexpr, order: tl.constexpr):
    """The weight of a tap, or its derivative of some order with respect to the coordinate."""
    if mode == "cubic":
        left = tap < 2
        distance = tl.where(left, t + (1 - tap), (tap - 1) - t)
        weight = tl.where(
            (tap == 1) | (tap == 2),
            cubic_convolution(order, True, distance),
            cubic_convolution(order, False, distance),
        )
        for _ in tl.static_range(min(order, 4)):
            weight *= tl.where(left, slope, -slope)
    elif order == 0:
        if mode == "linear":
            weight = tl.where(tap == 0, 1 - t, t)
        else:
            weight = tl.full(t.shape, 1.0, t.dtype)
    elif order == 1 and mode == "linear":
        weight = tl.where(tap == 0, -slope, slope) + tl.zeros(t.shape, t.dtype)
    else:
        weight = tl.zeros(t.shape, t.dtype)
    return weight
