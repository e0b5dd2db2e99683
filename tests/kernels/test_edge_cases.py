"""Empty, tiny and strided tensors, and coordinates that are no places."""

import math
from dataclasses import replace
from itertools import combinations, product
from operator import attrgetter, itemgetter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crad_kernels import sample
from tests.cases import (
    MODES,
    OTHER_INDEX,
    PADDING_MODES,
    PRODUCTS,
    SIZES,
    Case,
    assert_near,
    assert_same,
    coords_of,
    covering,
    every_option,
)

INF, NAN = math.inf, math.nan


def gradients(
    values: Tensor,
    coords: Tensor,
    grad_output: Tensor,
    case: Case,
    backend: str,
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sample and its gradients with respect to values and coords."""
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = sample(*leaves, **case.options, deterministic=deterministic, backend=backend)
    return out, *torch.autograd.grad(out, leaves, grad_output)


# ---- empty ----


@pytest.mark.parametrize(
    "case",
    [
        Case((4, 3), points=(0,)),
        Case((4, 3), points=(2, 0, 3)),
        Case((4, 3), points=(0,), batch=2),
        Case((4, 3), batch=0),
        Case((4, 3), batch=0, points=(0,)),
        Case((4, 3), channels=0),
        Case((4, 3), channels=0, batch=2),
        Case((2,) * 8, channels=0, points=(0,)),
    ],
    ids=str,
)
def test_empty_tensors(backend: str, case: Case) -> None:
    """The result is as empty as they are, and the gradients are zero."""
    values, coords, grad_output = case.tensors()
    out, grad_values, grad_coords = gradients(values, coords, grad_output, case, backend)
    assert out.shape == grad_output.shape
    assert torch.equal(grad_values, torch.zeros_like(values))
    assert torch.equal(grad_coords, torch.zeros_like(coords))
    jittered = sample(values, coords, jitter_std=0.1, seed=0, backend=backend)
    assert jittered.shape == out.shape


# ---- tiny ----


ONE_ENTRY = covering(
    [case for ndim in SIZES for case in every_option(Case((1,) * ndim))],
    attrgetter("mode", "padding_mode", "align_corners"),
    attrgetter("ndim", "mode"),
    attrgetter("ndim", "padding_mode"),
    attrgetter("ndim", "align_corners"),
)


@pytest.mark.parametrize("case", ONE_ENTRY, ids=str)
def test_axes_of_one_entry(backend: str, case: Case) -> None:
    """Inside, and everywhere but with zeros, the one entry is all there is."""
    values, _, _ = case.tensors()
    inside = 0.9 if case.mode == "nearest" or case.align_corners else 0.0
    reach = inside if case.padding_mode == "zeros" else 5.0
    coords = torch.linspace(-reach, reach, 5, dtype=torch.float64)[:, None].expand(5, case.ndim)
    grad_output = torch.ones(5, case.channels, dtype=torch.float64)
    out, grad_values, grad_coords = gradients(values, coords, grad_output, case, backend)
    tolerance = 1e-15 * case.condition
    assert_near(out, values.reshape(1, -1).expand_as(out), tolerance)
    assert_near(grad_values, torch.full_like(values, 5.0), tolerance)
    if case.padding_mode != "zeros":
        # Where every tap reads the entry, their slopes sum to 0, but for rounding.
        rounds = cubic(case) or case.padding_mode == "circular"
        assert_near(grad_coords, torch.zeros_like(grad_coords), 4 * tolerance * rounds)


NOWHERE = covering(
    list(product(every_option(Case((1, 3))), [NAN, INF, -INF, 1e30, 2.0**31])),
    itemgetter(0),
    lambda each: (each[0].padding_mode, each[0].align_corners, each[1]),
    lambda each: (each[0].mode, each[0].padding_mode, each[1]),
)


@pytest.mark.parametrize(("case", "coordinate"), NOWHERE, ids=str)
def test_no_place_along_an_axis_of_one_entry(backend: str, case: Case, coordinate: float) -> None:
    """Is that entry's, unless padded with zeros."""
    values, coords, grad_output = Case((1, 3), points=(6,)).tensors()
    coords = coords.clamp(-0.4, 0.4)
    expected = gradients(values, with_component(coords, 1, 0.0), grad_output, case, backend)
    actual = gradients(values, with_component(coords, 1, coordinate), grad_output, case, backend)
    if case.padding_mode == "zeros":
        # Aligned, a finite coordinate is at the one entry, and times 0 an infinite one is nowhere.
        finite = math.isfinite(coordinate)
        if not (finite and case.align_corners):
            nothing = 0.0 if finite else NAN
            assert_all(actual[0], nothing)
            assert not actual[1].any()
            return
    expected[2][:, 1] = actual[2][:, 1] = 0
    for got, wanted in zip(actual, expected, strict=True):
        assert_near(got, wanted, 1e-15)


def assert_all(tensor: Tensor, number: float) -> None:
    torch.testing.assert_close(
        tensor, torch.full_like(tensor, number), rtol=0, atol=0, equal_nan=True
    )


LONG = covering(
    list(product([2**24 + 3, 2**24 + 4, 2**25 + 7], [False, True], PADDING_MODES[1:], PRODUCTS)),
    itemgetter(1, 2, 3),
    *(itemgetter(0, other) for other in (1, 2, 3)),
)


@pytest.mark.parametrize(("entries", "align_corners", "padding_mode", "mode"), LONG)
def test_an_axis_longer_than_float32_can_count(
    backend: str, entries: int, align_corners: bool, padding_mode: str, mode: str
) -> None:
    """Every coordinate reads an entry of it."""
    values = torch.ones(1, 1).expand(entries, 1)
    coords = torch.linspace(0.9999999, 1, 50)[:, None]
    if padding_mode in ("border", "circular"):
        coords = torch.cat((coords, torch.tensor([[1.5], [1e30]])))
    out = sample(
        values,
        coords,
        mode=mode,
        padding_mode=padding_mode,
        align_corners=align_corners,
        backend=backend,
    )
    torch.testing.assert_close(out, torch.ones_like(out))


def cubic(case: Case) -> bool:
    return case.mode == "cubic"


def test_a_point_without_an_axis_of_points(backend: str) -> None:
    values, coords, _ = Case((4, 3), points=(1,)).tensors()
    out = sample(values, coords[0], backend=backend)
    assert torch.equal(out, sample(values, coords, backend=backend)[0])


# ---- strided ----


def test_strided_inputs_are_as_good_as_contiguous_ones(backend: str) -> None:
    case = Case((4, 3), channels=6, points=(5, 4), batch=2)
    values, coords, grad_output = case.tensors()
    expected = gradients(values, coords, grad_output, case, backend)
    for stride in (
        lambda tensor: tensor.movedim(-1, 1).contiguous().movedim(1, -1),
        lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1),
        lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2],
        lambda tensor: torch.cat((tensor, tensor))[2:],
    ):
        strided = [stride(tensor) for tensor in (values, coords, grad_output)]
        assert not all(map(torch.Tensor.is_contiguous, strided)) or strided[0].storage_offset()
        assert_same(gradients(*strided, case, backend), expected)


def test_expanded_inputs_are_as_good_as_contiguous_ones(backend: str) -> None:
    case = Case((4, 3), channels=6, points=(5, 1), batch=1)
    values, coords, grad_output = (tensor[:, :1] for tensor in case.tensors())
    values = case.tensors()[0]
    tensors = (
        values.expand(3, 4, 3, 6),
        coords.expand(3, 5, 4, 2),
        grad_output[..., :1].expand(3, 5, 4, 6),
    )
    expected = gradients(*(tensor.contiguous() for tensor in tensors), case, backend)
    assert_same(gradients(*tensors, case, backend), expected)


def test_sum_over_an_expanded_grid_is_the_gradient_of_the_shared_one(backend: str) -> None:
    case = Case((4, 3), points=(5,), batch=3)
    _, coords, grad_output = case.tensors()
    values = case.tensors()[0][0]
    # CUDA reads the expanded grid in place, and sums in another order unless it is asked not to.
    asked = True if backend == "cuda" else None
    shared = gradients(values, coords, grad_output, case, backend, asked)
    expanded = gradients(values.expand(3, 4, 3, 3), coords, grad_output, case, backend, asked)
    assert torch.equal(shared[0], expanded[0])
    assert_near(shared[1], expanded[1].sum(0), 2e-15)
    assert torch.equal(shared[2], expanded[2])


# ---- coordinates that are no places ----

SQUARE = Case((4, 8), channels=5, points=(6,))


def with_component(coords: Tensor, component: int, coordinate: float) -> Tensor:
    """All points moved to one place along a component."""
    moved = coords.clone()
    moved[:, component] = coordinate
    return moved


def with_zeros(*coordinates: float) -> list[tuple[Case, float, int]]:
    """Cases with zeros padding, coordinates and components: each coordinate in every mode."""
    zeros = [case for case in every_option(SQUARE, MODES) if case.padding_mode == "zeros"]
    return covering(
        list(product(zeros, coordinates, [0, 1])),
        lambda each: (each[0].mode, each[1]),
        lambda each: (each[0].align_corners, each[1]),
        itemgetter(0, 2),
        itemgetter(1, 2),
    )


@pytest.mark.parametrize(
    ("case", "coordinate", "component"), with_zeros(NAN, INF, -INF, 3e38), ids=str
)
def test_zeros_padding_makes_a_non_finite_index_nan(
    backend: str, case: Case, coordinate: float, component: int
) -> None:
    """Of a point alone: the others, and the gradient of the values, do not know of it."""
    case = replace(case, dtype=torch.float32, coords_dtype=torch.float32)
    values, coords, grad_output = case.tensors()
    bad = torch.tensor([False, True, True, False, False, True])
    coords[bad] = with_component(coords[bad], component, coordinate)
    out, grad_values, grad_coords = gradients(values, coords, grad_output, case, backend)
    expected = gradients(values, coords[~bad], grad_output[~bad], case, backend)
    assert out[bad].isnan().all()
    assert grad_coords[bad].isnan().all()
    assert torch.equal(out[~bad], expected[0])
    assert_near(grad_values, expected[1], 1e-6)
    assert torch.equal(grad_coords[~bad], expected[2])


@pytest.mark.parametrize(
    ("case", "coordinate", "component"), with_zeros(1e30, -1e30, 1e8, 1e300, -1e300), ids=str
)
def test_zeros_padding_is_zero_far_away(
    backend: str, case: Case, coordinate: float, component: int
) -> None:
    values, coords, grad_output = case.tensors()
    coords = with_component(coords, component, coordinate)
    for result in gradients(values, coords, grad_output, case, backend):
        assert torch.equal(result, torch.zeros_like(result))


FIRST, LAST = 0, -1


# Which entry a coordinate is at that is far outside, or no number.
OUTER = [
    ("border", NAN, FIRST),
    ("border", -INF, FIRST),
    ("border", -1e30, FIRST),
    ("border", 1e30, LAST),
    ("border", INF, LAST),
    ("reflection", NAN, FIRST),
    ("reflection", INF, FIRST),
    ("reflection", -INF, FIRST),
    ("reflection", 1e30, FIRST),
    ("reflection", -1e30, FIRST),
    ("reflection", 2.0**31, FIRST),  # times at least 3 / 2: the index is beyond 2^31
    ("circular", NAN, FIRST),
    ("circular", INF, FIRST),
    ("circular", -INF, FIRST),
    ("circular", 1e30, FIRST),
    ("circular", -(2.0**31), FIRST),
]
# Every coordinate in every mode; of the rest every two, and every option in both dtypes.
OUTSIDE = covering(
    list(product(MODES, OUTER, [False, True], [torch.float32, torch.float64], [0, 1])),
    *(itemgetter(*two) for two in combinations(range(5), 2)),
    lambda each: (each[0], each[1][0], *each[2:4]),
)


@pytest.mark.parametrize(
    ("mode", "place", "align_corners", "coords_dtype", "component"), OUTSIDE, ids=str
)
def test_all_padding_but_zeros_gives_an_entry(
    backend: str,
    mode: str,
    place: tuple[str, float, int],
    align_corners: bool,
    coords_dtype: torch.dtype,
    component: int,
) -> None:
    """The outer entry along that component, as if it had been asked for, with no slope along it."""
    padding_mode, coordinate, entry = place
    case = replace(
        SQUARE,
        mode=mode,
        padding_mode=padding_mode,
        align_corners=align_corners,
        dtype=coords_dtype,
        coords_dtype=coords_dtype,
    )
    values, coords, grad_output = case.tensors()
    size = case.size[1 - component]
    at_entry = float(coords_of(np.array(entry % size), np.array(size), align_corners))
    actual = gradients(
        values, with_component(coords, component, coordinate), grad_output, case, backend
    )
    expected = gradients(
        values, with_component(coords, component, at_entry), grad_output, case, backend
    )
    assert not actual[2][:, component].any()
    expected[2][:, component] = 0  # where cubic has a slope at an outer entry itself
    assert_same(actual, expected)


@pytest.mark.parametrize("padding_mode", ["reflection", "circular"])
@pytest.mark.parametrize("mode", PRODUCTS)
def test_padding_repeats_itself_as_far_as_indices_go(
    backend: str, mode: str, padding_mode: str
) -> None:
    """To 2^31, from where on there is the first entry alone."""
    case = Case((4,), mode=mode, padding_mode=padding_mode)
    values, coords, grad_output = case.tensors()
    expected = gradients(values, coords, grad_output, case, backend)
    for periods in (1e9, -1e9):  # an index of almost 2^31, whose rounding is 2e-7
        actual = gradients(values, coords + periods, grad_output, case, backend)
        for got, wanted in zip(actual, expected, strict=True):
            assert_near(got, wanted, 1e-5)


@pytest.mark.parametrize("mode", PRODUCTS)
@pytest.mark.parametrize(
    ("size", "periods"),
    [
        (3, 5),
        (7, -1001),
        (3, 1 << 22),
        (5, -(1 << 22)),
        (1, 1 << 24),
        (2, -(1 << 29)),
        (3, 1 << 29),
    ],
)
def test_circular_padding_repeats_the_grid(
    backend: str, size: int, periods: int, mode: str
) -> None:
    """By any number of periods: the last four are past an index of 2^23."""
    case = Case((size,), points=(2 * size,), mode=mode, padding_mode="circular")
    values, _, grad_output = case.tensors()
    index = np.arange(2 * size)[:, None] % size + 0.25
    near, far = (
        gradients(
            values, torch.tensor(coords_of(at, np.array(size), False)), grad_output, case, backend
        )
        for at in (index, index + periods * size)
    )
    for got, wanted in zip(far, near, strict=True):
        assert_near(got, wanted, 1e-5, case.slope)


@pytest.mark.parametrize("mode", PRODUCTS)
def test_circular_padding_is_exact_where_float32_has_no_fractions(backend: str, mode: str) -> None:
    """The taps of an index follow each other there, too: the slope is between neighbours."""
    values = torch.tensor([[1.0], [4.0], [16.0]])
    where = torch.tensor([2.0**23, 2.0**24 + 2, -(2.0**24) - 6, 2.0**26 + 8, -(2.0**30)])
    coords = where[:, None].requires_grad_()
    options = {"mode": mode, "padding_mode": "circular", "align_corners": True}
    out = sample(values, coords, **options, backend=backend)
    (slope,) = torch.autograd.grad(out.sum(), coords)
    index = (where + 1).to(torch.int64)  # aligned: an entry is 1 long
    before, at, behind = (values[(index + step) % 3] for step in (-1, 0, 1))
    assert torch.equal(out, at)
    expected = {"nearest": 0 * at, "linear": behind - at, "cubic": 0.75 * (behind - before)}[mode]
    assert torch.equal(slope, expected)


def test_circular_padding_is_that_of_the_index_rounded(backend: str) -> None:
    """Halfway between entries the even index is read, and not the even entry."""
    values = torch.arange(3.0)[:, None]
    index = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5])
    coords = (index - 1)[:, None]  # aligned: an entry apart
    out = sample(
        values,
        coords,
        mode="nearest",
        padding_mode="circular",
        align_corners=True,
        backend=backend,
    )
    assert out[:, 0].tolist() == [1, 0, 0, 2, 2, 1, 1]


@pytest.mark.parametrize("size", [(1,), (2,), (3,), (1, 2), (2, 1), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_taps_of_one_entry_add_up(backend: str, size: tuple[int, ...], mode: str) -> None:
    """Where an axis is shorter than the taps of a point: with either layout of values."""
    case = Case(size, channels=5, points=(41,), mode=mode, padding_mode="circular")
    values, coords, grad_output = case.tensors()
    tiled = Case(tuple(4 * n for n in size), 5, (41,), mode=mode, padding_mode="circular")
    larger = values.repeat(*(4,) * case.ndim, 1)
    # From -1 on, the first border, four times as finely.
    expected = gradients(larger, (coords + 1) / 4 - 1, grad_output, tiled, backend)
    summed = expected[1]
    for axis, length in enumerate(size):
        summed = summed.unflatten(axis, (4, length)).sum(axis)
    laid_out = values.movedim(-1, 0).contiguous().movedim(0, -1)
    for given in (values, laid_out):
        out, of_values, of_coords = gradients(given, coords, grad_output, case, backend)
        assert_near(out, expected[0], OTHER_INDEX * case.condition)
        assert_near(of_values, summed, 4 * OTHER_INDEX * case.condition)
        assert_near(of_coords, expected[2] / 4, OTHER_INDEX * case.condition, case.slope)


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in every_option(SQUARE)
        if case.mode == "linear" and case.padding_mode != "circular"
    ],
    ids=str,
)
def test_torch_follows_the_same_rule(backend: str, case: Case) -> None:
    """In its 2-D kernel on the CPU, forward."""
    case = replace(case, dtype=torch.float32, coords_dtype=torch.float32)
    values, _, _ = case.tensors()
    places = [NAN, INF, -INF, 1e30, -1e30, 3e38, -0.4, 0.3]
    coords = torch.cartesian_prod(torch.tensor(places), torch.tensor(places))
    expected = F.grid_sample(
        values.movedim(-1, 0)[None].cpu(),
        coords[None, None].cpu(),
        padding_mode=case.padding_mode,
        align_corners=case.align_corners,
    )[0, :, 0].T
    actual = sample(values, coords, **case.options, backend=backend)
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=2e-6, equal_nan=True)


def with_poison(case: Case) -> list[tuple[Case, float]]:
    """Every option of a case, and either poison in every mode and padding."""
    return covering(
        list(product(every_option(case, MODES), [NAN, INF])),
        itemgetter(0),
        lambda each: (each[0].mode, each[0].padding_mode, each[1]),
        lambda each: (each[0].align_corners, each[1]),
    )


@pytest.mark.parametrize(("case", "poison"), with_poison(Case((16, 16), points=(8,))), ids=str)
def test_entries_that_are_not_sampled_do_not_leak(backend: str, case: Case, poison: float) -> None:
    """Neither into the result nor into a gradient."""
    values, coords, grad_output = case.tensors()
    clean = gradients(values, coords, grad_output, case, backend)
    weight = gradients(values, coords, torch.ones_like(grad_output), case, backend)[1]
    # Neighbours count as sampled: a tap in the grid may have weight 0.
    sampled = F.max_pool2d(weight.movedim(-1, 0), 3, 1, 1).movedim(0, -1) != 0
    assert not sampled.all()
    poisoned = torch.where(sampled, values, poison).contiguous()  # as the values are
    assert_same(gradients(poisoned, coords, grad_output, case, backend), clean)


@pytest.mark.parametrize(
    "case",
    [Case((5, 2, 2, 2, 2), points=(5,)), Case((7, 4, 4), points=(5,), mode="cubic")],
    ids=str,
)
@pytest.mark.parametrize("poison", [NAN, INF])
def test_nor_do_they_where_a_point_has_many_corners(
    backend: str, case: Case, poison: float
) -> None:
    """Of a small grid, whose entries may all be read for every point."""
    values, coords, grad_output = case.tensors()
    grad_output = grad_output.abs()
    coords = coords * 0.1 - torch.eye(case.ndim, dtype=coords.dtype)[-1] * 0.8
    poisoned = values.clone()
    poisoned[-1] = poison  # at the other end of the first axis
    clean = gradients(values, coords, grad_output, case, backend)
    assert_same(gradients(poisoned, coords, grad_output, case, backend), clean)
    coords[4, -1] = 0.9
    out, _, grad_coords = gradients(poisoned, coords, grad_output, case, backend)
    for result in (out, grad_coords):
        reached = ~result.isfinite().all(-1)
        assert reached.nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize(("mode", "nearest"), [("nearest", 1.6), ("linear", 1.6), ("cubic", 2.2)])
def test_taps_outside_the_grid_read_no_entry(backend: str, mode: str, nearest: float) -> None:
    """Zeros are not an entry times zero."""
    case = Case((4,), mode=mode)
    poisoned = torch.tensor([[NAN], [1.0], [INF], [NAN]], dtype=torch.float64)
    coords = torch.tensor([[-nearest], [nearest], [-40.0], [40.0], [1e30]], dtype=torch.float64)
    grad_output = torch.ones(5, 1, dtype=torch.float64)
    for result in gradients(poisoned, coords, grad_output, case, backend):
        assert torch.equal(result, torch.zeros_like(result))


def test_an_entry_beside_a_tap_outside_the_grid_counts_alone(backend: str) -> None:
    """Half an entry beyond the last centre: only the last entry is read."""
    case = Case((4,))
    poisoned = torch.tensor([[NAN], [NAN], [NAN], [2.0]], dtype=torch.float64)
    coords, grad_output = torch.tensor([[[1.0]], [[3.0]]], dtype=torch.float64)
    out, grad_values, grad_coords = gradients(poisoned, coords, grad_output, case, backend)
    assert out.item() == 1
    assert grad_values[:, 0].tolist() == [0, 0, 0, 1.5]
    assert grad_coords.item() == -2 * 3 * 2  # half the size in entries per unit


@pytest.mark.parametrize(("case", "poison"), with_poison(Case((4, 5), points=(8,))), ids=str)
def test_a_gradient_that_is_no_number_stays_where_its_point_is(
    backend: str, case: Case, poison: float
) -> None:
    """At the entries that its point reads, and in its channel."""
    values, coords, grad_output = case.tensors()
    coords[2] = torch.tensor([0.13, -0.17])
    of_the_point = torch.zeros_like(grad_output)
    of_the_point[2, 1] = 1
    reached = gradients(values, coords, of_the_point, case, backend)[1] != 0
    assert reached.any()
    grad_output[2, 1] = 0
    out, expected, _ = gradients(values, coords, grad_output, case, backend)
    grad_output[2, 1] = poison
    same_out, actual, _ = gradients(values, coords, grad_output, case, backend)
    assert torch.equal(actual.isfinite(), ~reached)
    assert_same((same_out, actual[~reached]), (out, expected[~reached]))


@pytest.mark.parametrize(
    ("mode", "channels", "dtype"),
    covering(
        list(product(MODES, [1, 3, 8], [torch.float64, torch.float32])),
        *(itemgetter(*two) for two in combinations(range(3), 2)),
    ),
    ids=str,
)
def test_a_gradient_that_is_no_number_does_not_come_through_corners_outside(
    cpu_backend: str, mode: str, channels: int, dtype: torch.dtype
) -> None:
    """Of points without a corner inside, the coordinates have no gradient, whatever is given.

    (Where values are read as zeros there, as the reference does, it is NaN.)
    """
    case = Case((4, 5), channels=channels, mode=mode, dtype=dtype, coords_dtype=dtype)
    values, coords, grad_output = case.tensors()
    coords[2:4] = 9.0
    grad_output[2:4] = 1.0
    expected = gradients(values, coords, grad_output, case, cpu_backend)
    assert not expected[2][2:4].any()
    grad_output[2], grad_output[3] = NAN, INF
    assert_same(gradients(values, coords, grad_output, case, cpu_backend), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_an_infinite_gradient_comes_through_the_corner_inside_alone(
    cpu_backend: str, channels: int, dtype: torch.dtype
) -> None:
    """Through the one outside too, it would be a difference of infinities."""
    case = Case((4,), channels=channels, points=(2,), dtype=dtype, coords_dtype=dtype)
    values, coords = torch.ones(4, channels, dtype=dtype), torch.tensor([[-1.0], [1.0]])
    grad_output = torch.full((2, channels), INF, dtype=dtype)
    _, _, grad_coords = gradients(values, coords.to(dtype), grad_output, case, cpu_backend)
    assert grad_coords.flatten().tolist() == [INF, -INF]
