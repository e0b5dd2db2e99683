"""What is read and written is what should be: memory around the tensors is poisoned with NaN."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crad_kernels import sample
from tests.cases import DTYPES, SHAPES, Case, assert_same, cases


def amid_poison(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, with NaN before and behind them."""
    margin = 64
    memory = torch.full((tensor.numel() + 2 * margin,), math.nan, dtype=tensor.dtype)
    inner = memory[margin:-margin].view(tensor.shape)
    inner.copy_(tensor)
    assert inner.is_contiguous()
    return inner


def results(case: Case, backend: str, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    values, coords, grad_output = tensors
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = sample(*leaves, **case.options, jitter_std=0.1, seed=1, backend=backend)
    return [out, *torch.autograd.grad(out, leaves, grad_output)]


@pytest.mark.parametrize("dtypes", [DTYPES[0], *DTYPES[3:]], ids=str)
@pytest.mark.parametrize("case", cases(1, 2, 3) + SHAPES, ids=str)
def test_nothing_around_the_inputs_is_read(
    backend: str, case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    case = replace(case, dtype=dtypes[0], coords_dtype=dtypes[1])
    tensors = case.tensors()
    expected = results(case, backend, tensors)
    actual = results(case, backend, tuple(map(amid_poison, tensors)))
    assert_same(actual, expected)


@pytest.mark.parametrize(
    "case",
    [
        Case((8, 8), channels=216, points=(64, 12, 14)),
        Case((4, 4), channels=70_000, points=(40,), mode="nearest"),
        Case((700, 500), channels=8, points=(9000,), padding_mode="border"),
    ],
    ids=str,
)
def test_nothing_of_a_former_result_is_left(backend: str, case: Case) -> None:
    """Large results lie where others lay."""
    case = replace(case, dtype=torch.float32, coords_dtype=torch.float32)
    tensors = case.tensors()
    expected = [result.clone() for result in results(case, backend, tensors)]
    for _ in range(2):
        for result in results(case, backend, tensors):
            result.detach().fill_(math.nan)
            del result
        assert_same(results(case, backend, tensors), expected)
