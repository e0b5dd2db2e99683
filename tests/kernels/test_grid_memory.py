"""The grid as a module."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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


# ---- the standard deviations of its jitter, ready for every call ----


class Made(TorchDispatchMode):
    """Counts the operators that make a tensor beside the sample: each is a launch on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not func.is_view and func.namespace == "aten":
            self.made.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def made(memory: GridMemory, coords: Tensor, *arguments: Any, **options: Any) -> list[str]:
    with torch.no_grad(), Made() as mode:
        memory(coords, *arguments, **options)
    return mode.made


@pytest.mark.parametrize("std", [0.1, (0.1, 0.3), [0.1, 0.3]], ids=str)
def test_a_call_makes_no_tensor_but_a_seed(compiled_backend: str, std: Any) -> None:
    """`sample` makes up to 4 for as much: the standard deviations are another, or one each."""
    memory, coords = GridMemory(6, (5, 3), jitter_std=std, backend=compiled_backend), places()
    assert made(memory, coords) == ["randint"]
    assert made(memory, coords, 3) == ["full"]
    seed = torch.tensor(3)
    assert made(memory, coords, seed) == []
    assert made(memory, coords, seed, jitter_std=memory.jitter_std) == []
    assert made(memory.eval(), coords) == []
    assert made(memory, coords, seed, jitter_std=memory.jitter_std) == []


CHANGES: dict[str, Callable[[GridMemory], GridMemory]] = {
    "a copy": copy.deepcopy,
    "a pickle": lambda memory: pickle.loads(pickle.dumps(memory)),
    "there and back": lambda memory: memory.to("meta").to_empty(device="cpu"),
    "in half precision": lambda memory: memory.bfloat16(),
    "in half precision and back": lambda memory: memory.bfloat16().float(),
    "wide": lambda memory: memory.double(),
    "half wide": lambda memory: memory.bfloat16().double(),
    "wide and back": lambda memory: memory.double().float(),
    "a state loaded": lambda memory: memory.load_state_dict(memory.state_dict()) and memory,
}


@pytest.mark.parametrize("name", CHANGES)
def test_its_jitter_outlives_a_change(backend: str, name: str) -> None:
    """To the bit, with no tensor made at a call; 0.1 in half precision is another number."""
    memory = GridMemory(6, (5, 3), jitter_std=(0.1, 0.3), backend=backend)
    memory = CHANGES[name](memory)
    with torch.no_grad():
        nn.init.normal_(memory.weight)
    coords, seed = places(), torch.tensor(8)
    if memory.weight.dtype == torch.float64:
        coords = coords.double()
    options = {"jitter_std": (0.1, 0.3), "seed": seed, "backend": backend}
    expected = sample(memory.weight, coords, **options)
    assert torch.equal(memory(coords, seed=seed), expected)
    if backend != "reference":
        assert made(memory, coords, seed) == []


def test_its_jitter_can_be_set_later(backend: str) -> None:
    memory, coords = GridMemory(6, (5, 3), backend=backend), places()
    for std in (0.2, [0.1, 0.3], 0, 1, nn.Parameter(torch.tensor(0.3))):
        memory.jitter_std = std
        expected = sample(memory.weight, coords, jitter_std=std, seed=8, backend=backend)
        assert torch.equal(memory(coords, seed=8), expected)
    with pytest.raises(ValueError, match="jitter_std to be a float or 2 floats, at least 0"):
        GridMemory(6, (5, 3)).jitter_std = -0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("coords_dtype", [torch.float32, torch.float64], ids=str)
def test_its_jitter_has_the_dtype_of_the_coords(
    backend: str, dtype: torch.dtype, coords_dtype: torch.dtype
) -> None:
    memory = GridMemory(6, (5, 3), jitter_std=0.1, backend=backend).to(dtype)
    coords = places().to(coords_dtype)
    expected = sample(memory.weight, coords, jitter_std=0.1, seed=8, backend=backend)
    assert torch.equal(memory(coords, seed=8), expected)
    other = sample(memory.weight, coords, jitter_std=0.2, seed=8, backend=backend)
    assert torch.equal(memory(coords, seed=8, jitter_std=0.2), other)
    given = torch.tensor(0.2, dtype=coords_dtype)
    torch.testing.assert_close(memory(coords, seed=8, jitter_std=given), other)


def test_what_a_former_version_pickled_has_its_jitter() -> None:
    memory = GridMemory(6, (5, 3), jitter_std=0.1)
    expected = memory(places(), seed=8)
    state = memory.__getstate__()
    del state["_std"]
    former = GridMemory.__new__(GridMemory)
    former.__setstate__(state)
    assert torch.equal(former(places(), seed=8), expected)
    assert list(former.state_dict()) == ["weight"]


def test_its_state_is_its_entries() -> None:
    """Nor is anything else broadcast by DistributedDataParallel, before every call."""
    memory = GridMemory(6, (5, 3), jitter_std=0.1)
    assert list(memory.state_dict()) == ["weight"]
    assert not list(memory.buffers())


def test_compiles_with_its_jitter(compiled_backend: str) -> None:
    torch._dynamo.reset()
    memory, coords = GridMemory(6, (5, 3), jitter_std=0.1, backend=compiled_backend), places()
    seed = torch.tensor(8)
    compiled = torch.compile(memory, backend="aot_eager", fullgraph=True)
    for dtype in (torch.float32, torch.float64):
        memory.to(dtype)
        moved = coords.to(dtype)
        torch.testing.assert_close(compiled(moved, seed=seed), memory(moved, seed=seed))
    memory.jitter_std = (0.1, 0.5)
    torch.testing.assert_close(compiled(moved, seed=seed), memory(moved, seed=seed))


@pytest.mark.parametrize("strict", [False, True])
def test_is_exported_with_its_jitter(strict: bool) -> None:
    memory, coords = GridMemory(6, (5, 3), jitter_std=0.1), places()
    seed = torch.tensor(8)
    program = torch.export.export(memory, (coords, seed), strict=strict)
    torch.testing.assert_close(program.module()(coords, seed), memory(coords, seed))
    assert list(program.state_dict) == ["weight"]
