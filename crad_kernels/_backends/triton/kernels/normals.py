"""The jitter by itself: for `torch.vmap`, and the gradient of a learnable jitter."""

import triton
import triton.language as tl

from crad_kernels._backends.triton.jitter import jitter_normal, philox
from crad_kernels._backends.triton.kernels.tiles import CHANGING


@triton.jit(do_not_specialize=CHANGING)
def normals_kernel(seed, normals, points, NDIM: tl.constexpr, BLOCK_POINTS: tl.constexpr):
    """The normals of the jitter by themselves."""
    point = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    for component in tl.static_range(NDIM):
        normal = jitter_normal(tl.load(seed), point, component)
        tl.store(normals + point * NDIM + component, normal, mask=point < points)


@triton.jit(do_not_specialize=CHANGING)
def philox_kernel(counter, key, words, points, BLOCK_POINTS: tl.constexpr):
    """The generator by itself, on counters ``(points, 4)`` and keys ``(points, 2)``."""
    point = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    exists = point < points
    low = tl.load(key + point * 2, mask=exists, other=0)
    high = tl.load(key + point * 2 + 1, mask=exists, other=0)
    counter += point * 4
    result = philox(
        low | high << 32,
        tl.load(counter, mask=exists, other=0),
        tl.load(counter + 1, mask=exists, other=0),
        tl.load(counter + 2, mask=exists, other=0),
        tl.load(counter + 3, mask=exists, other=0),
    )
    for i in tl.static_range(4):
        tl.store(words + point * 4 + i, result[i].to(tl.int64), mask=exists)
