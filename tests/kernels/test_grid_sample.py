"""`grid_sample` in the place of `torch.nn.functional.grid_sample`."""

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crad_kernels import grid_sample, sample
from tests.cases import OTHER_INDEX, TORCH_MODES, Case, assert_near, cases

TORCH_CASES = [
    case
    for case in (
        *cases(2, batch=2, points=(5, 4)),
        *cases(3, batch=3, points=(2, 3, 4), modes=("nearest", "linear")),
    )
    if case.padding_mode != "circular"  # which torch does not have
]


def test_circular_is_torchs_sample_of_a_repeated_input(backend: str) -> None:
    images = torch.rand(2, 3, 4, 5)
    grid = 3 * torch.rand(2, 6, 7, 2) - 1.5
    found = grid_sample(images, grid, padding_mode="circular", backend=backend)
    repeated = F.grid_sample(images.repeat(1, 1, 3, 3), grid / 3, align_corners=False)
    torch.testing.assert_close(found, repeated)


@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_is_a_drop_in(backend: str, case: Case) -> None:
    values, grid, grad_output = case.tensors()
    mode = TORCH_MODES[case.mode]
    results = []
    for function in (lambda *args: grid_sample(*args, backend=backend), F.grid_sample):
        leaves = values.movedim(-1, 1).detach().requires_grad_(), grid.detach().requires_grad_()
        out = function(*leaves, mode, case.padding_mode, case.align_corners)
        results.append((out, *torch.autograd.grad(out, leaves, grad_output.movedim(-1, 1))))
    for got, wanted in zip(*results, strict=True):
        assert_near(got, wanted, OTHER_INDEX)


def test_has_the_arguments_of_torch() -> None:
    ours, theirs = inspect.signature(grid_sample), inspect.signature(F.grid_sample)
    assert list(ours.parameters)[: len(theirs.parameters)] == list(theirs.parameters)
    for name, parameter in theirs.parameters.items():
        default = ours.parameters[name].default
        assert default == parameter.default or (name, default) == ("align_corners", False)


def test_defaults_are_those_of_torch(backend: str) -> None:
    values, grid, _ = Case((4, 3), points=(5, 4), batch=2).tensors()
    input = values.movedim(-1, 1)
    expected = F.grid_sample(input, grid, align_corners=False)
    assert_near(grid_sample(input, grid, backend=backend), expected, OTHER_INDEX)
    assert_near(
        grid_sample(input, grid, align_corners=None, backend=backend), expected, OTHER_INDEX
    )


@pytest.mark.parametrize("case", cases(1, 4, batch=2), ids=str)
def test_takes_any_number_of_dimensions(backend: str, case: Case) -> None:
    values, coords, _ = case.tensors()
    grid = coords.reshape(2, *(1,) * (case.ndim - 1), -1, case.ndim)
    mode = TORCH_MODES[case.mode]
    out = grid_sample(
        values.movedim(-1, 1), grid, mode, case.padding_mode, case.align_corners, backend=backend
    )
    assert out.shape == (2, case.channels, *grid.shape[1:-1])
    expected = sample(values, coords, **case.options, backend=backend)
    assert torch.equal(out.flatten(2).movedim(1, -1), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_coordinates_are_taken_in_float32(backend: str, dtype: torch.dtype) -> None:
    case = replace(Case((4, 3), points=(5, 4), batch=2), dtype=dtype)
    values, grid, _ = case.tensors()
    grid = grid.to(dtype)
    out = grid_sample(values.movedim(-1, 1), grid, backend=backend)
    assert out.dtype == dtype
    assert torch.equal(out, grid_sample(values.movedim(-1, 1), grid.float(), backend=backend))


def test_jitter_is_that_of_sample(backend: str) -> None:
    values, grid, _ = Case((4, 3), points=(5, 4), batch=2).tensors()
    jitter = {"jitter_std": (0.1, 0.2), "seed": 5, "backend": backend}
    out = grid_sample(values.movedim(-1, 1), grid, **jitter)
    assert torch.equal(out.movedim(1, -1), sample(values, grid, **jitter))


# ---- the cases of others ----


@functools.cache
def opinfo_samples(name: str, device: torch.device) -> list[Any]:
    """What torch tests an operator of its own on, differentiably."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    (info,) = (info for info in op_db if info.name == name)
    return list(info.sample_inputs(device, torch.float64, requires_grad=True))


@pytest.mark.parametrize("name", ["nn.functional.grid_sample", "grid_sampler_2d"])
def test_passes_the_samples_of_torch(backend: str, name: str) -> None:
    """Those of the lesser operator come as numbers for the modes."""
    for sample_input in opinfo_samples(name, torch.get_default_device()):
        input, (grid, *rest) = sample_input.input, sample_input.args
        options = sample_input.kwargs
        if rest:
            mode, padding, align_corners = rest
            options = {
                "mode": ("bilinear", "nearest", "bicubic")[mode],
                "padding_mode": ("zeros", "border", "reflection")[padding],
                "align_corners": align_corners,
            }
        results = []
        for function in (functools.partial(grid_sample, backend=backend), F.grid_sample):
            leaves = input.detach().requires_grad_(), grid.detach().requires_grad_()
            out = function(*leaves, **options)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
        for got, wanted in zip(*results, strict=True):
            assert_near(got, wanted, 2 * OTHER_INDEX)


@functools.cache
def onnx_node_cases() -> list[Any]:
    """The cases that come with ONNX for backends of GridSample."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The loader would make those of all operators, in 5 s; an operator's module adds its own.
        import onnx.backend.test.case.node.gridsample
    made = onnx.backend.test.case.node._NodeTestCases
    return [case for case in made if "gridsample" in case.name]


def test_passes_the_node_cases_of_onnx(backend: str) -> None:
    names = set()
    for case in onnx_node_cases():
        (node,) = case.model.graph.node
        options = {
            attribute.name: onnx.helper.get_attribute_value(attribute)
            for attribute in node.attribute
        }
        mode = options.get("mode", b"linear").decode()
        padding_mode = options.get("padding_mode", b"zeros").decode()
        for inputs, (expected,) in case.data_sets:
            input, grid = (torch.tensor(np.array(array)) for array in inputs)
            out = grid_sample(
                input,
                grid,
                # Opset 16 had torch's names for what is now linear and cubic.
                TORCH_MODES.get(mode, mode),
                padding_mode,
                bool(options.get("align_corners", 0)),
                backend=backend,
            )
            np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=case.rtol, atol=1e-6)
        names.add(case.name)
    assert len(names) >= 15


# ---- as a function of autograd ----


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_is_one_function_of_its_arguments(
    compiled_backend: str, channels: int, layout: torch.memory_format
) -> None:
    """What it does to the axes is no step of its own, forward or backward."""
    input = torch.randn(2, channels, 4, 5).contiguous(memory_format=layout).requires_grad_()
    grid = torch.rand(2, 6, 7, 2).requires_grad_()
    out = grid_sample(input, grid, backend=compiled_backend)
    assert not out._is_view()
    assert out.grad_fn is not None
    leaves = [function.variable for function, _ in out.grad_fn.next_functions if function]
    assert len(leaves) == 2
    assert leaves[0] is input
    assert leaves[1] is grid


@pytest.mark.parametrize("channels", [1, 3])
def test_its_result_can_be_written_to(backend: str, channels: int) -> None:
    input, grid = torch.randn(2, channels, 4, 5).requires_grad_(), torch.rand(2, 6, 7, 2)
    out = grid_sample(input, grid, backend=backend)
    (expected,) = torch.autograd.grad((out * 2).sum(), input)
    out = grid_sample(input, grid, backend=backend).mul_(2)
    assert torch.equal(torch.autograd.grad(out.sum(), input)[0], expected)
    factor = torch.ones(()).requires_grad_()
    out = grid_sample(input.detach(), grid, backend=backend).mul_(factor)
    assert out.requires_grad


def test_an_input_that_was_written_to_is_refused(compiled_backend: str) -> None:
    input, grid = torch.randn(2, 3, 4, 5), torch.rand(2, 6, 7, 2).requires_grad_()
    out = grid_sample(input, grid, backend=compiled_backend)
    input.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("channels", [1, 2])
def test_has_the_derivatives_of_a_sample(backend: str, channels: int) -> None:
    """Of derivatives, too, and of the standard deviation of the jitter."""
    torch.manual_seed(0)
    input, grid = torch.randn(2, channels, 3, 4), torch.rand(2, 2, 3, 2) * 2 - 1

    def moved(input: Tensor, grid: Tensor, **options: Any) -> Tensor:
        out = sample(input.movedim(1, -1), grid, mode="cubic", **options)
        return out.movedim(-1, 1)

    results = []
    for function in (functools.partial(grid_sample, mode="bicubic"), moved):
        leaves = [t.double().requires_grad_() for t in (input, grid, torch.tensor(0.1))]
        out = function(*leaves[:2], jitter_std=leaves[2], seed=3, backend=backend)
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(t.sin().sum() for t in first), leaves)
        results.append((out, *first, *second))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("width", [64, 512])
def test_computes_no_gradient_that_nobody_needs(compiled_backend: str, width: int) -> None:
    """But little ones, which take less time than to ask who needs them."""
    input = torch.randn(1, 1, width, width).requires_grad_()
    grid = torch.rand(1, 32, 32, 2).requires_grad_()
    out = grid_sample(input, grid, backend=compiled_backend).sum()
    for leaves, wanted in (((input,), (True, False)), ((grid,), (False, True))):
        with Backward() as mode:
            torch.autograd.grad(out, leaves, retain_graph=True)
        assert mode.wanted == [wanted if width == 512 else (True, True)]


class Backward(TorchDispatchMode):
    """Records which gradients the backward passes compute."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[tuple[bool, bool]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if "sample_backward" in str(func):
            self.wanted.append(args[-2:])
        return func(*args, **(kwargs or {}))


# ---- what torch refuses ----


def input_and_grid() -> tuple[Tensor, Tensor]:
    return torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 7, 2)


@pytest.mark.filterwarnings("ignore:Default grid_sample")
@pytest.mark.parametrize(
    "call",
    [
        lambda f, x, grid: f(x, grid, "linear"),
        lambda f, x, grid: f(x, grid, "cubic"),
        lambda f, x, grid: f(x, grid, padding_mode="symmetric"),
        lambda f, x, grid: f(x, grid[:1]),
        lambda f, x, grid: f(x, torch.zeros(2, 6, 7, 3)),
        lambda f, x, grid: f(x, torch.zeros(2, 6, 2)),
        lambda f, x, grid: f(x, torch.zeros(2, 6, 7, 8, 2)),
        lambda f, x, grid: f(x[0], grid[0]),
        lambda f, x, grid: f(x[:, :, :0], grid),
        lambda f, x, grid: f(x.int(), grid),
        lambda f, x, grid: f(x, grid.int()),
        lambda f, x, grid: f(x.to("meta"), grid),
        lambda f, x, grid: f(None, grid),
        lambda f, x, grid: f(x, grid.tolist()),
        lambda f, x, grid: f(x, grid, "bilinear", "zeros", "no"),
    ],
)
def test_refuses_what_torch_refuses(backend: str, call: Callable[..., Any]) -> None:
    input, grid = input_and_grid()
    errors = (RuntimeError, ValueError, TypeError, AttributeError)
    with pytest.raises(errors):
        call(F.grid_sample, input, grid)
    with pytest.raises((ValueError, TypeError)):
        call(functools.partial(grid_sample, backend=backend), input, grid)


@pytest.mark.parametrize(
    "part",
    [
        lambda x, grid: (x[:0], grid[:0]),
        lambda x, grid: (x[:, :0], grid),
        lambda x, grid: (x, grid[:, :0]),
        lambda x, grid: (x, grid[:, :, :0]),
        lambda x, grid: (x[:, :1].expand(2, 3, 4, 5), grid),
    ],
)
def test_takes_what_torch_takes(
    backend: str, part: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    input, grid = part(*input_and_grid())
    expected = F.grid_sample(input, grid, align_corners=False)
    out = grid_sample(input, grid, backend=backend)
    assert out.shape == expected.shape
    assert torch.equal(out, expected)
