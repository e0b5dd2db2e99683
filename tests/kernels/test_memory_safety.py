"""What is read and written is what should be: memory around the tensors is poisoned with NaN."""

import math
from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from torch import Tensor

from crad_kernels import sample
from tests.cases import (
    DTYPES,
    EVERY_TWO_OPTIONS,
    MODES,
    SHAPE,
    SHAPES,
    Case,
    assert_same,
    cases,
    covering,
    in_dtypes,
    mixed,
)

ALL_DTYPES = [DTYPES[0], *DTYPES[3:]]
# Of the end of a row, 8, 4 and 2 bytes are read in ways of their own.
AMID_POISON = [
    *covering(in_dtypes(cases(1, 2, 3, modes=MODES), ALL_DTYPES), *EVERY_TWO_OPTIONS),
    # Where taps follow each other along one axis, and along another do not.
    *covering(in_dtypes(mixed(2, 3), [DTYPES[0], DTYPES[3]]), attrgetter("ndim", "mode", "dtype")),
    *covering(
        in_dtypes(SHAPES, ALL_DTYPES),
        attrgetter(*SHAPE, "dtype.itemsize"),
        attrgetter("channels", "dtype"),
        attrgetter("dtype", "coords_dtype"),
    ),
]


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


@pytest.mark.parametrize("case", AMID_POISON, ids=str)
def test_nothing_around_the_inputs_is_read(compiled_backend: str, case: Case) -> None:
    tensors = case.tensors()
    expected = results(case, compiled_backend, tensors)
    actual = results(case, compiled_backend, tuple(map(amid_poison, tensors)))
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
def test_nothing_of_a_former_result_is_left(compiled_backend: str, case: Case) -> None:
    """Large results lie where others lay."""
    case = replace(case, dtype=torch.float32, coords_dtype=torch.float32)
    tensors = case.tensors()
    expected = [result.clone() for result in results(case, compiled_backend, tensors)]
    for _ in range(2):
        for result in results(case, compiled_backend, tensors):
            result.detach().fill_(math.nan)
            del result
        assert_same(results(case, compiled_backend, tensors), expected)
