"""How much memory a call takes beside its results."""

import subprocess
import sys
from pathlib import Path

import pytest

MiB = 2**20

# Forward and backward in a process of their own, which prints by how many bytes its peak rises.
CALL = """
import sys
import torch
from crad_kernels import sample

*size, channels, points = map(int, sys.argv[1:])

def peak():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def run(size, channels, points):
    values = torch.ones(*size, channels, requires_grad=True)
    coords = torch.rand(points, len(size)).mul_(2).sub_(1).requires_grad_()
    grad_output = torch.ones(points, channels)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = peak()
    out = sample(values, coords, jitter_std=0.1, seed=1, backend="cpu")
    torch.autograd.grad(out, (values, coords), grad_output)
    print(peak() - before)

run([2] * len(size), 4, 10)  # what is loaded at the first call
run(size, channels, points)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells of peaks")
@pytest.mark.parametrize(
    ("size", "channels", "points"),
    [
        ((8, 8), 216, 50_176),
        pytest.param((4, 4), 169_344, 64, marks=pytest.mark.thorough),
        pytest.param((64, 64), 216, 50_176, marks=pytest.mark.thorough),
        ((32,) * 3, 16, 400_000),
    ],
    ids=str,
)
def test_a_call_takes_its_results_and_little_more(
    size: tuple[int, ...], channels: int, points: int
) -> None:
    arguments = map(str, (*size, channels, points))
    printed = subprocess.run(
        [sys.executable, "-c", CALL, *arguments], check=True, capture_output=True, text=True
    ).stdout
    entries = 1
    for length in size:
        entries *= length
    results = 4 * (points * channels + entries * channels + points * len(size))
    # Grids that chunks of points add to, 32 MiB at most; the order of the points that a large grid
    # is read in, 12 bytes each; whole pages of 2 MiB for each result.
    constant = 40 * MiB + 12 * points
    assert int(printed.splitlines()[-1]) <= results + constant
