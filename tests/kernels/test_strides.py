"""Tensors of any strides are read where they lie, with the bits of a call on contiguous ones."""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, product

import pytest
import torch
from torch import Tensor

from crad_kernels import sample
from crad_kernels._op import OPERATORS
from crad_kernels._schema import MODES, pack
from tests.cases import DTYPES, MOST_CUBIC, PRODUCTS, SHAPES, SIZES, Case


def reversed_axes(tensor: Tensor) -> Tensor:
    """The first axis is the fastest."""
    axes = list(range(tensor.ndim))[::-1]
    return tensor.permute(axes).contiguous().permute(axes)


def every_other(tensor: Tensor) -> Tensor:
    """A slice of another tensor along all axes."""
    larger = tensor.new_zeros([2 * length + 1 for length in tensor.shape])
    larger[tuple(slice(1, None, 2) for _ in tensor.shape)] = tensor
    return larger[tuple(slice(1, None, 2) for _ in tensor.shape)]


def part_of_rows(tensor: Tensor) -> Tensor:
    """Rows of which the last elements are left out."""
    return torch.cat((tensor, tensor[..., :1]), -1)[..., :-1]


def expanded_rows(tensor: Tensor) -> Tensor:
    """The first of the first axis, everywhere."""
    return tensor[:1].expand_as(tensor)


def expanded_elements(tensor: Tensor) -> Tensor:
    """The first element of each row, everywhere in it."""
    return tensor[..., :1].expand_as(tensor)


def one_element(tensor: Tensor) -> Tensor:
    return tensor.flatten()[:1].reshape((1,) * tensor.ndim).expand_as(tensor)


def expanded_middle(tensor: Tensor) -> Tensor:
    """As at an axis of points or entries, where there is one."""
    return tensor.narrow(tensor.ndim // 2, 0, 1).expand_as(tensor)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    reversed_axes,
    every_other,
    part_of_rows,
    expanded_rows,
    expanded_elements,
    expanded_middle,
    one_element,
]


def assert_strides_change_no_bit(
    case: Case, values: Tensor, coords: Tensor, grad_output: Tensor, wanted: tuple[bool, bool]
) -> None:
    results = []
    for laid_out in (Tensor.detach, Tensor.contiguous):
        leaves = [
            laid_out(tensor).detach().requires_grad_(want)
            for tensor, want in zip((values, coords), wanted, strict=True)
        ]
        out = sample(*leaves, **case.options, jitter_std=0.01, seed=1, backend="cpu")
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        results.append((out, *torch.autograd.grad(out, asked, laid_out(grad_output))))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


WANTED = [(True, True), (True, False), (False, True)]


def strided_cases() -> list[tuple[Case, tuple[int, int, int], tuple[bool, bool]]]:
    """Every shape in every mode; with the layouts, the dtypes and what is wanted in turn."""
    of_all_modes = [
        replace(case, mode=mode)
        for case in [*SHAPES, *(Case(SIZES[ndim], channels=ndim + 1) for ndim in SIZES)]
        for mode in (PRODUCTS if case.mode in PRODUCTS else (case.mode,))
        if mode != "cubic" or case.ndim <= MOST_CUBIC
    ]
    layouts, dtypes, wanted = cycle(range(len(LAYOUTS))), cycle(DTYPES), cycle(WANTED)
    chosen = []
    for number, case in enumerate(of_all_modes):
        dtype, coords_dtype = next(dtypes)
        # From case to case, other layouts come together.
        first = next(layouts)
        three = (first, (first + number // 7) % 7, (first + 2 * number // 7 + 1) % 7)
        case = replace(case, dtype=dtype, coords_dtype=coords_dtype)
        chosen.append((case, three, next(wanted)))
    return chosen


@pytest.mark.parametrize(("case", "layouts", "wanted"), strided_cases(), ids=str)
def test_strides_change_no_bit(
    case: Case, layouts: tuple[int, int, int], wanted: tuple[bool, bool]
) -> None:
    tensors = [
        LAYOUTS[layout](tensor) if tensor.ndim > 1 else tensor
        for tensor, layout in zip(case.tensors(), layouts, strict=True)
    ]
    assert_strides_change_no_bit(case, *tensors, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("points", [(40,), (2, 3, 900)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_gradients_of_any_strides(
    layout: Callable[[Tensor], Tensor], points: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Of one range and of several, of grids in bands and not, of many channels and few."""
    for (size, channels), wanted in zip(
        product([(3, 4), (150, 70)], [1, 3, 9, 80]), cycle(WANTED), strict=False
    ):
        case = Case(size, channels, points, dtype=dtype, coords_dtype=torch.float32)
        values, coords, grad_output = case.tensors()
        assert_strides_change_no_bit(case, values, coords, layout(grad_output), wanted)


def crop(tensor: Tensor) -> Tensor:
    """A part of an image that is channels first."""
    planes = tensor.movedim(-1, 0).contiguous()
    larger = torch.zeros([length + 2 for length in planes.shape], dtype=tensor.dtype)
    within = larger[tuple(slice(1, -1) for _ in planes.shape)]
    within.copy_(planes)
    return within.movedim(0, -1)


# Of more than 4 MiB: smaller ones are copied.
LARGE = [
    ((1100, 1000), 1, torch.float32),
    ((80, 90, 80), 2, torch.float32),
    ((600, 600), 3, torch.float32),
    ((600, 500), 3, torch.float64),
    ((500, 500), 5, torch.float32),
    ((400, 400), 8, torch.float32),
    ((700, 500), 8, torch.float16),
    ((2, 3, 120, 100), 19, torch.float32),
]


@pytest.mark.parametrize("layout", [*LAYOUTS, crop], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize(("size", "channels", "dtype"), LARGE, ids=str)
def test_large_values_are_read_in_place(
    size: tuple[int, ...],
    channels: int,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
) -> None:
    case = Case(size, channels, (700,), dtype=dtype, coords_dtype=torch.float32)
    values, coords, grad_output = case.tensors()
    values = layout(values)
    for mode in MODES:
        padding_mode = {"cubic": "reflection", "nearest": "circular"}.get(mode, "zeros")
        case = replace(case, mode=mode, padding_mode=padding_mode)
        wanted = (True, True) if mode == "linear" else (False, True)
        assert_strides_change_no_bit(case, values, coords, grad_output, wanted)


@pytest.mark.parametrize("layout", [Tensor.contiguous, crop], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("channels", [1, 3, 40])
def test_an_expanded_grid_is_a_shared_one(
    channels: int, layout: Callable[[Tensor], Tensor]
) -> None:
    for size, mode in product([(4, 3), (200, 300)], MODES):
        case = Case(size, channels, (3, 200), mode=mode, dtype=torch.float32)
        values, coords, grad_output = case.tensors()
        values = layout(values)
        expanded = values.expand(3, *values.shape)
        assert_strides_change_no_bit(case, expanded, coords, grad_output, (True, True))
        results = []
        for given in (values, expanded):
            leaf = coords.detach().requires_grad_()
            out = sample(given, leaf, **case.options, jitter_std=0.01, seed=1, backend="cpu")
            results.append((out, *torch.autograd.grad(out, leaf, grad_output)))
        for got, expected in zip(*results, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", [*LAYOUTS, crop], ids=lambda layout: layout.__name__)
def test_the_compiler_knows_where_results_lie(layout: Callable[[Tensor], Tensor]) -> None:
    case = Case((4, 3), points=(5, 4), dtype=torch.float32, coords_dtype=torch.float32)
    values, coords, grad_output = case.tensors()
    options = (None, None, pack("linear", "zeros", False, False))
    operators = OPERATORS["cpu"]
    for strided in (layout(values), values.expand(5, *values.shape)):
        torch.library.opcheck(operators.sample, (strided, layout(coords), *options))
        torch.library.opcheck(
            operators.sample_backward,
            (layout(grad_output), strided, layout(coords), *options, True, True),
        )


def test_a_gradient_of_another_shape_is_refused() -> None:
    values, coords, grad_output = Case((4, 3), points=(5, 4)).tensors()
    options = (None, None, pack("linear", "zeros", False, False))
    backward = OPERATORS["cpu"].sample_backward
    for other in (grad_output.flatten(0, 1), grad_output[:1], grad_output.movedim(-1, 0)):
        with pytest.raises(RuntimeError, match="expected grad_output of the shape"):
            backward(other, values, coords, *options, True, True)
