"""Derivatives with respect to `jitter_std`, whose noise is known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from crad_kernels import GridMemory, _op, sample
from crad_kernels._op import OPERATORS
from crad_kernels._schema import pack
from tests.cases import SAME_INDEX, Case, assert_near

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    # opcheck looks at the gradients of its own copies.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

SHARED = Case((4, 3), channels=2, points=(4,), mode="cubic", padding_mode="border")
SMALL = Case((3,), channels=1, points=(3,))
PLANE = Case((2, 3), channels=1, points=(2,), mode="cubic", padding_mode="border")
BATCHED = Case((2, 3), channels=1, points=(1,), batch=2, padding_mode="reflection")


def call(case: Case, backend: str, **options: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    options = {**case.options, "seed": 3, **options}
    return lambda values, coords, std: sample(
        values, coords, jitter_std=std, **options, backend=backend
    )


def std_of(case: Case, per_component: bool, scale: float = 0.1) -> Tensor:
    std = torch.arange(1, case.ndim + 1, dtype=torch.float64) * scale
    return (std if per_component else std[0]).detach().requires_grad_()


@pytest.mark.parametrize(
    ("case", "per_component", "scale"),
    [(PLANE, True, 0.1), (BATCHED, False, 0.1), (SMALL, True, 0.1), (SMALL, False, 0.0)],
    ids=str,
)
def test_matches_finite_differences(
    backend: str, case: Case, per_component: bool, scale: float
) -> None:
    """In both modes, of first and second order, batched; of no jitter as of any."""
    values, coords, _ = (tensor.requires_grad_() for tensor in case.tensors())
    arguments = values, coords, std_of(case, per_component, scale)
    function = call(case, backend)
    batched = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(
        function, arguments, check_forward_ad=True, check_batched_forward_grad=True, **batched
    )
    assert torch.autograd.gradgradcheck(function, arguments, check_fwd_over_rev=True, **batched)


@pytest.mark.parametrize("small", [SMALL, SHARED], ids=str)
def test_is_the_gradient_of_coordinates_times_the_noise(backend: str, small: Case) -> None:
    """Summed over the points, in float32 as well; with respect to this alone, too."""
    values, coords, grad_output = small.tensors()
    noise = _op.normals(backend, torch.tensor(3), len(coords), small.ndim)
    for dtype in (torch.float64, torch.float32):
        x = coords.to(dtype).requires_grad_()
        std = std_of(small, True).to(dtype).detach().requires_grad_()
        out = call(small, backend)(values.to(dtype), x, std)
        to_coords, to_std = torch.autograd.grad(
            out, (x, std), grad_output.to(dtype), retain_graph=True
        )
        assert to_std.dtype == dtype
        expected = (to_coords * noise.to(dtype)).sum(0)
        assert_near(to_std, expected, SAME_INDEX[dtype])
        (alone,) = torch.autograd.grad(out, std, grad_output.to(dtype))
        assert_near(alone, to_std, SAME_INDEX[dtype])


def test_in_other_dtypes(backend: str) -> None:
    """Of the values, and of its own."""
    values, coords, _ = SHARED.tensors()
    for std in (torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor([0.1, 0.2])):
        std.requires_grad_()
        out = call(SHARED, backend)(values.bfloat16(), coords.float(), std)
        (gradient,) = torch.autograd.grad(out.float().sum(), std)
        assert (gradient.dtype, gradient.shape) == (std.dtype, std.shape)
        assert gradient.isfinite().all()


def test_transforms(backend: str) -> None:
    """Of torch.func, one in another, each slice with a jitter of its own."""
    values, coords, _ = SHARED.tensors()

    def energy(std: Tensor) -> Tensor:
        return call(SHARED, backend)(values, coords, std).square().sum()

    std = std_of(SHARED, True).detach()
    stds = torch.stack([std, 2 * std, 0 * std])
    leaf = std.clone().requires_grad_()
    (expected,) = torch.autograd.grad(energy(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(energy)(std), expected)
    torch.testing.assert_close(torch.func.jacfwd(energy)(std), expected)
    one_by_one = torch.stack([torch.func.grad(energy)(each) for each in stds])
    torch.testing.assert_close(torch.vmap(torch.func.grad(energy))(stds), one_by_one)
    hessians = torch.stack([torch.func.hessian(energy)(each) for each in stds])
    torch.testing.assert_close(torch.vmap(torch.func.hessian(energy))(stds), hessians)
    total = torch.func.grad(lambda stds: torch.vmap(energy)(stds).sum())(stds)
    torch.testing.assert_close(total, one_by_one)


class Names(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_noise_is_made_for_its_gradient_alone(compiled_backend: str) -> None:
    """A tensor that is not learned costs nothing, nor does the sample of one that is."""
    values, coords, _ = (tensor.requires_grad_() for tensor in SHARED.tensors())
    std = std_of(SHARED, True)
    normals = f"crad_kernels.normals.{compiled_backend}"
    with Names() as fixed:
        call(SHARED, compiled_backend)(values, coords, std.detach()).sum().backward()
    assert normals not in fixed.names
    with Names() as forward:
        out = call(SHARED, compiled_backend)(values, coords, std)
    assert normals not in forward.names
    with Names() as unneeded, torch.no_grad():
        call(SHARED, compiled_backend)(values, coords, std)
    assert normals not in unneeded.names
    with Names() as backward:
        out.sum().backward()
    assert backward.names.count(normals) == 1


def test_is_a_proper_operator(compiled_backend: str) -> None:
    values, coords, grad_output = (tensor.requires_grad_() for tensor in SHARED.tensors())
    options = pack(SHARED.mode, SHARED.padding_mode, False, False)
    arguments = values, coords, torch.tensor(3), std_of(SHARED, True), options
    operators = OPERATORS[compiled_backend]
    torch.library.opcheck(operators.sample, arguments)
    torch.library.opcheck(operators.sample_backward, (grad_output, *arguments, True, True))


def test_the_compiler_takes_any_in_one_graph(backend: str) -> None:
    values, coords, _ = SMALL.tensors()

    def energy(std: Tensor) -> Tensor:
        return call(SMALL, backend)(values, coords, std).square().sum()

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(energy, backend=counter, fullgraph=True)
    for scale in (0.1, 0.2, 0.0):
        std = std_of(SMALL, True, scale)
        for got, wanted in zip(
            *(torch.autograd.grad(f(std), std) for f in (compiled, energy)), strict=True
        ):
            torch.testing.assert_close(got, wanted)
    assert counter.frame_count == 1


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd])
def test_the_compiler_knows_the_transforms(compiled_backend: str, transform: Any) -> None:
    values, coords, _ = SHARED.tensors()
    std = std_of(SHARED, True).detach()
    function = transform(
        lambda std: call(SHARED, compiled_backend)(values, coords, std).square().sum()
    )
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(std), function(std))


# ---- in a GridMemory ----


def test_a_memory_learns_it(backend: str) -> None:
    """To blur as much as the target does."""
    torch.manual_seed(0)
    coords = torch.linspace(-1, 1, 400)[:, None]
    options = {"padding_mode": "border", "align_corners": True, "backend": backend}
    memory = GridMemory(1, (2,), jitter_std=nn.Parameter(torch.tensor(0.0)), **options)
    assert isinstance(memory.jitter_std, nn.Parameter)
    assert list(dict(memory.named_parameters())) == ["weight", "jitter_std"]
    memory.weight.requires_grad_(False).copy_(torch.tensor([[-1.0], [1.0]]))
    # The grid is the identity but for its ends.
    target = sample(memory.weight, coords, jitter_std=0.2, seed=5, **options)
    optimizer = torch.optim.Adam([memory.jitter_std], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (memory(coords, seed=5) - target).square().mean().backward()
        optimizer.step()
    assert abs(memory.jitter_std.item() - 0.2) < 0.01
    assert torch.equal(memory.eval()(coords, seed=5), memory(coords, jitter_std=0.0))


def test_a_memory_keeps_a_tensor_as_a_buffer() -> None:
    memory = GridMemory(2, (3, 4), jitter_std=torch.tensor([0.1, 0.2]))
    assert list(dict(memory.named_parameters())) == ["weight"]
    assert list(memory.state_dict()) == ["weight", "jitter_std"]
    assert memory.double().jitter_std.dtype == torch.float64
    assert memory.to("meta").jitter_std.device.type == "meta"
    assert "jitter_std=<Tensor (2,)>" in repr(memory)
    fixed = GridMemory(2, (3, 4), jitter_std=0.1)
    assert list(fixed.state_dict()) == ["weight"]
    fixed.jitter_std = nn.Parameter(torch.tensor(0.1))  # later, as of any module
    assert list(fixed.state_dict()) == ["weight", "jitter_std"]
    assert "jitter_std=<Parameter ()>" in repr(fixed)


@pytest.mark.parametrize(
    ("std", "error", "words"),
    [
        (torch.zeros(3), ValueError, r"shape \(\) or \(2,\), but got shape \(3,\)"),
        (torch.zeros(2, dtype=torch.complex64), TypeError, r"real numbers.*torch\.complex64"),
        (torch.zeros(2).to_sparse(), TypeError, r"jitter_std.*to_dense"),
    ],
)
def test_a_memory_refuses_a_tensor_that_does_not_fit(
    std: Tensor, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        GridMemory(2, (3, 4), jitter_std=std)
