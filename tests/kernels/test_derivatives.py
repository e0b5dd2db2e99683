"""Derivatives of every order and direction, against finite differences and one another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crad_kernels import sample
from tests.cases import SAME_INDEX, SIZES, Case, assert_near, cases

# Importing torch's forward-mode differentiation does this.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def small(ndim: int, **changes: Any) -> Case:
    return Case(SIZES[ndim], channels=2, points=(4,), **changes)


def smallest(ndim: int, **changes: Any) -> Case:
    return Case((2,) * ndim, channels=1, points=(2,), **changes)


def call(case: Case, backend: str, jitter_std: float = 0.0) -> Callable[..., Tensor]:
    return lambda values, coords: sample(
        values, coords, **case.options, jitter_std=jitter_std, seed=3, backend=backend
    )


@pytest.mark.parametrize(
    ("case", "jitter_std"),
    [
        (small(1), 0.0),
        (small(1, batch=2, padding_mode="border"), 0.3),
        (small(1, batch=2, mode="nearest"), 0.3),
        (small(2), 0.0),
        (small(2, padding_mode="border"), 0.3),
        (small(2, padding_mode="reflection", batch=2, align_corners=True), 0.0),
        (small(3, padding_mode="reflection"), 0.3),
        (smallest(3), 0.0),
        (smallest(4, padding_mode="border"), 0.3),
        (smallest(4, padding_mode="reflection", align_corners=True), 0.0),
        (smallest(5), 0.3),
    ],
    ids=str,
)
def test_matches_finite_differences(backend: str, case: Case, jitter_std: float) -> None:
    values, coords, _ = (tensor.requires_grad_() for tensor in case.tensors())
    function = call(case, backend, jitter_std)
    assert torch.autograd.gradcheck(function, (values, coords), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (values, coords))


@pytest.mark.parametrize("case", cases(2, 3), ids=str)
def test_forward_and_reverse_mode_agree(backend: str, case: Case) -> None:
    values, coords, grad_output = case.tensors()
    directions = tuple(torch.flip(tensor, (0,)) for tensor in (values, coords))
    with torch.autograd.forward_ad.dual_level():
        duals = [
            torch.autograd.forward_ad.make_dual(tensor, direction)
            for tensor, direction in zip((values, coords), directions, strict=True)
        ]
        out = call(case, backend)(*duals)
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    leaves = values.requires_grad_(), coords.requires_grad_()
    gradients = torch.autograd.grad(call(case, backend)(*leaves), leaves, grad_output)
    reverse = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    forward = (grad_output * tangent).sum() if tangent is not None else torch.tensor(0.0)
    assert_near(forward, torch.as_tensor(reverse), 10 * SAME_INDEX[torch.float64])


@pytest.mark.parametrize("component", [0, 1])
def test_along_one_component_the_second_derivative_is_zero(backend: str, component: int) -> None:
    """And so are all that follow it."""
    values, coords, _ = small(2).tensors()
    slope = sample(values, coords.requires_grad_(), backend=backend)
    for order in range(1, 6):
        (slope,) = torch.autograd.grad(slope.sum(), coords, create_graph=True)
        slope = slope[:, component]
        assert bool(slope.any()) == (order == 1)
        if not slope.requires_grad:
            break


def test_a_shared_grid_collects_the_gradient_of_all_points(backend: str) -> None:
    values, coords, grad_output = small(2).tensors()
    many = [tensor.repeat(5, 1).reshape(5, 4, 2) for tensor in (coords, grad_output)]
    once, five_times = (
        torch.autograd.grad(sample(values, x, backend=backend), values, g)[0]
        for values, x, g in (
            (values.requires_grad_(), coords, grad_output),
            (values.requires_grad_(), *many),
        )
    )
    assert_near(five_times, 5 * once, 10 * SAME_INDEX[torch.float64])


def test_batched_grids_do_not_mix(backend: str) -> None:
    values, coords, grad_output = small(2, batch=3).tensors()
    leaves = values.requires_grad_(), coords.requires_grad_()
    together = torch.autograd.grad(sample(*leaves, backend=backend), leaves, grad_output)
    for item in range(3):
        leaf = values[item].detach().requires_grad_(), coords[item].detach().requires_grad_()
        alone = torch.autograd.grad(sample(*leaf, backend=backend), leaf, grad_output[item])
        for got, wanted in zip(together, alone, strict=True):
            assert_near(got[item], wanted, SAME_INDEX[torch.float64])


class Wanted(TorchDispatchMode):
    """Notes which gradients each call of the backward operator is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.crad_kernels.sample_backward.default:
            self.calls.append(args[-2:])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
def test_only_the_gradients_that_are_needed_are_computed(
    compiled_backend: str, wanted: tuple[bool, bool]
) -> None:
    values, coords, grad_output = small(2).tensors()
    leaves = values.requires_grad_(wanted[0]), coords.requires_grad_(wanted[1])
    out = sample(*leaves, backend=compiled_backend)
    with Wanted() as mode:
        out.backward(grad_output)
    assert mode.calls == [wanted]
    assert tuple(leaf.grad is not None for leaf in leaves) == wanted


def test_without_gradients_there_is_no_graph(backend: str) -> None:
    values, coords, _ = small(2).tensors()
    assert not sample(values, coords, backend=backend).requires_grad
    with torch.no_grad():
        assert not sample(values.requires_grad_(), coords, backend=backend).requires_grad


@pytest.mark.parametrize("inner", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("outer", [None, torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms_agree_with_autograd(backend: str, inner: Any, outer: Any) -> None:
    values, coords, _ = small(2).tensors()

    def loss(coords: Tensor) -> Tensor:
        return sample(values, coords, backend=backend).square().sum()

    if outer is None:
        expected = torch.autograd.functional.jacobian(loss, coords)
        assert_near(inner(loss)(coords), expected, 10 * SAME_INDEX[torch.float64])
    else:
        expected = torch.autograd.functional.hessian(loss, coords)
        assert_near(outer(inner(loss))(coords), expected, 10 * SAME_INDEX[torch.float64])
