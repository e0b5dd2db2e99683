"""The strides of the drop-in's results are PyTorch's, whatever axes have length 1 or 0."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from crad_kernels import grid_sample
from tests.cases import covering

# N, C, size, out, and how the input lies in memory.
LAYOUTS = ("contiguous", "channels last", "expanded", "sliced", "transposed")
SHAPES = list(product((0, 1, 2), (0, 1, 3), (1, 4), (1, 3), (0, 1, 3), (1, 2), LAYOUTS))
# Every three of their values meet.
TRIPLES = [(0, 1, 6), (2, 3, 6), (4, 5, 6), (0, 4, 6), (1, 2, 6), (1, 4, 5), (0, 2, 3), (1, 3, 5)]
SHAPES = covering(SHAPES, *(lambda shape, t=t: tuple(shape[i] for i in t) for t in TRIPLES))


def laid_out(shape: tuple[int, ...], layout: str) -> Tensor:
    tensor = torch.randn(shape)
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return {
        "contiguous": lambda: tensor,
        "channels last": lambda: tensor.contiguous(memory_format=last),
        "expanded": lambda: tensor[:1].expand(shape),
        "sliced": lambda: torch.cat((tensor, tensor), 1)[:, ::2] if shape[1] else tensor,
        "transposed": lambda: tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
    }[layout]()


def expected_strides(input: Tensor, out: tuple[int, ...]) -> tuple[int, ...]:
    """Contiguous, but channels last where the input can be nothing else, nor the result."""
    result = torch.empty(input.shape[:2] + out)
    last = torch.channels_last if input.ndim == 4 else torch.channels_last_3d
    if input.is_contiguous(memory_format=last) and not input.is_contiguous():
        other = torch.empty_like(result, memory_format=last)
        if not other.is_contiguous():
            return other.stride()
    return result.stride()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_strides_in_two_dimensions(backend: str, shape: tuple) -> None:
    n, c, height, width, *out, layout = shape
    input, grid = laid_out((n, c, height, width), layout), torch.rand(n, *out, 2)
    result = grid_sample(input, grid, backend=backend)
    assert result.stride() == expected_strides(input, tuple(out))
    if n and c and layout != "channels last":
        assert result.stride() == F.grid_sample(input, grid, align_corners=False).stride()
    with FakeTensorMode() as mode:
        faked = grid_sample(mode.from_tensor(input), mode.from_tensor(grid), backend=backend)
    assert faked.stride() == result.stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1, 1), (1, 1, 2, 3, 4), (2, 3, 2, 1, 4), (2, 3, 2)])
def test_strides_in_other_dimensions(backend: str, shape: tuple[int, ...], layout: str) -> None:
    input = torch.randn(shape) if len(shape) == 3 else laid_out(shape, layout)
    ndim = len(shape) - 2
    for out in ((1,) * ndim, (4, 1, 2)[:ndim]):
        result = grid_sample(input, torch.rand(shape[0], *out, ndim), backend=backend)
        assert result.stride() == expected_strides(input, out)[: result.ndim]


def test_a_result_of_a_single_entry_can_be_viewed(backend: str) -> None:
    out = grid_sample(torch.randn(2, 3, 1, 1), torch.rand(2, 3, 3, 2), backend=backend)
    assert out.view(2, -1).shape == (2, 27)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (4, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_compiled_code_gives_the_same(backend: str, size: tuple[int, int], layout: str) -> None:
    input, grid = laid_out((2, 3, *size), layout), torch.rand(2, 3, 3, 2)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda i, g: grid_sample(i, g, backend=backend), backend="aot_eager", fullgraph=True
    )
    out, expected = compiled(input, grid), grid_sample(input, grid, backend=backend)
    assert out.stride() == expected.stride()
    torch.testing.assert_close(out, expected)
