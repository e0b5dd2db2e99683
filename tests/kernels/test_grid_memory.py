"""The grid as a module."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from crad_kernels import GridMemory, sample
from tests.cases import MODES, PADDING_MODES


def places() -> Tensor:
    return torch.linspace(-1.2, 1.2, 40).reshape(4, 5, 2)


def test_resolution_is_in_the_order_of_the_axes() -> None:
    assert GridMemory(6, 4).weight.shape == (4, 4, 6)
    assert GridMemory(6, 4, ndim=3).weight.shape == (4, 4, 4, 6)
    assert GridMemory(6, (5, 3)).weight.shape == (5, 3, 6)
    assert GridMemory(6, [7]).weight.shape == (7, 6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_samples_its_values(
    backend: str, mode: str, padding_mode: str, align_corners: bool
) -> None:
    coords = places()
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    memory = GridMemory(6, (5, 3), **options, backend=backend)
    out = memory(coords)
    assert out.shape == (4, 5, 6)
    assert torch.equal(out, sample(memory.weight, coords, **options, backend=backend))


def test_jitters_in_training_mode_only(backend: str) -> None:
    coords = places()
    memory = GridMemory(6, (5, 3), jitter_std=(0.1, 0.3), backend=backend)
    still = sample(memory.weight, coords, backend=backend)
    jittered = sample(memory.weight, coords, jitter_std=(0.1, 0.3), seed=8, backend=backend)
    assert torch.equal(memory(coords, seed=8), jittered)
    assert torch.equal(memory(coords, seed=torch.tensor(8)), jittered)
    assert not torch.equal(memory(coords), memory(coords))
    assert torch.equal(memory.eval()(coords, seed=8), still)


def test_learns(backend: str) -> None:
    """Coordinates and values that meet, by gradient descent."""
    coords = places()
    torch.manual_seed(0)
    memory = GridMemory(2, (4, 5), padding_mode="border", align_corners=True, backend=backend)
    target = torch.stack((coords[..., 0], 1 - coords[..., 1]), -1).clamp(-1, 1)
    optimizer = torch.optim.Adam(memory.parameters(), lr=0.1)
    losses = []
    for _ in range(100):
        loss = (memory(coords) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_draws_xavier_normal_entries() -> None:
    """The variance that torch's initialiser gives a (1, C, *size) tensor, within 5 errors."""
    torch.manual_seed(0)
    memory = GridMemory(30, (20, 10, 5), ndim=3)
    theirs = torch.nn.init.xavier_normal_(torch.empty(1, 30, 20, 10, 5))
    count = theirs.numel()
    assert abs(memory.weight.var() / theirs.var() - 1) <= 5 * math.sqrt(2 * 2 / count)
    assert abs(memory.weight.mean()) <= 5 * theirs.std() / math.sqrt(count)
    before = memory.weight.detach().clone()
    memory.reset_parameters()
    assert not torch.equal(memory.weight, before)


def test_is_a_module_like_any_other() -> None:
    coords = places()
    memory = GridMemory(6, (5, 3), jitter_std=0.1)
    assert list(dict(memory.named_parameters())) == ["weight"]
    twin = GridMemory(6, (5, 3))
    twin.load_state_dict(memory.state_dict())
    assert torch.equal(twin.eval()(coords), memory.eval()(coords))
    assert torch.equal(copy.deepcopy(memory)(coords), memory(coords))
    assert memory.bfloat16()(coords).dtype == torch.bfloat16
    for word in ("6, (5, 3)", "jitter_std=0.1", "'linear'", "'zeros'"):
        assert word in repr(memory)


def test_takes_numbers_of_numpy() -> None:
    assert GridMemory(3, np.int64(4)).weight.shape == (4, 4, 3)
    assert GridMemory(3, np.array([4, 5])).weight.shape == (4, 5, 3)
