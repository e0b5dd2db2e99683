"""`grid_sample` in the place of `torch.nn.functional.grid_sample`."""

import inspect
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from crad_kernels import grid_sample, sample
from tests.cases import OTHER_INDEX, Case, assert_near, cases


@pytest.mark.parametrize(
    "case", cases(2, batch=2, points=(5, 4)) + cases(3, batch=3, points=(2, 3, 4)), ids=str
)
def test_is_a_drop_in(backend: str, case: Case) -> None:
    values, grid, grad_output = case.tensors()
    mode = {"linear": "bilinear", "nearest": "nearest"}[case.mode]
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
    mode = {"linear": "bilinear", "nearest": "nearest"}[case.mode]
    out = grid_sample(
        values.movedim(-1, 1), grid, mode, case.padding_mode, case.align_corners, backend=backend
    )
    assert out.shape == (2, case.channels, *grid.shape[1:-1])
    expected = sample(values, coords, **case.options, backend=backend)
    assert torch.equal(out.flatten(2).movedim(1, -1), expected)


def test_result_is_channels_last(backend: str) -> None:
    values, grid, _ = Case((4, 3), points=(5, 4), batch=2).tensors()
    for input in (values.movedim(-1, 1), values.movedim(-1, 1).contiguous()):
        out = grid_sample(input, grid, backend=backend)
        assert out.is_contiguous(memory_format=torch.channels_last)


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
