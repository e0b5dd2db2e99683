"""A `GridMemory` with what PyTorch makes of the parameters of modules, and former states."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from crad_kernels import GridMemory, sample


def places() -> Tensor:
    return torch.linspace(-1.2, 1.2, 40).reshape(20, 2)


@pytest.mark.parametrize(
    "parametrization",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
)
def test_its_weight_is_parametrized_as_that_of_any_module(
    backend: str, parametrization: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(0)
    memory = GridMemory(6, (5, 3), backend=backend)
    assert parametrization(memory) is memory
    memory.eval()
    out = memory(places())
    assert torch.equal(out, sample(memory.weight, places(), backend=backend))
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in memory.parameters())
    twin = parametrization(GridMemory(6, (5, 3), backend=backend)).eval()
    twin.load_state_dict(memory.state_dict())
    assert torch.equal(twin(places()), out)
    assert "6, (5, 3)" in repr(memory)


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()

    def right_inverse(self, y: Tensor) -> Tensor:
        return y.log()


def test_its_jitter_can_be_kept_positive(backend: str) -> None:
    memory = GridMemory(2, 4, jitter_std=nn.Parameter(torch.tensor([0.1, 0.2])), backend=backend)
    expected = memory(places(), seed=3)
    parametrize.register_parametrization(memory, "jitter_std", Exp())
    torch.testing.assert_close(memory(places(), seed=3), expected)
    memory(places(), seed=3).square().sum().backward()
    assert memory.parametrizations.jitter_std.original.grad.abs().min() > 0


def test_it_is_pruned(backend: str) -> None:
    memory = GridMemory(2, 4, backend=backend)
    prune.l1_unstructured(memory, "weight", 0.5)
    assert (memory.weight == 0).sum() == 16
    memory(places()).sum().backward()
    assert memory.weight_orig.grad is not None


def test_it_is_called_with_other_parameters(backend: str) -> None:
    memory, other = GridMemory(2, 4, backend=backend), torch.randn(4, 4, 2)
    out = torch.func.functional_call(memory, {"weight": other}, places())
    assert torch.equal(out, sample(other, places(), backend=backend))


@pytest.fixture
def _swapping() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("_swapping")
def test_it_is_copied_and_swapped() -> None:
    memory = GridMemory(2, 4, jitter_std=nn.Parameter(torch.tensor(0.1)))
    twin = copy.deepcopy(memory)
    kept = memory.weight
    memory.double()
    assert memory.weight is kept
    assert memory.weight.dtype == memory.jitter_std.dtype == torch.float64
    assert torch.equal(twin.weight.double(), memory.weight)
    memory.load_state_dict(twin.state_dict())
    assert memory.weight is kept


# ---- states from before the rename ----


def former(module: nn.Module) -> OrderedDict[str, Tensor]:
    """Its state as it was, with the entries as `values`."""
    return OrderedDict(
        (name.replace("memory.weight", "memory.values"), tensor)
        for name, tensor in module.state_dict().items()
    )


def model() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            layer=nn.Linear(3, 2), inner=nn.Sequential(OrderedDict(memory=GridMemory(6, (5, 3))))
        )
    )


@pytest.mark.parametrize("assign", [False, True])
def test_a_former_state_loads(assign: bool) -> None:
    """Strictly, nested, and is left as it is."""
    source, target = model(), model()
    state = former(source)
    assert "inner.memory.values" in state
    names = list(state)
    target.load_state_dict(state, assign=assign)
    assert list(state) == names
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)
    loaded = target.get_parameter("inner.memory.weight")
    assert (loaded.data_ptr() == state["inner.memory.values"].data_ptr()) == assign
    assert isinstance(loaded, nn.Parameter)


def test_a_state_of_a_single_memory_loads() -> None:
    source, target = GridMemory(6, (5, 3)), GridMemory(6, (5, 3))
    target.load_state_dict({"values": source.weight})
    assert torch.equal(target.weight, source.weight)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        target.load_state_dict({})
    both = {"values": source.weight, "weight": source.weight}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*values"):
        target.load_state_dict(both)
