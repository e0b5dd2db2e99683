"""Modules that sample, exported to ONNX and run by its reference and by ONNX Runtime."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

from crad_kernels import GridMemory, grid_sample, sample
from tests.cases import DTYPES, Case, assert_near, cases, covering, in_units, mixed

pytest.importorskip("onnxscript")  # which PyTorch's exporter asks for
onnxruntime = pytest.importorskip("onnxruntime")
reference = pytest.importorskip("onnx.reference")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:# The axis name"),
]

FLOATS = {"dtype": torch.float32, "coords_dtype": torch.float32}
# As of other backends, where another formula computed the index, too.
TOLERANCE = {
    torch.float64: 2e-14,
    torch.float32: 2e-6,
    torch.float16: torch.finfo(torch.float16).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
}


class Module(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, *arguments: Tensor) -> Any:
        return self.function(*arguments)


class Model:
    """A module, or the program that it was exported to, in ONNX.

    The exporter's simplification takes longer than all else, and so is left out unless asked for.
    """

    def __init__(self, module: Any, *arguments: Tensor, **options: Any) -> None:
        options = {"optimize": False, "verbose": False, **options}
        self.proto = torch.onnx.export(module, arguments, dynamo=True, **options).model_proto
        self.operators = Counter(node.op_type for node in self.proto.graph.node)

    def inputs(self, arguments: Sequence[Tensor]) -> dict[str, np.ndarray]:
        names = [each.name for each in self.proto.graph.input]
        return dict(zip(names, (each.numpy() for each in arguments), strict=True))

    def by_runtime(self, *arguments: Tensor) -> list[Tensor]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(self.proto.SerializeToString(), options)
        return [torch.as_tensor(out) for out in session.run(None, self.inputs(arguments))]

    def by_reference(self, *arguments: Tensor) -> list[Tensor]:
        evaluator = reference.ReferenceEvaluator(self.proto)
        return [torch.as_tensor(out) for out in evaluator.run(None, self.inputs(arguments))]


class Samples:
    """Many cases in one module, for an export takes seconds."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases
        self.values = [case.tensors()[0] for case in cases]
        self.coords = [case.tensors()[1] for case in cases]
        self.model = Model(Module(self.call), *self.coords)

    def call(self, *coords: Tensor) -> list[Tensor]:
        triples = zip(self.values, coords, self.cases, strict=True)
        outs = [sample(v, x, **case.options) for v, x, case in triples]
        # NumPy has no bfloat16.
        return [out.float() if out.dtype == torch.bfloat16 else out for out in outs]

    def check(self, run: Callable[..., list[Tensor]], coords: Sequence[Tensor]) -> None:
        triples = zip(self.cases, run(*coords), self.call(*coords), strict=True)
        for case, got, wanted in triples:
            assert got.dtype == wanted.dtype
            assert torch.equal(got.isnan(), wanted.isnan()), case
            tolerance = TOLERANCE[case.dtype] * case.condition
            assert_near(got.nan_to_num(), wanted.nan_to_num(), tolerance, case.slope)

    def at(self, *coords: float) -> list[Tensor]:
        """These coordinates instead, of which a point has different ones."""
        there = []
        for original in self.coords:
            points, ndim = original.shape[-2:]
            row = torch.tensor(coords, dtype=original.dtype)
            assert points == len(row)
            there.append(
                torch.stack([row.roll(3 * d) for d in range(ndim)], -1).expand_as(original)
            )
        return there


# Halfway between entries, at the borders of the grid, and beyond.
TIES = (-2.5, -2.0, -1.5, -1.25, -1.0, -0.75, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5)
NAN, INFINITY = float("nan"), float("inf")
# The last has an index that float32 does not hold.
NO_PLACE = (0.0, NAN, 0.1, INFINITY, 0.2, -INFINITY, 0.3, 5e9, 0.4, -1e30, 0.5, 3e38)


def is_grid_sample(case: Case) -> bool:
    if case.mode == "simplex" or not isinstance(case.padding_mode, str):
        return False
    if case.padding_mode == "circular":
        return False
    mirrors = case.padding_mode == "reflection" and case.align_corners
    if case.coords_unit == "index" and (mirrors or case.mode == "nearest"):
        return False
    if case.mode != "cubic":
        return case.ndim in (2, 3)
    plain = case.padding_mode == "reflection" and not case.align_corners
    return case.ndim == 2 and (plain or case.padding_mode == "zeros")


# Features of a case: what one GridSample differs in from another, and one gather.
GRID_SAMPLE = (
    attrgetter("mode", "padding_mode"),
    attrgetter("align_corners", "coords_unit"),
    attrgetter("padding_mode", "coords_unit"),
)
GATHERS = tuple(map(attrgetter, ("ndim", "mode", "padding_mode", "align_corners")))


@pytest.mark.parametrize(
    ("candidates", "features"),
    [
        pytest.param(in_units(cases(2, points=(12,), **FLOATS)), GRID_SAMPLE, id="2-D"),
        pytest.param(
            in_units(cases(3, modes=("nearest", "linear"), points=(12,), batch=2, **FLOATS)),
            GRID_SAMPLE,
            id="3-D",
        ),
        pytest.param(
            cases(1, points=(12,), batch=2, **FLOATS)
            + cases(3, modes=("simplex",), points=(12,), **FLOATS)
            + cases(4, modes=("linear",), points=(12,), **FLOATS)
            + cases(5, modes=("nearest",), points=(12,), **FLOATS)
            + mixed(2, points=(12,), **FLOATS),
            GATHERS,
            id="others",
        ),
    ],
)
def test_means_the_same(candidates: list[Case], features: Sequence[Any]) -> None:
    """Everywhere: NaN where the sample is NaN, and never a read outside of the grid."""
    samples = Samples(covering(candidates, *features))
    assert samples.model.operators["GridSample"] == sum(map(is_grid_sample, samples.cases))
    for coords in (samples.coords, samples.at(*TIES)):
        samples.check(samples.model.by_runtime, coords)
        samples.check(samples.model.by_reference, coords)
    samples.check(samples.model.by_runtime, samples.at(*NO_PLACE))


def test_dtypes() -> None:
    """Those in which the sum is taken; GridSample has one for values and coordinates."""
    dtypes = [DTYPES[0], *DTYPES[4:6]]
    kinds = [("linear", each) for each in dtypes] + [("nearest", each) for each in DTYPES[1:3]]
    samples = Samples(
        [
            Case((4, 3), points=(7,), mode=mode, dtype=dtype, coords_dtype=coords_dtype)
            for mode, (dtype, coords_dtype) in kinds
        ]
    )
    assert samples.model.operators["GridSample"] == len(dtypes)
    samples.check(samples.model.by_runtime, samples.coords)


def test_axes_of_one_entry() -> None:
    """Beyond which a runtime would read."""
    case = Case((1, 3), points=(7,), padding_mode="reflection", **FLOATS)
    cubic = replace(case, mode="cubic", size=(1, 1))
    samples = Samples(
        [
            case,
            replace(case, align_corners=True),
            replace(case, size=(1, 2, 1), align_corners=True),
            replace(case, padding_mode="border", align_corners=True),
            cubic,
        ]
    )
    samples.check(samples.model.by_runtime, samples.coords)


def test_any_number_of_points_and_grids() -> None:
    """A grid per item, whose size may vary, and one that a module holds; also in 4-D."""
    memory = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.Tanh(), GridMemory(2, 3, 4, mode="nearest")
    )

    def call(input: Tensor, grid: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        warped = grid_sample(input, grid, "bilinear", "reflection")
        values = input.movedim(1, -1)
        return warped, sample(values, grid[:, 0], padding_mode="border"), memory(features)

    def arguments(batch: int, height: int, width: int, points: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return (
            torch.randn(batch, 3, height, width, generator=generator),
            torch.randn(batch, height, points, 2, generator=generator),
            torch.randn(points, 4, generator=generator),
        )

    batch, height, width, points = map(Dim, ("batch", "height", "width", "points"))
    shapes = ({0: batch, 2: height, 3: width}, {0: batch, 1: height, 2: points}, {0: points})
    model = Model(Module(call), *arguments(2, 5, 4, 6), dynamic_shapes=(shapes,))
    for sizes in ((2, 5, 4, 6), (3, 4, 7, 9)):
        given = arguments(*sizes)
        for got, wanted in zip(model.by_runtime(*given), call(*given), strict=True):
            assert_near(got, wanted.detach(), TOLERANCE[torch.float32], 10)


def test_the_drop_in_is_one_operator(tmp_path: Path) -> None:
    """Once simplified and in a file, on the channels-first tensors that both have."""
    input, grid = torch.randn(2, 3, 4, 5), torch.rand(2, 6, 7, 2) * 2 - 1
    module = Module(lambda x, g: grid_sample(x, g, padding_mode="border", align_corners=True))
    path = tmp_path / "model.onnx"
    model = Model(module, input, grid, f=path, optimize=True)
    assert model.operators["GridSample"] == 1
    assert not {"Gather", "Transpose"} & model.operators.keys()
    session = onnxruntime.InferenceSession(path)
    got = session.run(None, model.inputs((input, grid)))[0]
    assert_near(torch.as_tensor(got), module(input, grid), TOLERANCE[torch.float32])


def test_jitter_with_a_seed() -> None:
    """The noise is that of the seed, wherever it is made."""
    case = Case((4, 3), points=(9,), **FLOATS)
    values, coords, _ = case.tensors()
    module = Module(lambda x, seed: sample(values, x, jitter_std=(0.1, 0.2), seed=seed))
    model = Model(module, coords, torch.tensor(0))
    for seed in (7, -(2**61) - 3):
        arguments = coords, torch.tensor(seed)
        got = model.by_runtime(*arguments)[0]
        assert_near(got, module(*arguments), TOLERANCE[torch.float32], case.slope)


@pytest.mark.parametrize("backend", [None, "named"])
def test_a_program_exported_before(compiled_backend: str, backend: str | None) -> None:
    """Which backend it names, if it names one, makes no difference."""
    values, coords, _ = Case((4, 3), points=(7,), **FLOATS).tensors()
    module = Module(lambda x: sample(values, x, backend=backend and compiled_backend))
    model = Model(export(module, (coords,)), coords)
    assert model.operators["GridSample"] == 1
    assert_near(model.by_runtime(coords)[0], module(coords), TOLERANCE[torch.float32])


@pytest.mark.filterwarnings("ignore:.*version conversion")
def test_the_oldest_operators_that_pytorch_exports() -> None:
    """Where GridSample is for 2-D alone."""
    values, coords, _ = Case((4, 3), points=(7,), **FLOATS).tensors()
    module = Module(lambda x: sample(values, x))
    model = Model(module, coords, opset_version=18)
    assert model.proto.opset_import[0].version == 18
    assert_near(model.by_runtime(coords)[0], module(coords), TOLERANCE[torch.float32])


def test_a_derivative_is_refused() -> None:
    values, coords, _ = Case((4, 3), points=(7,), **FLOATS).tensors()
    operator = torch.ops.crad_kernels.sample.any
    module = Module(lambda x: operator(values, x, None, None, 1 << 8))
    with pytest.raises(Exception, match="export") as caught:
        Model(module, coords)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, NotImplementedError):
        error = error.__cause__
    assert "backend='reference'" in str(error)
