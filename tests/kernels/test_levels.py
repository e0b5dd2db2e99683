"""Several grids of different resolution in one call."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crad_kernels import GridMemory, MultiLevelMemory, level_resolutions, sample, sample_levels
from crad_kernels._level_operators import MOST_LEVELS
from crad_kernels._op import LEVEL_OPERATORS
from crad_kernels._schema import DETERMINISTIC, pack
from tests.cases import JUDGE, SAME_INDEX, assert_near, assert_same, covering, sums_vary
from tests.kernels.test_memory_safety import amid_poison

Sizes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Levels:
    """A call of `sample_levels`, of levels whose axes differ."""

    ndim: int
    channels: int
    points: tuple[int, ...] = (150,)
    padding_mode: Any = "zeros"
    align_corners: Any = False
    mode: str = "linear"
    number: int = 5
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        options = (self.padding_mode, self.align_corners, self.mode, self.dtype)
        return f"{self.ndim}d-{self.channels}-{self.points}-{self.number}-" + "-".join(
            map(str, options)
        )

    @property
    def sizes(self) -> Sizes:
        most = 9 if self.ndim < 4 else 4
        return [
            tuple(2 + (5 * level + 3 * axis) % most for axis in range(self.ndim))
            for level in range(self.number)
        ]

    @property
    def options(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "padding_mode": self.padding_mode,
            "align_corners": self.align_corners,
        }

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, coords within and around the grids, and the gradient of the output."""
        generator = torch.Generator(device="cpu").manual_seed(0)

        def draw(function: Any, *shape: int) -> Tensor:
            return function(*shape, generator=generator, device="cpu", dtype=torch.float64)

        values = draw(torch.randn, sum(map(math.prod, self.sizes)), self.channels)
        coords = draw(torch.rand, *self.points, self.ndim) * 3 - 1.5
        grad_output = draw(torch.randn, *self.points, self.number * self.channels)
        place = torch.get_default_device(), self.dtype
        return tuple(each.to(*place) for each in (values, coords, grad_output))  # type: ignore[return-value]


def composed(
    values: Tensor,
    sizes: Sizes,
    coords: Tensor,
    take: Callable[..., Tensor] = sample,
    **options: Any,
) -> Tensor:
    levels = values.split([math.prod(size) for size in sizes])
    return torch.cat(
        [
            take(level.view(*size, -1), coords, **options)
            for level, size in zip(levels, sizes, strict=True)
        ],
        -1,
    )


def everything(
    call: Callable[..., Tensor], case: Levels, tensors: tuple[Tensor, ...] | None = None
) -> list[Tensor]:
    values, coords, grad_output = tensors or case.tensors()
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = call(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad_output)]


def slope(case: Levels) -> float:
    """The magnitude of a gradient of coordinates whose terms do not cancel."""
    return max(map(max, case.sizes)) * math.sqrt(case.channels * case.number)


FUSED = covering(
    [
        Levels(ndim, channels, points, padding_mode, align_corners)
        for ndim, channels, points, padding_mode, align_corners in product(
            (1, 2, 3, 4),
            range(1, 9),
            [(150,), (3, 5), (128,)],
            ("zeros", "border", "reflection"),
            (False, True),
        )
    ],
    lambda case: (case.ndim, case.channels),
    lambda case: (case.ndim, case.padding_mode, case.align_corners),
    lambda case: (case.points, case.padding_mode),
)
COMPOSED = [
    Levels(2, 2, padding_mode="circular"),
    Levels(2, 2, padding_mode=("zeros", "border"), align_corners=(True, False)),
    Levels(2, 9),
    Levels(5, 2, number=2),
    Levels(2, 3, mode="cubic"),
    Levels(3, 2, mode="nearest", padding_mode="border"),
    Levels(3, 2, mode="simplex"),
    Levels(3, 2, dtype=torch.float64),
    Levels(1, 1, number=1),
    Levels(2, 2, number=33),  # one more than the backends cuda and triton take
]
# Of which a program of Triton takes some at a time; points that are no whole block.
IN_TURN = [Levels(2, 2, (5,), number=9), Levels(1, 6, (7,), "border", True, number=11)]


@pytest.mark.parametrize("case", [*FUSED, *IN_TURN, *COMPOSED], ids=str)
def test_is_the_samples_of_all_levels(backend: str, case: Levels) -> None:
    """The sample to the last bit, and the gradients but for the order of sums."""
    options = {**case.options, "backend": backend}
    actual = everything(lambda v, x: sample_levels(v, case.sizes, x, **options), case)
    expected = everything(lambda v, x: composed(v, case.sizes, x, **options), case)
    assert torch.equal(actual[0], expected[0])
    for got, wanted in zip(actual[1:], expected[1:], strict=True):
        assert got.dtype == wanted.dtype
        assert_near(got, wanted, 2 * SAME_INDEX[case.dtype], slope(case))


@pytest.mark.parametrize(
    "case", [Levels(3, 2, (2000,), number=17), Levels(2, 8, (4100,), number=12)], ids=str
)
def test_threads_take_several_levels_in_turn(cuda_library: str, case: Levels) -> None:
    """Where points are many: 4 threads take 17 levels, or one takes all."""
    options: dict[str, Any] = {"jitter_std": 0.1, "seed": 3, "backend": cuda_library}
    actual = everything(lambda v, x: sample_levels(v, case.sizes, x, **options), case)
    expected = everything(lambda v, x: composed(v, case.sizes, x, **options), case)
    assert torch.equal(actual[0], expected[0])
    for got, wanted in zip(actual[1:], expected[1:], strict=True):
        assert_near(got, wanted, 2 * SAME_INDEX[torch.float32], slope(case))


def test_a_deterministic_gradient_is_that_of_each_level(compiled_backend: str) -> None:
    """To the last bit on GPUs, which compose it: each level gets its part of the values' gradient.

    The CPU sums several levels in an order of its own.
    """
    sizes: Sizes = [(3, 4), (12, 13)]
    _, coords, grad_output = Levels(2, 2, points=(15,), number=2).tensors()
    leaf = torch.randn(sum(map(math.prod, sizes)), 2).requires_grad_()
    options: dict[str, Any] = {"backend": compiled_backend, "deterministic": True}
    outs = [call(leaf, sizes, coords, **options) for call in (sample_levels, composed)]
    actual, expected = (torch.autograd.grad(out, leaf, grad_output)[0] for out in outs)
    if compiled_backend == "cpu":
        assert_near(actual, expected, 4 * SAME_INDEX[torch.float32])
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("case", FUSED[::3], ids=str)
def test_is_what_the_specification_says(compiled_backend: str, case: Levels) -> None:
    options = case.options
    tensors = case.tensors()
    actual = everything(
        lambda v, x: sample_levels(v, case.sizes, x, **options, backend=compiled_backend), case
    )
    exact = tuple(each.double() for each in tensors)
    expected = everything(
        lambda v, x: composed(v, case.sizes, x, **options, backend=JUDGE), case, exact
    )
    for got, wanted in zip(actual, expected, strict=True):
        # Coordinates in float32 move by half an ulp: that of an index is as much times the size.
        assert_near(got, wanted, 1e-5, slope(case))


@pytest.mark.parametrize("ndim", [2, 3])
def test_is_grid_sample_of_torch(backend: str, ndim: int) -> None:
    case = Levels(ndim, 2, points=(40,))
    values, coords, _ = case.tensors()

    def theirs(level: Tensor, coords: Tensor) -> Tensor:
        grid = coords.view(1, *(1,) * (ndim - 1), -1, ndim)
        image = level.movedim(-1, 0)[None]
        return F.grid_sample(image, grid, align_corners=False)[0].flatten(1).T

    out = sample_levels(values, case.sizes, coords, backend=backend)
    assert_near(out, composed(values, case.sizes, coords, theirs), 1e-5)


# NumPy says so of sums of infinities, by which Triton's interpreter sums.
@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning")
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("channels", [2, 3])
def test_coordinates_may_be_anything(backend: str, channels: int, padding_mode: str) -> None:
    """And what is no number stays where it is: values outside of a point's reach, gradients too."""
    case = Levels(2, channels, points=(70,), padding_mode=padding_mode)
    values, coords, grad_output = case.tensors()
    coords[:6, 0] = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9])
    coords[6:12, 1] = coords[:6, 0]
    values[3] = math.nan
    grad_output[20] = math.inf
    given = values, coords, grad_output
    options = {**case.options, "backend": backend}
    actual = everything(lambda v, x: sample_levels(v, case.sizes, x, **options), case, given)
    expected = everything(lambda v, x: composed(v, case.sizes, x, **options), case, given)
    for got, wanted in zip(actual, expected, strict=True):
        assert torch.equal(got.isnan(), wanted.isnan())
        finite = wanted.isfinite()
        assert torch.equal(got.isfinite(), finite)
        assert_near(got[finite], wanted[finite], 2 * SAME_INDEX[torch.float32], slope(case))


SORTED = Levels(2, 2, points=(9000,), number=3)  # of larger grids than `sizes` has


def large(ndim: int, points: int) -> tuple[Sizes, tuple[Tensor, Tensor, Tensor]]:
    """Levels larger than a cache: their points are sorted."""
    sizes: Sizes = {
        1: [(100,), (90_000,)],
        2: [(30, 20), (300, 260), (180, 170)],
        3: [(9, 7, 8), (41, 50, 45)],
        4: [(4, 3, 5, 2), (17, 18, 16, 19)],
    }[ndim]
    generator = torch.Generator(device="cpu").manual_seed(1)
    tensors = (
        torch.randn(sum(map(math.prod, sizes)), 2, generator=generator, device="cpu"),
        torch.rand(points, ndim, generator=generator, device="cpu") * 2.4 - 1.2,
        torch.randn(points, 2 * len(sizes), generator=generator, device="cpu"),
    )
    return sizes, tuple(each.to(torch.get_default_device()) for each in tensors)  # type: ignore[return-value]


@pytest.fixture
def _restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_restored_threads")
@pytest.mark.parametrize("jitter_std", [0.0, 0.1])
@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
def test_any_number_of_threads_gives_the_same_bits(
    cpu_backend: str, ndim: int, jitter_std: float
) -> None:
    sizes, tensors = large(ndim, 9001)
    options: dict[str, Any] = {"jitter_std": jitter_std, "seed": 3, "backend": cpu_backend}

    def results(threads: int, call: Any) -> list[Tensor]:
        torch.set_num_threads(threads)
        return everything(lambda v, x: call(v, sizes, x, **options), SORTED, tensors)

    alone = results(1, sample_levels)
    for threads in (2, 3, 4):
        for got, wanted in zip(results(threads, sample_levels), alone, strict=True):
            assert torch.equal(got, wanted)
    expected = results(1, composed)
    assert torch.equal(alone[0], expected[0])
    for got, wanted in zip(alone[1:], expected[1:], strict=True):
        assert_near(got, wanted, 4 * SAME_INDEX[torch.float32], max(map(max, sizes)))


@pytest.mark.usefixtures("_restored_threads")
def test_gradients_of_more_points_than_are_taken_at_a_time(cpu_backend: str) -> None:
    sizes, tensors = large(2, 70_001)

    def results(threads: int, call: Any) -> list[Tensor]:
        torch.set_num_threads(threads)
        return everything(lambda v, x: call(v, sizes, x, backend=cpu_backend), SORTED, tensors)

    alone, shared = results(1, sample_levels), results(2, sample_levels)
    for got, wanted, expected in zip(shared, alone, results(1, composed), strict=True):
        assert torch.equal(got, wanted)
        assert_near(got, expected, 4 * SAME_INDEX[torch.float32], max(map(max, sizes)))


def test_results_larger_than_the_caches(cpu_backend: str) -> None:
    """Which are written past them, where rows are whole lines."""
    sizes: Sizes = [(6, 5)] * 16
    values = torch.randn(16 * 30, 8)
    for points in (32_768, 33_001):
        coords = torch.rand(points, 2) * 2 - 1
        out = sample_levels(values, sizes, coords, backend=cpu_backend)
        assert torch.equal(out, composed(values, sizes, coords, backend=cpu_backend))


def test_points_that_lie_in_order_are_not_sorted(cpu_backend: str) -> None:
    sizes, (values, _, _) = large(2, 0)
    axis = torch.linspace(-1, 1, 100)
    coords = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1)
    out = sample_levels(values, sizes, coords, backend=cpu_backend)
    assert torch.equal(out, composed(values, sizes, coords, backend=cpu_backend))


# ---- derivatives ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_only_the_gradients_that_are_asked_for(backend: str, dtype: torch.dtype) -> None:
    case = Levels(2, 2, dtype=dtype)
    _, *both = everything(lambda v, x: sample_levels(v, case.sizes, x, backend=backend), case)
    for wanted in (0, 1):
        *leaves, grad_output = case.tensors()
        leaves[wanted].requires_grad_()
        out = sample_levels(leaves[0], case.sizes, leaves[1], backend=backend)
        (alone,) = torch.autograd.grad(out, leaves[wanted], grad_output)
        # The kernels of `sample` that cuda takes are chosen by what is wanted.
        if backend == "cuda" or sums_vary():
            assert_near(alone, both[wanted], 2 * SAME_INDEX[dtype], slope(case))
        else:
            assert torch.equal(alone, both[wanted])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_derivatives_by_finite_differences(compiled_backend: str, ndim: int) -> None:
    sizes: Sizes = [(3,) * ndim, (2,) * ndim]
    case = Levels(ndim, 2, points=(3,), dtype=torch.float64, number=2)
    generator = torch.Generator(device="cpu").manual_seed(0)
    entries = sum(map(math.prod, sizes))
    values = torch.randn(entries, 2, generator=generator, dtype=torch.float64, device="cpu")
    values = values.to(torch.get_default_device())
    leaves = values.requires_grad_(), case.tensors()[1].requires_grad_()

    def call(values: Tensor, coords: Tensor) -> Tensor:
        return sample_levels(values, sizes, coords, backend=compiled_backend)

    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, leaves, check_fwd_over_rev=True)


def test_higher_derivatives_are_those_of_the_composition(compiled_backend: str) -> None:
    """Of the operators in float32: in both modes, and of the jitter's standard deviations."""
    case = Levels(2, 2, points=(20,), align_corners=True)
    values, coords, grad_output = case.tensors()
    std = torch.full((2,), 0.1)
    tangents = values.cos(), coords.sin(), std + 1

    def of(function: Any) -> Any:
        def call(values: Tensor, coords: Tensor, std: Tensor) -> Tensor:
            options = {**case.options, "jitter_std": std, "seed": 3, "backend": compiled_backend}
            out: Tensor = function(values, case.sizes, coords, **options)
            return out

        return call

    def results(call: Any) -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in (values, coords, std)]
        gradient = grad_output.detach().requires_grad_()
        first = torch.autograd.grad(call(*leaves), leaves, gradient, create_graph=True)
        total = sum((each * each.detach().cos()).sum() for each in first)
        second = torch.autograd.grad(total, (gradient, *leaves))
        jvp = torch.func.jvp(call, (values, coords, std), tangents)[1]
        forward_of_reverse = torch.func.jvp(
            torch.func.grad(lambda *args: call(*args).square().sum(), (0, 1, 2)),
            (values, coords, std),
            tangents,
        )[1]
        return [*first, *second, jvp, *forward_of_reverse]

    for got, wanted in zip(results(of(sample_levels)), results(of(composed)), strict=True):
        assert_near(got, wanted, 1e-5, slope(case) ** 2)


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (1, 1)], ids=str)
def test_vmap(backend: str, in_dims: tuple[int | None, int | None]) -> None:
    case = Levels(2, 2, points=(20,))
    values, coords, _ = case.tensors()

    def call(values: Tensor, coords: Tensor) -> Tensor:
        return sample_levels(
            values, case.sizes, coords, jitter_std=0.1, seed=3, backend=backend
        ).square()

    def gradients(values: Tensor, coords: Tensor) -> Any:
        return torch.func.grad(lambda v, x: call(v, x).sum(), (0, 1))(values, coords)

    many = [
        each if dim is None else torch.stack((each, each * 0.7, each * 1.1), dim)
        for each, dim in zip((values, coords), in_dims, strict=True)
    ]
    slices = [
        tuple(
            each if dim is None else each.select(dim, i)
            for each, dim in zip(many, in_dims, strict=True)
        )
        for i in range(3)
    ]
    expected = torch.stack([call(*each) for each in slices])
    assert_near(torch.vmap(call, in_dims)(*many), expected, 1e-6)
    of_each = zip(*(gradients(*each) for each in slices), strict=True)
    for got, wanted in zip(torch.vmap(gradients, in_dims)(*many), of_each, strict=True):
        assert_near(got, torch.stack(wanted), 1e-5, slope(case))


# ---- jitter ----


def test_a_point_moves_once(backend: str) -> None:
    """By the noise of `sample`, in all levels."""
    case = Levels(2, 2, points=(5, 8))
    values, coords, _ = case.tensors()
    options: dict[str, Any] = {"jitter_std": (0.1, 0.3), "seed": 8, "backend": backend}
    out = sample_levels(values, case.sizes, coords, **options)
    assert torch.equal(out, composed(values, case.sizes, coords, **options))
    sizes: Sizes = [(6, 7)] * 3
    alike = torch.randn(42, 2).repeat(3, 1)
    for seed in (None, 3, torch.tensor(3)):
        out = sample_levels(alike, sizes, coords, jitter_std=0.2, seed=seed, backend=backend)
        for level in out.split(2, -1):
            assert torch.equal(level, out[..., :2])
    again = sample_levels(alike, sizes, coords, jitter_std=0.2, backend=backend)
    assert not torch.equal(again, sample_levels(alike, sizes, coords, jitter_std=0.2))


# ---- compilers ----


class Module(torch.nn.Module):
    def __init__(self, case: Levels, backend: str | None) -> None:
        super().__init__()
        self.case, self.backend = case, backend

    def forward(self, values: Tensor, coords: Tensor) -> Tensor:
        return sample_levels(
            values, self.case.sizes, coords, jitter_std=0.1, seed=3, backend=self.backend
        ).sin()


COMPILED = [
    Levels(2, 2, points=(6,), number=2),
    Levels(2, 2, points=(6,), number=2, dtype=torch.float64),
]
# opcheck looks at the gradients of its own copies.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
]


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiles_whole(backend: str, case: Levels) -> None:
    torch._dynamo.reset()
    module = Module(case, backend)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(everything(compiled, case), everything(module, case), strict=True):
        assert_near(got, wanted, SAME_INDEX[case.dtype], slope(case))


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_exports(backend: str, case: Levels) -> None:
    """For the backend that is named, or for whichever is there."""
    values, coords, _ = case.tensors()
    for name in (backend, None):
        module = Module(case, name)
        shapes = {"values": None, "coords": {0: torch.export.Dim("points")}}
        program = torch.export.export(module, (values, coords), dynamic_shapes=shapes)
        more = torch.cat((coords, coords))
        out, expected = program.module()(values, more), module(values, more)
        assert_near(out, expected, SAME_INDEX[case.dtype])


def test_goes_to_onnx() -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    case = COMPILED[0]
    values, coords, _ = case.tensors()
    module = Module(case, None).eval()
    options = {"dynamo": True, "verbose": False, "optimize": False}
    model = torch.onnx.export(module, (values, coords), **options).model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [each.name for each in model.graph.input]
    feeds = dict(zip(names, (values.numpy(), coords.numpy()), strict=True))
    assert_near(torch.as_tensor(session.run(None, feeds)[0]), module(values, coords), 1e-5)


def operator_arguments(case: Levels, jitter: bool = True) -> tuple[Any, ...]:
    values, coords, _ = case.tensors()
    noise = (torch.tensor(3), torch.full((case.ndim,), 0.1)) if jitter else (None, None)
    flat = [number for size in case.sizes for number in size]
    options = pack("linear", case.padding_mode, case.align_corners, False)
    return values.requires_grad_(), coords.requires_grad_(), *noise, flat, options


def operators_of(backend: str) -> Any:
    if backend not in LEVEL_OPERATORS:
        pytest.skip("there levels are composed of samples")
    return LEVEL_OPERATORS[backend]


@pytest.mark.parametrize("case", [FUSED[0], FUSED[-1], Levels(2, 2, points=(0,))], ids=str)
def test_proper_operators(compiled_backend: str, case: Levels) -> None:
    operators = operators_of(compiled_backend)
    torch._dynamo.reset()
    for jitter in (False, True):
        arguments = operator_arguments(case, jitter)
        torch.library.opcheck(operators.sample_levels, arguments)
    gradient = case.tensors()[2].requires_grad_()
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(operators.sample_levels_backward, (gradient, *arguments, *wanted))


# ---- what is given ----


def test_nothing_around_the_inputs_is_read(compiled_backend: str) -> None:
    operators_of(compiled_backend)
    for case in FUSED:
        tensors = case.tensors()

        def call(values: Tensor, coords: Tensor, case: Levels = case) -> Tensor:
            options = {**case.options, "backend": compiled_backend}
            return sample_levels(values, case.sizes, coords, **options)

        expected = everything(call, case, tensors)
        actual = everything(call, case, tuple(map(amid_poison, tensors)))
        assert_same(actual, expected)


@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
def test_nothing_around_large_inputs_is_read(cpu_backend: str, ndim: int) -> None:
    sizes, tensors = large(ndim, 4100)

    def call(values: Tensor, coords: Tensor) -> Tensor:
        return sample_levels(values, sizes, coords, backend=cpu_backend)

    expected = everything(call, SORTED, tensors)
    actual = everything(call, SORTED, tuple(map(amid_poison, tensors)))
    for got, wanted in zip(actual, expected, strict=True):
        assert torch.equal(got, wanted)


def test_strides(backend: str) -> None:
    """Of values, coordinates and gradients."""
    case = Levels(2, 2, points=(20,))
    values, coords, grad_output = case.tensors()
    options = {"backend": backend}
    expected = everything(lambda v, x: sample_levels(v, case.sizes, x, **options), case)
    apart = tuple(each.repeat_interleave(2, -1)[..., ::2] for each in case.tensors())
    turned = tuple(each.mT.contiguous().mT for each in (values, coords, grad_output))
    for tensors in (apart, turned):
        assert not tensors[0].is_contiguous()
        actual = everything(lambda v, x: sample_levels(v, case.sizes, x, **options), case, tensors)
        for got, wanted in zip(actual, expected, strict=True):
            assert_near(got, wanted, 1e-6, slope(case))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_points_and_no_channels(backend: str, dtype: torch.dtype) -> None:
    for case in (Levels(2, 2, points=(0,), dtype=dtype), Levels(2, 0, points=(4,), dtype=dtype)):
        out, *gradients = everything(
            lambda v, x, case=case: sample_levels(v, case.sizes, x, backend=backend), case
        )
        assert out.shape == (*case.points, case.number * case.channels)
        for gradient, given in zip(gradients, case.tensors(), strict=False):
            assert gradient.shape == given.shape
            assert not gradient.any()
    one = sample_levels(torch.ones(5, 2), [(1, 1), (2, 2)], torch.zeros(2), backend=backend)
    assert one.shape == (4,)


VALUES, COORDS = torch.randn(20, 2), torch.rand(5, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((VALUES, [(4, 4), (2, 3)], COORDS), ValueError, r"values of shape \(22, C\)"),
        ((VALUES[None], [(4, 4), (2, 2)], COORDS), ValueError, r"values of shape \(20, C\)"),
        ((VALUES, [(4, 5)], COORDS[:, :1]), ValueError, "coords to have 2 components"),
        ((VALUES, [(4, 4), (4,)], COORDS), ValueError, "of each level as many axes"),
        ((VALUES, [], COORDS), ValueError, "at least 1 level"),
        ((VALUES, [(4, 0), (4, 5)], COORDS), ValueError, "at least 1 entry"),
        ((VALUES, [4, 5], COORDS), TypeError, "a tuple of ints for each level"),
        ((VALUES, [(4, 2.5)], COORDS), TypeError, "a tuple of ints for each level"),
        ((VALUES, 3, COORDS), TypeError, "a tuple of ints for each level"),
        ((VALUES.numpy(), [(4, 5)], COORDS), TypeError, "values to be a tensor"),
        ((VALUES.long(), [(4, 5)], COORDS), TypeError, "values to be float64"),
        ((VALUES, [(4, 5)], COORDS.half()), TypeError, "coords to be float32 or float64"),
        ((VALUES, [(4, 5)], COORDS.to("meta")), ValueError, "on one device"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sample_levels(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "bilinear"}, ValueError, "mode to be one of"),
        ({"padding_mode": "wrap"}, ValueError, "padding_mode to be one of"),
        ({"align_corners": (True,)}, TypeError, "align_corners to be a bool"),
        ({"jitter_std": -1.0}, ValueError, "jitter_std"),
        ({"deterministic": 1}, TypeError, "deterministic to be a bool or None"),
        ({"backend": "fast"}, ValueError, "backend"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        sample_levels(VALUES, [(4, 5)], COORDS, **options)


def wrong_calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Of the operators, which must not read or write beyond the end of a tensor."""
    values, coords, seed, std, flat, options = operator_arguments(Levels(2, 2))
    yield "an entry less", (values[:-1], coords, seed, std, flat, options)
    yield "an entry more", (values.repeat(2, 1), coords, seed, std, flat, options)
    yield "one axis", (values.flatten(), coords, seed, std, flat, options)
    yield "half a level", (values, coords, seed, std, flat[:-1], options)
    yield "no level", (values, coords, seed, std, [], options)
    yield "one entry", (values, coords, seed, std, [1, 1, *flat], options)
    yield "negative sizes", (values, coords, seed, std, [-n for n in flat], options)
    yield "huge sizes", (values, coords, seed, std, [1 << 62, 1 << 62, *flat], options)
    yield "float64", (values.double(), coords, seed, std, flat, options)
    yield "float64 coords", (values, coords.double(), seed, std.double(), flat, options)
    yield "coords of 3", (values, torch.zeros(4, 3), seed, std, flat, options)
    yield "one std", (values, coords, seed, std[:1], flat, options)
    yield "no seed", (values, coords, None, std, flat, options)
    for option in (
        pack("cubic", "zeros", False, False),
        pack("simplex", "zeros", False, False),
        pack("linear", "circular", False, False),
        pack("linear", "zeros", False, False, 1),
        pack("linear", "zeros", False, False, 0, "index"),
        -1,
    ):
        yield f"options {option}", (values, coords, seed, std, flat, option)


@pytest.mark.parametrize("wrong", [name for name, _ in wrong_calls()])
def test_operators_refuse_what_does_not_fit(compiled_backend: str, wrong: str) -> None:
    operators = operators_of(compiled_backend)
    arguments = dict(wrong_calls())[wrong]
    arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    with pytest.raises((RuntimeError, ValueError)):
        operators.sample_levels(*arguments)
    points = arguments[1].shape[0]
    with pytest.raises((RuntimeError, ValueError)):
        operators.sample_levels_backward(torch.zeros(points, 10), *arguments, True, True)


def test_no_more_levels_than_an_operator_takes(compiled_backend: str) -> None:
    operators = operators_of(compiled_backend)
    most = MOST_LEVELS[compiled_backend]

    def sampled(number: int) -> Tensor:
        arguments = operator_arguments(Levels(1, 1, number=number), jitter=False)
        out: Tensor = operators.sample_levels(
            *(each.detach() if isinstance(each, Tensor) else each for each in arguments)
        )
        return out

    taken = 40 if math.isinf(most) else int(most)
    assert sampled(taken).shape == (150, taken)
    if taken == most:
        with pytest.raises((RuntimeError, ValueError)):
            sampled(taken + 1)


def test_the_operator_refuses_another_gradient(compiled_backend: str) -> None:
    operators = operators_of(compiled_backend)
    arguments = operator_arguments(Levels(2, 2))
    for gradient in (torch.zeros(150, 9), torch.zeros(149, 10), torch.zeros(150, 10).double()):
        with pytest.raises((RuntimeError, ValueError), match="grad_output"):
            operators.sample_levels_backward(gradient, *arguments, True, True)


def test_no_operator_adds_a_deterministic_gradient_atomically(compiled_backend: str) -> None:
    operators = operators_of(compiled_backend)
    *arguments, options = operator_arguments(Levels(2, 2))
    call = (torch.zeros(150, 10), *arguments, options | DETERMINISTIC)
    assert operators.sample_levels_backward(*call, False, True)[1].shape == (150, 2)
    if compiled_backend != "cpu":
        with pytest.raises((RuntimeError, ValueError), match="deterministic"):
            operators.sample_levels_backward(*call, True, False)


# ---- the module, and its resolutions ----


def test_resolutions_are_those_of_instant_ngp() -> None:
    assert level_resolutions(5, 16, 256) == [16, 32, 64, 128, 256]
    assert level_resolutions(1, 7, 7) == [7]
    grown = level_resolutions(16, 16, 512)
    assert len(grown) == 16
    assert (grown[0], grown[1], grown[-1]) == (16, 20, 512)
    assert all(level_resolutions(16, 16, n)[-1] == n for n in range(16, 3000, 37))
    assert level_resolutions(4, 2, 524288) == [2, 128, 8192, 524288]
    assert level_resolutions(11, 8, 8 * 3**10) == [8 * 3**n for n in range(11)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((0, 2, 4), ValueError), ((1, 2, 4), ValueError), ((3, 4, 2), ValueError),
     ((3, 0, 2), ValueError), ((2.5, 2, 4), TypeError), ((True, 2, 2), TypeError)],
)  # fmt: skip
def test_resolutions_that_do_not_grow_are_refused(arguments: Any, error: Any) -> None:
    with pytest.raises(error, match=r"level_resolutions\(\): expected"):
        level_resolutions(*arguments)


def test_module(backend: str) -> None:
    memory = MultiLevelMemory(
        2, [4, (5, 3)], padding_mode="border", jitter_std=0.1, backend=backend
    )
    assert memory.sizes == ((4, 4), (5, 3))
    assert memory.weight.shape == (31, 2)
    assert 0 < memory.weight.abs().max() <= 1e-4
    coords = torch.rand(6, 2)
    options: dict[str, Any] = {"padding_mode": "border", "backend": backend}
    still = sample_levels(memory.weight, memory.sizes, coords, **options)
    moved = sample_levels(memory.weight, memory.sizes, coords, **options, jitter_std=0.1, seed=3)
    assert torch.equal(memory(coords, seed=3), moved)
    assert torch.equal(memory(coords, seed=3, jitter_std=0.0), still)
    twin = MultiLevelMemory(2, [4, (5, 3)], padding_mode="border", backend=backend)
    twin.load_state_dict(memory.state_dict())
    assert list(memory.state_dict()) == ["weight"]
    for same in (memory, twin, copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert torch.equal(same.eval()(coords), still)
    for word in ("2, ((4, 4), (5, 3))", "jitter_std=0.1", "'linear'", "'border'"):
        assert word in repr(memory)
    assert MultiLevelMemory(2, [4, 5], ndim=3).sizes == ((4, 4, 4), (5, 5, 5))


def test_module_learns(backend: str) -> None:
    coords = torch.linspace(-1, 1, 60).reshape(-1, 2).clone()
    torch.manual_seed(0)
    memory = MultiLevelMemory(2, level_resolutions(3, 2, 8), align_corners=True, backend=backend)
    target = torch.stack((coords.sin().sum(-1), coords.prod(-1)), -1)
    optimizer = torch.optim.Adam(memory.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        loss = (memory(coords).unflatten(-1, (3, 2)).sum(-2) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0, [4]), ValueError, "channels to be positive"),
        ((2, []), ValueError, "at least 1 level"),
        ((2, [(4, 5), (3,)]), ValueError, "of each level as many axes"),
        ((2, [(4, 5)], 3), ValueError, "leave it out"),
        ((2, [4, 0]), ValueError, "at least 1 entry"),
        ((2, 4), TypeError, "resolutions an int or ints for each level"),
        ((2, ["4"]), TypeError, "a tuple of ints for each level"),
        ((2.0, [4]), TypeError, "expected channels and ndim to be ints"),
    ],
)
def test_modules_that_do_not_fit_are_refused(
    arguments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        MultiLevelMemory(*arguments)


def test_the_module_names_its_own_argument() -> None:
    with pytest.raises(ValueError, match=r"MultiLevelMemory\(\): expected resolutions to have"):
        MultiLevelMemory(2, [0])


def test_modules_are_alike() -> None:
    """What one refuses of its options, the other does, too."""
    for make in (lambda **o: GridMemory(2, 4, **o), lambda **o: MultiLevelMemory(2, [4], **o)):
        for wrong in ({"mode": "no"}, {"jitter_std": -1.0}, {"padding_mode": "no"}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                make(**wrong)
        with pytest.raises(RuntimeError, match=r"not for torch\.jit\.script"):
            torch.jit.script(make())
