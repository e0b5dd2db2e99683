"""Standard normals as a pure function of (seed, point, component); as `csrc/core/jitter.h` has it.

Philox4x32-10 is Triton's, with our key and counter: Triton's own normals have others.
"""

import triton
import triton.language as tl


@triton.jit
def log_unit(u):
    """The logarithm of a normal float32 in (0, 1].

    u = m * 2^e with m in [sqrt(1/2), sqrt(2)), and log(m) = 2 artanh(s), s = (m - 1) / (m + 1),
    |s| < 0.172: the series to s^9 is exact to rounding.
    """
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - exponent * (1 << 23)).to(tl.float32, bitcast=True)
    s = tl.div_rn(m - 1.0, m + 1.0)
    s2 = s * s
    tail = s2 * (1.0 / 3 + s2 * (1.0 / 5 + s2 * (1.0 / 7 + s2 * (1.0 / 9))))
    # log(2) in two parts: the first has few bits, so its product with the exponent is exact.
    e = exponent.to(tl.float32)
    return e * 0.693359375 + (2.0 * s + (2.0 * s * tail + e * -2.12194440e-4))


@triton.jit
def sincos_turn(turn):
    """Sine and cosine of 2 pi * turn, for turn in [0, 1) a multiple of 2^-24.

    The reduction to an eighth of a turn is exact, and Taylor's series do the rest.
    """
    quadrant = (turn * 4.0 + 0.5).to(tl.int32)
    x = (turn * 4.0 - quadrant.to(tl.float32)) * 1.57079632679
    x2 = x * x
    s = x + x * x2 * (-1.0 / 6 + x2 * (1.0 / 120 + x2 * (-1.0 / 5040 + x2 * (1.0 / 362880))))
    c = 1.0 - x2 * (
        0.5 + x2 * (-1.0 / 24 + x2 * (1.0 / 720 + x2 * (-1.0 / 40320 + x2 * (1.0 / 3628800))))
    )
    swap = (quadrant & 1) == 1
    sine, cosine = tl.where(swap, c, s), tl.where(swap, s, c)
    sine = tl.where((quadrant & 2) == 2, -sine, sine)
    cosine = tl.where(((quadrant + 1) & 2) == 2, -cosine, cosine)
    return sine, cosine


@triton.jit
def normal_pair(a, b):
    """Two independent standard normals from two random words (Box-Muller)."""
    unit = 1.0 / (1 << 24)
    u = ((a >> 8).to(tl.float32) + 1.0) * unit
    turn = (b >> 8).to(tl.float32) * unit
    radius = tl.sqrt_rn(-2.0 * log_unit(u))
    sine, cosine = sincos_turn(turn)
    return radius * cosine, radius * sine


@triton.jit
def jitter_normal(seed, point, component: tl.constexpr):
    """The standard normal of a component of a point, from a block of four words."""
    block = tl.full((), component // 4, tl.uint32)
    low, high = point.to(tl.uint32), (point >> 32).to(tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, low, high, block, block * 0, 10)
    if component % 4 < 2:
        first, second = normal_pair(word0, word1)
    else:
        first, second = normal_pair(word2, word3)
    return first if component % 2 == 0 else second
