"""More channels than an int32 holds."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from crad_kernels._backends.triton.kernels.tiles import product_of
from crad_kernels._backends.triton.launch import run


@triton.jit(do_not_specialize=["groups"])
def channels_kernel(channels, groups, GROUP: tl.constexpr):  # noqa: N803
    tl.store(channels, product_of(groups, GROUP))


@pytest.mark.parametrize("groups", [1, 2**27, 2**40])
@pytest.mark.usefixtures("triton_backend")
def test_triton_counts_them(groups: int) -> None:
    channels = torch.zeros((), dtype=torch.int64)
    run(channels_kernel, 1, channels.device, channels=channels, groups=groups, GROUP=16)
    assert channels == 16 * groups
