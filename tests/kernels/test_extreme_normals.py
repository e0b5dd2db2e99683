"""The normals that Triton makes of the least and the greatest random words, which are rare."""

from itertools import product

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from crad_kernels._backends.triton.jitter import normal_pair
from crad_kernels._backends.triton.launch import run


@triton.jit
def pair_kernel(words, normals, BLOCK: tl.constexpr):  # noqa: N803
    number = tl.arange(0, BLOCK)
    a = tl.load(words + 2 * number).to(tl.uint32)
    b = tl.load(words + 2 * number + 1).to(tl.uint32)
    first, second = normal_pair(a, b)
    tl.store(normals + 2 * number, first)
    tl.store(normals + 2 * number + 1, second)


@pytest.mark.usefixtures("triton_backend")
def test_normals_of_the_extreme_words_are_right() -> None:
    """To 1e-6; and so are those around each eighth of a turn, where a quadrant begins."""
    steps = (0, 1, 2, 3)
    radii = [step << 8 for step in steps] + [(2**24 - 1 - step) << 8 for step in steps]
    eighths = [(eighth << 21) + step for eighth in range(8) for step in (-1, 0, 1)]
    pairs = list(product(radii, [(turn % 2**24) << 8 for turn in eighths]))
    pairs += [(255, 255), (2**32 - 1, 2**32 - 1)] * ((256 - len(pairs)) // 2)
    words = torch.tensor(pairs)
    normals = torch.zeros(256, 2)
    run(pair_kernel, 1, normals.device, words=words, normals=normals, BLOCK=256)
    mantissa = words.cpu().numpy() >> 8
    radius = np.sqrt(-2 * np.log((mantissa[:, 0] + 1) / 2**24))
    angle = 2 * np.pi * mantissa[:, 1] / 2**24
    expected = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1)
    assert np.abs(normals.double().cpu().numpy() - expected).max() <= 1e-6
