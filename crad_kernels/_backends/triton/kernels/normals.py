"""The jitter by itself: for `torch.vmap`, and the gradient of a learnable jitter."""

import triton
import triton.language as tl

from crad_kernels._backends.triton.jitter import jitter_normal
from crad_kernels._backends.triton.kernels.tiles import CHANGING


@triton.jit(do_not_specialize=CHANGING)
def normals_kernel(seed, normals, points, NDIM: tl.constexpr, BLOCK_POINTS: tl.constexpr):
    """The normals of the jitter by themselves."""
    point = tl.program_id(0).to(tl.int64) * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    for component in tl.static_range(NDIM):
        normal = jitter_normal(tl.load(seed), point, component)
        tl.store(normals + point * NDIM + component, normal, mask=point < points)
