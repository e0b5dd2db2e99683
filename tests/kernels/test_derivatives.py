"""Derivatives of every order and direction, against finite differences and one another."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from operator import itemgetter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crad_kernels import sample
from crad_kernels._schema import MODES
from tests.cases import (
    DTYPES,
    JUDGE,
    SAME_INDEX,
    SIZES,
    Case,
    assert_near,
    assert_rounded_once,
    cases,
    covering,
    sums_vary,
)

# Importing torch's forward-mode differentiation does this.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated")


def small(ndim: int, **changes: Any) -> Case:
    return Case(SIZES[ndim], channels=2, points=(4,), **changes)


def smallest(ndim: int, **changes: Any) -> Case:
    return Case((2,) * ndim, channels=1, points=(2,), **changes)


def nondet_tol() -> float:
    """PyTorch's checks want the same bits of two runs, but for rounding where sums vary."""
    return 1e-13 if sums_vary() else 0.0


def call(case: Case, backend: str, jitter_std: float = 0.0) -> Callable[..., Tensor]:
    return lambda values, coords: sample(
        values, coords, **case.options, jitter_std=jitter_std, seed=3, backend=backend
    )


def assert_matches_finite_differences(case: Case, backend: str, jitter_std: float) -> None:
    values, coords, _ = (tensor.requires_grad_() for tensor in case.tensors())
    function = call(case, backend, jitter_std)
    assert torch.autograd.gradcheck(
        function, (values, coords), check_forward_ad=True, nondet_tol=nondet_tol()
    )
    assert torch.autograd.gradgradcheck(function, (values, coords), nondet_tol=nondet_tol())


@pytest.mark.parametrize(
    ("case", "jitter_std"),
    [
        (small(1), 0.0),
        (small(1, batch=2, padding_mode="border"), 0.3),
        (small(1, batch=2, mode="nearest"), 0.3),
        (small(2), 0.0),
        (small(2, padding_mode="border"), 0.3),
        (small(2, padding_mode="reflection", batch=2, align_corners=True), 0.0),
        (small(2, coords_unit="index"), 0.3),
        (small(2, padding_mode=("circular", "zeros"), align_corners=(True, False)), 0.3),
        (smallest(3, padding_mode=("border", "circular", "reflection")), 0.0),
        (smallest(2, mode="cubic", padding_mode=("zeros", "reflection")), 0.3),
        (smallest(3, padding_mode="reflection", coords_unit="index"), 0.0),
        (smallest(2, mode="cubic", padding_mode="border", coords_unit="index"), 0.3),
        (small(3, padding_mode="circular"), 0.3),
        (smallest(3), 0.0),
        (smallest(4, padding_mode="border"), 0.3),
        (smallest(4, padding_mode="reflection", align_corners=True), 0.0),
        (small(2, padding_mode="circular", batch=2, align_corners=True), 0.0),
        (smallest(5), 0.3),
        (small(1, mode="cubic"), 0.3),
        (small(2, mode="cubic", batch=2, padding_mode="border"), 0.0),
        (smallest(2, mode="cubic", padding_mode="reflection"), 0.3),
        (smallest(3, mode="cubic", align_corners=True), 0.0),
        (smallest(1, mode="cubic", padding_mode="circular"), 0.3),
        (small(2, mode="simplex", padding_mode="border"), 0.3),
        (smallest(3, mode="simplex", padding_mode="circular"), 0.0),
    ],
    ids=str,
)
def test_matches_finite_differences(compiled_backend: str, case: Case, jitter_std: float) -> None:
    assert_matches_finite_differences(case, compiled_backend, jitter_std)


@pytest.mark.parametrize(
    "case",
    [
        small(1, padding_mode="border"),
        small(1, mode="nearest", batch=2),
        smallest(2, padding_mode="reflection", align_corners=True),
        smallest(1, mode="cubic", padding_mode="reflection"),
        smallest(2, padding_mode="circular"),
        smallest(2, mode="simplex"),
    ],
    ids=str,
)
def test_the_reference_matches_finite_differences(case: Case) -> None:
    """Torch differentiates it: what matters is that it can."""
    assert_matches_finite_differences(case, JUDGE, 0.3)


@pytest.mark.parametrize(
    ("ndim", "mode"), [(4, "cubic"), *((d, "linear") for d in (6, 7, 8)), (6, "simplex")]
)
def test_matches_finite_differences_in_many_dimensions(
    compiled_backend: str, ndim: int, mode: str
) -> None:
    """Along one direction of each input: there are too many for one at a time."""
    case = smallest(ndim, mode=mode, padding_mode="border")
    leaves = [tensor.requires_grad_() for tensor in case.tensors()[:2]]
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        function = call(case, compiled_backend, 0.1)
        assert check(function, leaves, fast_mode=True, nondet_tol=nondet_tol())


@pytest.mark.parametrize("case", cases(2, 3, modes=MODES), ids=str)
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
        if func._schema.name == "crad_kernels::sample_backward":
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


@pytest.mark.parametrize("channels", [2, 1 << 14])
@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("leaf", [False, True])
def test_only_the_gradients_that_are_asked_for_are_computed(
    compiled_backend: str, argument: int, leaf: bool, channels: int
) -> None:
    """Unless it is so little that to ask takes longer; none is given that nobody asked for."""
    values, coords, grad_output = replace(small(2), channels=channels).tensors()
    leaves = values.requires_grad_(), coords.requires_grad_()
    arguments = leaves if leaf else (values * 2, coords * 0.9)
    out = sample(*arguments, backend=compiled_backend)
    with Wanted() as mode:
        (gradient,) = torch.autograd.grad(out, leaves[argument], grad_output)
    assert mode.calls == [(True, True) if channels == 2 else (argument == 0, argument == 1)]
    assert gradient.shape == leaves[argument].shape
    assert leaves[0].grad is None
    assert leaves[1].grad is None


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_looks_at_the_gradients_asked_for_alone(backend: str) -> None:
    """Infinite values have an indefinite gradient of the coordinates, which nobody asked for."""
    values, coords, grad_output = small(2).tensors()
    leaves = torch.full_like(values, float("inf")).requires_grad_(), coords.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        out = sample(*leaves, backend=backend)
        (gradient,) = torch.autograd.grad(out, leaves[0], grad_output)
    assert gradient.isfinite().all()


def test_a_gradient_that_is_not_used_has_no_derivative_computed(compiled_backend: str) -> None:
    """Of the values' gradient, where only that of the coordinates goes on."""
    values, coords, grad_output = small(1).tensors()
    leaves = values.requires_grad_(), coords.requires_grad_()
    out = sample(*leaves, backend=compiled_backend)
    _, grad_coords = torch.autograd.grad(out, leaves, grad_output, create_graph=True)
    with Wanted() as mode:
        grad_coords.sum().backward()
    assert mode.calls == [(True, True)]


def test_without_gradients_there_is_no_graph(backend: str) -> None:
    values, coords, _ = small(2).tensors()
    assert not sample(values, coords, backend=backend).requires_grad
    with torch.no_grad():
        assert not sample(values.requires_grad_(), coords, backend=backend).requires_grad


@pytest.mark.parametrize("case", [small(1, mode="cubic"), small(2, mode="cubic")], ids=str)
def test_higher_derivatives_of_cubic(backend: str, case: Case) -> None:
    """The third is that of its cubic polynomials, the fourth is zero."""
    values, coords, _ = case.tensors()
    slope = call(case, backend)(values, coords.requires_grad_())
    for order in range(1, 5):
        before = slope[..., 0]
        if not before.requires_grad:
            assert order == 4  # torch knows it for a constant
            break
        (slope,) = torch.autograd.grad(before.sum(), coords, create_graph=True)
        if order == 4:
            assert not slope[..., 0].any()
            break
        step = 1e-6
        shifted = []
        for sign in (-1, 1):
            moved = (coords.detach() + sign * step * torch.eye(case.ndim)[0]).requires_grad_()
            lower = call(case, backend)(values, moved)[..., 0]
            for _ in range(order - 1):
                (lower,) = torch.autograd.grad(lower.sum(), moved, create_graph=True)
                lower = lower[..., 0]
            shifted.append(lower)
        assert_near(slope[..., 0], (shifted[1] - shifted[0]) / (2 * step), 1e-7)


@pytest.mark.parametrize(
    ("case", "dtypes"),
    covering(
        list(product([small(2), small(3, mode="cubic", padding_mode="border")], DTYPES[2:])),
        lambda each: (each[0], each[1][0]),
        itemgetter(1),
    ),
    ids=str,
)
def test_derivatives_of_derivatives_are_rounded_once(
    backend: str, case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Their terms are summed in float32, however values are stored."""
    case = replace(case, dtype=dtypes[0], coords_dtype=dtypes[1])
    values, coords, weight = case.tensors()
    d_values, d_coords = values.flip(0), coords.flip(0)

    def derivatives(*tensors: Tensor) -> list[Tensor]:
        values, coords, weight, d_values, d_coords = tensors
        function = call(case, backend)
        leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
        tangent = torch.func.jvp(function, (values, coords), (d_values, d_coords))[1]
        weight = weight.detach().requires_grad_()
        gradients = torch.autograd.grad(function(*leaves), leaves, weight, create_graph=True)
        second = torch.autograd.grad(gradients, (weight, *leaves), (d_values, d_coords))
        return [tangent, *second]

    tensors = values, coords, weight, d_values, d_coords
    actual = derivatives(*tensors)
    exact = derivatives(*(tensor.double() for tensor in tensors))
    for got, wanted, dtype in zip(actual, exact, (dtypes[0], dtypes[0], *dtypes), strict=True):
        assert got.dtype == dtype
        assert_rounded_once(got, wanted, 20 * SAME_INDEX[torch.float32])


def test_derivatives_do_not_overflow_where_their_sums_do_not(backend: str) -> None:
    """A slope may be beyond float16, and its product with a small tangent not."""
    torch.manual_seed(0)
    values = (torch.randn(512, 512, 8) * 300).half()
    coords = torch.rand(100, 2) * 1.8 - 0.9
    tangent = torch.full_like(coords, 0.001)
    actual = torch.func.jvp(lambda x: sample(values, x, backend=backend), (coords,), (tangent,))[1]
    assert actual.isfinite().all()


# ---- torch.func ----

TRANSFORMED = [
    small(2),
    small(2, mode="cubic", padding_mode="reflection"),
    small(1, padding_mode="circular"),
    small(2, mode="simplex"),
]
# Every composition for both arguments; of the rest, every two.
COMPOSED = covering(
    list(
        product(
            [torch.func.jacrev, torch.func.jacfwd],
            [None, torch.func.jacrev, torch.func.jacfwd],
            [0, 1],
            TRANSFORMED,
            [0.0, 0.2],
        )
    ),
    itemgetter(0, 1, 2),
    *(itemgetter(*two) for two in combinations(range(5), 2)),
)


@pytest.mark.parametrize(
    ("inner", "outer", "argument", "case", "jitter_std"),
    COMPOSED,
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_function_transforms_agree_with_autograd(
    backend: str, inner: Any, outer: Any, argument: int, case: Case, jitter_std: float
) -> None:
    tensors = case.tensors()[:2]

    def loss(tensor: Tensor) -> Tensor:
        arguments = tuple(tensor if i == argument else tensors[i] for i in (0, 1))
        return call(case, backend, jitter_std)(*arguments).square().sum()

    tensor = tensors[argument]
    if outer is None:
        expected = torch.autograd.functional.jacobian(loss, tensor)
        actual = inner(loss)(tensor)
    else:
        expected = torch.autograd.functional.hessian(loss, tensor)
        actual = outer(inner(loss))(tensor)
    assert_near(actual, expected, 20 * SAME_INDEX[torch.float64])


@pytest.mark.parametrize("kind", ["jvp of jvp", "vjp of jvp", "jvp of vjp"])
def test_mixed_derivatives_of_values_and_coords(backend: str, kind: str) -> None:
    """What changes in the slope along the coordinates when the values change."""
    case = small(2, mode="cubic")
    values, coords, weight = case.tensors()
    d_values, d_coords = values.flip(0), coords.flip(0)
    function = call(case, backend)

    def slope(values: Tensor) -> Tensor:
        """Along d_coords, weighted and summed."""
        if kind == "jvp of vjp":
            _, pullback = torch.func.vjp(lambda x: function(values, x), coords)
            return (pullback(weight)[0] * d_coords).sum()
        tangent = torch.func.jvp(lambda x: function(values, x), (coords,), (d_coords,))[1]
        return (tangent * weight).sum()

    if kind == "vjp of jvp":
        actual = (torch.func.grad(slope)(values) * d_values).sum()
    else:
        actual = torch.func.jvp(slope, (values,), (d_values,))[1]
    # The sample is linear in the values.
    leaf = coords.requires_grad_()
    (expected,) = torch.autograd.grad(function(d_values, leaf), leaf, weight)
    assert_near(actual, (expected * d_coords).sum(), 20 * SAME_INDEX[torch.float64])


# ---- vmap ----

SLICES = 3


def sliced(tensor: Tensor, dim: int | None) -> Tensor:
    """Different slices along a new axis; the tensor itself where there is to be none."""
    if dim is None:
        return tensor
    shifts = [torch.roll(tensor, shift, 0) * (1 + shift / 8) for shift in range(SLICES)]
    return torch.stack(shifts, dim)


def slices(tensor: Tensor, dim: int | None) -> list[Tensor]:
    return [tensor] * SLICES if dim is None else list(tensor.unbind(dim))


IN_DIMS = [(0, 0), (0, None), (None, 0), (-1, 1), (1, None), (None, 1)]
VMAPPED = [
    small(2),
    small(2, batch=2),
    Case((3, 4), channels=2, points=(1,), padding_mode="circular"),
    Case((3, 4), channels=2, points=(2, 3), mode="cubic", padding_mode="reflection"),
    Case((5,), channels=3, points=(4,), batch=2, mode="nearest"),
    Case((2, 3, 2), channels=2, points=(4,), mode="simplex", padding_mode="border"),
]
LOOPED = covering(
    list(product(VMAPPED, IN_DIMS, [0.0, 0.2])),
    *(itemgetter(*two) for two in combinations(range(3), 2)),
)


@pytest.mark.parametrize(("case", "in_dims", "jitter_std"), LOOPED, ids=str)
def test_vmap_is_a_loop(
    backend: str, case: Case, in_dims: tuple[int | None, int | None], jitter_std: float
) -> None:
    """Sample and gradients, with the noise that each slice would have alone."""
    values, coords, grad_output = case.tensors()
    tensors = sliced(values, in_dims[0]), sliced(coords, in_dims[1])

    def with_gradients(values: Tensor, coords: Tensor) -> tuple[Tensor, ...]:
        out, pullback = torch.func.vjp(call(case, backend, jitter_std), values, coords)
        return out, *pullback(grad_output)

    actual = torch.vmap(with_gradients, in_dims)(*tensors)
    loop = zip(*(slices(t, dim) for t, dim in zip(tensors, in_dims, strict=True)), strict=True)
    expected = [with_gradients(*pair) for pair in loop]
    for got, wanted in zip(actual, zip(*expected, strict=True), strict=True):
        assert_near(got, torch.stack(wanted), 2 * SAME_INDEX[torch.float64])


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)], ids=str)
@pytest.mark.parametrize("case", VMAPPED[:2], ids=str)
def test_vmap_of_a_single_gradient_is_a_loop(
    backend: str, case: Case, in_dims: tuple[int | None, int | None], wanted: int
) -> None:
    values, coords, _ = case.tensors()
    tensors = sliced(values, in_dims[0]), sliced(coords, in_dims[1])

    def gradient(values: Tensor, coords: Tensor) -> Tensor:
        function = call(case, backend, 0.2)
        return torch.func.grad(lambda v, x: function(v, x).square().sum(), wanted)(values, coords)

    actual = torch.vmap(gradient, in_dims)(*tensors)
    loop = zip(*(slices(t, dim) for t, dim in zip(tensors, in_dims, strict=True)), strict=True)
    expected = torch.stack([gradient(*pair) for pair in loop])
    assert_near(actual, expected, 2 * SAME_INDEX[torch.float64])


@pytest.mark.parametrize("case", [small(2), small(1, batch=2, mode="cubic")], ids=str)
def test_batched_gradients(backend: str, case: Case) -> None:
    leaves = [tensor.requires_grad_() for tensor in case.tensors()[:2]]
    function = call(case, backend, 0.2)
    for options in (
        {"check_batched_grad": True},
        {"check_forward_ad": True, "check_batched_forward_grad": True},
    ):
        assert torch.autograd.gradcheck(function, leaves, nondet_tol=nondet_tol(), **options)
    assert torch.autograd.gradgradcheck(
        function, leaves, nondet_tol=nondet_tol(), check_batched_grad=True
    )


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)], ids=str)
def test_vmap_over_single_points(backend: str, in_dims: tuple[int | None, int | None]) -> None:
    """Each slice a point without an axis of points."""
    values, coords, _ = Case((3, 4), channels=2, points=()).tensors()
    coords = (
        torch.stack([coords + shift / 4 for shift in range(SLICES)]) if in_dims[1] == 0 else coords
    )
    values = sliced(values, in_dims[0])
    actual = torch.vmap(lambda v, x: sample(v, x, backend=backend), in_dims)(values, coords)
    loop = zip(slices(values, in_dims[0]), slices(coords, in_dims[1]), strict=True)
    assert torch.equal(actual, torch.stack([sample(v, x, backend=backend) for v, x in loop]))


def test_nested_vmap_is_a_nested_loop(backend: str) -> None:
    case = small(2)
    values, coords, _ = case.tensors()
    values, coords = sliced(values, 0), sliced(coords, 0)
    function = call(case, backend, 0.2)
    actual = torch.vmap(torch.vmap(function, (None, 0)), (0, None))(values, coords)
    expected = torch.stack([torch.stack([function(v, x) for x in coords]) for v in values])
    assert_near(actual, expected, SAME_INDEX[torch.float64])


def test_vmap_over_jitter(backend: str) -> None:
    """Of seed and standard deviation, for one grid and its points."""
    values, coords, _ = small(2).tensors()
    seeds, stds = (
        torch.tensor([3, 4, 5]),
        torch.tensor([[0.1, 0.2], [0.0, 0.3], [0.2, 0.2]]).double(),
    )

    def moved(seed: Tensor, std: Tensor) -> Tensor:
        return sample(values, coords, jitter_std=std, seed=seed, backend=backend)

    actual = torch.vmap(moved)(seeds, stds)
    expected = torch.stack([moved(seed, std) for seed, std in zip(seeds, stds, strict=True)])
    assert_near(actual, expected, SAME_INDEX[torch.float64])
    same = torch.vmap(moved, (None, 0))(seeds[0], stds)
    assert_near(same[0], expected[0], SAME_INDEX[torch.float64])


def test_vmap_draws_a_seed_as_torch_draws_numbers(backend: str) -> None:
    """None by default, one for all slices, or one for each."""
    case = small(2)
    values, coords, _ = case.tensors()
    coords = coords.expand(SLICES, *coords.shape)

    def drawn(coords: Tensor) -> Tensor:
        return sample(values, coords, jitter_std=0.2, backend=backend)

    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(drawn)(coords)
    same = torch.vmap(drawn, randomness="same")(coords)
    assert torch.equal(same, same[:1].expand_as(same))
    different = torch.vmap(drawn, randomness="different")(coords)
    assert len({each.cpu().numpy().tobytes() for each in different}) == SLICES
