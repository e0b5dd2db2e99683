"""The same bits for any number of threads, and in every run."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crad_kernels import sample
from tests.cases import DTYPES, Case


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def results(case: Case, backend: str, threads: int, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    torch.set_num_threads(threads)
    values, coords, grad_output = tensors
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = sample(*leaves, **case.options, jitter_std=0.1, seed=1, backend=backend)
    return [out, *torch.autograd.grad(out, leaves, grad_output)]


@pytest.mark.parametrize("dtypes", [DTYPES[0], DTYPES[3], DTYPES[4]], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case((8, 8), channels=216, points=(1500,)),
        Case((8, 8), channels=3, points=(20000,), mode="nearest"),
        Case((5, 6, 7), channels=40, points=(700,), batch=3, padding_mode="border"),
        Case((4, 4), channels=9000, points=(20,), padding_mode="reflection"),
        Case((200, 300), channels=8, points=(5000,), align_corners=True),
    ],
    ids=str,
)
def test_any_number_of_threads_gives_the_same_bits(
    backend: str, case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    case = replace(case, dtype=dtypes[0], coords_dtype=dtypes[1])
    tensors = case.tensors()
    expected = results(case, backend, 1, tensors)
    for threads in (2, 4, 4):
        for got, wanted in zip(results(case, backend, threads, tensors), expected, strict=True):
            assert torch.equal(got, wanted)
