"""In what order results lie in memory, and that they are the same in any."""

import math
from dataclasses import replace
from itertools import combinations, product
from operator import itemgetter

import pytest
import torch
from torch import Tensor

from crad_kernels import grid_sample, sample
from crad_kernels._op import OPERATORS
from crad_kernels._schema import pack
from tests.cases import PADDING_MODES, Case, covering

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
# Around the widths of vectors, and of what is transposed with the channels as a constant.
CHANNELS = [1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 64, 80]
# One of one block, one of several ranges, and one that is taken part by part of the grid.
CASES = [
    Case((4, 3), points=(5, 4), batch=2),
    Case((4, 3), points=(70, 47)),
    Case((300, 200), points=(40, 30)),
    Case((5, 4, 3), points=(7, 3), batch=2),
]
# All channels with every case, and with every dtype.
LAID_OUT = covering(
    list(product(CASES, CHANNELS, DTYPES)),
    *(itemgetter(*two) for two in combinations(range(3), 2)),
)


def planes(tensor: Tensor, axis: int) -> Tensor:
    """The same tensor with the channels, its last axis, before the axes from `axis` on."""
    return tensor.detach().movedim(-1, axis).contiguous().movedim(axis, -1)


@pytest.mark.parametrize(("case", "channels", "dtype"), LAID_OUT, ids=str)
def test_the_order_of_values_changes_no_bit(
    compiled_backend: str, case: Case, channels: int, dtype: torch.dtype
) -> None:
    """Unless the gradients are sums of atomic additions, which no one asked CUDA to avoid."""
    case = replace(case, channels=channels, dtype=dtype, coords_dtype=torch.float32)
    values, coords, grad_output = case.tensors()
    axis = 0 if case.batch is None else 1
    asked = True if compiled_backend == "cuda" else None
    results = []
    for laid_out in (Tensor.detach, lambda tensor: planes(tensor, axis)):
        leaves = laid_out(values).requires_grad_(), coords.detach().requires_grad_()
        out = sample(*leaves, **case.options, deterministic=asked, backend=compiled_backend)
        results.append((out, *torch.autograd.grad(out, leaves, laid_out(grad_output))))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("size", [(40,), (9, 11), (5, 6, 7)], ids=str)
def test_the_order_of_values_changes_nothing_of_what_is_no_number(
    compiled_backend: str, size: tuple[int, ...], padding_mode: str
) -> None:
    """There are fewer points than entries: in one order they are read as planes, in one as rows."""
    numbers = [math.nan, math.inf, -math.inf, 1e30, -3e9, -1.1, -1.0, -0.3, 0.0, 0.5, 1.0, 1.2]
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(len(numbers), (39, len(size)), generator=generator)
    coords = torch.tensor(numbers)[some]
    values = torch.randn(*size, 3, generator=generator)
    values[torch.rand(values.shape, generator=generator) < 0.2] = math.nan
    values[torch.rand(values.shape, generator=generator) < 0.2] = math.inf
    one, other = (
        sample(laid_out, coords, padding_mode=padding_mode, backend=compiled_backend)
        for laid_out in (values, planes(values, 0))
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels", [1, 3, 20])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_on_the_cpu_lie_as_values_do(case: Case, channels: int) -> None:
    values, coords, grad_output = replace(case, channels=channels).tensors()
    axis = 0 if case.batch is None else 1
    for leaf in (values.detach().requires_grad_(), planes(values, axis).requires_grad_()):
        first = not leaf.is_contiguous()
        out = sample(leaf, coords, backend="cpu")
        (gradient,) = torch.autograd.grad(out, leaf, grad_output)
        for result in (out, gradient):
            assert (result.movedim(-1, axis) if first else result).is_contiguous()


@pytest.mark.parametrize("case", [Case((6,), batch=2), CASES[0], CASES[3]], ids=str)
def test_a_drop_in_gives_the_layout_that_it_is_given(backend: str, case: Case) -> None:
    values, coords, _ = case.tensors()
    grid = coords.reshape(2, *(1,) * (case.ndim - 1), -1, case.ndim)
    last = values.movedim(-1, 1)
    assert grid_sample(last, grid, backend=backend).movedim(1, -1).is_contiguous()
    for input in (last.contiguous(), last.contiguous()[:, ::2]):
        assert grid_sample(input, grid, backend=backend).is_contiguous()


def test_no_points_and_no_channels(backend: str) -> None:
    for channels, points in ((3, 0), (0, 5)):
        case = Case((4, 3), channels=channels, points=(points,), batch=2)
        values, coords, grad_output = case.tensors()
        leaf = planes(values, 1).requires_grad_()
        out = sample(leaf, coords, backend=backend)
        assert out.shape == (2, points, channels)
        (gradient,) = torch.autograd.grad(out, leaf, grad_output)
        assert gradient.shape == leaf.shape
        assert not gradient.any()


@pytest.mark.slow
@pytest.mark.thorough
def test_the_compiler_knows(compiled_backend: str) -> None:
    """Which likes the layout of a convolution, of those around it, to be another."""
    convolution = torch.nn.Conv2d(3, 8, 3, padding=1)
    image, grid = torch.randn(1, 3, 12, 10), torch.rand(1, 9, 11, 2) * 2 - 1

    def call(image: Tensor, grid: Tensor) -> Tensor:
        warped = grid_sample(convolution(image), grid, backend=compiled_backend)
        return convolution.weight.mean() * warped.view(-1)

    results = []
    for function in (call, torch.compile(call, fullgraph=True)):
        leaf = image.clone().requires_grad_()
        out = function(leaf, grid)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_operator_knows(compiled_backend: str) -> None:
    values, coords, grad_output = replace(CASES[0], dtype=torch.float32).tensors()
    leaf, gradient = planes(values, 1), planes(grad_output, 1)
    options = (None, None, pack("linear", "zeros", False, False))
    operators = OPERATORS[compiled_backend]
    torch.library.opcheck(operators.sample, (leaf, coords, *options))
    torch.library.opcheck(operators.sample_backward, (gradient, leaf, coords, *options, True, True))
