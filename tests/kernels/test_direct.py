"""Calls around PyTorch's dispatcher: what they give, and which calls go there."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import profiler
from torch.utils._python_dispatch import TorchDispatchMode

from crad_kernels import _direct, grid_sample, sample

KERNELS = _direct.CPU
pytestmark = [
    pytest.mark.usefixtures("cpu_backend"),
    pytest.mark.skipif(KERNELS is None, reason="PyTorch converts tensors from 2.14 on"),
]

SIZES = {1: (9,), 2: (7, 5), 3: (4, 5, 3)}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": lambda input: input,
    "channels last": lambda input: input.movedim(1, -1).contiguous().movedim(-1, 1),
    "every second": lambda input: input.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda input: input[:1].expand_as(input),
}


def inputs(
    ndim: int, channels: int, out: tuple[int, ...], dtype: torch.dtype, batch: int = 2
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    input = torch.randn(batch, channels, *SIZES[ndim], dtype=torch.float64).to(dtype)
    coords = torch.float64 if dtype == torch.float64 else torch.float32
    return input, torch.rand(batch, *out, ndim, dtype=coords) * 2.4 - 1.2


def called(function: Callable[[], Any]) -> set[str]:
    """The names of the kernels that are called around the dispatcher."""
    assert KERNELS is not None
    names = {kernel: name for name, kernel in KERNELS._asdict().items()}
    found = set()

    def note(_: FrameType, event: str, what: Any) -> None:
        if event == "c_call" and what in KERNELS:
            found.add(names[what])

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def both_ways(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[], tuple[Tensor, ...]], *kernels: str
) -> None:
    """Check that a call gives the same around the dispatcher and by it, to the bit."""
    assert called(function) == set(kernels)
    direct = function()
    with monkeypatch.context() as patch:
        patch.setattr(profiler, "_is_profiler_enabled", True)
        assert called(function) == set()
        dispatched = function()
    for ours, theirs in zip(direct, dispatched, strict=True):
        assert ours.stride() == theirs.stride()
        assert not ours._is_view()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out", ["one", "some", "none"])
@pytest.mark.parametrize("channels", [1, 3, 40])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_grid_sample_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
    ndim: int,
    channels: int,
    out: str,
    layout: str,
    dtype: torch.dtype,
) -> None:
    places = {"one": (1,) * ndim, "some": (2, 3, 4)[:ndim], "none": (0,) * ndim}[out]
    input, grid = inputs(ndim, channels, places, dtype)
    input = LAYOUTS[layout](input)
    both_ways(monkeypatch, lambda: (grid_sample(input, grid),), "grid_sample")

    weight = torch.randn(2, channels, *places).to(dtype)
    for wanted in ((True, True), (True, False), (False, True)):

        def differentiated(wanted: tuple[bool, bool] = wanted) -> tuple[Tensor, ...]:
            tensors = [input.detach().requires_grad_(wanted[0]), grid.detach()]
            tensors[1].requires_grad_(wanted[1])
            result = grid_sample(*tensors)
            leaves = [tensor for tensor in tensors if tensor.requires_grad]
            return torch.autograd.grad(result, leaves, weight)

        both_ways(monkeypatch, differentiated, "grid_sample", "grid_sample_backward")


@pytest.mark.parametrize("shared", [False, True], ids=["a grid each", "one grid"])
@pytest.mark.parametrize("jitter_std", [0.0, 0.1], ids=["", "jitter"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic", "simplex"])
def test_sample_is_the_same(
    monkeypatch: pytest.MonkeyPatch, mode: str, jitter_std: float, shared: bool
) -> None:
    input, coords = inputs(2, 3, (4, 2), torch.float32)
    values = input.movedim(1, -1)
    if shared:
        values = values[0]
    padding = ("border", "zeros")

    def forward(values: Tensor, coords: Tensor) -> Tensor:
        return sample(
            values, coords, mode=mode, padding_mode=padding, jitter_std=jitter_std, seed=3
        )

    both_ways(monkeypatch, lambda: (forward(values, coords),), "sample")

    def differentiated() -> tuple[Tensor, ...]:
        leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
        return torch.autograd.grad(forward(*leaves).square().sum(), leaves)

    both_ways(monkeypatch, differentiated, "sample", "sample_backward")


@pytest.mark.parametrize("out", [(1, 1), (100, 100)], ids=["small", "large"])
def test_gradients_of_leaves_and_of_what_is_computed(
    monkeypatch: pytest.MonkeyPatch, out: tuple[int, int]
) -> None:
    input, grid = inputs(2, 16, out, torch.float32)

    def differentiated() -> tuple[Tensor, ...]:
        leaf, inner = input.detach().requires_grad_(), grid.detach().requires_grad_()
        grid_sample(leaf, inner * 0.5).square().sum().backward()
        assert leaf.grad is not None
        assert inner.grad is not None
        return leaf.grad, inner.grad

    both_ways(monkeypatch, differentiated, "grid_sample", "grid_sample_backward")


def test_a_gradient_with_a_graph_has_derivatives() -> None:
    input, grid = inputs(2, 3, (2, 2), torch.float64)
    loss = grid_sample(input.requires_grad_(), grid).square().sum()

    def gradient() -> None:
        torch.autograd.grad(loss, input, create_graph=True)

    assert called(gradient) == {"sample_backward"}
    assert torch.autograd.gradgradcheck(grid_sample, (input, grid))


def test_in_inference_mode() -> None:
    input, grid = inputs(2, 3, (2, 2), torch.float32)
    with torch.inference_mode():
        assert called(lambda: grid_sample(input, grid)) == {"grid_sample"}
        result = grid_sample(input, grid)
        assert result.is_inference()
        assert called(lambda: grid_sample(result, grid)) == {"grid_sample"}


class Noting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_and_profilers_see_the_operators() -> None:
    input, grid = inputs(2, 3, (1, 1), torch.float32)
    input.requires_grad_()
    with Noting() as noting:
        grid_sample(input, grid).sum().backward()
    assert "crad_kernels.sample.cpu" in noting.seen
    assert "crad_kernels.sample_backward.cpu" in noting.seen
    with torch.autograd.profiler.profile() as profile:
        grid_sample(input, grid).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"crad_kernels::sample", "crad_kernels::sample_backward"} <= names


def test_tensors_that_are_not_what_memory_holds() -> None:
    input, grid = inputs(2, 3, (2, 2), torch.float32)
    minus = torch.complex(input, -input).conj().imag
    assert minus.is_neg()
    torch.testing.assert_close(grid_sample(minus, grid), grid_sample(input, grid), rtol=0, atol=0)
    weight = torch.complex(torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)).conj().imag
    assert weight.is_neg()
    leaf = input.clone().requires_grad_()
    result = grid_sample(leaf, grid)
    (gradient,) = torch.autograd.grad(result, leaf, weight, retain_graph=True)
    (expected,) = torch.autograd.grad(result, leaf, -torch.ones(2, 3, 2, 2))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
    nothing = torch._efficientzerotensor(input.shape)
    torch.testing.assert_close(grid_sample(nothing, grid), torch.zeros(2, 3, 2, 2))


def test_kernels_refuse_what_does_not_fit() -> None:
    assert KERNELS is not None
    input, grid = inputs(2, 3, (2, 2), torch.float32)
    none = None, None, 1
    assert KERNELS.grid_sample(input, grid, *none) is not None
    for values, coords in (
        (input, grid[:1]),
        (input.int(), grid),
        (input, grid.half()),
        (input.to("meta"), grid),
        (input.to_sparse(), grid),
        (input[0, 0], grid),
        (torch.zeros(()), grid),
        (input, "grid"),
    ):
        assert KERNELS.grid_sample(values, coords, *none) is None
        assert KERNELS.sample(values, coords, *none) is None
    weight = torch.ones(2, 3, 2, 1)
    assert KERNELS.grid_sample_backward(weight, input, grid, *none, True, True) is None
    assert KERNELS.sample_backward(weight, input, grid, *none, True, True) is None
