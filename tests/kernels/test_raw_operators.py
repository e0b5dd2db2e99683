"""The operators, called by themselves, refuse whatever does not fit together.

What a kernel reads or writes beyond the end of a tensor is nobody's.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from crad_kernels._op import OPERATORS
from crad_kernels._schema import pack
from tests.cases import Case

REFUSED = (RuntimeError, ValueError, TypeError, NotImplementedError)
CASE = Case((4, 6), channels=3, points=(5,), dtype=torch.float32, coords_dtype=torch.float32)

Arguments = dict[str, Any]


def arguments(operator: str, case: Case = CASE) -> Arguments:
    """Such as fit together, by name."""
    if operator == "normals":
        return {"seed": torch.tensor(3), "points": 5, "ndim": 2}
    values, coords, grad_output = case.tensors()
    call = {
        "values": values,
        "coords": coords,
        "seed": torch.tensor(3),
        "jitter_std": torch.full((2,), 0.1),
        "options": pack("linear", "zeros", False, False),
    }
    if operator == "sample":
        return call
    return {"grad_output": grad_output, **call, "want_values": True, "want_coords": True}


def wrong_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor | None]]:
    """Tensors that do not fit in the place of one, and what is wrong with them."""
    yield "no tensor", None
    yield "another device", tensor.to("meta")
    yield "another dtype", tensor.to(torch.int16)
    yield "half", tensor.to(torch.float16)
    yield "an axis more", tensor[None, None, None]
    if tensor.ndim:
        yield "sparse", tensor.to_sparse()
        yield "one too few", tensor[:-1]
        yield "one too many", torch.cat((tensor, tensor[:1]))
        yield "an axis less", tensor.flatten()[0]
    if tensor.ndim > 1:
        # As many elements, and so nothing beyond the end.
        yield "other lengths", tensor.reshape(*tensor.shape[::-1])
        yield "flat", tensor.flatten()


# Another call, and not a wrong one.
FITS = {
    "sample": {
        *("values: half", "values: other lengths", "values: one too few", "values: one too many"),
        *("coords: an axis more", "coords: one too few", "coords: one too many"),
    },
    "sample_backward": {"values: one too few", "values: one too many"},
    "normals": {"seed: another device"},
}


def wrong_calls(operator: str) -> Iterator[tuple[str, Arguments]]:
    right = arguments(operator)
    for name, argument in right.items():
        if isinstance(argument, Tensor):
            for wrong, tensor in wrong_tensors(name, argument):
                if f"{name}: {wrong}" not in FITS[operator]:
                    yield f"{name}: {wrong}", {**right, name: tensor}
    for option in (-1, 1 << 43):
        if "options" in right:
            yield f"options: {option}", {**right, "options": option}
    for name in ("points", "ndim"):
        if name in right:
            yield f"{name}: negative", {**right, name: -1}
    if "ndim" in right:
        yield "ndim: 9", {**right, "ndim": 9}


CALLS = [
    (operator, wrong)
    for operator in ("sample", "sample_backward", "normals")
    for wrong, _ in wrong_calls(operator)
]


def call(backend: str, operator: str, given: Arguments) -> object:
    return getattr(OPERATORS[backend], operator)(*given.values())


def traced(backend: str, operator: str, given: Arguments) -> object:
    with FakeTensorMode() as mode:
        faked = {
            name: mode.from_tensor(each) if isinstance(each, Tensor) else each
            for name, each in given.items()
        }
        return call(backend, operator, faked)


@pytest.mark.parametrize(("operator", "wrong"), CALLS)
def test_what_does_not_fit_is_refused(compiled_backend: str, operator: str, wrong: str) -> None:
    given = dict(wrong_calls(operator))[wrong]
    with pytest.raises(REFUSED) as refused:
        call(compiled_backend, operator, given)
    assert "INTERNAL ASSERT" not in str(refused.value)


@pytest.mark.parametrize(
    ("operator", "wrong"),
    [each for each in CALLS if not each[1].endswith(("another device", "sparse", "no tensor"))],
)
def test_what_does_not_fit_is_refused_when_traced(
    compiled_backend: str, operator: str, wrong: str
) -> None:
    given = dict(wrong_calls(operator))[wrong]
    with pytest.raises(REFUSED):
        traced(compiled_backend, operator, given)


@pytest.mark.parametrize("operator", ["sample", "sample_backward", "normals"])
def test_what_fits_is_not(compiled_backend: str, operator: str) -> None:
    for case in (CASE, replace(CASE, batch=2), replace(CASE, points=(2, 3))):
        given = arguments(operator, case)
        call(compiled_backend, operator, given)
        traced(compiled_backend, operator, given)


@pytest.mark.parametrize("wrong", ["values", "coords", "grad_output", "seed", "jitter_std"])
def test_one_tensor_without_elements_in_memory_is_named(compiled_backend: str, wrong: str) -> None:
    """Not given results of which no element was written."""
    given = arguments("sample_backward")
    given[wrong] = given[wrong].to("meta")
    with pytest.raises(ValueError, match=rf"{wrong}.*meta|meta.*{wrong}"):
        call(compiled_backend, "sample_backward", given)


def test_a_gradient_of_another_shape_is_named(compiled_backend: str) -> None:
    """Of as many elements: the kernel would read what belongs to other points."""
    given = arguments("sample_backward")
    given["grad_output"] = given["grad_output"].reshape(3, 5)
    with pytest.raises((RuntimeError, ValueError), match=r"sample_backward\(\): .*grad_output"):
        call(compiled_backend, "sample_backward", given)


SEED_AND_STD: list[Callable[[Arguments], None]] = [
    lambda given: given.update(seed=None),
    lambda given: given.update(jitter_std=None),
]


@pytest.mark.parametrize("without", SEED_AND_STD)
def test_half_a_jitter_is_refused(
    compiled_backend: str, without: Callable[[Arguments], None]
) -> None:
    given = arguments("sample")
    without(given)
    with pytest.raises((RuntimeError, ValueError), match="seed and jitter_std together"):
        call(compiled_backend, "sample", given)
