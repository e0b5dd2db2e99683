"""The gradient of a large grid's values in one order: CUDA sorts points by the entries they read.

The kernels for the processor take a launch to cost little, so that they sort some thousand points
once a point, as a GPU does with a hundred thousand.
"""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crad_kernels import sample
from crad_kernels._backends import cuda
from tests.cases import JUDGE, SAME_INDEX, Case, assert_near

# Windows of 2, 4, 8 and 16 corners, also beside axes of single entries.
BY_WINDOW = [
    Case((3000,), channels=3, points=(4200,)),
    Case((3000,), channels=3, points=(4200,), mode="cubic"),
    Case((61, 40), channels=8, points=(5000,), align_corners=True),
    Case((2, 700), channels=5, points=(5000,), padding_mode="border"),
    Case((30, 1, 70), channels=3, points=(4200,), padding_mode="reflection"),
    Case((2, 700), channels=5, points=(5000,), padding_mode=("border", "zeros")),
    Case((17, 18, 9), channels=40, points=(1500,), batch=2),
    Case((7, 6, 8, 9), channels=2, points=(4500,)),
    Case((5, 3, 4, 5, 5), channels=2, points=(2300,)),
    Case((50, 45), channels=3, points=(4200,), mode="cubic"),
    Case((12, 11, 13), channels=2, points=(1100,), mode="cubic"),
]
BY_CORNER = [
    Case((61, 40), channels=8, points=(700,)),
    Case((50, 45), channels=3, points=(500,), mode="cubic", padding_mode="border"),
    Case((61, 40), channels=8, points=(700,), padding_mode=("circular", "zeros")),
    Case((30, 1, 40), channels=3, points=(900,), padding_mode="circular"),
    Case((50, 45), channels=3, points=(500,), mode="cubic", padding_mode="reflection"),
    Case((50, 45), channels=3, points=(2000,), mode="nearest"),
    Case((12, 11, 13), channels=2, points=(900,), mode="simplex"),
]
CASES = BY_WINDOW + BY_CORNER

Tensors = tuple[Tensor, Tensor, Tensor]


def gradient(case: Case, tensors: Tensors, backend: str) -> Tensor:
    values, coords, grad_output = tensors
    leaf = values.detach().requires_grad_()
    out = sample(leaf, coords, **case.options, deterministic=True, backend=backend)
    return torch.autograd.grad(out, leaf, grad_output)[0]


def assert_right(case: Case, tensors: Tensors, backend: str, terms: float = 1) -> None:
    """That the gradient is the reference's; a sum of so many terms loses more."""
    got, expected = (gradient(case, tensors, name) for name in (backend, JUDGE))
    assert_near(got, expected, terms * case.condition * SAME_INDEX[torch.float64])


def sorts(case: Case, folder: Path) -> list[tuple[int, str]]:
    """How many keys of which type each sort of a gradient takes."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        gradient(case, case.tensors(), "cuda")
    path = folder / "trace.json"
    profile.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    arguments = [event["args"] for event in events if event.get("name") == "aten::sort"]
    return [(given["Input Dims"][0][0], given["Input type"][0]) for given in arguments]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_that_of_the_reference(compiled_backend: str, case: Case) -> None:
    assert_right(case, case.tensors(), compiled_backend)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_points_of_one_window(compiled_backend: str, case: Case, step: int) -> None:
    """Which are taken piece by piece: all, or amid others."""
    values, coords, grad_output = case.tensors()
    coords[..., ::step, :] = coords[..., 3:4, :].clone()
    assert_right(case, (values, coords, grad_output), compiled_backend, terms=10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_points_may_be_sorted_part_by_part(
    compiled_backend: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRAD_KERNELS_PLAN", "chunks=3")
    assert_right(case, case.tensors(), compiled_backend)


@pytest.mark.parametrize("channels", [8, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_of_other_types(compiled_backend: str, dtype: torch.dtype, channels: int) -> None:
    case = Case((61, 40), channels, (5000,), dtype=dtype, coords_dtype=torch.float32)
    got, expected = (gradient(case, case.tensors(), name) for name in (compiled_backend, JUDGE))
    eps = SAME_INDEX.get(dtype, torch.finfo(dtype).eps)
    assert got.dtype == dtype
    assert_near(got, expected, eps)


@pytest.mark.usefixtures("cuda_library")
@pytest.mark.skipif(not cuda.EMULATED, reason="a GPU sorts so few points by corner")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_point_has_one_narrow_key(case: Case, tmp_path: Path) -> None:
    """But one for each entry along the axes that windows do not have: see `tables_of`."""
    taps = {"nearest": 1, "linear": 2, "cubic": 4, "simplex": 2}[case.mode]
    with_windows = 0 if case in BY_CORNER else 2 if case.mode == "cubic" else 4
    keys = taps ** max(0, case.ndim - with_windows)
    if case.mode == "simplex":
        keys = case.ndim + 1
    assert sorts(case, tmp_path) == [((case.batch or 1) * prod(case.points) * keys, "int")]


@pytest.mark.parametrize("case", BY_WINDOW, ids=str)
def test_every_run_gives_the_same_bits(compiled_backend: str, case: Case) -> None:
    case = replace(case, dtype=torch.float32, coords_dtype=torch.float32)
    first, second = (gradient(case, case.tensors(), compiled_backend) for _ in range(2))
    assert torch.equal(first, second)
