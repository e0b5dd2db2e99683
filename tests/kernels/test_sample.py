"""Values and gradients of the sample, against oracles that nobody here wrote."""

from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies
from onnx.reference import ReferenceEvaluator
from scipy import ndimage
from torch import Tensor

from crad_kernels import sample
from tests.cases import (
    DTYPES,
    EVERY_TWO_OPTIONS,
    JUDGE,
    MODES,
    MOST_CUBIC,
    OTHER_INDEX,
    PADDING_MODES,
    PRODUCTS,
    SAME_INDEX,
    SHAPE,
    SHAPES,
    SIZES,
    TAPS,
    TORCH_MODES,
    Case,
    assert_near,
    assert_rounded_once,
    assert_same,
    cases,
    coords_of,
    covering,
    in_dtypes,
    in_units,
)


def with_gradients(
    function: Any, values: Tensor, coords: Tensor, grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The result of `function`, and the gradients with respect to its two arguments."""
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = function(*leaves)
    return out, *torch.autograd.grad(out, leaves, grad_output)


# ---- torch ----

TORCH_CASES = [
    case
    for case in cases(2, 3, batch=2) + cases(2, 3, channels=7)
    if case.ndim == 2 or case.mode != "cubic"  # which torch has in 2-D alone
]


def repeated(values: Tensor, coords: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Some periods of a grid, of which the fifth is the middle one, and the coordinates in them.

    The coordinates are divided by a power of 2, so that what is halfway between entries stays so.
    """
    scale, shift = [], []
    for axis, size in enumerate(case.size, start=0 if case.batch is None else 1):
        along = size - case.align_corners  # in entries, what 2 is as a coordinate
        times = 2
        while times * along < 8 * size + 8:
            times *= 2
        entry = torch.arange(times * along + case.align_corners) - 4 * size
        values = values.index_select(axis, entry % size)
        scale.append(1 / times)
        shift.append(1 / times + 8 * size / (times * along) - 1)
    return values, coords * coords.new_tensor(scale[::-1]) + coords.new_tensor(shift[::-1])


def by_torch(values: Tensor, coords: Tensor, case: Case) -> Tensor:
    """`F.grid_sample`, which wants a batch, channels first, and D axes of points."""
    if case.padding_mode == "circular":
        values, coords = repeated(values, coords, case)
        case = replace(case, padding_mode="zeros")
    ndim = case.ndim
    batched = values if case.batch is not None else values[None]
    points = coords if case.batch is not None else coords[None]
    grid = points.reshape(len(points), *(1,) * (ndim - 1), -1, ndim)
    mode = TORCH_MODES[case.mode]
    out = F.grid_sample(batched.movedim(-1, 1), grid, mode, case.padding_mode, case.align_corners)
    return out.movedim(1, -1).reshape(*coords.shape[:-1], values.shape[-1])


@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_matches_torch(backend: str, case: Case) -> None:
    tensors = case.tensors()
    actual = with_gradients(lambda v, x: sample(v, x, **case.options, backend=backend), *tensors)
    expected = with_gradients(lambda v, x: by_torch(v, x, case), *tensors)
    for got, wanted in zip(actual, expected, strict=True):
        assert_near(got, wanted, OTHER_INDEX)


@pytest.mark.parametrize("case", cases(2, batch=1, points=(81,)), ids=str)
def test_matches_torch_where_the_sample_bends(backend: str, case: Case) -> None:
    """On entries, between them and on the borders: which side's slope counts, and ties to even."""
    case = replace(case, size=(4, 8) if not case.align_corners else (5, 9))
    values, _, grad_output = case.tensors()
    position = np.arange(-9, 18) / 2
    index = np.stack(np.meshgrid(position[::3], position[::3]), -1).reshape(1, -1, 2)
    coords = torch.tensor(coords_of(index, np.array(case.size[::-1]), case.align_corners))
    actual = with_gradients(
        lambda v, x: sample(v, x, **case.options, backend=backend), values, coords, grad_output
    )
    expected = with_gradients(lambda v, x: by_torch(v, x, case), values, coords, grad_output)
    for got, wanted in zip(actual, expected, strict=True):
        assert_near(got, wanted, OTHER_INDEX)


# ---- ONNX ----


def by_onnx(values: Tensor, coords: Tensor, case: Case) -> Tensor:
    """The reference implementation of GridSample-20, channels first, with D axes of points."""
    ndim = case.ndim
    node = onnx.helper.make_node(
        "GridSample",
        ["x", "grid"],
        ["y"],
        mode=case.mode,
        padding_mode=case.padding_mode,
        align_corners=int(case.align_corners),
    )
    tensors = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, [None] * (ndim + 2))
        for name in ("x", "grid", "y")
    ]
    graph = onnx.helper.make_graph([node], "sample", tensors[:2], tensors[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    grid = coords.reshape(len(coords), *(1,) * (ndim - 1), -1, ndim)
    feeds = {"x": values.movedim(-1, 1).cpu().numpy(), "grid": grid.cpu().numpy()}
    (out,) = ReferenceEvaluator(model).run(None, feeds)
    return torch.tensor(out).movedim(1, -1).reshape(*coords.shape[:-1], values.shape[-1])


def comparable_to_onnx(case: Case) -> bool:
    """Its cubic pads the coordinate under border, and not the taps, as torch does.

    And between the centres of one entry, it divides by their distance. It has no circular padding,
    and no simplex.
    """
    if case.mode == "simplex" or case.padding_mode == "circular":
        return False
    if case.padding_mode == "reflection" and case.align_corners and 1 in case.size:
        return False
    return (case.mode, case.padding_mode) != ("cubic", "border")


def assert_matches_onnx(case: Case, backend: str) -> None:
    values, coords, _ = case.tensors()
    actual = sample(values, coords, **case.options, backend=backend)
    # It rounds its weights to float32.
    tolerance = OTHER_INDEX if case.mode == "nearest" else SAME_INDEX[torch.float32]
    tolerance *= case.condition
    assert_near(actual, by_onnx(values, coords, case), tolerance)


@pytest.mark.parametrize(
    "case",
    covering(
        list(filter(comparable_to_onnx, cases(1, 3, 4, 5, batch=2, channels=2, points=(9,)))),
        TAPS,
        *EVERY_TWO_OPTIONS,
    ),
    ids=str,
)
def test_matches_onnx(backend: str, case: Case) -> None:
    assert_matches_onnx(case, backend)


ANY_OPTIONS = {
    "mode": strategies.sampled_from(MODES),
    "padding_mode": strategies.sampled_from(PADDING_MODES),
    "align_corners": strategies.booleans(),
}


@settings(
    derandomize=True,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    case=strategies.builds(
        Case,
        size=strategies.lists(strategies.integers(1, 6), min_size=1, max_size=4).map(tuple),
        channels=strategies.integers(1, 3),
        points=strategies.integers(1, 5).map(lambda points: (points,)),
        batch=strategies.integers(1, 2),
        **ANY_OPTIONS,
    ).filter(comparable_to_onnx)
)
def test_matches_onnx_in_any_case(backend: str, case: Case) -> None:
    assert_matches_onnx(case, backend)


# ---- SciPy ----

# By padding mode and align_corners.
SCIPY_MODES = {
    ("zeros", False): "grid-constant",
    ("zeros", True): "grid-constant",
    ("border", False): "nearest",
    ("border", True): "nearest",
    ("reflection", False): "reflect",
    ("reflection", True): "mirror",
    ("circular", False): "grid-wrap",
    ("circular", True): "grid-wrap",
}


def by_scipy(values: Tensor, coords: Tensor, case: Case) -> Tensor:
    """`scipy.ndimage.map_coordinates`, which takes fractional positions, channel by channel."""
    x, size = coords.cpu().numpy(), np.array(case.size[::-1])
    if case.coords_unit == "index":
        index = x
    else:
        index = (x + 1) / 2 * (size - 1) if case.align_corners else ((x + 1) * size - 1) / 2
    channels = [
        ndimage.map_coordinates(
            channel,
            np.moveaxis(index[..., ::-1], -1, 0),
            order=("nearest", "linear").index(case.mode),
            mode=SCIPY_MODES[case.padding_mode, case.align_corners],
        )
        for channel in values.movedim(-1, 0).cpu().numpy()
    ]
    return torch.tensor(np.stack(channels, -1))


@pytest.mark.parametrize(
    "case",
    # Its third order is a spline, and no convolution.
    covering(
        in_units(cases(*SIZES, modes=("nearest", "linear"), points=(40,))),
        attrgetter("mode", "padding_mode", "align_corners", "coords_unit"),
        *EVERY_TWO_OPTIONS,
    ),
    ids=str,
)
def test_matches_scipy(backend: str, case: Case) -> None:
    values, coords, _ = case.tensors()
    actual = sample(values, coords, **case.options, backend=backend)
    assert_near(actual, by_scipy(values, coords, case), OTHER_INDEX)


# ---- algebra ----


@pytest.mark.parametrize("ndim", SIZES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_reproduces_an_affine_function(backend: str, ndim: int, align_corners: bool) -> None:
    """Linear interpolation is exact where the values are, in a simplex too; so is its gradient."""
    random = np.random.default_rng(ndim)
    size = tuple(random.integers(2, 4, ndim).tolist())
    slopes = torch.tensor(random.standard_normal((ndim, 4)))
    centres = [torch.tensor(coords_of(np.arange(n), np.array(n), align_corners)) for n in size]
    where = torch.stack(torch.meshgrid(*centres, indexing="ij")[::-1], -1)
    reach = 1.0 if align_corners else 0.5  # the outermost entries' centres, for two entries
    coords = torch.tensor(random.uniform(-reach, reach, (50, ndim))).requires_grad_()
    options = {"align_corners": align_corners, "backend": backend}
    for mode in ("linear", "simplex"):
        out = sample(where @ slopes + 2, coords, mode=mode, **options)
        assert_near(out, coords @ slopes + 2, OTHER_INDEX)
        (grad,) = torch.autograd.grad(out[:, 1].sum(), coords)
        assert_near(grad, slopes[:, 1].expand_as(grad), OTHER_INDEX)


def assert_samples_a_product(backend: str | None, ndim: int, mode: str, padding_mode: str) -> None:
    """Of one function an axis, as the product of their samples; and its slopes."""
    options = {"mode": mode, "padding_mode": padding_mode, "backend": backend}
    size = SIZES.get(ndim, (2,) * ndim)
    _, coords, _ = Case(size, points=(3,)).tensors()
    leaf = coords.requires_grad_()
    random = np.random.default_rng(ndim)
    factors = [torch.tensor(random.standard_normal(length)) for length in size]
    # The last component moves along the first axis.
    samples = [
        sample(factor[:, None], leaf[:, ndim - 1 - axis, None], **options)[:, 0]
        for axis, factor in enumerate(factors)
    ]
    expected = torch.stack(samples).prod(0)
    actual = sample(outer(factors)[..., None], leaf, **options)[:, 0]
    tolerance = Case(size, mode=mode).condition * OTHER_INDEX
    assert_near(actual, expected, tolerance)
    slopes = [torch.autograd.grad(out.sum(), leaf)[0] for out in (actual, expected)]
    assert_near(*slopes, 4 * tolerance)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", PRODUCTS)
@pytest.mark.parametrize("ndim", range(1, MOST_CUBIC + 1))
def test_samples_a_product_as_the_product_of_samples(
    backend: str, ndim: int, mode: str, padding_mode: str
) -> None:
    assert_samples_a_product(backend, ndim, mode, padding_mode)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", PRODUCTS)
@pytest.mark.parametrize("ndim", range(MOST_CUBIC + 1, 9))
def test_samples_a_product_in_many_dimensions(
    compiled_backend: str, ndim: int, mode: str, padding_mode: str
) -> None:
    """With the 65,536 taps of cubic in 8, for which the reference takes a quarter of a minute."""
    assert_samples_a_product(compiled_backend, ndim, mode, padding_mode)


def outer(factors: list[Tensor]) -> Tensor:
    """The product of all combinations of their elements."""
    product = factors[0]
    for factor in factors[1:]:
        product = product[..., None] * factor
    return product


def test_the_reference_takes_any_number_of_dimensions() -> None:
    """And is chosen where the others take fewer."""
    assert_samples_a_product(None, 9, "linear", "border")


# ---- the reference backend ----


def assert_matches_the_reference(case: Case, compiled_backend: str) -> None:
    tensors = case.tensors()
    actual, expected = (
        with_gradients(lambda v, x, name=name: sample(v, x, **case.options, backend=name), *tensors)
        for name in (compiled_backend, JUDGE)
    )
    coarser = torch.float32 if torch.float32 in (case.dtype, case.coords_dtype) else torch.float64
    magnitudes = (1.0, 1.0, case.slope)
    for got, wanted, magnitude in zip(actual, expected, magnitudes, strict=True):
        assert got.dtype == wanted.dtype
        assert_near(got, wanted, case.condition * SAME_INDEX[coarser], magnitude)


@pytest.mark.parametrize(
    "case",
    covering(
        in_dtypes(in_units(cases(*SIZES, modes=MODES)), [DTYPES[0], DTYPES[3]]),
        # In up to 3 dimensions, kernels may be compiled for each of these.
        lambda case: (min(case.ndim, 4), case.mode, case.padding_mode, case.dtype),
        TAPS,
        *EVERY_TWO_OPTIONS,
    ),
    ids=str,
)
def test_matches_the_reference(compiled_backend: str, case: Case) -> None:
    assert_matches_the_reference(case, compiled_backend)


@pytest.mark.parametrize(
    "case",
    covering(
        in_dtypes(SHAPES, DTYPES[:4]),
        attrgetter(*SHAPE, "dtype"),
        attrgetter(*SHAPE, "coords_dtype"),
        attrgetter("mode", "dtype", "coords_dtype"),
    ),
    ids=str,
)
def test_matches_the_reference_in_every_shape(compiled_backend: str, case: Case) -> None:
    assert_matches_the_reference(case, compiled_backend)


CASES = strategies.builds(
    Case,
    size=strategies.lists(strategies.integers(1, 6), min_size=1, max_size=4).map(tuple),
    channels=strategies.integers(0, 40),
    points=strategies.lists(strategies.integers(0, 20), max_size=2).map(tuple),
    batch=strategies.sampled_from((None, 1, 2, 3)),
    **ANY_OPTIONS,
)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=CASES)
def test_matches_the_reference_in_any_case(compiled_backend: str, case: Case) -> None:
    assert_matches_the_reference(case, compiled_backend)


# ---- half precision ----


def assert_half_precision_is_rounded_once(case: Case, backend: str) -> None:
    """Sums are in float32 whatever the storage: only the result is rounded, gradients included."""
    values, coords, grad_output = case.tensors()
    call = lambda v, x: sample(v, x, **case.options, backend=backend)  # noqa: E731
    out, grad_values, grad_coords = with_gradients(call, values, coords, grad_output)
    dtypes = out.dtype, grad_values.dtype, grad_coords.dtype
    assert dtypes == (case.dtype, case.dtype, case.coords_dtype)
    exact = with_gradients(call, values.float(), coords, grad_output.float())
    assert_rounded_once(out, exact[0], SAME_INDEX[torch.float32])
    assert_rounded_once(grad_values, exact[1], SAME_INDEX[torch.float32])
    assert_near(grad_coords, exact[2], SAME_INDEX[torch.float32])


@pytest.mark.parametrize(
    "case",
    covering(in_dtypes(cases(1, 2, 3, modes=MODES, points=(500,)), DTYPES[4:]), *EVERY_TWO_OPTIONS),
    ids=str,
)
def test_half_precision_is_rounded_once(backend: str, case: Case) -> None:
    assert_half_precision_is_rounded_once(case, backend)


@pytest.mark.parametrize(
    "case",
    covering(
        in_dtypes(SHAPES, DTYPES[4:]),
        attrgetter(*SHAPE, "dtype"),
        attrgetter(*SHAPE, "coords_dtype"),
    ),
    ids=str,
)
def test_half_precision_is_rounded_once_in_every_shape(compiled_backend: str, case: Case) -> None:
    assert_half_precision_is_rounded_once(case, compiled_backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number_is_read_and_written(backend: str, dtype: torch.dtype) -> None:
    """All 65536 of them, subnormals, infinities and NaN included."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out = sample(values[None], torch.zeros(1, 1), mode="nearest", backend=backend)[0]
    torch.testing.assert_close(out, values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("points", [5, 300], ids=["few points", "many points"])
@pytest.mark.parametrize("channels", [24, 216])
def test_half_precision_is_that_of_float32_rounded(
    backend: str, dtype: torch.dtype, points: int, channels: int
) -> None:
    """Bit for bit, however often an entry is read, and whatever number it is."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 4, 5, channels, generator=generator)
    values[0, 0, 0], values[0, 1, 2], values[1, 3, 4] = float("inf"), float("nan"), 1e-40
    values = values.to(dtype)
    coords = torch.rand(2, points, 2, generator=generator) * 2.4 - 1.2
    coords[:, 0] = float("nan")
    wide = sample(values.float(), coords, backend=backend)
    half = sample(values, coords, backend=backend)
    torch.testing.assert_close(half, wide.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_to_the_nearest(backend: str, dtype: torch.dtype) -> None:
    """As torch rounds: ties to even, overflow to infinity, small numbers to subnormals."""
    random = np.random.default_rng(0)
    numbers = torch.tensor(random.standard_normal(20000)).to(dtype)
    scale = torch.tensor(2.0 ** random.integers(-24, 16, 20000)).to(dtype)
    values = torch.stack((numbers * scale, scale))
    out = sample(values, torch.zeros(1, 1), backend=backend)[0]
    assert torch.equal(out, ((values[0].float() + values[1].float()) / 2).to(dtype))


@pytest.mark.parametrize("dtypes", DTYPES[3:], ids=str)
def test_autocast_leaves_the_dtypes_alone(
    backend: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Half values stay half and coordinates float32, forward and backward."""
    case = Case((8, 8), channels=5, dtype=dtypes[0], coords_dtype=dtypes[1])
    tensors = case.tensors()
    call = lambda v, x: sample(v, x, jitter_std=0.1, seed=2, backend=backend)  # noqa: E731
    expected = with_gradients(call, *tensors)
    with torch.autocast(tensors[0].device.type, torch.bfloat16):
        actual = with_gradients(call, *tensors)
    assert [got.dtype for got in actual] == [wanted.dtype for wanted in expected]
    assert_same(actual, expected)
