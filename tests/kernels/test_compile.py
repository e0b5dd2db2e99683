"""The operators as the compiler sees them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, product
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from crad_kernels import sample
from crad_kernels._op import OPERATORS
from crad_kernels._schema import pack
from tests.cases import DTYPES, JUDGE, SAME_INDEX, Case, assert_near, covering

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
    # opcheck looks at the gradients of its own copies.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

Call = Callable[[Tensor, Tensor], Any]

CASES = [
    Case((4, 3), points=(5,)),
    Case((3, 4, 2), points=(2, 3), batch=2, padding_mode="reflection", align_corners=True),
    Case((5,), points=(0,), mode="nearest", padding_mode="border"),
    Case((4, 3), points=(5,), padding_mode="circular", coords_unit="index"),
    Case((4, 3), points=(5,), mode="cubic", padding_mode="reflection"),
    Case((4, 3), points=(5,), padding_mode=("circular", "border"), align_corners=(False, True)),
    Case((2, 3, 2), points=(5,), mode="simplex", padding_mode="border"),
]


def every_two(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few combinations, in which every two values of different axes meet."""
    pairs = (itemgetter(*two) for two in combinations(range(len(axes)), 2))
    return covering(list(product(*axes)), *pairs)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


# ---- the operators ----


def operator_arguments(case: Case, jitter: bool) -> tuple[Any, ...]:
    values, coords, _ = case.tensors()
    options = (
        torch.tensor(3) if jitter else None,
        torch.full((case.ndim,), 0.1, dtype=coords.dtype) if jitter else None,
        pack(case.mode, case.padding_mode, case.align_corners, False, 0, case.coords_unit),
    )
    return values.requires_grad_(), coords.requires_grad_(), *options


@pytest.mark.parametrize(
    ("case", "jitter", "dtypes"),
    # Of dtypes and case, nothing depends on both.
    covering(list(product(CASES, (False, True), DTYPES)), itemgetter(0, 1), itemgetter(1, 2)),
    ids=str,
)
def test_sample_is_a_proper_operator(
    compiled_backend: str, case: Case, jitter: bool, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    case = replace(case, dtype=dtypes[0], coords_dtype=dtypes[1])
    operator = OPERATORS[compiled_backend].sample
    torch.library.opcheck(operator, operator_arguments(case, jitter))


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        *((case, (True, True)) for case in CASES),
        (CASES[0], (True, False)),
        (CASES[0], (False, True)),
    ],
    ids=str,
)
def test_sample_backward_is_a_proper_operator(
    compiled_backend: str, case: Case, wanted: tuple[bool, bool]
) -> None:
    grad_output = case.tensors()[2].requires_grad_()
    operator = OPERATORS[compiled_backend].sample_backward
    arguments = (grad_output, *operator_arguments(case, True), *wanted)
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("wrong", ["too few", "another dtype"])
def test_a_gradient_that_does_not_fit_is_refused(compiled_backend: str, wrong: str) -> None:
    """Of a raw call: what it reads beyond the end would be nobody's."""
    grad_output = CASES[0].tensors()[2]
    grad_output = grad_output[:-1] if wrong == "too few" else grad_output.half()
    arguments = (grad_output, *operator_arguments(CASES[0], True), True, True)
    with pytest.raises((RuntimeError, ValueError), match=r"sample_backward\(\): .*grad_output"):
        OPERATORS[compiled_backend].sample_backward(*arguments)


def test_the_jitter_is_a_proper_operator(compiled_backend: str) -> None:
    torch.library.opcheck(OPERATORS[compiled_backend].normals, (torch.tensor(3), 5, 6))


def test_gradients_keep_the_strides_the_compiler_expects(compiled_backend: str) -> None:
    """Results are contiguous whatever the strides of the arguments."""
    case = CASES[1]
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in case.tensors()]
    values, coords, *options = operator_arguments(case, False)
    values, coords, grad_output = strided
    torch.library.opcheck(OPERATORS[compiled_backend].sample, (values, coords, *options))
    torch.library.opcheck(
        OPERATORS[compiled_backend].sample_backward,
        (grad_output, values, coords, *options, True, True),
    )


# ---- torch.compile ----


def compiled(function: Any) -> tuple[Any, CompileCounterWithBackend]:
    """The function without its Python, and a counter of how often it was compiled."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, backend=counter, fullgraph=True), counter


@pytest.mark.parametrize(
    ("case", "needs_gradient"),
    [
        *((case, (True, True)) for case in CASES),
        (CASES[0], (True, False)),
        (CASES[0], (False, True)),
    ],
    ids=str,
)
def test_compiles_whole(
    compiled_backend: str, case: Case, needs_gradient: tuple[bool, bool]
) -> None:
    assert_compiles_whole(compiled_backend, case, needs_gradient)


@pytest.mark.parametrize(
    "case",
    [
        Case((5,), points=(4,), mode="cubic", padding_mode="border"),
        Case((5,), points=(0,), batch=2, mode="nearest"),
        Case((3, 4), points=(5,), padding_mode="reflection", align_corners=True),
    ],
    ids=str,
)
def test_the_reference_compiles_whole(case: Case) -> None:
    """All of its operations, which take the compiler long."""
    assert_compiles_whole(JUDGE, case, (True, True))


def assert_compiles_whole(backend: str, case: Case, needs_gradient: tuple[bool, bool]) -> None:
    def call(values: Tensor, coords: Tensor) -> Tensor:
        return sample(values, coords, **case.options, jitter_std=0.1, seed=4, backend=backend).sin()

    values, coords, grad_output = case.tensors()
    leaves = values.requires_grad_(needs_gradient[0]), coords.requires_grad_(needs_gradient[1])
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    results = []
    for function in (call, compiled(call)[0]):
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out, wanted, grad_output)))
    for got, expected in zip(*results, strict=True):
        assert_near(got, expected, SAME_INDEX[torch.float64])


def test_compiles_without_gradients(compiled_backend: str) -> None:
    values, coords, _ = CASES[0].tensors()
    function, _ = compiled(lambda v, x: sample(v, x, backend=compiled_backend))
    out = function(values, coords)
    assert not out.requires_grad
    assert torch.equal(out, sample(values, coords, backend=compiled_backend))


@pytest.mark.parametrize("as_tensor", [True, False])
def test_seeds_do_not_compile_again(compiled_backend: str, as_tensor: bool) -> None:
    """One frame for tensors; for ints, the second tells the compiler that they change."""
    values, coords, _ = CASES[0].tensors()

    def call(seed: int | Tensor) -> Tensor:
        return sample(values, coords, jitter_std=0.1, seed=seed, backend=compiled_backend)

    function, counter = compiled(call)
    for seed in (5, 6, 7, 2**40, 9):
        argument = torch.tensor(seed) if as_tensor else seed
        assert torch.equal(function(argument), call(seed))
    assert counter.frame_count == (1 if as_tensor else 2)


def test_a_tensor_of_jitter_does_not_compile_again(compiled_backend: str) -> None:
    values, coords, _ = CASES[0].tensors()

    def call(values: Tensor, coords: Tensor, jitter_std: Any) -> Tensor:
        return sample(values, coords, jitter_std=jitter_std, seed=3, backend=compiled_backend)

    function, counter = compiled(call)
    frames = []
    for std in (0.1, 0.2, 0.0, 0.5):
        given = torch.tensor(std, dtype=torch.float64)
        assert torch.equal(function(values, coords, given), call(values, coords, std))
        frames.append(counter.frame_count)
    assert frames == frames[:1] * 4


def test_compiled_autograd(compiled_backend: str) -> None:
    """Which compiles the backward pass of what ran without the compiler."""
    leaves = [tensor.requires_grad_() for tensor in CASES[0].tensors()[:2]]
    expected = torch.autograd.grad(sample(*leaves, backend=compiled_backend).square().sum(), leaves)
    loss = sample(*leaves, backend=compiled_backend).square().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        loss.backward()
    for leaf, wanted in zip(leaves, expected, strict=True):
        assert_near(leaf.grad, wanted, SAME_INDEX[torch.float64])


def test_drawn_seeds_do_not_compile_again(compiled_backend: str) -> None:
    values, coords, _ = CASES[0].tensors()
    function, counter = compiled(
        lambda v, x: sample(v, x, jitter_std=(0.1, 0.2), backend=compiled_backend)
    )
    outs = [function(values, coords) for _ in range(4)]
    assert counter.frame_count == 1
    assert len({out.cpu().numpy().tobytes() for out in outs}) == 4
    torch.manual_seed(0)
    first = function(values, coords)
    torch.manual_seed(0)
    assert torch.equal(function(values, coords), first)


def test_number_of_points_compiles_once_more(backend: str) -> None:
    """The second number of points makes it a symbol; there is no third."""
    values, _, _ = CASES[2].tensors()
    function, counter = compiled(lambda v, x: sample(v, x, backend=backend))
    for points in (5, 6, 7, 30):
        coords = torch.linspace(-1, 1, points, dtype=torch.float64)[:, None]
        assert torch.equal(function(values, coords), sample(values, coords, backend=backend))
    assert counter.frame_count == 2


@pytest.mark.slow
def test_the_code_generator_agrees(compiled_backend: str) -> None:
    """Through all of the compiler, forward and backward, with work around the operator."""
    case = Case((4, 3), points=(6, 5), dtype=torch.float32, coords_dtype=torch.float32)

    def call(values: Tensor, coords: Tensor) -> Tensor:
        moved = (coords * 0.7).movedim(0, 1)
        return sample(values * 2, moved, backend=compiled_backend).movedim(-1, 0).relu()

    values, coords, _ = case.tensors()
    leaves = values.requires_grad_(), coords.requires_grad_()
    results = []
    for function in (call, torch.compile(call, fullgraph=True)):
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for got, expected in zip(*results, strict=True):
        assert_near(got, expected, SAME_INDEX[torch.float32])


# ---- transforms of torch.func within ----

TRANSFORMS: dict[str, Callable[[Call], Call]] = {
    "vmap": lambda f: torch.vmap(f, (None, 0)),
    "vmap of grad": lambda f: torch.vmap(
        torch.func.grad(lambda v, x: f(v, x).square().sum(), (0, 1)), (None, 0)
    ),
    "jvp": lambda f: lambda v, x: torch.func.jvp(f, (v, x), (v, x))[1],
    "jvp of grad": lambda f: (
        lambda v, x: torch.func.jvp(torch.func.grad(lambda x: f(v, x).square().sum()), (x,), (x,))[
            1
        ]
    ),
    "hessian": lambda f: lambda v, x: torch.func.hessian(lambda x: f(v, x).square().sum())(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_compiles_whole_with_a_transform(compiled_backend: str, transform: str) -> None:
    values, coords, _ = CASES[3].tensors()
    call = TRANSFORMS[transform](
        lambda v, x: sample(
            v, x, **CASES[3].options, jitter_std=0.1, seed=4, backend=compiled_backend
        )
    )
    expected = call(values, coords)
    actual = compiled(call)[0](values, coords)
    pairs = (
        zip(actual, expected, strict=True) if transform == "vmap of grad" else ((actual, expected),)
    )
    for got, wanted in pairs:
        assert_near(got, wanted, 20 * SAME_INDEX[torch.float64])


# ---- export ----


class Module(torch.nn.Module):
    """A function of values and coords."""

    def __init__(self, function: Call) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor, coords: Tensor) -> Tensor:
        out: Tensor = self.function(values, coords)
        return out


@pytest.mark.parametrize(
    ("case", "jitter_std", "strict"), every_two(CASES, (0.0, 0.1), (False, True)), ids=str
)
def test_exports(compiled_backend: str, case: Case, jitter_std: float, strict: bool) -> None:
    assert_exports(compiled_backend, case, jitter_std, strict)


@pytest.mark.parametrize("strict", [False, True])
def test_the_reference_exports(strict: bool) -> None:
    assert_exports(JUDGE, Case((5,), points=(4,), mode="cubic", padding_mode="border"), 0.1, strict)


def assert_exports(backend: str, case: Case, jitter_std: float, strict: bool) -> None:
    values, coords, _ = case.tensors()
    module = Module(
        lambda v, x: sample(v, x, **case.options, jitter_std=jitter_std, seed=4, backend=backend)
    )
    program = torch.export.export(module, (values, coords), strict=strict)
    assert torch.equal(program.module()(values, coords), module(values, coords))


def test_exports_one_operator(compiled_backend: str) -> None:
    """For any number of points."""
    values, coords, _ = CASES[0].tensors()
    module = Module(lambda v, x: sample(v, x, backend=compiled_backend))
    shapes = {"values": None, "coords": {0: torch.export.Dim("points")}}
    program = torch.export.export(module, (values, coords), dynamic_shapes=shapes)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls == [OPERATORS[compiled_backend].sample]
    more = torch.cat((coords, coords))
    assert torch.equal(program.module()(values, more), module(values, more))


@pytest.mark.parametrize(
    ("transform", "jitter_std", "strict"),
    every_two(tuple(TRANSFORMS), (0.0, 0.1), (False, True)),
    ids=str,
)
def test_an_exported_program_has_all_derivatives(
    compiled_backend: str, transform: str, jitter_std: float, strict: bool
) -> None:
    case = CASES[3]
    values, coords, _ = case.tensors()
    module = Module(
        lambda v, x: sample(
            v, x, **case.options, jitter_std=jitter_std, seed=4, backend=compiled_backend
        )
    )
    program = torch.export.export(module, (values, coords), strict=strict).module()
    if transform.startswith("vmap"):
        # A program is for one number of points: each slice has that many.
        coords = torch.stack([coords * scale for scale in (1.0, 0.9, 0.8)])
    results = [TRANSFORMS[transform](function)(values, coords) for function in (program, module)]
    pairs = zip(*results, strict=True) if transform == "vmap of grad" else [results]
    for got, wanted in pairs:
        assert_near(got, wanted, SAME_INDEX[torch.float64])


# PyTorch's own functions do not survive export under `torch.func.grad`, so these are all.
@pytest.mark.parametrize(
    "transform",
    [
        "vmap",
        pytest.param(
            "jvp",
            marks=pytest.mark.skipif(
                torch.__version__ < (2, 13), reason="torch exports no jvp before 2.13"
            ),
        ),
    ],
)
def test_exports_with_a_transform(compiled_backend: str, transform: str) -> None:
    values, coords, _ = CASES[3].tensors()
    module = Module(
        TRANSFORMS[transform](
            lambda v, x: sample(v, x, **CASES[3].options, backend=compiled_backend)
        )
    )
    program = torch.export.export(module, (values, coords))
    assert_near(program.module()(values, coords), module(values, coords), SAME_INDEX[torch.float64])


@pytest.mark.slow
@pytest.mark.thorough
def test_survives_ahead_of_time_compilation(compiled_backend: str, tmp_path: Path) -> None:
    """Into a package of compiled code: two samples, one of them jittered and batched."""
    values, coords, _ = CASES[3].tensors()

    def call(values: Tensor, coords: Tensor) -> Tensor:
        jittered = torch.vmap(
            lambda v, x: sample(v, x, jitter_std=0.1, seed=4, backend=compiled_backend), (None, 0)
        )(values, coords[:, None])
        plain = sample(values, coords, **CASES[3].options, backend=compiled_backend)
        return jittered[:, 0] + plain

    program = torch.export.export(Module(call), (values, coords))
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    package = torch._inductor.aoti_load_package(path)
    assert_near(package(values, coords), call(values, coords), SAME_INDEX[torch.float64])
