"""The CUDA backend reads values where they lie, and adds to their gradient where it lies."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crad_kernels import grid_sample, sample
from tests.cases import JUDGE, SAME_INDEX, Case, assert_near

pytestmark = pytest.mark.usefixtures("cuda_library")


def channels_first(tensor: Tensor, batched: bool) -> Tensor:
    return tensor.movedim(-1, int(batched)).contiguous().movedim(int(batched), -1)


def every_other_channel(tensor: Tensor, batched: bool) -> Tensor:
    return tensor.repeat_interleave(2, -1)[..., ::2]


def cropped(tensor: Tensor, batched: bool) -> Tensor:
    """Along all axes but the last."""
    larger = tensor.new_zeros([length + 2 for length in tensor.shape[:-1]] + [tensor.shape[-1]])
    within = larger[(slice(1, -1),) * (tensor.ndim - 1)]
    return within.copy_(tensor)


def cropped_planes(tensor: Tensor, batched: bool) -> Tensor:
    return cropped(tensor.movedim(-1, int(batched)), batched).movedim(int(batched), -1)


def turned_round(tensor: Tensor, batched: bool) -> Tensor:
    """The first axis is the fastest."""
    return tensor.permute(*range(tensor.ndim)[::-1]).contiguous().permute(*range(tensor.ndim)[::-1])


LAYOUTS = [channels_first, every_other_channel, cropped, cropped_planes, turned_round]

CASES = [
    Case((40,), channels=3, points=(70,)),
    Case((12, 9), channels=3, points=(11, 7), batch=2),
    Case((12, 9), channels=64, points=(3,)),
    Case((12, 9), channels=5, points=(130,), mode="cubic", padding_mode="reflection"),
    Case((300, 200), channels=7, points=(10, 50), padding_mode="border", align_corners=True),
    Case((5, 1, 7), channels=8, points=(300,), batch=3, mode="nearest"),
    Case((5, 6, 7), channels=9, points=(2, 3, 4), padding_mode="reflection"),
    Case((2, 3, 2, 4, 2), channels=6, points=(40,)),
    Case((2, 3, 1, 2, 2, 1, 2, 3), channels=2, points=(9,), mode="nearest"),
    Case((4, 3, 3), channels=130, points=(1,), batch=1),
]
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float64),
]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_strides_change_no_bit_of_a_sample(
    case: Case, layout: Callable[[Tensor, bool], Tensor], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    case = replace(case, dtype=dtypes[0], coords_dtype=dtypes[1])
    values, coords, _ = case.tensors()
    strided = layout(values, case.batch is not None)
    got, expected = (
        sample(given, coords, **case.options, jitter_std=0.01, seed=1, backend="cuda")
        for given in (strided, values)
    )
    assert torch.equal(strided, values)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_grids_of_a_batch_may_lie_anywhere(channels: int) -> None:
    case = Case((12, 9), channels=channels, points=(40,), batch=4)
    values, coords, _ = case.tensors()
    expected = sample(values[::2].contiguous(), coords[::2].contiguous(), backend="cuda")
    assert torch.equal(sample(values[::2], coords[::2], backend="cuda"), expected)
    shared = sample(values[0].expand_as(values), coords, backend="cuda")
    assert torch.equal(shared, sample(values[0], coords, backend="cuda"))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("want_coords", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_strided_values(
    case: Case, layout: Callable[[Tensor, bool], Tensor], want_coords: bool, deterministic: bool
) -> None:
    values, coords, grad_output = case.tensors()
    strided = layout(values, case.batch is not None)
    rows = channels_first(grad_output, case.batch is not None)
    results = []
    for backend, given, grad in (("cuda", strided, rows), (JUDGE, values, grad_output)):
        leaves = given.detach().requires_grad_(), coords.detach().requires_grad_(want_coords)
        out = sample(*leaves, **case.options, deterministic=deterministic, backend=backend)
        asked = leaves if want_coords else leaves[:1]
        results.append(torch.autograd.grad(out, asked, grad))
    assert_near(results[0][0], results[1][0], 10 * case.condition * SAME_INDEX[torch.float64])
    if want_coords:
        tolerance = 100 * case.condition * SAME_INDEX[torch.float64]
        assert_near(results[0][1], results[1][1], tolerance, case.slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_planes_of_other_types(dtype: torch.dtype) -> None:
    case = Case((300, 200), channels=7, points=(500,), dtype=dtype, coords_dtype=torch.float32)
    values, coords, grad_output = case.tensors()
    results = []
    for backend, layout in (("cuda", channels_first), (JUDGE, lambda tensor, _: tensor.detach())):
        leaf = layout(values, False).requires_grad_()
        out = sample(leaf, coords, backend=backend)
        results.append(torch.autograd.grad(out, leaf, grad_output)[0])
    assert results[0].dtype == dtype
    assert_near(*results, SAME_INDEX.get(dtype, torch.finfo(dtype).eps))


def copied(call: Callable[[], object]) -> list[str]:
    """The operators that a call copies tensors by."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    copies = {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy"}
    return [event.name for event in profile.events() if event.name in copies]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_sample_copies_nothing(case: Case, layout: Callable[[Tensor, bool], Tensor]) -> None:
    values, coords, _ = case.tensors()
    strided = layout(values, case.batch is not None)
    assert not copied(lambda: sample(strided, coords, **case.options, backend="cuda"))


@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("size", [(60,), (50, 40), (9, 20, 11)], ids=str)
def test_a_drop_in_copies_nothing(size: tuple[int, ...], channels: int) -> None:
    """Nor does its gradient with respect to the input, though there are few points."""
    input = torch.randn(2, channels, *size)
    grid = torch.rand(2, *(2,) * len(size), len(size)) * 2 - 1
    grad_output = torch.randn(2, channels, *(2,) * len(size))
    assert grid_sample(input, grid, backend="cuda").is_contiguous()
    assert not copied(lambda: grid_sample(input, grid, backend="cuda"))
    leaf = input.requires_grad_()
    out = grid_sample(leaf, grid, backend="cuda")
    assert not copied(lambda: torch.autograd.grad(out, leaf, grad_output, retain_graph=True))
    (gradient,) = torch.autograd.grad(out, leaf, grad_output)
    assert gradient.is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("want_values", [False, True])
def test_gradients_copy_no_values(
    layout: Callable[[Tensor, bool], Tensor], want_values: bool
) -> None:
    """Of fewer points than entries; that of the coordinates reads values by their strides."""
    values, coords, grad_output = Case((60, 50), 6, (20,), batch=2).tensors()
    strided = layout(values, True)
    leaves = strided.requires_grad_(want_values), coords.requires_grad_()
    asked = leaves if want_values else leaves[1:]
    out = sample(*leaves, backend="cuda")
    assert not copied(lambda: torch.autograd.grad(out, asked, grad_output, retain_graph=True))


def test_the_gradient_of_values_is_planned_for_itself() -> None:
    """It fits on the chip; beside the coordinates', which reads values by their strides, too."""
    values, coords, grad_output = Case((8, 8), 216, (200,), mode="nearest").tensors()
    leaf = every_other_channel(values.float(), False).requires_grad_()
    out = sample(leaf, coords.requires_grad_(), mode="nearest", backend="cuda")
    both = torch.autograd.grad(out, (leaf, coords), grad_output.float(), retain_graph=True)
    (alone,) = torch.autograd.grad(out, leaf, grad_output.float())
    assert torch.equal(both[0], alone)


@pytest.mark.parametrize("channels", [1, 5])
def test_a_result_lies_as_values_do(channels: int) -> None:
    for case in (Case((5, 4), channels, (6, 3), batch=2), Case((50, 40), channels, (6, 3))):
        values, coords, grad_output = case.tensors()
        axis = int(case.batch is not None)
        leaf = channels_first(values, bool(axis)).requires_grad_()
        out = sample(leaf, coords, backend="cuda")
        (gradient,) = torch.autograd.grad(out, leaf, grad_output)
        for result in (out, gradient):
            assert result.movedim(-1, axis).is_contiguous()
        assert sample(values, coords, backend="cuda").is_contiguous()
