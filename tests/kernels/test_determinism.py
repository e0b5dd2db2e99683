"""The same bits for any number of threads, in every run, and whatever torch is told."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crad_kernels import sample
from tests.cases import (
    DTYPES,
    EVERY_TWO_OPTIONS,
    JUDGE,
    MODES,
    SAME_INDEX,
    SHAPES,
    Case,
    assert_near,
    assert_same,
    cases,
    covering,
    sums_vary,
)


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def results(
    case: Case,
    backend: str,
    threads: int,
    tensors: tuple[Tensor, ...],
    deterministic: bool | None = None,
) -> list[Tensor]:
    """Sample and gradients, which are to have the same bits: on a GPU, if that is asked for."""
    torch.set_num_threads(threads)
    values, coords, grad_output = tensors
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = sample(
        *leaves,
        **case.options,
        jitter_std=0.1,
        seed=1,
        deterministic=deterministic,
        backend=backend,
    )
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
        Case((201, 180), channels=8, points=(5000,), padding_mode="circular"),
        Case((20, 30), channels=8, points=(2000,), mode="cubic", padding_mode="border"),
        Case((300, 260), channels=3, points=(12_000,)),
        Case((300, 260), channels=3, points=(12_000,), mode="cubic", padding_mode="reflection"),
        Case((50, 40, 40), channels=5, points=(3000,), batch=2, padding_mode="border"),
    ],
    ids=str,
)
def test_any_number_of_threads_gives_the_same_bits(
    compiled_backend: str, case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    case = replace(case, dtype=dtypes[0], coords_dtype=dtypes[1])
    assert_the_same_for_any_number_of_threads(compiled_backend, case, (2, 4, 4))


def test_any_number_of_threads_gives_the_same_bits_of_the_reference() -> None:
    """Which leaves it to torch, whatever the shapes."""
    case = Case((20, 30), channels=8, points=(2000,), padding_mode="border", dtype=torch.float32)
    assert_the_same_for_any_number_of_threads(JUDGE, case, (2, 4, 4))


def assert_the_same_for_any_number_of_threads(
    backend: str, case: Case, numbers: tuple[int, ...]
) -> None:
    tensors = case.tensors()
    asked = True if sums_vary() else None
    expected = results(case, backend, 1, tensors, asked)
    for threads in numbers:
        actual = results(case, backend, threads, tensors, asked)
        for got, wanted in zip(actual, expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtypes", [DTYPES[0], DTYPES[3], DTYPES[4]], ids=str)
def test_any_number_of_threads_sums_parts_in_one_order(
    compiled_backend: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Partial gradients of both arguments, of so many elements that threads share their sum."""
    case = Case((16, 16), channels=300, points=(17_000,))
    case = replace(case, dtype=dtypes[0], coords_dtype=dtypes[1])
    assert_the_same_for_any_number_of_threads(compiled_backend, case, (3,))


@pytest.fixture
def _told_to_be_deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_told_to_be_deterministic")
@pytest.mark.parametrize(
    "case",
    [*covering(cases(1, 2, 3, modes=MODES, points=(40,)), *EVERY_TWO_OPTIONS), *SHAPES],
    ids=str,
)
def test_torch_may_ask_for_determinism(backend: str, case: Case) -> None:
    """It then fills new memory with NaN, of which nothing must be left."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    tensors = case.tensors()
    first, second = (results(case, backend, 2, tensors) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    told = results(case, backend, 2, tensors, True)
    for got, again, wanted in zip(first, second, told, strict=True):
        assert torch.equal(got, again)
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("deterministic", [True, False])
def test_determinism_can_be_asked_for_a_call(backend: str, deterministic: bool) -> None:
    values, coords, grad_output = Case((4, 3)).tensors()
    leaves = values.requires_grad_(), coords.requires_grad_()
    outs = [sample(*leaves, deterministic=d, backend=backend) for d in (deterministic, None)]
    gradients = [torch.autograd.grad(out, leaves, grad_output) for out in outs]
    assert_same(*((out, *grads) for out, grads in zip(outs, gradients, strict=True)))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        Case((12, 13), channels=5, points=(60,), padding_mode="circular"),
        Case((6, 5, 5), channels=20, points=(20,), batch=2, padding_mode="border"),
        Case((3, 50), channels=2, points=(30,), mode="cubic", padding_mode="reflection"),
    ],
    ids=str,
)
def test_large_grids_are_summed_right_in_either_way(
    compiled_backend: str, case: Case, deterministic: bool
) -> None:
    """Backends may have a way of their own to sum the gradient of a large grid in order."""
    values, coords, grad_output = case.tensors()
    gradients = []
    for backend in (compiled_backend, JUDGE):
        leaf = values.detach().requires_grad_()
        out = sample(leaf, coords, **case.options, deterministic=deterministic, backend=backend)
        gradients += torch.autograd.grad(out, leaf, grad_output)
    assert_near(*gradients, case.condition * SAME_INDEX[torch.float64])


@pytest.mark.parametrize("deterministic", [True, False])
def test_many_points_of_one_entry_are_summed_right(
    compiled_backend: str, deterministic: bool
) -> None:
    """As all that lie far away are, with border padding, amid others."""
    values, coords, grad_output = Case((130, 140), channels=2, points=(700,)).tensors()
    coords[::2] = 5.0
    gradients = []
    for name in (compiled_backend, JUDGE):
        leaf = values.detach().requires_grad_()
        out = sample(leaf, coords, padding_mode="border", deterministic=deterministic, backend=name)
        gradients.append(torch.autograd.grad(out, leaf, grad_output)[0])
    assert_near(*gradients, 10 * SAME_INDEX[torch.float64])
