"""A value for what lies outside the grid, against a grid with a margin of this value."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crad_kernels import grid_sample, sample
from tests.cases import (
    JUDGE,
    SAME_INDEX,
    SIZES,
    TORCH_MODES,
    Case,
    assert_near,
    assert_rounded_once,
    cases,
    in_units,
)

# Importing torch's forward-mode differentiation does this.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated")

NAN, INFINITY = float("nan"), float("inf")
MARGIN = 6

CASES = [
    case
    for case in in_units(cases(1, 2, 3)) + in_units(cases(2, batch=2, channels=1))
    if case.padding_mode == "zeros" and case.coords_unit == "index"
] + [
    Case(SIZES[5], coords_unit="index"),
    Case((3, 4, 5), mode="simplex", coords_unit="index"),
    Case((4, 5), padding_mode=("circular", "zeros"), coords_unit="index"),
    Case((3, 4, 5), padding_mode=("zeros", "border", "zeros"), mode="cubic", coords_unit="index"),
]


def fill_of(case: Case) -> Tensor:
    return torch.linspace(-2, 3, case.channels + 1, dtype=case.dtype)[1:]


def with_margin(values: Tensor, coords: Tensor, fill: Tensor, case: Case) -> Tensor:
    """The sample of a grid with this value around, along the axes whose padding is zeros."""
    paddings = case.padding_mode
    each = (paddings,) * case.ndim if isinstance(paddings, str) else paddings
    margin = torch.tensor([MARGIN if padding == "zeros" else 0 for padding in each])
    widths = [0, 0]
    for number in margin.tolist():
        widths += [number, number]
    wide = F.pad(values - fill, widths) + fill
    # As far as the margin, within which all taps of any other place are.
    size = torch.tensor(case.size[::-1])
    near = coords.clamp(-margin + 2.5, size + margin - 3.5)
    index = torch.where(margin > 0, near, coords) + margin
    clamped = tuple("border" if padding == "zeros" else padding for padding in each)
    options = {**case.options, "padding_mode": clamped}
    return sample(wide, index, **options, backend=JUDGE)


def everything(function: Callable[..., Tensor], case: Case) -> list[Tensor]:
    """The sample, its gradients, and their gradients."""
    values, coords, grad_output = case.tensors()
    leaves = values.requires_grad_(), coords.requires_grad_(), fill_of(case).requires_grad_()
    out = function(*leaves)
    first = torch.autograd.grad(out, leaves, grad_output, create_graph=True)
    total = sum((each * each.detach().cos()).sum() for each in (out, *first))
    second = torch.autograd.grad(total, leaves)
    return [out, *first, *second]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_the_sample_of_a_grid_with_a_margin(backend: str, case: Case) -> None:
    actual = everything(lambda v, x, f: sample(v, x, fill=f, **case.options, backend=backend), case)
    expected = everything(lambda v, x, f: with_margin(v, x, f, case), case)
    for got, wanted in zip(actual, expected, strict=True):
        assert_near(got, wanted, 1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_number_is_as_good_as_a_tensor(backend: str, case: Case) -> None:
    values, coords, _ = case.tensors()
    options = {**case.options, "backend": backend}
    for number in (1.5, 2, NAN, -INFINITY):
        for tensor in (
            torch.tensor(number, dtype=case.dtype),
            torch.full((case.channels,), number, dtype=torch.float32),
        ):
            out, expected = (
                sample(values, coords, fill=each, **options) for each in (number, tensor)
            )
            assert torch.equal(out.isnan(), expected.isnan())
            assert_near(
                out.nan_to_num(0, 9, -9), expected.nan_to_num(0, 9, -9), SAME_INDEX[case.dtype]
            )


@pytest.mark.parametrize("unit", ["index", "normalized"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", TORCH_MODES)
def test_what_is_inside_stays_to_the_last_bit(
    backend: str, mode: str, dtype: torch.dtype, unit: str
) -> None:
    """And so do its derivatives, beside a fill that is no number."""
    case = Case((9, 7), channels=5, mode=mode, dtype=dtype, coords_dtype=dtype)
    options = {**case.options, "coords_unit": unit, "backend": backend}
    values = case.tensors()[0]
    generator = torch.Generator(device="cpu").manual_seed(0)
    u = torch.rand(400, 2, generator=generator, device="cpu", dtype=dtype)
    u = u.to(values.device) * torch.tensor([13.0, 15.0], dtype=dtype) - 3
    u[:9] = torch.tensor([[6.0, 8.0]], dtype=dtype)  # the last entry, and beside it weights of 0
    coords = u if unit == "index" else (2 * u + 1) / torch.tensor([7.0, 9.0], dtype=dtype) - 1
    # Where rounding does not decide: a tap outside may have a weight near 0.
    size = torch.tensor([7, 9])
    reach = {"nearest": 0.5, "linear": 0, "simplex": 0, "cubic": -1}[mode]
    within = ((u >= -reach) & (u <= size - 1 + reach)).all(-1)
    decided = ((u + reach).abs() > 1e-3) & ((u - size + 1 - reach).abs() > 1e-3)
    leaves = values.requires_grad_(), coords.requires_grad_()
    plain = sample(*leaves, **options)
    of_plain = torch.autograd.grad(plain[within].sum(), leaves)
    for fill in (NAN, INFINITY, torch.tensor(NAN), torch.tensor([1, NAN, 2, INFINITY, 3])):
        out = sample(*leaves, fill=fill, **options)
        assert torch.equal(out[within], plain[within])
        entries = ((u == u.round()) & (u >= 0) & (u <= size - 1)).all(-1)
        some = within | entries | ~decided.all(-1)
        if not isinstance(fill, Tensor) or fill.ndim == 0:
            assert not out[~some].isfinite().any()
        gradients = torch.autograd.grad(out[within].sum(), leaves)
        for got, wanted in zip(gradients, of_plain, strict=True):
            assert_near(got[within] if got.shape == u.shape else got, wanted[within] if
                        wanted.shape == u.shape else wanted, SAME_INDEX[dtype])  # fmt: skip


@pytest.mark.parametrize("ndim", SIZES)
def test_inside_a_grid_of_any_number_of_axes_nothing_is_added(backend: str, ndim: int) -> None:
    """However many weights are summed: in float32, and of coordinates that are rounded."""
    case = Case(SIZES[ndim], dtype=torch.float32, coords_dtype=torch.float32)
    values = case.tensors()[0]
    generator = torch.Generator(device="cpu").manual_seed(0)
    size = torch.tensor(case.size[::-1])
    u = torch.rand(300, ndim, generator=generator, device="cpu").to(values.device) * (size - 1)
    for mode in ("linear", "cubic") if ndim < 4 else ("linear",):
        options: dict[str, Any] = {"mode": mode, "coords_unit": "index", "backend": backend}
        inside = u if mode == "linear" else u.clamp(torch.ones(ndim), (size - 2.001).clamp(min=1))
        inside = inside[(inside <= size - 1).all(-1)]
        plain, out = (sample(values, inside, fill=fill, **options) for fill in (0.0, NAN))
        if mode == "linear":
            assert torch.equal(plain, out)
        kept = out.isfinite()
        assert torch.equal(plain[kept], out[kept])


@pytest.mark.parametrize("mode", TORCH_MODES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_drop_in_takes_it(backend: str, mode: str, channels_last: bool) -> None:
    image, grid = torch.randn(2, 3, 9, 8), torch.rand(2, 5, 6, 2) * 4 - 2
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    fill = torch.tensor([1.0, 2.0, 3.0])
    out = grid_sample(image, grid, TORCH_MODES[mode], fill=fill, backend=backend)
    plain = grid_sample(image, grid, TORCH_MODES[mode], backend=backend)
    assert out.stride() == plain.stride()
    expected = sample(image.movedim(1, -1), grid, mode=mode, fill=fill, backend=backend)
    assert_near(out, expected.movedim(-1, 1), 1e-6)


def test_is_what_warps_of_kornia_fill_with(backend: str) -> None:
    """Which blend with the sample of an image of ones."""
    image, grid = torch.randn(2, 3, 9, 8), torch.rand(2, 5, 6, 2) * 4 - 2
    fill = torch.tensor([1.0, 2.0, 3.0])
    ones = F.grid_sample(torch.ones_like(image), grid, align_corners=False)
    sampled = F.grid_sample(image, grid, align_corners=False)
    expected = sampled + (1 - ones) * fill[:, None, None]
    assert_near(grid_sample(image, grid, fill=fill, backend=backend), expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(backend: str, dtype: torch.dtype) -> None:
    case = Case((9, 7), points=(200,), dtype=dtype, coords_dtype=torch.float32)
    values, coords, _ = case.tensors()
    options = {"fill": 0.123, "backend": backend}
    out, exact = (sample(each, coords, **options) for each in (values, values.float()))
    assert out.dtype == dtype
    assert_rounded_once(out, exact, SAME_INDEX[torch.float32])


def test_one_seed_moves_the_sample_and_its_margin(backend: str) -> None:
    case = Case((4, 5), coords_unit="index", points=(40,))
    values, coords, _ = case.tensors()
    options = {**case.options, "jitter_std": 0.7, "backend": backend}
    once = sample(values, coords, fill=torch.tensor(2.0), seed=3, **options)
    inside = sample(torch.ones_like(values), coords, seed=3, **options)
    plain = sample(values, coords, seed=3, **options)
    assert_near(once, plain + (1 - inside) * 2, 1e-14)
    torch.manual_seed(0)
    drawn = sample(torch.ones_like(values), coords, fill=1, **options)
    assert_near(drawn, torch.ones_like(drawn), 1e-14)  # but with another noise of the margin
    std = torch.tensor(0.7, dtype=coords.dtype, requires_grad=True)
    out = sample(values, coords, fill=2.0, seed=3, **{**options, "jitter_std": std})
    assert torch.autograd.grad(out.sum(), std)[0].isfinite()


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("mode", TORCH_MODES)
def test_derivatives(compiled_backend: str, mode: str, ndim: int) -> None:
    case = Case((3,) * ndim, channels=2, points=(4,), mode=mode)
    values, coords, _ = (tensor.requires_grad_() for tensor in case.tensors())
    fill = fill_of(case).requires_grad_()

    def call(values: Tensor, coords: Tensor, fill: Tensor) -> Tensor:
        return sample(values, coords, fill=fill, mode=mode, backend=compiled_backend)

    assert torch.autograd.gradcheck(call, (values, coords, fill), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (values, coords, fill))


def test_vmap(backend: str) -> None:
    case = Case((4, 5), points=(6,))
    values, coords, _ = case.tensors()
    fills = torch.randn(3, 3, dtype=values.dtype)
    many = torch.stack((coords, coords * 0.5, coords * 2))

    def call(coords: Tensor, fill: Tensor) -> Tensor:
        return sample(values, coords, fill=fill, backend=backend)

    expected = [call(x, f) for x, f in zip(many, fills, strict=True)]
    assert_near(torch.vmap(call)(many, fills), torch.stack(expected), SAME_INDEX[torch.float64])


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")
def test_compiles_and_exports(backend: str) -> None:
    case = Case((4, 5), points=(6,), padding_mode=("zeros", "circular"))
    values, coords, _ = case.tensors()
    fill = fill_of(case)

    class Module(torch.nn.Module):
        def forward(self, values: Tensor, coords: Tensor, fill: Tensor) -> Tensor:
            jitter = {"jitter_std": 0.1, "seed": 3}
            filled = sample(values, coords, fill=fill, **jitter, **case.options, backend=backend)
            return filled + sample(values, coords, fill=-1.5, backend=backend)

    expected = Module()(values, coords, fill)
    torch._dynamo.reset()
    compiled = torch.compile(Module(), backend="aot_eager", fullgraph=True)
    assert_near(compiled(values, coords, fill), expected, SAME_INDEX[torch.float64])
    program = torch.export.export(Module(), (values, coords, fill))
    assert_near(program.module()(values, coords, fill), expected, SAME_INDEX[torch.float64])


def test_goes_to_onnx() -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    case = Case((6, 5), points=(40,), dtype=torch.float32, coords_dtype=torch.float32)
    values, coords, _ = case.tensors()

    class Module(torch.nn.Module):
        def forward(self, coords: Tensor, fill: Tensor) -> tuple[Tensor, Tensor]:
            return sample(values, coords, fill=fill), sample(values, coords, fill=0.5, mode="cubic")

    given = coords, torch.tensor([1.0, NAN, 2.0])
    options = {"dynamo": True, "verbose": False, "optimize": False}
    model = torch.onnx.export(Module().eval(), given, **options).model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [each.name for each in model.graph.input]
    feeds = dict(zip(names, (each.numpy() for each in given), strict=True))
    for got, wanted in zip(session.run(None, feeds), Module()(*given), strict=True):
        assert_near(torch.as_tensor(got).nan_to_num(), wanted.nan_to_num(), 2e-6)


VALUES, COORDS = torch.randn(4, 3, 2), torch.rand(5, 2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"fill": "red"}, TypeError, "fill to be a float or a tensor, but got 'red'"),
        ({"fill": True}, TypeError, "fill to be a float or a tensor, but got True"),
        ({"fill": [1.0, 2.0]}, TypeError, r"fill to be a float or a tensor, but got \[1.0, 2.0\]"),
        ({"fill": torch.ones(3)}, ValueError, r"shape \(\) or \(2,\), but got shape \(3,\)"),
        ({"fill": torch.ones(2) > 0}, TypeError, "of real numbers, but got torch.bool"),
        ({"fill": torch.ones(2, device="meta")}, ValueError, "to be on cpu, but got one on meta"),
        ({"fill": 1.0, "padding_mode": "border"}, ValueError, "leave fill out"),
        ({"fill": 1.0, "padding_mode": ("border", "circular")}, ValueError, "leave fill out"),
        ({"fill": 1.0, "padding_mode": "wrap"}, ValueError, "padding_mode to be one of"),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sample(VALUES, COORDS, **options)
    image = VALUES.movedim(-1, 0)[None]
    with pytest.raises(error, match=words):
        grid_sample(image, COORDS[None, None], **options)


def test_zero_is_as_without(backend: str) -> None:
    case = Case((4, 3))
    values, coords, _ = case.tensors()
    for padding_mode in ("zeros", "border"):
        plain = sample(values, coords, padding_mode=padding_mode, backend=backend)
        for fill in (0.0, -0.0):
            same = sample(values, coords, padding_mode=padding_mode, fill=fill, backend=backend)
            assert torch.equal(plain, same)
    zero = sample(values, coords, fill=torch.zeros(()), backend=backend)
    assert torch.equal(zero, sample(values, coords, backend=backend))
    assert math.isfinite(zero.sum())
