"""`sample` and `grid_sample` as PyTorch's tools know functions: overridden, traced, refused."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor

from crad_kernels import GridMemory, grid_sample, sample

VALUES, COORDS = torch.randn(4, 3, 2), torch.rand(5, 2) * 2 - 1


# ---- __torch_function__ ----


class Recorded(Tensor):
    """Remembers what it was given to."""

    calls: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        cls.calls.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Plain(Tensor):
    pass


class Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("role", ["values", "coords", "jitter_std", "seed"])
def test_a_subclass_is_given_the_function(role: str) -> None:
    arguments = {
        "values": VALUES,
        "coords": COORDS,
        "jitter_std": torch.tensor(0.1),
        "seed": torch.tensor(3),
    }
    expected = sample(**arguments)
    arguments[role] = arguments[role].as_subclass(Recorded)
    Recorded.calls.clear()
    out = sample(**arguments)
    assert Recorded.calls == [sample]
    assert type(out) is Recorded
    assert torch.equal(out.as_subclass(Tensor), expected)


def test_a_subclass_has_gradients() -> None:
    leaf = VALUES.clone().as_subclass(Recorded).requires_grad_()
    sample(leaf, COORDS).sum().backward()
    plain = VALUES.clone().requires_grad_()
    sample(plain, COORDS).sum().backward()
    assert torch.equal(leaf.grad.as_subclass(Tensor), plain.grad)


def test_a_mode_is_given_the_function() -> None:
    image, grid = torch.randn(2, 3, 4, 4), torch.rand(2, 5, 5, 2)
    expected = grid_sample(image, grid)
    with Recorder() as mode:
        out = grid_sample(image, grid)
    assert mode.calls == [grid_sample]
    assert torch.equal(out, expected)


def test_the_compiler_sees_through_a_subclass() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sample, backend="eager", fullgraph=True)
    out = compiled(VALUES.as_subclass(Plain), COORDS)
    assert type(out) is Plain
    assert torch.equal(out.as_subclass(Tensor), sample(VALUES, COORDS))


def test_a_wrapper_is_given_the_operator(backend: str) -> None:
    """One that works below: two tensors in one."""
    values, coords = VALUES.to(torch.get_default_device()), COORDS.to(torch.get_default_device())
    leaf = TwoTensor(values.clone(), 2 * values).requires_grad_()
    out = sample(leaf, coords, backend=backend)
    assert type(out) is TwoTensor
    expected = sample(values, coords, backend=backend)
    assert torch.equal(out.a.detach(), expected)
    torch.testing.assert_close(out.b.detach(), 2 * expected)
    out.sum().backward()
    assert leaf.grad.a.shape == values.shape


# ---- torch.fx ----


class Network(nn.Module):
    def __init__(self, backend: str, std: float | Tensor = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.memory = GridMemory(4, 5, jitter_std=std, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(self.layer(x).tanh(), seed=3).relu()


def leaves(module: torch.fx.GraphModule) -> list[Any]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("std", [0.1, nn.Parameter(torch.tensor(0.1))], ids=["fixed", "learned"])
def test_a_module_is_traced_with_the_sample_as_a_leaf(backend: str, std: float | Tensor) -> None:
    network, x = Network(backend, copy.deepcopy(std)), torch.randn(6, 3)
    traced = torch.fx.symbolic_trace(network)
    assert leaves(traced) == [sample]
    assert "crad_kernels_functional_sample" in traced.code
    again = torch.fx.symbolic_trace(traced)
    assert again.code == traced.code
    for module in (traced, again, copy.deepcopy(again)):
        assert torch.equal(module(x), network(x))
    again(x).sum().backward()
    assert network.memory.weight.grad is not None


class Warp(nn.Module):
    def forward(self, input: Tensor, grid: Tensor, std: Tensor) -> Tensor:
        return grid_sample(input, grid, "bicubic", align_corners=True, jitter_std=std, seed=4)


def test_grid_sample_is_a_leaf() -> None:
    arguments = torch.randn(2, 3, 4, 4), torch.rand(2, 5, 5, 2), torch.tensor(0.1)
    traced = torch.fx.symbolic_trace(Warp())
    assert leaves(traced) == [grid_sample]
    assert torch.equal(traced(*arguments), Warp()(*arguments))


# ---- torch.jit ----


def calls_sample(values: Tensor, coords: Tensor) -> Tensor:
    return sample(values, coords)


class Calls(nn.Module):
    def forward(self, input: Tensor, grid: Tensor) -> Tensor:
        return grid_sample(input, grid)


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        lambda: sample,
        lambda: grid_sample,
        lambda: calls_sample,
        Calls,
        lambda: GridMemory(2, 3),
        lambda: nn.Sequential(nn.Linear(2, 2), GridMemory(2, 3)),
    ],
    ids=["sample", "grid_sample", "a function", "a module", "GridMemory", "in a module"],
)
def test_scripts_are_refused_with_the_way_out(make: Callable[[], Any]) -> None:
    with pytest.raises(
        RuntimeError, match=r"not for torch\.jit\.script; use torch\.compile or torch\.export"
    ):
        torch.jit.script(make())


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_run_and_learn_and_are_saved(compiled_backend: str) -> None:
    """For other numbers of points as well."""
    network, x = Network(compiled_backend, 0.1), torch.randn(6, 3)
    traced = torch.jit.trace(network, (x,))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    more = torch.randn(9, 3)
    for module in (traced, torch.jit.load(file)):
        torch.testing.assert_close(module(more), network(more))
        module.zero_grad()
        module(more).sum().backward()
        assert module.memory.weight.grad is not None
