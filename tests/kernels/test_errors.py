"""Every check of the arguments: its type, and what its message names."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crad_kernels import GridMemory, grid_sample, sample
from crad_kernels._schema import COORDS_UNITS, MODES, PADDING_MODES, pack, unpack
from tests.cases import JUDGE

VALUES = torch.zeros(4, 3, 2)
COORDS = torch.zeros(5, 2)


def zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(shape, **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        pytest.param(*row[1:], id=row[0])
        for row in (
            (
                "coords dtype",
                lambda: sample(VALUES, COORDS.half()),
                TypeError,
                ["coords", "float32 or float64", "torch.float16", "coords.float()"],
            ),
            (
                "values dtype",
                lambda: sample(VALUES.int(), COORDS),
                TypeError,
                ["values", "bfloat16", "torch.int32"],
            ),
            (
                "complex values",
                lambda: sample(VALUES.to(torch.complex64), COORDS),
                TypeError,
                ["values", "torch.complex64"],
            ),
            (
                "coords without an axis",
                lambda: sample(VALUES, zeros()),
                ValueError,
                ["coords", "at least 1 component", "()"],
            ),
            (
                "coords without components",
                lambda: sample(VALUES, zeros(5, 0)),
                ValueError,
                ["coords", "at least 1 component", "(5, 0)"],
            ),
            (
                "too few axes",
                lambda: sample(VALUES, zeros(5, 3)),
                ValueError,
                ["4 axes (*size, C)", "5 axes (B, *size, C)", "(4, 3, 2)", "(5, 3)"],
            ),
            (
                "too many axes",
                lambda: sample(zeros(2, 2, 4, 3, 2), COORDS),
                ValueError,
                ["3 axes (*size, C)", "4 axes (B, *size, C)", "(2, 2, 4, 3, 2)"],
            ),
            (
                "another batch size",
                lambda: sample(zeros(2, 4, 3, 2), zeros(3, 5, 2)),
                ValueError,
                ["batch size", "(2, 4, 3, 2)", "(3, 5, 2)"],
            ),
            (
                "a batch of values and one point",
                lambda: sample(zeros(2, 4, 3, 2), zeros(2)),
                ValueError,
                ["batch size", "(2, 4, 3, 2)", "(2,)"],
            ),
            (
                "an axis without entries",
                lambda: sample(zeros(4, 0, 2), COORDS),
                ValueError,
                ["at least 1 entry", "(4, 0, 2)"],
            ),
            (
                "two devices",
                lambda: sample(VALUES.to("meta"), COORDS),
                ValueError,
                ["one device", "meta", "cpu"],
            ),
            (
                "mode",
                lambda: sample(VALUES, COORDS, mode="bilinear"),
                ValueError,
                ["mode", "'linear'", "'nearest'", "'cubic'", "'bilinear'"],
            ),
            (
                "padding_mode",
                lambda: sample(VALUES, COORDS, padding_mode="wrap"),
                ValueError,
                ["padding_mode", "'zeros'", "'border'", "'reflection'", "'circular'", "'wrap'"],
            ),
            (
                "backend",
                lambda: sample(VALUES, COORDS, backend="gpu"),
                ValueError,
                ["backend", JUDGE, "'gpu'"],
            ),
            (
                "negative jitter",
                lambda: sample(VALUES, COORDS, jitter_std=-0.1),
                ValueError,
                ["jitter_std", "2 floats", "at least 0", "-0.1"],
            ),
            (
                "NaN jitter",
                lambda: sample(VALUES, COORDS, jitter_std=float("nan")),
                ValueError,
                ["jitter_std", "finite", "nan"],
            ),
            (
                "infinite jitter",
                lambda: sample(VALUES, COORDS, jitter_std=(0.1, float("inf"))),
                ValueError,
                ["jitter_std", "finite", "inf"],
            ),
            (
                "jitter of another dimension",
                lambda: sample(VALUES, COORDS, jitter_std=(0.1, 0.1, 0.1)),
                ValueError,
                ["jitter_std", "2 floats", "(0.1, 0.1, 0.1)"],
            ),
            (
                "seed beyond 64 bits",
                lambda: sample(VALUES, COORDS, jitter_std=0.1, seed=2**64),
                ValueError,
                ["seed", "64 bits", str(2**64)],
            ),
            (
                "seed below 64 bits",
                lambda: sample(VALUES, COORDS, jitter_std=0.1, seed=-(2**63) - 1),
                ValueError,
                ["seed", "64 bits"],
            ),
            (
                "seed dtype",
                lambda: sample(VALUES, COORDS, jitter_std=0.1, seed=torch.tensor(1.0)),
                TypeError,
                ["seed", "int64 0-d", "torch.float32"],
            ),
            (
                "seed shape",
                lambda: sample(VALUES, COORDS, jitter_std=0.1, seed=torch.tensor([1])),
                TypeError,
                ["seed", "int64 0-d", "(1,)"],
            ),
            (
                "seed device",
                lambda: sample(VALUES, COORDS, jitter_std=0.1, seed=torch.tensor(1, device="meta")),
                TypeError,
                ["seed", "on cpu", "on meta"],
            ),
            (
                "seed that is not used",
                lambda: sample(VALUES, COORDS, seed="3"),  # type: ignore[arg-type]
                TypeError,
                ["seed", "int64 0-d", "'3'"],
            ),
            (
                "seed of a fraction",
                lambda: sample(VALUES, COORDS, jitter_std=0.1, seed=1.5),  # type: ignore[arg-type]
                TypeError,
                ["seed", "1.5"],
            ),
            (
                "grid_sample mode",
                lambda: grid_sample(zeros(1, 2, 4, 3), zeros(1, 5, 5, 2), "cubic"),
                ValueError,
                ["grid_sample()", "'bilinear'", "'nearest'", "'bicubic'", "'cubic'"],
            ),
            (
                "grid_sample of no tensor",
                lambda: grid_sample(None, zeros(1, 5, 5, 2)),  # type: ignore[arg-type]
                TypeError,
                ["grid_sample()", "input", "tensor", "NoneType"],
            ),
            (
                "values of no tensor",
                lambda: sample([1.0], COORDS),  # type: ignore[arg-type]
                TypeError,
                ["values", "tensor", "list"],
            ),
            (
                "coords_unit",
                lambda: sample(VALUES, COORDS, coords_unit="pixel"),
                ValueError,
                ["coords_unit", "'normalized'", "'index'", "'pixel'"],
            ),
            (
                "align_corners",
                lambda: sample(VALUES, COORDS, align_corners="no"),  # type: ignore[arg-type]
                TypeError,
                ["align_corners", "bool", "'no'"],
            ),
            (
                "deterministic",
                lambda: sample(VALUES, COORDS, deterministic="yes"),  # type: ignore[arg-type]
                TypeError,
                ["deterministic", "bool or None", "'yes'"],
            ),
            (
                "jitter of letters",
                lambda: sample(VALUES, COORDS, jitter_std="12"),  # type: ignore[arg-type]
                TypeError,
                ["jitter_std", "2 floats", "'12'"],
            ),
            (
                "jitter that is true",
                lambda: sample(VALUES, COORDS, jitter_std=True),
                TypeError,
                ["jitter_std", "2 floats", "True"],
            ),
            (
                "jitter of complex numbers",
                lambda: sample(VALUES, COORDS, jitter_std=torch.tensor(1j)),
                TypeError,
                ["jitter_std", "real numbers", "torch.complex64"],
            ),
            (
                "seed that is true",
                lambda: sample(VALUES, COORDS, jitter_std=0.1, seed=True),
                TypeError,
                ["seed", "int64 0-d", "True"],
            ),
            (
                "sparse values",
                lambda: sample(VALUES.to_sparse(), COORDS),
                TypeError,
                ["values", "dense", "torch.sparse_coo", "values.to_dense()"],
            ),
            (
                "jitter beyond float32",
                lambda: sample(VALUES, COORDS, jitter_std=1e300),
                ValueError,
                ["jitter_std", "torch.float32", "1e+300"],
            ),
            (
                "memory mode",
                lambda: GridMemory(3, 4, mode="bogus"),
                ValueError,
                ["mode", "'cubic'", "'bogus'"],
            ),
            (
                "memory of a fraction",
                lambda: GridMemory(3, 1.5),  # type: ignore[arg-type]
                TypeError,
                ["GridMemory()", "resolution", "1.5"],
            ),
            (
                "memory jitter",
                lambda: GridMemory(3, 4, jitter_std=-1.0),
                ValueError,
                ["jitter_std", "2 floats", "-1.0"],
            ),
            (
                "memory backend",
                lambda: GridMemory(3, 4, backend="nope"),
                ValueError,
                ["backend", JUDGE, "'nope'"],
            ),
            (
                "a list for a backend",
                lambda: sample(VALUES, COORDS, backend=[JUDGE]),  # type: ignore[arg-type]
                ValueError,
                ["backend", f"['{JUDGE}']"],
            ),
            (
                "a tensor of jitter",
                lambda: sample(VALUES, COORDS, jitter_std=torch.zeros(3)),
                ValueError,
                ["jitter_std", "(2,)", "(3,)"],
            ),
            (
                "grid_sample dtypes",
                lambda: grid_sample(zeros(1, 2, 4, 3).int(), zeros(1, 5, 5, 2)),
                TypeError,
                ["grid_sample()", "input", "torch.int32"],
            ),
            (
                "grid_sample devices",
                lambda: grid_sample(zeros(1, 2, 4, 3, device="meta"), zeros(1, 5, 5, 2)),
                ValueError,
                ["grid_sample()", "input and grid", "meta", "cpu"],
            ),
            (
                "grid_sample without entries",
                lambda: grid_sample(zeros(1, 2, 0, 3), zeros(1, 5, 5, 2)),
                ValueError,
                ["grid_sample()", "input", "(1, 2, 0, 3)"],
            ),
            (
                "grid_sample without spatial axes",
                lambda: grid_sample(zeros(1, 2), zeros(1, 0)),
                ValueError,
                ["grid_sample()", "(N, C, *size)", "(1, 2)"],
            ),
            (
                "grid_sample axes",
                lambda: grid_sample(zeros(1, 2, 4, 3), zeros(1, 5, 2)),
                ValueError,
                ["grid_sample()", "(N, *out, D)", "(1, 2, 4, 3)", "(1, 5, 2)"],
            ),
            (
                "grid_sample components",
                lambda: grid_sample(zeros(1, 2, 4, 3), zeros(1, 5, 5, 3)),
                ValueError,
                ["grid_sample()", "(N, *out, D)", "(1, 5, 5, 3)"],
            ),
            (
                "grid_sample batch",
                lambda: grid_sample(zeros(1, 2, 4, 3), zeros(2, 5, 5, 2)),
                ValueError,
                ["grid_sample()", "batch size", "(1, 2, 4, 3)", "(2, 5, 5, 2)"],
            ),
            (
                "memory without channels",
                lambda: GridMemory(0, 4),
                ValueError,
                ["GridMemory()", "positive", "channels=0"],
            ),
            (
                "memory without entries",
                lambda: GridMemory(3, (4, 0)),
                ValueError,
                ["GridMemory()", "positive", "(4, 0)"],
            ),
            (
                "memory without axes",
                lambda: GridMemory(3, 4, ndim=0),
                ValueError,
                ["GridMemory()", "positive", "ndim=0"],
            ),
            (
                "memory of other axes",
                lambda: GridMemory(3, (4, 4), ndim=3),
                ValueError,
                ["GridMemory()", "ndim", "the length of resolution, 2", "got 3"],
            ),
            (
                "memory of a bool",
                lambda: GridMemory(True, 4),
                TypeError,
                ["GridMemory()", "channels=True"],
            ),
        )
    ],
)
def test_a_wrong_argument_is_named(
    call: Callable[[], Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value)


def test_more_dimensions_than_a_backend_takes(compiled_backend: str) -> None:
    """Its name, its limit and the way out."""
    with pytest.raises(ValueError, match=r"at most 8 dimensions.*got 9.*backend=None") as raised:
        sample(zeros(*(1,) * 9, 2), zeros(5, 9), backend=compiled_backend)
    assert repr(compiled_backend) in str(raised.value)


def test_a_device_that_a_backend_does_not_take(compiled_backend: str) -> None:
    with pytest.raises(ValueError, match=r"takes tensors on .*, but got one on meta"):
        sample(VALUES.to("meta"), COORDS.to("meta"), backend=compiled_backend)


MISFITS: dict[str, tuple[torch.Tensor, torch.Tensor, str]] = {
    "too few axes": (zeros(4, 3, 2), zeros(5, 3), "4 axes"),
    "another batch size": (zeros(2, 4, 3, 2), zeros(3, 5, 2), "batch size"),
    "no entries": (zeros(4, 0, 2), zeros(5, 2), "at least 1 entry"),
    "no components": (zeros(4, 3, 2), zeros(5, 0), "at least 1 component"),
    "one point of a batch": (zeros(2, 3, 4), zeros(1), "batch size"),
}


Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def faked(call: Call, values: torch.Tensor, coords: torch.Tensor) -> None:
    with FakeTensorMode() as mode:
        call(mode.from_tensor(values), mode.from_tensor(coords))


def under_a_mode(call: Call, values: torch.Tensor, coords: torch.Tensor) -> None:
    with torch.device(values.device):
        call(values, coords)


WAYS: dict[str, Callable[[Call, torch.Tensor, torch.Tensor], object]] = {
    "plain": lambda call, v, x: call(v, x),
    "gradient": lambda call, v, x: call(v.clone().requires_grad_(), x),
    "fake": faked,
    "vmap": lambda call, v, x: torch.vmap(call)(torch.stack((v, v)), torch.stack((x, x))),
    "jvp": lambda call, v, x: torch.func.jvp(call, (v, x), (v, x)),
    "mode": under_a_mode,
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated")
@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("way", WAYS)
def test_tensors_that_do_not_fit_are_refused_in_every_way(
    backend: str, way: str, misfit: str
) -> None:
    """By the operators, which are given them unseen: with the same words, and those alone."""
    values, coords, words = MISFITS[misfit]
    device = torch.get_default_device()
    values, coords = values.to(device), coords.to(device)
    with pytest.raises(ValueError, match=words) as refused:
        WAYS[way](lambda v, x: sample(v, x, backend=backend), values, coords)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__


GRID_MISFITS: dict[str, tuple[torch.Tensor, torch.Tensor, str]] = {
    "another batch size": (zeros(1, 2, 4, 3), zeros(2, 5, 5, 2), "same batch size"),
    "no entries": (zeros(1, 2, 0, 3), zeros(1, 5, 5, 2), "at least 1 entry"),
    "no axes": (zeros(1, 2), zeros(1, 0), "of shape"),
    # As a sample, points of a batch and of one grid:
    "points in a row": (zeros(1, 2, 4, 3), zeros(1, 5, 2), "of shape"),
    "one component more": (zeros(1, 2, 4, 3), zeros(1, 5, 5, 3), "of shape"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated")
@pytest.mark.parametrize("misfit", GRID_MISFITS)
@pytest.mark.parametrize("way", WAYS)
def test_the_drop_in_refuses_them_in_every_way(backend: str, way: str, misfit: str) -> None:
    """In its own words, and those alone."""
    input, grid, words = GRID_MISFITS[misfit]
    device = torch.get_default_device()
    input, grid = input.to(device), grid.to(device)
    with pytest.raises(ValueError, match=rf"^grid_sample\(\): .*{words}") as refused:
        WAYS[way](lambda x, g: grid_sample(x, g, backend=backend), input, grid)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__


@pytest.mark.parametrize("function", [sample, grid_sample])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": ["linear"]}, r"mode to be one of .*\['linear'\]"),
        ({"padding_mode": ["zeros"]}, r"padding_mode to be one of .*\['zeros'\]"),
        ({"padding_mode": ("zeros",) * 3}, r"padding_mode .* a tuple of 2 .*\('zeros', 'z.*'\)"),
        (
            {"padding_mode": ("zeros", "wrap")},
            r"padding_mode .* a tuple of 2 .*\('zeros', 'wrap'\)",
        ),
        ({"padding_mode": ("zeros", 1)}, r"padding_mode .* a tuple of 2 .*\('zeros', 1\)"),
        ({"align_corners": (True,)}, r"align_corners .* a tuple of 2 .*\(True,\)"),
        ({"align_corners": (True, 0)}, r"align_corners .* a tuple of 2 .*\(True, 0\)"),
        ({"align_corners": 1}, "align_corners to be a bool, .*but got 1"),
        ({"align_corners": 2}, "align_corners to be a bool, .*but got 2"),
        ({"deterministic": 1}, "deterministic to be a bool or None, but got 1"),
    ],
    ids=str,
)
def test_options_of_another_type_are_refused(
    backend: str, function: Callable[..., torch.Tensor], options: dict[str, Any], words: str
) -> None:
    """Among them those that would be other options, packed into one integer."""
    device = torch.get_default_device()
    tensors = zeros(1, 2, 4, 3, device=device), zeros(1, 5, 5, 2, device=device)
    with pytest.raises((TypeError, ValueError), match=words) as refused:
        function(*tensors, **options, backend=backend)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__


class StopError(Exception):
    """An error of the caller's own."""


def stop(tensor: torch.Tensor) -> torch.Tensor:
    raise StopError


def test_an_error_that_is_not_of_the_tensors_is_passed_on(backend: str) -> None:
    device = torch.get_default_device()
    values, coords = VALUES.to(device, copy=True).requires_grad_(), COORDS.to(device)
    with torch.autograd.graph.saved_tensors_hooks(stop, stop), pytest.raises(StopError):
        sample(values, coords, backend=backend)
    with torch.autograd.graph.saved_tensors_hooks(stop, stop), pytest.raises(StopError):
        grid_sample(values.movedim(-1, 0)[None], coords[None, None], backend=backend)


def test_options_are_packed_without_loss() -> None:
    flags = (False, True)
    derivatives = (0, 0x21, 0xF << 28)
    for options in product(MODES, PADDING_MODES, flags, flags, derivatives, COORDS_UNITS):
        assert unpack(pack(*options), 8) == options


def test_options_of_components_are_packed_without_loss() -> None:
    each = list(product(PADDING_MODES, (False, True)))
    for ndim, first in product(range(2, 9), range(len(each))):
        paddings, alignments = zip(
            *(each[(first + 3 * component) % len(each)] for component in range(ndim)), strict=True
        )
        alike = alignments[0] if len(set(alignments)) == 1 else alignments
        options = ("cubic", paddings, alike, True, 0xF << 28, "index")
        assert unpack(pack(*options), ndim) == options
        same = pack("linear", paddings[:1] * ndim, False, False)
        assert same == pack("linear", paddings[0], False, False)
