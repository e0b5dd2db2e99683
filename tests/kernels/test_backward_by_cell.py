"""The CUDA backward pass by points sorted by cell, whatever the plan would choose."""

import math
from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from torch import Tensor

from crad_kernels import sample
from tests.cases import (
    JUDGE,
    PADDING_MODES,
    SAME_INDEX,
    Case,
    assert_near,
    assert_rounded_once,
    cases,
    covering,
    mixed,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _by_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that cannot be made so raises."""
    monkeypatch.setenv("CRAD_KERNELS_PLAN", "family=cell")


def gradients(
    case: Case, backend: str, tensors: tuple[Tensor, ...], **more: object
) -> list[Tensor]:
    """With respect to values and coords."""
    values, coords, grad_output = tensors
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = sample(*leaves, **case.options, seed=1, backend=backend, **more)
    return list(torch.autograd.grad(out, leaves, grad_output))


def assert_matches_the_reference(case: Case, backend: str, jitter_std: float = 0.0) -> None:
    values, coords, grad_output = case.tensors()
    actual = gradients(case, backend, (values, coords, grad_output), jitter_std=jitter_std)
    wide = values.double(), coords, grad_output.double()
    exact = gradients(case, JUDGE, wide, jitter_std=jitter_std)
    tolerance = 2 * SAME_INDEX[torch.float32]
    assert (actual[0].dtype, actual[1].dtype) == (case.dtype, case.coords_dtype)
    assert_rounded_once(actual[0], exact[0], tolerance)
    assert_near(actual[1], exact[1], tolerance, case.slope)


def linear(*ndims: int, **changes: object) -> list[Case]:
    return cases(*ndims, modes=("linear",), coords_dtype=torch.float32, **changes)


@pytest.mark.parametrize(
    "case",
    covering(
        [
            replace(case, channels=channels, batch=batch, dtype=dtype)
            for case in linear(1, 2, 3, points=(150,))
            for channels in (1, 2, 3, 5, 8, 33, 64, 70)
            for batch in (None, 2)
            for dtype in DTYPES
        ],
        attrgetter("ndim", "channels", "dtype"),
        attrgetter("ndim", "padding_mode", "align_corners"),
        attrgetter("ndim", "batch"),
        attrgetter("padding_mode", "dtype"),
    ),
    ids=str,
)
def test_matches_the_reference(cuda_library: str, case: Case) -> None:
    assert_matches_the_reference(case, cuda_library)


@pytest.mark.parametrize(
    "case",
    mixed(2, 3, modes=("linear",), points=(150,), dtype=torch.float32, coords_dtype=torch.float32),
    ids=str,
)
def test_components_that_differ(cuda_library: str, case: Case) -> None:
    assert_matches_the_reference(case, cuda_library)


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("size", [(1,), (1, 1), (1, 7), (7, 1), (1, 1, 1), (3, 1, 2)], ids=str)
def test_axes_of_one_entry(cuda_library: str, size: tuple[int, ...], padding_mode: str) -> None:
    for align_corners in (False, True):
        case = Case(size, 8, (90,), padding_mode=padding_mode, align_corners=align_corners)
        case = replace(case, dtype=torch.float32, coords_dtype=torch.float32)
        assert_matches_the_reference(case, cuda_library)


@pytest.mark.parametrize("case", linear(1, 2, 3, channels=4, points=(300,), batch=2), ids=str)
def test_with_jitter(cuda_library: str, case: Case) -> None:
    """Which moves a point to another cell in the same way in each pass."""
    assert_matches_the_reference(case, cuda_library, jitter_std=0.3)


@pytest.mark.parametrize("case", linear(1, 2, 3, channels=5, points=(60,)), ids=str)
def test_derivatives_of_derivatives(cuda_library: str, case: Case) -> None:
    tensors = case.tensors()
    directions = [torch.flip(tensor, (0,)) for tensor in tensors[:2]]
    found = []
    for backend in (cuda_library, JUDGE):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        out = sample(*leaves[:2], **case.options, backend=backend)
        once = torch.autograd.grad(out, leaves[:2], leaves[2], create_graph=True)
        along = sum((g * d).sum() for g, d in zip(once, directions, strict=True))
        found.append(torch.autograd.grad(along, leaves))
    for got, wanted in zip(*found, strict=True):
        assert_near(got, wanted, SAME_INDEX[torch.float32], case.slope**2)


def spread(kind: str, points: int) -> Tensor:
    """Coordinates in a grid of 5 x 9 entries, a quarter or so away from these, which is exact."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    index = torch.randint(-8, 32, (points, 2), generator=generator, device="cpu") / 4
    if kind == "one cell":
        index = torch.full_like(index, 1.25)
    elif kind == "two cells in turn":
        index = torch.full_like(index, 1.25)
        index[::2] = 3.5
    elif kind == "sorted":
        index = index[index[:, 1].argsort(stable=True)]
    return (index / torch.tensor([4.0, 2.0], device="cpu") - 1).to(torch.get_default_device())


@pytest.mark.parametrize("channels", [1, 8, 40])
@pytest.mark.parametrize("kind", ["anywhere", "one cell", "two cells in turn", "sorted"])
@pytest.mark.parametrize(
    "plan", ["", ",batch=1", ",batch=37", ",chunks=3,batch=100", ",threads=32"]
)
def test_every_point_counts_once(
    cuda_library: str, monkeypatch: pytest.MonkeyPatch, channels: int, kind: str, plan: str
) -> None:
    """Whole numbers and fractions of powers of 2, of which sums are exact in any order."""
    monkeypatch.setenv("CRAD_KERNELS_PLAN", "family=cell" + plan)
    points = 70 if plan == ",batch=1" else 1100
    values = torch.randint(-8, 9, (5, 9, channels)).float()
    grad_output = torch.randint(-8, 9, (points, channels)).float()
    case = Case((5, 9), channels, align_corners=True, dtype=torch.float32)
    tensors = values, spread(kind, points), grad_output
    for got, wanted in zip(
        gradients(case, cuda_library, tensors), gradients(case, JUDGE, tensors), strict=True
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_gradient_alone(cuda_library: str, wanted: tuple[bool, bool]) -> None:
    for case in linear(1, 2, 3, channels=12, points=(100,), batch=2):
        values, coords, grad_output = case.tensors()
        found = []
        for backend in (cuda_library, JUDGE):
            leaves = [values.detach(), coords.detach()]
            leaf = leaves[wanted.index(True)].requires_grad_()
            out = sample(*leaves, **case.options, backend=backend)
            found += torch.autograd.grad(out, leaf, grad_output)
        assert_near(*found, SAME_INDEX[torch.float32], case.slope)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", linear(2, 3, channels=36, points=(700,)), ids=str)
def test_the_same_bits_in_every_run(cuda_library: str, case: Case, dtype: torch.dtype) -> None:
    tensors = replace(case, dtype=dtype).tensors()
    first, second = (gradients(case, cuda_library, tensors) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_channels_and_grids_do_not_change_the_bits_of_others(cuda_library: str) -> None:
    case = Case((4, 3), 40, (500,), 3, dtype=torch.float32, coords_dtype=torch.float32)
    values, coords, grad_output = case.tensors()
    (expected, _) = gradients(case, cuda_library, (values, coords, grad_output))
    order = torch.randperm(case.channels)
    (permuted, _) = gradients(
        case, cuda_library, (values[..., order], coords, grad_output[..., order])
    )
    assert torch.equal(permuted, expected[..., order])
    flipped = [tensor.flip(0) for tensor in (values, coords, grad_output)]
    assert torch.equal(gradients(case, cuda_library, (*flipped,))[0], expected.flip(0))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_coordinates_may_be_anything(cuda_library: str, padding_mode: str) -> None:
    """NaN, infinities and huge ones, amid others: with zeros padding the first two are no place."""
    case = Case((4, 3), 9, (64,), None, "linear", padding_mode, dtype=torch.float32)
    values, coords, grad_output = replace(case, coords_dtype=torch.float32).tensors()
    for i, odd in enumerate((math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -0.0)):
        coords[3 * i, i % 2] = odd
    for got, wanted in zip(
        gradients(case, cuda_library, (values, coords, grad_output)),
        gradients(case, JUDGE, (values, coords, grad_output)),
        strict=True,
    ):
        assert torch.equal(got.isnan(), wanted.isnan())
        assert_near(
            got.nan_to_num(), wanted.nan_to_num(), 2 * SAME_INDEX[torch.float32], case.slope
        )


@pytest.mark.parametrize(
    "case",
    [
        Case((4, 3), mode="nearest", coords_dtype=torch.float32),
        Case((4, 3), mode="cubic", coords_dtype=torch.float32),
        Case((2, 2, 2, 2), coords_dtype=torch.float32),
        Case((4, 3), coords_dtype=torch.float64),
        Case((4, 1), padding_mode="circular", coords_dtype=torch.float32),
    ],
    ids=str,
)
def test_other_calls_cannot_be_forced(cuda_library: str, case: Case) -> None:
    with pytest.raises(RuntimeError, match="cannot be cut that way"):
        gradients(case, cuda_library, case.tensors())
