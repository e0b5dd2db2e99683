"""Exported programs: they name no backend, and run on whichever there is."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram, export

from crad_kernels import GridMemory, _backends, backends, grid_sample, sample
from crad_kernels._op import OPERATORS
from crad_kernels._schema import pack
from tests.cases import SAME_INDEX, SIZES, Case, assert_near

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    # opcheck looks at the gradients of its own copies.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

Call = Callable[..., Any]

NEUTRAL = OPERATORS["any"]
CPU = torch.device("cpu")
DEFAULT = _backends.default(CPU, 2).name
TOLERANCE = SAME_INDEX[torch.float64]

CASES = [
    Case((4, 3), points=(5,)),
    Case((3, 4, 2), points=(2, 3), batch=2, padding_mode="reflection", align_corners=True),
    Case((4, 3), points=(5,), padding_mode=("reflection", "zeros"), align_corners=(True, False)),
    Case((4, 3), points=(5,), mode="cubic", padding_mode="circular", coords_unit="index"),
    Case((2, 3, 2), points=(5,), mode="simplex", padding_mode="border"),
]


class Module(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Call) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Any:
        return self.function(*arguments)


@contextmanager
def only_reference() -> Iterator[None]:
    """As in an installation where nothing was compiled."""
    with pytest.MonkeyPatch.context() as patch:
        for name, backend in backends().items():
            if name != "reference":
                absent = replace(backend, missing="it is not here")
                patch.setitem(_backends._TABLE, name, absent)
        assert _backends.default(CPU, 2).name == "reference"
        yield


def operators(program: ExportedProgram) -> list[Any]:
    """Those of this package in a program."""
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return [target for target in targets if "crad_kernels" in str(target)]


def everything(call: Call, values: Tensor, coords: Tensor) -> list[Tensor]:
    """The sample, its gradients, and second derivatives of both modes."""
    leaves = values.clone().requires_grad_(), coords.clone().requires_grad_()
    out = call(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    gradients = torch.autograd.grad((out.square() * weights).sum(), leaves, create_graph=True)
    seconds = torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
    tangent = torch.func.jvp(call, (values, coords), (values.cos(), coords.sin()))[1]
    each = torch.vmap(call, (None, 0))(values, torch.stack((coords, coords * 0.9)))
    return [out, *gradients, *seconds, tangent, each]


# ---- which operator ----


@pytest.mark.parametrize("strict", [False, True])
def test_a_program_names_no_backend(strict: bool) -> None:
    class Three(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = GridMemory(3, 4, jitter_std=0.1)

        def forward(self, values: Tensor, coords: Tensor, seed: Tensor) -> Tensor:
            jittered = sample(values, coords, jitter_std=0.1, seed=seed)
            return sample(values, coords) + jittered + self.memory(coords)

    module = Three()
    values, coords, _ = Case((4, 3), dtype=torch.float32, coords_dtype=torch.float32).tensors()
    seed = torch.tensor(4)
    program = export(module, (values, coords, seed), strict=strict)
    for same in (program, program.run_decompositions()):
        assert operators(same) == [NEUTRAL.sample] * 3
    torch.manual_seed(0)
    got = program.module()(values, coords, seed)
    torch.manual_seed(0)
    assert torch.equal(got, module(values, coords, seed))
    assert not torch.equal(got, program.module()(values, coords, torch.tensor(5)))


def test_a_backend_that_is_named_stays(compiled_backend: str) -> None:
    values, coords, _ = CASES[0].tensors()
    module = Module(lambda v, x: sample(v, x, backend=compiled_backend))
    program = export(module, (values, coords))
    assert operators(program) == [OPERATORS[compiled_backend].sample]


def test_the_compiler_sees_the_default_backend() -> None:
    """To pick one in every call is for programs alone."""
    seen = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    values, coords, _ = CASES[0].tensors()
    torch.compile(sample, backend=look, fullgraph=True)(values, coords)
    assert NEUTRAL.sample not in seen
    assert DEFAULT == "reference" or OPERATORS[DEFAULT].sample in seen


# ---- where it runs ----


@pytest.mark.parametrize("jitter_std", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_program_runs_on_what_there_is(case: Case, jitter_std: float) -> None:
    """With every derivative, on the default backend and where only the reference is."""
    values, coords, _ = case.tensors()

    def call(values: Tensor, coords: Tensor, backend: str | None = None) -> Tensor:
        options = {**case.options, "jitter_std": jitter_std, "backend": backend}
        return sample(values, coords, **options, seed=4)

    program = export(Module(call), (values, coords)).module()
    on_default = everything(program, values, coords)
    with only_reference():
        on_reference = everything(program, values, coords)
    for backend, got in ((DEFAULT, on_default), ("reference", on_reference)):
        expected = everything(lambda v, x, name=backend: call(v, x, name), values, coords)
        assert torch.equal(got[0], expected[0])
        for each, wanted in zip(got, expected, strict=True):
            assert_near(each, wanted, 100 * TOLERANCE, case.slope**2)


def test_more_dimensions_than_the_kernels_have() -> None:
    case = Case((2,) * 9, points=(3,), channels=1)
    values, coords, _ = case.tensors()
    program = export(Module(sample), (values, coords))
    assert torch.equal(program.module()(values, coords), sample(values, coords))


def test_trains() -> None:
    """What is learned is that of the module, wherever it runs."""
    values, coords, target = CASES[0].tensors()
    memory = GridMemory(3, (4, 3)).double()
    memory.weight.data = values
    program = export(memory, (coords,)).module()

    def gradient(module: torch.nn.Module) -> Tensor:
        loss = torch.nn.functional.mse_loss(module(coords), target)
        return torch.autograd.grad(loss, list(module.parameters()))[0]

    assert torch.equal(gradient(program), gradient(memory))
    with only_reference():
        assert_near(gradient(program), gradient(memory), TOLERANCE)


def test_transforms_within() -> None:
    values, coords, _ = CASES[0].tensors()
    coords = torch.stack((coords, coords * 0.9))
    module = Module(torch.vmap(lambda v, x: sample(v, x, jitter_std=0.1, seed=4), (None, 0)))
    program = export(module, (values, coords))
    assert {str(each).rpartition(".")[2] for each in operators(program)} == {"any"}
    assert torch.equal(program.module()(values, coords), module(values, coords))
    with only_reference():
        assert_near(program.module()(values, coords), module(values, coords), 1e-6)


@pytest.mark.parametrize("channels_first", [False, True])
def test_a_result_lies_as_the_program_was_told(channels_first: bool) -> None:
    """On every backend; also where shapes are symbols."""
    case = Case((4, 3), batch=2, points=(5,))
    values, coords, _ = case.tensors()
    if channels_first:
        values = values.movedim(-1, 1).contiguous().movedim(1, -1)
    shapes = ({0: Dim("batch")}, {0: Dim("batch"), 1: Dim("points")})
    program = export(Module(lambda v, x: sample(v, x)), (values, coords), dynamic_shapes=(shapes,))
    assert operators(program) == [NEUTRAL.sample]
    values, coords = values.repeat(2, 1, 1, 1), coords.repeat(2, 3, 1)
    if channels_first:
        values = values.movedim(-1, 1).contiguous().movedim(1, -1)
    promised = next(n.meta["val"] for n in program.graph.nodes if n.target is NEUTRAL.sample)
    assert (promised.stride()[-1] == 1) is not channels_first
    results = [program.module()(values, coords)]
    with only_reference():
        results.append(program.module()(values, coords))
    for out in results:
        assert out.stride() == ((45, 1, 15) if channels_first else (45, 3, 1))
        assert_near(out, sample(values, coords), TOLERANCE)


def test_the_drop_in_in_both_memory_formats() -> None:
    values, coords, _ = Case((4, 3), batch=2, points=(5, 2)).tensors()
    for input in (values.movedim(-1, 1), values.movedim(-1, 1).contiguous()):
        program = export(Module(grid_sample), (input, coords)).module()
        with only_reference():
            out = program(input, coords)
        assert out.stride() == program(input, coords).stride()
        assert_near(out, grid_sample(input, coords), TOLERANCE)


# ---- the operators ----


@pytest.mark.parametrize("anywhere", [nullcontext, only_reference])
@pytest.mark.parametrize("channels_first", [False, True])
def test_proper_operators(channels_first: bool, anywhere: Callable[[], Any]) -> None:
    case = Case((4, 3), points=(5,), dtype=torch.float32)
    values, coords, grad_output = case.tensors()
    if channels_first:
        values = values.movedim(-1, 0).contiguous().movedim(0, -1)
    std = torch.full((2,), 0.1, dtype=coords.dtype)
    options = pack("linear", "zeros", False, False)
    arguments = (values.requires_grad_(), coords.requires_grad_(), torch.tensor(3), std, options)
    with anywhere():
        torch.library.opcheck(NEUTRAL.sample, arguments)
        for wanted in ((True, True), (not channels_first, channels_first)):
            gradient = grad_output.detach().requires_grad_()
            torch.library.opcheck(NEUTRAL.sample_backward, (gradient, *arguments, *wanted))


def test_proper_operator_of_the_jitter() -> None:
    torch.library.opcheck(NEUTRAL.normals, (torch.tensor(3), 5, 6))


# ---- saved ----


def saved(program: ExportedProgram) -> io.BytesIO:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return file


def test_a_program_of_a_named_backend_still_runs(compiled_backend: str) -> None:
    """As all were once."""
    values, coords, _ = CASES[0].tensors()
    module = Module(lambda v, x: sample(v, x, backend=compiled_backend))
    program = torch.export.load(saved(export(module, (values, coords))))
    assert torch.equal(program.module()(values, coords), module(values, coords))


@pytest.mark.slow
def test_a_saved_program_runs_where_nothing_was_compiled(tmp_path: Path) -> None:
    values, coords, _ = CASES[0].tensors()

    def call(values: Tensor, coords: Tensor) -> Tensor:
        return sample(values, coords, mode="cubic", jitter_std=0.1, seed=4)

    def tangent(values: Tensor, coords: Tensor) -> Tensor:
        # Without jitter: torch cannot save a program with a tensor that `jvp` makes.
        function = partial(sample, mode="cubic")
        along = values.cos(), coords.sin()
        result: Tensor = torch.func.jvp(function, (values, coords), along)[1]
        return result

    torch.export.save(export(Module(call), (values, coords)), tmp_path / "program.pt2")
    exports_tangents = torch.__version__ >= (2, 13)
    if exports_tangents:
        torch.export.save(export(Module(tangent), (values, coords)), tmp_path / "tangent.pt2")
    torch.save((values, coords), tmp_path / "arguments.pt")
    script = """
import os, torch
from importlib.machinery import PathFinder
find, libraries = PathFinder.find_spec, ["crad_kernels._cpu", "crad_kernels._cuda"]
PathFinder.find_spec = lambda name, *rest: None if name in libraries else find(name, *rest)
import crad_kernels
assert not crad_kernels.backends()["cpu"].usable
program = torch.export.load("program.pt2").module()
arguments = torch.load("arguments.pt")
tangents = []
if os.path.exists("tangent.pt2"):
    tangents.append(torch.export.load("tangent.pt2").module()(*arguments))
leaves = [each.requires_grad_() for each in arguments]
out = program(*leaves)
gradients = torch.autograd.grad(out.square().sum(), leaves)
torch.save([out.detach(), *gradients, *tangents], "results.pt")
"""
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
        timeout=600,
    )
    tangents = [tangent(values, coords)] if exports_tangents else []
    leaves = values.requires_grad_(), coords.requires_grad_()
    out = call(*leaves)
    expected = [out, *torch.autograd.grad(out.square().sum(), leaves), *tangents]
    for got, wanted in zip(torch.load(tmp_path / "results.pt"), expected, strict=True):
        assert_near(got, wanted, 1e-6)  # the normals are float32


@pytest.mark.slow
@pytest.mark.thorough
def test_survives_ahead_of_time_compilation(tmp_path: Path) -> None:
    """Into a package that picks its backend where it is loaded, too."""
    case = replace(CASES[2], size=SIZES[2])
    values, coords, _ = case.tensors()

    def call(values: Tensor, coords: Tensor) -> Tensor:
        jittered = torch.vmap(lambda v, x: sample(v, x, jitter_std=0.1, seed=4), (None, 0))(
            values, coords[:, None]
        )
        return jittered[:, 0] + sample(values, coords, **case.options)

    program = export(Module(call), (values, coords))
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    package = torch._inductor.aoti_load_package(path)
    assert_near(package(values, coords), call(values, coords), TOLERANCE)
    with only_reference():
        assert_near(package(values, coords), call(values, coords), 1e-6)
