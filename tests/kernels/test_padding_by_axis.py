"""Padding and alignment that differ from axis to axis: tuples, in the order of components."""

from dataclasses import replace
from itertools import product
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crad_kernels import GridMemory, grid_sample, sample
from crad_kernels._schema import MODES, PADDING_MODES
from tests.cases import (
    DTYPES,
    JUDGE,
    OTHER_INDEX,
    PRODUCTS,
    SAME_INDEX,
    Case,
    assert_near,
    cases,
    covering,
    in_dtypes,
    mixed,
)


def with_gradients(case: Case, backend: str, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:2]]
    out = sample(*leaves, **case.options, backend=backend)
    return [out, *torch.autograd.grad(out, leaves, tensors[2])]


@pytest.mark.parametrize(
    "case",
    covering(
        mixed(*range(2, 9), modes=PRODUCTS, points=(3,), channels=1), attrgetter("ndim", "mode")
    ),
    ids=str,
)
def test_samples_a_product_as_the_product_of_samples(compiled_backend: str, case: Case) -> None:
    """Of one function an axis, each with the padding and the alignment of its component."""
    _, coords, _ = case.tensors()
    leaf = coords.requires_grad_()
    random = np.random.default_rng(0)
    values, expected = torch.ones(()).double(), torch.ones(()).double()
    for axis, length in enumerate(case.size):
        component = case.ndim - 1 - axis
        factor = torch.tensor(random.standard_normal(length))
        options = case.options | {
            "padding_mode": case.padding_mode[component],
            "align_corners": case.align_corners[component],
        }
        alone = sample(factor[:, None], leaf[:, component, None], **options, backend=JUDGE)
        expected = expected * alone[:, 0]
        values = values[..., None] * factor
    actual = sample(values[..., None], leaf, **case.options, backend=compiled_backend)[:, 0]
    tolerance = case.condition * OTHER_INDEX
    assert_near(actual, expected, tolerance)
    slopes = [torch.autograd.grad(out.sum(), leaf)[0] for out in (actual, expected)]
    assert_near(*slopes, 4 * tolerance)


@pytest.mark.parametrize(
    "case",
    covering(
        in_dtypes(mixed(*range(2, 9)), [DTYPES[0], DTYPES[3]]),
        attrgetter("ndim", "mode", "dtype"),
        attrgetter("mode", "padding_mode"),
        attrgetter("dtype", "coords_unit"),
    ),
    ids=str,
)
def test_matches_the_reference(compiled_backend: str, case: Case) -> None:
    tensors = case.tensors()
    magnitudes = (1.0, 1.0, case.slope)
    results = (with_gradients(case, name, tensors) for name in (compiled_backend, JUDGE))
    for got, wanted, magnitude in zip(*results, magnitudes, strict=True):
        assert_near(got, wanted, case.condition * SAME_INDEX[case.dtype], magnitude)


@pytest.mark.parametrize("case", cases(2, batch=2), ids=str)
def test_a_tuple_of_the_same_is_the_same(backend: str, case: Case) -> None:
    tensors = case.tensors()
    for paddings in ([case.padding_mode] * 2, (case.padding_mode,) * 2, case.padding_mode):
        for alignments in (case.align_corners, (case.align_corners,) * 2):
            same = replace(case, padding_mode=paddings, align_corners=alignments)
            results = (with_gradients(each, backend, tensors) for each in (same, case))
            for got, wanted in zip(*results, strict=True):
                assert torch.equal(got, wanted)


LARGE = {"dtype": torch.float32, "coords_dtype": torch.float32}


@pytest.mark.parametrize(
    "case",
    [
        # Larger than a cache: the points of a gradient are sorted, and those at the seam apart.
        Case((300, 260), 3, (17_000,), padding_mode=("zeros", "circular"), **LARGE),
        Case((300, 260), 3, (17_000,), padding_mode=("circular", "border"), **LARGE),
        Case((300, 260), 20, (9000,), padding_mode=("circular", "zeros"), mode="cubic", **LARGE),
        Case((190, 30), 20, (9000,), padding_mode=("reflection", "circular"), **LARGE),
        Case((8, 9), 216, (300,), padding_mode=("zeros", "circular"), **LARGE),
        Case((8, 9), 67, (100,), padding_mode=("zeros", "border"), mode="cubic", **LARGE),
        Case((40, 41, 42), 2, (700,), 2, padding_mode=("zeros", "circular", "border"), **LARGE),
    ],
    ids=str,
)
def test_matches_the_reference_in_every_shape(compiled_backend: str, case: Case) -> None:
    test_matches_the_reference(compiled_backend, case)


def panorama(channels_last: bool) -> Tensor:
    made = torch.randn(2, 3, 24, 70, generator=torch.Generator().manual_seed(0))
    return made.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else made


def name_of(mode: str) -> str:
    """What torch calls a mode."""
    return {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_panorama_is_that_of_an_image_with_columns_repeated(
    cpu_backend: str, mode: str, channels_last: bool
) -> None:
    image = panorama(channels_last)
    generator = torch.Generator().manual_seed(1)
    index = torch.rand(2, 40, 50, 2, generator=generator) * torch.tensor([150.0, 40.0]) - 40
    options: dict[str, Any] = {"mode": name_of(mode), "coords_unit": "index"}
    paddings = ("circular", "border")
    out = grid_sample(image, index, padding_mode=paddings, backend=cpu_backend, **options)
    repeated = F.pad(F.pad(image, (70, 70, 0, 0), "circular"), (0, 70, 0, 0), "circular")
    there = index + torch.tensor([70.0, 0.0])
    wanted = grid_sample(repeated, there, padding_mode="border", backend=JUDGE, **options)
    # Where float32 rounds the shifted index to the other side of a tie, there is another entry.
    no_tie = ((index - index.floor() - 0.5).abs() > 1e-3).all(-1)[:, None]
    assert_near(out * no_tie, wanted * no_tie, 1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_images_match_the_reference(cpu_backend: str, mode: str, channels_last: bool) -> None:
    """Points as lanes of vectors, of which some are at an edge; and strips of them."""
    places = torch.rand(2, 90, 100, 2, generator=torch.Generator().manual_seed(1)) * 3 - 1.5
    options: dict[str, Any] = {"mode": name_of(mode), "align_corners": (True, False)}
    for paddings in product(PADDING_MODES, PADDING_MODES):
        results = []
        for name in (cpu_backend, JUDGE):
            leaves = panorama(channels_last).requires_grad_(), places.requires_grad_()
            out = grid_sample(*leaves, padding_mode=paddings, backend=name, **options)
            weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).cos()
            results.append([out, *torch.autograd.grad(out, leaves, weights)])
        for got, wanted in zip(*results, strict=True):
            assert_near(got, wanted, 2e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_only_along_an_axis_with_zeros_is_there_no_place(backend: str, wrong: float) -> None:
    values = torch.randn(4, 5, 2)
    coords = torch.tensor([[0.1, wrong], [wrong, 0.1], [0.3, 0.2]])
    for mode in MODES:
        paddings = ("zeros", "border")
        out = sample(values, coords, mode=mode, padding_mode=paddings, backend=backend)
        assert out.isnan().all(-1).tolist() == [False, True, False]


def test_a_memory_keeps_them() -> None:
    paddings = ["circular", "border"]
    memory = GridMemory(3, (5, 4), padding_mode=paddings, align_corners=(False, True))
    paddings[0] = "zeros"
    coords = torch.rand(7, 2) * 4 - 2
    options: dict[str, Any] = {"align_corners": (False, True)}
    expected = sample(memory.weight, coords, padding_mode=("circular", "border"), **options)
    assert torch.equal(memory(coords), expected)
    assert "padding_mode=('circular', 'border'), align_corners=(False, True)" in repr(memory)
    with pytest.raises(ValueError, match="a tuple of 2 of them"):
        GridMemory(3, (5, 4), padding_mode=("zeros",) * 3)


def test_more_components_than_options_have_bits_for() -> None:
    case = Case((2,) * 9, points=(3,), channels=1)
    values, coords, _ = case.tensors()
    same = sample(values, coords, padding_mode=("border",) * 9)
    assert torch.equal(same, sample(values, coords, padding_mode="border"))
    with pytest.raises(ValueError, match="the same for all of the 9 components"):
        sample(values, coords, padding_mode=("zeros",) * 8 + ("border",))
