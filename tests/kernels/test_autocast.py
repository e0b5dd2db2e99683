"""Coordinates that layers compute in half precision, under autocast."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad_kernels import GridMemory, grid_sample, sample

HALVES = [torch.bfloat16, torch.float16]


def tensors() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 3, 2), torch.rand(5, 2) * 2 - 1


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(torch.get_default_device().type, dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_coordinates_become_float32(backend: str, dtype: torch.dtype) -> None:
    """And are not rounded any further; forward, backward, and in the drop-in."""
    values, coords = tensors()
    half = coords.to(dtype).requires_grad_()
    exact = half.detach().float().requires_grad_()
    with autocast(dtype):
        out = sample(values, half, jitter_std=0.1, seed=3, backend=backend)
    expected = sample(values, exact, jitter_std=0.1, seed=3, backend=backend)
    assert torch.equal(out, expected)
    (gradient,) = torch.autograd.grad(out.sum(), half)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), exact)[0].to(dtype))
    image, grid = values.movedim(-1, 0)[None], half.detach()[None, None]
    with autocast(dtype):
        assert torch.equal(
            grid_sample(image, grid, backend=backend),
            grid_sample(image, grid.float(), backend=backend),
        )


@pytest.mark.parametrize("dtype", HALVES)
def test_values_keep_their_dtype(backend: str, dtype: torch.dtype) -> None:
    """What is stored in half precision is summed in float32, and rounded once, as ever."""
    values, coords = tensors()
    with autocast(dtype):
        for stored in (values, values.double(), values.to(dtype)):
            assert sample(stored, coords, backend=backend).dtype == stored.dtype
            out = sample(stored, coords.to(dtype), backend=backend)
            assert torch.equal(out, sample(stored, coords.to(dtype).float(), backend=backend))


def test_double_coordinates_stay_so(backend: str) -> None:
    values, coords = tensors()
    expected = sample(values, coords.double(), backend=backend)
    with autocast(torch.bfloat16):
        assert torch.equal(sample(values, coords.double(), backend=backend), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_without_autocast_they_are_refused(backend: str, dtype: torch.dtype) -> None:
    values, coords = tensors()
    words = r"coords to be float32 or float64.*coords\.float\(\)"
    with pytest.raises(TypeError, match=words):
        sample(values, coords.to(dtype), backend=backend)
    device = torch.get_default_device().type
    off = torch.autocast(device, enabled=False)
    with autocast(torch.bfloat16), off, pytest.raises(TypeError, match=words):
        sample(values, coords.to(dtype), backend=backend)


class Network(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.memory = GridMemory(4, 5, padding_mode="border", jitter_std=0.1, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            coords = self.layer(x)
            assert coords.dtype == torch.bfloat16
            return self.memory(coords, seed=3)


def compiled(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    return torch.compile(module, backend="aot_eager", fullgraph=True)


WAYS: dict[str, Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]] = {
    "eager": lambda module, x: module,
    "compile": compiled,
    "export": lambda module, x: torch.export.export(module, (x,)).module(),
    "jit.trace": lambda module, x: torch.jit.trace(module, (x,)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")
@pytest.mark.parametrize("way", WAYS)
def test_a_network_runs_and_learns(backend: str, way: str) -> None:
    torch.manual_seed(0)
    network, x = Network(backend), torch.randn(6, 3)
    call = WAYS[way](network, x)
    out = call(x)
    assert out.dtype == torch.float32
    with autocast(torch.bfloat16):
        coords = F.linear(x, network.layer.weight, network.layer.bias).float()
    expected = network.memory(coords, seed=3)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_a_batch_of_slices(backend: str) -> None:
    values, coords = tensors()
    coords = torch.stack((coords, -coords, coords / 2)).bfloat16()
    with autocast(torch.bfloat16):
        out = torch.vmap(lambda x: sample(values, x, backend=backend))(coords)
    expected = torch.stack([sample(values, each.float(), backend=backend) for each in coords])
    torch.testing.assert_close(out, expected)
