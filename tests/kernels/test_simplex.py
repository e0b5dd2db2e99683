"""Simplex interpolation, against the definition written out point by point."""

import math
from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from crad_kernels import grid_sample, sample
from tests.cases import (
    EVERY_TWO_OPTIONS,
    OTHER_INDEX,
    SIZES,
    TAPS,
    Case,
    assert_near,
    assert_same,
    cases,
    coords_of,
    covering,
)


def gradients(
    values: Tensor, coords: Tensor, grad_output: Tensor, case: Case, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The sample, and the gradients of both arguments."""
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = sample(*leaves, **case.options, backend=backend)
    return out, *torch.autograd.grad(out, leaves, grad_output)


# ---- the definition ----


def index_of(coordinate: float, size: int, case: Case) -> tuple[float, float]:
    """A fractional position after padding, and its derivative."""
    scale = (size - 1) / 2 if case.align_corners else size / 2
    index = (coordinate + 1) * scale - (0 if case.align_corners else 0.5)
    if case.padding_mode == "reflection":
        low, high = (0.0, size - 1.0) if case.align_corners else (-0.5, size - 0.5)
        while high > low and not low <= index <= high:
            index = 2 * (low if index < low else high) - index
            scale = -scale
    if case.padding_mode in ("border", "reflection"):
        within = 0 < index < size - 1
        return min(max(index, 0.0), size - 1.0), scale if within else 0.0
    return index, scale


def walk(
    point: list[float], case: Case
) -> Iterator[tuple[int, float, tuple[int, ...] | None, float]]:
    """The steps of a point: component, its slope; and the corner before it, with its weight.

    The last one is after all steps, of component -1. An entry is None outside the grid.
    """
    size, ndim = case.size, case.ndim
    base, fraction, slope = [], [], []
    for axis in range(ndim):
        index, along = index_of(point[ndim - 1 - axis], size[axis], case)
        base.append(math.floor(index))
        fraction.append(index - math.floor(index))
        slope.append(along)
    order = sorted(range(ndim), key=lambda axis: (-fraction[axis], ndim - axis))
    heights = [1.0, *(fraction[axis] for axis in order), 0.0]
    at = base.copy()
    for k in range(ndim + 1):
        entry = tuple(
            i % n if case.padding_mode == "circular" else i for i, n in zip(at, size, strict=True)
        )
        inside = all(0 <= i < n for i, n in zip(entry, size, strict=True))
        axis = order[k] if k < ndim else -1
        component = ndim - 1 - axis if k < ndim else -1
        yield component, slope[axis], entry if inside else None, heights[k] - heights[k + 1]
        at[axis] += 1


def by_definition(
    values: Tensor, coords: Tensor, grad_output: Tensor, case: Case
) -> tuple[Tensor, Tensor, Tensor]:
    values, coords, grad_output = values.cpu(), coords.cpu(), grad_output.cpu()
    out, grad_values = torch.zeros_like(grad_output), torch.zeros_like(values)
    grad_coords = torch.zeros_like(coords)
    nothing = torch.zeros(case.channels, dtype=values.dtype)
    for p, point in enumerate(coords.tolist()):
        stepped, before, scale = -1, nothing, 0.0
        for component, slope, entry, weight in walk(point, case):
            value = nothing if entry is None else values[entry]
            out[p] += weight * value
            if entry is not None:
                grad_values[entry] += weight * grad_output[p]
            if stepped >= 0:
                grad_coords[p, stepped] = scale * ((value - before) * grad_output[p]).sum()
            stepped, before, scale = component, value, slope
    return out, grad_values, grad_coords


@pytest.mark.parametrize(
    "case", covering(cases(*SIZES, modes=("simplex",)), TAPS, *EVERY_TWO_OPTIONS), ids=str
)
def test_matches_the_definition(backend: str, case: Case) -> None:
    tensors = case.tensors()
    actual = gradients(*tensors, case, backend)
    expected = by_definition(*tensors, case)
    for got, wanted, magnitude in zip(actual, expected, (1, 1, case.slope), strict=True):
        assert_near(got.cpu(), wanted, OTHER_INDEX, magnitude)


@pytest.mark.parametrize(
    "case", [Case((3, 1, *10 * (2,)), mode="simplex"), Case(16 * (2,), mode="simplex")], ids=str
)
def test_more_dimensions_take_the_reference(case: Case) -> None:
    """Unasked, as no other backend has them. Linear would read 65,536 entries a point."""
    tensors = case.tensors()
    leaves = [tensor.requires_grad_() for tensor in tensors[:2]]
    out = sample(*leaves, **case.options)
    actual = out, *torch.autograd.grad(out, leaves, tensors[2])
    expected = by_definition(*(tensor.detach() for tensor in tensors), case)
    for got, wanted, magnitude in zip(actual, expected, (1, 1, case.slope), strict=True):
        assert_near(got, wanted, OTHER_INDEX, magnitude)


# ---- what follows from it ----


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_of_one_axis_it_is_linear(backend: str, padding_mode: str) -> None:
    """To the last bit."""
    case = Case((5,), points=(40,), padding_mode=padding_mode)
    tensors = case.tensors()
    simplex = Case((5,), points=(40,), padding_mode=padding_mode, mode="simplex")
    assert_same(gradients(*tensors, simplex, backend), gradients(*tensors, case, backend))


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "circular"])
def test_is_continuous_between_simplices(backend: str, padding_mode: str) -> None:
    """On their common faces, in the grid and at its borders, from all sides."""
    case = Case((3, 4, 2), points=(60,), mode="simplex", padding_mode=padding_mode)
    values, _, _ = case.tensors()
    random = np.random.default_rng(0)
    index = random.integers(-1, 4, (60, 3)) + random.uniform(size=(60, 1))  # t alike on all axes
    index[:20, 0] = np.floor(index[:20, 0])
    index[10:30, 1] = random.uniform(-1, 4, 20)
    coords = torch.tensor(coords_of(index, np.array(case.size[::-1]), False))
    out = sample(values, coords, **case.options, backend=backend)
    step = 1e-9
    for towards in permutations((-step, 0, step)):
        near = sample(values, coords + coords.new_tensor(towards), **case.options, backend=backend)
        assert_near(near, out, 1e-7)


def test_at_equal_fractions_the_lower_component_comes_first(backend: str) -> None:
    case = Case((2, 2), channels=1, points=(1,), mode="simplex")
    values = torch.tensor([[[1.0], [4.0]], [[10.0], [100.0]]], dtype=torch.float64)  # [y, x]
    coords, grad_output = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 1).double()
    out, grad_values, slope = gradients(values, coords, grad_output, case, backend)
    assert out.item() == 50.5
    assert grad_values.flatten().tolist() == [0.5, 0, 0, 0.5]
    assert slope.tolist() == [[4 - 1, 100 - 4]]


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_at_the_last_entry_the_other_slopes_are_those_along_the_border(
    backend: str, padding_mode: str
) -> None:
    """Where the walk would leave the grid by a step of no length, as for points on the entries."""
    case = Case((3, 4), 1, (1,), mode="simplex", padding_mode=padding_mode, align_corners=True)
    values, _, grad_output = case.tensors()
    coords = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # the middle entry of the last column
    out, _, slope = gradients(values, coords, torch.ones_like(grad_output), case, backend)
    _, middle, last = values[:, -1, 0]
    assert out.item() == middle
    assert_near(slope[0, 1], last - middle, OTHER_INDEX)


def test_grid_sample_takes_it(backend: str) -> None:
    case = Case((3, 4), channels=2, points=(5,), batch=2, mode="simplex")
    values, coords, _ = case.tensors()
    out = grid_sample(values.movedim(-1, 1), coords[:, None], "simplex", backend=backend)
    expected = sample(values, coords, **case.options, backend=backend)
    assert torch.equal(out[:, :, 0].movedim(1, -1), expected)


def test_reads_far_fewer_entries_than_linear(backend: str) -> None:
    """In 8 dimensions 9 and not 256."""
    case = Case((2,) * 8, channels=1, points=(1,), mode="simplex")
    values, _, grad_output = case.tensors()
    coords = torch.linspace(-0.4, 0.4, 8, dtype=torch.float64)[None]
    read = gradients(values, coords, grad_output.abs(), case, backend)[1] != 0
    assert read.sum() == 9
