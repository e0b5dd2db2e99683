"""Where to compute: memory that is kept, and given back."""

import resource
import sys

import pytest
import torch

from crad.devices import freed_memory_kept

LARGE = 64 * 2**20  # bytes; glibc's own adjustment stops at half of it


def faults_of_a_large_tensor() -> int:
    """Pages that the system had to clear for it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(LARGE, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept_in_the_block_and_given_back_after_it() -> None:
    with freed_memory_kept():
        kept = min(faults_of_a_large_tensor() for _ in range(5))
    after = min(faults_of_a_large_tensor() for _ in range(5))
    assert kept < 0.1 * after
