"""What to compute on: memory that is kept, and given back."""

import ctypes
import sys

import psutil
import pytest
import torch

from crad.devices import freed_memory_kept

LARGE = 256 * 2**20  # bytes; far above where glibc's own adjustment stops


def memory_after_a_large_tensor() -> int:
    """Bytes of this process that are in memory once the tensor is freed."""
    torch.empty(LARGE, dtype=torch.uint8).fill_(1)
    return psutil.Process().memory_info().rss


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's"
)
def test_freed_memory_is_kept_in_the_block_and_given_back_after_it() -> None:
    before = memory_after_a_large_tensor()
    with freed_memory_kept():
        kept = memory_after_a_large_tensor()
    after = psutil.Process().memory_info().rss
    assert kept - before > 0.9 * LARGE
    assert after - before < 0.1 * LARGE
