"""`patch`: programs that call torch's `grid_sample` get this package's, and notice nothing else."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import crad_kernels
from crad_kernels import backends, patch
from tests.cases import assert_near

TORCHS = (F.grid_sample,)  # as an attribute of a module it would be replaced

pytestmark = pytest.mark.skipif(
    not backends()["cpu"].usable, reason="the CPU backend cannot be used here"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that came to this package."""
    made: list[tuple[int, ...]] = []

    def noted(input: Tensor, *arguments: Any) -> Tensor:
        made.append(tuple(input.shape))
        return crad_kernels.grid_sample(input, *arguments)

    monkeypatch.setattr(crad_kernels._patch, "grid_sample", noted)
    return made


def tensors(*shape: int, points: tuple[int, ...] = (5, 6)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(shape, generator=generator)
    grid = torch.rand(shape[0], *points, len(shape) - 2, generator=generator) * 2.4 - 1.2
    return input, grid


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (2, 3, 4, 5, 6)])
def test_results_and_gradients_are_those_of_torch(
    calls: list[tuple[int, ...]], mode: str, padding_mode: str, shape: tuple[int, ...]
) -> None:
    if mode == "bicubic" and len(shape) == 5:
        pytest.skip("torch has none")
    arguments = tensors(*shape, points=(4,) * (len(shape) - 2))

    def results() -> list[Tensor]:
        input, grid = (each.clone().requires_grad_() for each in arguments)
        output = F.grid_sample(input, grid, mode, padding_mode, align_corners=True)
        output.sum().backward()
        assert input.grad is not None
        assert grid.grad is not None
        return [output, input.grad, grid.grad]

    expected = results()
    assert not calls
    with patch():
        actual = results()
    assert calls == [shape]
    for got, wanted in zip(actual, expected, strict=True):
        assert got.stride() == wanted.stride()
        assert_near(got, wanted, 1e-5)


def test_it_is_undone() -> None:
    with patch() as first:
        assert F.grid_sample is not TORCHS[0]
        with patch():
            pass
        assert F.grid_sample is not TORCHS[0]
        first.undo()
        assert F.grid_sample is TORCHS[0]
        first.undo()
    assert F.grid_sample is TORCHS[0]

    with pytest.raises(KeyError), patch():
        raise KeyError
    assert F.grid_sample is TORCHS[0]

    lasting = patch()
    assert F.grid_sample is not TORCHS[0]
    lasting.undo()
    assert F.grid_sample is TORCHS[0]


def test_modules_that_have_it_by_name_get_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = ModuleType("before"), ModuleType("after")
    monkeypatch.setitem(sys.modules, "before", before)
    monkeypatch.setitem(sys.modules, "after", after)
    vars(before)["warp"] = TORCHS[0]
    with patch():
        assert vars(before)["warp"] is F.grid_sample is not TORCHS[0]
        exec("from torch.nn.functional import grid_sample", vars(after))
        assert vars(after)["grid_sample"] is not TORCHS[0]
    assert vars(before)["warp"] is vars(after)["grid_sample"] is TORCHS[0]


REFUSED: dict[str, dict[str, Any]] = {
    "mode": {"mode": "linear"},
    "padding_mode": {"padding_mode": "circular"},
    "batch": {"grid": torch.zeros(3, 5, 6, 2)},
    "components": {"grid": torch.zeros(2, 5, 6, 3)},
    "axes": {"grid": torch.zeros(2, 5, 6, 6, 2)},
    "dtypes": {"grid": torch.zeros(2, 5, 6, 2, dtype=torch.float64)},
    "integers": {"input": torch.zeros(2, 3, 7, 8, dtype=torch.int64)},
    "no entries": {"input": torch.zeros(2, 3, 0, 8)},
    "no tensor": {"input": 3},
    "cubic volumes": {
        "input": torch.zeros(1, 2, 3, 3, 3),
        "grid": torch.zeros(1, 2, 2, 2, 3),
        "mode": "bicubic",
    },
    "one axis": {"input": torch.zeros(2, 3, 7), "grid": torch.zeros(2, 5, 1)},
    "devices": {"grid": torch.zeros(2, 5, 6, 2, device="meta")},
    "sparse": {"input": torch.zeros(2, 3, 7, 8).to_sparse()},
}


@pytest.mark.parametrize("name", REFUSED)
def test_errors_are_those_of_torch(name: str) -> None:
    input, grid = tensors(2, 3, 7, 8)
    arguments = {"input": input, "grid": grid, "align_corners": False, **REFUSED[name]}
    with pytest.raises(Exception) as expected:  # noqa: PT011
        F.grid_sample(**arguments)
    with patch(), pytest.raises(expected.type) as actual:
        F.grid_sample(**arguments)
    assert str(actual.value) == str(expected.value)


def test_a_warning_says_which_corners_are_taken() -> None:
    input, grid = tensors(2, 3, 7, 8)
    with patch(), pytest.warns(UserWarning, match="align_corners=False"):
        output = F.grid_sample(input, grid)
    assert_near(output, TORCHS[0](input, grid, align_corners=False), 1e-5)


def test_what_the_kernels_do_not_take_goes_to_torch(calls: list[tuple[int, ...]]) -> None:
    class Image(Tensor):
        pass

    input, grid = tensors(2, 3, 7, 8)
    with patch():
        image = F.grid_sample(input.as_subclass(Image), grid, align_corners=False)
        empty = F.grid_sample(torch.zeros(2, 0, 7, 8), grid, align_corners=False)
    assert not calls
    assert isinstance(image, Image)
    assert empty.shape == (2, 0, 5, 6)


def test_transforms_and_compiled_code_take_it() -> None:
    input, grid = tensors(4, 3, 7, 8)

    def warp(image: Tensor, points: Tensor) -> Tensor:
        return F.grid_sample(image[None], points[None], align_corners=False)[0]

    expected = torch.func.vmap(warp)(input, grid)
    with patch():
        assert_near(torch.func.vmap(warp)(input, grid), expected, 1e-5)
        compiled = torch.compile(warp, backend="eager", fullgraph=True)
        assert_near(compiled(input[0], grid[0]), expected[0], 1e-5)


def test_it_works_with_autocast() -> None:
    input, grid = tensors(2, 3, 7, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.grid_sample(input, grid, align_corners=False)
        with patch():
            actual = F.grid_sample(input, grid, align_corners=False)
    assert actual.dtype == expected.dtype
    assert_near(actual, expected, 1e-5)
