"""Small calls stay on the thread that makes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from crad_kernels import backends

# Prints how many threads the process has: before calls, after small ones, after a large one.
CALLS = """
import os
import torch
from crad_kernels import sample

def call(channels, points):
    torch.set_num_threads(1)
    values = torch.ones(8, 8, channels, requires_grad=True)
    coords = torch.rand(points, 2, requires_grad=True)
    grad_output = torch.ones(points, channels)
    torch.set_num_threads(2)
    out = sample(values, coords, backend="cpu")
    torch.autograd.grad(out, (values, coords), grad_output)

def threads():
    return len(os.listdir("/proc/self/task"))

call(1, 1)  # the engine of autograd has a thread for each GPU
before = threads()
for channels, points in ((1, 4_900), (3, 4_900), (16, 4_000), (128, 600), (4096, 15)):
    call(channels, points)
print(before, threads())
call(128, 10_000)
print(threads())
"""


@pytest.mark.slow
@pytest.mark.skipif(not backends()["cpu"].usable, reason="the CPU backend cannot be used here")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux tells of threads")
def test_small_calls_take_no_second_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALLS], check=True, capture_output=True, text=True, timeout=600
    )
    before, small, large = map(int, done.stdout.split())
    assert small == before
    assert large == before + 1
