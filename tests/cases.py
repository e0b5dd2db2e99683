"""The cases that the kernel tests run over, and how near is near enough."""

import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from crad_kernels import backends
from crad_kernels._schema import COORDS_UNITS, MODES, PADDING_MODES
from crad_kernels.functional import _TORCH_MODES

T = TypeVar("T")

# The backend that judges the others: the specification, which takes everything and so comes last.
JUDGE = list(backends())[-1]

# The modes whose corners are the product of the taps of every axis: simplex is none.
PRODUCTS = MODES[:3]

# What torch calls the modes.
TORCH_MODES = {mode: name for name, mode in _TORCH_MODES.items()}

# Dimensions in which cubic takes part: with its 4^D taps, the reference takes minutes in more.
MOST_CUBIC = 4

# One size for each number of dimensions; axes differ, lest one be taken for another.
SIZES = {
    1: (5,),
    2: (4, 3),
    3: (3, 4, 2),
    4: (2, 3, 4, 2),
    5: (2, 3, 2, 4, 2),
    6: (2, 3, 2, 2, 1, 3),
    7: (2, 1, 2, 3, 2, 2, 2),
    8: (2, 3, 1, 2, 2, 1, 2, 3),
}

# The largest errors, relative to the largest magnitude of what is expected. Of a sum of products:
SAME_INDEX = {torch.float64: 2e-15, torch.float32: 1e-6}
# In float64, where another formula computed the index, whose rounding grows with the distance:
OTHER_INDEX = 2e-14


@dataclass(frozen=True)
class Case:
    """One call of `crad_kernels.sample`.

    Attributes:
        size: entries per axis, slowest axis first.
        channels: channels of an entry.
        points: shape of the coordinates, without the batch axis and the components.
        batch: grids, each with its own points; None for one grid that all points share.
        mode: as `crad_kernels.sample` takes it.
        padding_mode: as `crad_kernels.sample` takes it.
        align_corners: as `crad_kernels.sample` takes it.
        coords_unit: as `crad_kernels.sample` takes it.
        dtype: of the values.
        coords_dtype: of the coordinates.
    """

    size: tuple[int, ...]
    channels: int = 3
    points: tuple[int, ...] = (23,)
    batch: int | None = None
    mode: str = "linear"
    padding_mode: str | tuple[str, ...] = "zeros"
    align_corners: bool | tuple[bool, ...] = False
    coords_unit: str = "normalized"
    dtype: torch.dtype = torch.float64
    coords_dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        """A readable test id; what is as usual is left out."""
        parts = [
            "x".join(map(str, self.size)) + f"x{self.channels}",
            "x".join(map(str, self.points)),
            "shared" if self.batch is None else f"batch{self.batch}",
            self.mode,
            self.padding_mode
            if isinstance(self.padding_mode, str)
            else "+".join(self.padding_mode),
        ]
        if isinstance(self.align_corners, tuple):
            parts.append("align" + "".join(str(int(each)) for each in self.align_corners))
        elif self.align_corners:
            parts.append("align_corners")
        if self.coords_unit != "normalized":
            parts.append(self.coords_unit)
        if (self.dtype, self.coords_dtype) != (torch.float64, torch.float64):
            parts += [
                str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.coords_dtype)
            ]
        return "-".join(parts)

    @property
    def ndim(self) -> int:
        return len(self.size)

    @property
    def condition(self) -> float:
        """How much the rounding of a sum of taps can exceed that of a mean of entries.

        Cubic has negative weights: their magnitudes sum to as much as 1 + 3/8 along an axis.
        """
        return 1.375**self.ndim if self.mode == "cubic" else 1.0

    @property
    def slope(self) -> float:
        """The magnitude of a coordinate's gradient where its terms do not cancel.

        There is one for each channel and tap: the slopes of an axis's weights have magnitudes that
        sum to 2 for linear and to as much as 3 for cubic, per entry.
        """
        slopes = {"nearest": 0, "linear": 2, "cubic": 3, "simplex": 2}[self.mode]
        entries = 1 if self.coords_unit == "index" else max(self.size) / 2  # that a unit is
        return max(1.0, slopes * entries * math.sqrt(self.channels))

    @property
    def options(self) -> dict[str, Any]:
        """What makes the call, tensors and backend aside."""
        return {
            "mode": self.mode,
            "padding_mode": self.padding_mode,
            "align_corners": self.align_corners,
            "coords_unit": self.coords_unit,
        }

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, coordinates, and a gradient of the output; the same at every call and device.

        The coordinates keep a tenth of an entry away from where the sample jumps or bends, so that
        rounding never takes them across; three in four lie in the grid or next to it, the others
        anywhere within three times its size.
        """
        random = np.random.default_rng(0)
        grids = () if self.batch is None else (self.batch,)
        shape = (*grids, *self.points, self.ndim)
        values = random.standard_normal((*grids, *self.size, self.channels))
        grad_output = random.standard_normal((*shape[:-1], self.channels))
        size = np.array(self.size[::-1])
        near = random.random((*shape[:-1], 1)) < 0.75
        entry = np.where(near, random.integers(-1, size + 1, shape), 0)
        entry = np.where(near, entry, random.integers(-3 * size, 4 * size, shape))
        index = entry + random.uniform(0.1, 0.4, shape) * random.choice((-1, 1), shape)
        coords = coords_of(index, size, self.align_corners, self.coords_unit)
        return (
            torch.tensor(values, dtype=self.dtype),
            torch.tensor(coords, dtype=self.coords_dtype),
            torch.tensor(grad_output, dtype=self.dtype),
        )


def coords_of(
    index: np.ndarray,
    size: np.ndarray,
    align_corners: bool | tuple[bool, ...],
    coords_unit: str = "normalized",
) -> np.ndarray:
    """The coordinates of fractional positions; any, along an axis of one aligned entry."""
    if coords_unit == "index":
        return index
    aligned = np.where(size > 1, index / np.maximum(size - 1, 1) * 2 - 1, index)
    return np.where(align_corners, aligned, (2 * index + 1) / size - 1)


def every_option(case: Case, modes: tuple[str, ...] = PRODUCTS) -> list[Case]:
    """A case in the modes, all paddings and alignments; without cubic in many dimensions."""
    return [
        replace(case, mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        for mode, padding_mode, align_corners in product(modes, PADDING_MODES, (False, True))
        if mode != "cubic" or case.ndim <= MOST_CUBIC
    ]


def cases(*ndims: int, modes: tuple[str, ...] = PRODUCTS, **changes: Any) -> list[Case]:
    """All options for each number of dimensions; `changes` as the fields of `Case`."""
    return [case for ndim in ndims for case in every_option(Case(SIZES[ndim], **changes), modes)]


def mixed(*ndims: int, modes: tuple[str, ...] = MODES, **changes: Any) -> list[Case]:
    """Cases whose components differ, in padding or alignment or both: in all modes and units.

    Every two paddings meet along two axes that follow each other, in either order.
    """
    some = []
    for ndim, mode, unit, first in product(ndims, modes, COORDS_UNITS, range(len(PADDING_MODES))):
        if mode == "cubic" and ndim > MOST_CUBIC:
            continue
        for step in (1, 2, 3):
            paddings = tuple(PADDING_MODES[(first + step * d) % 4] for d in range(ndim))
            alignments = tuple((first + step * d) % 3 == 0 for d in range(ndim))
            options = {"padding_mode": paddings, "align_corners": alignments}
            some.append(Case(SIZES[ndim], mode=mode, coords_unit=unit, **options, **changes))
    return some


def in_units(cases: Sequence[Case]) -> list[Case]:
    """All cases with coordinates in all units."""
    return [replace(case, coords_unit=unit) for case, unit in product(cases, COORDS_UNITS)]


def in_dtypes(
    cases: Sequence[Case], dtypes: Sequence[tuple[torch.dtype, torch.dtype]]
) -> list[Case]:
    """All cases with all dtypes of values and coords."""
    return [
        replace(case, dtype=dtype, coords_dtype=coords_dtype)
        for case, (dtype, coords_dtype) in product(cases, dtypes)
    ]


def covering(candidates: Sequence[T], *features: Callable[[T], Hashable]) -> list[T]:
    """Few of the candidates, in which every value of every feature occurs that occurs in all.

    With a feature of two parameters of a test, every two of their values meet.
    """
    shown = [{(i, of(each)) for i, of in enumerate(features)} for each in candidates]
    missing = set().union(*shown)
    chosen: list[int] = []
    while missing:
        best = max(range(len(shown)), key=lambda i: len(shown[i] & missing))
        missing -= shown[best]
        chosen.append(best)
    return [candidates[i] for i in sorted(chosen)]


OPTIONS = (
    *("ndim", "mode", "padding_mode", "align_corners", "coords_unit"),
    *("dtype", "coords_dtype"),
)
# Features of a case: every two of its options, and those that taps are found by, together.
EVERY_TWO_OPTIONS = [attrgetter(*two) for two in combinations(OPTIONS, 2)]
TAPS = attrgetter("mode", "padding_mode", "align_corners")
# What tells the cases of SHAPES apart.
SHAPE = ("size", "channels", "points", "mode")


# Shapes that take every way through a vectorised, tiled and chunked implementation.
SHAPES = [
    Case((1,), channels=1, points=()),
    Case((1, 1, 1), channels=2, points=(5,), padding_mode="reflection", align_corners=True),
    Case((2, 1), channels=3, points=(40,), mode="cubic", padding_mode="circular"),
    Case((7, 1), channels=1, points=(16,), padding_mode="border"),
    Case((3, 4), channels=5, points=(4, 1, 5), batch=1),
    Case((3, 4), channels=8, points=(17,), batch=3, padding_mode="circular"),
    Case((3, 4), channels=16, points=(33,), batch=2, mode="nearest"),
    Case((8, 8), channels=31, points=(7, 7), batch=4, align_corners=True),
    Case((8, 8), channels=216, points=(300,), coords_unit="index"),
    Case((5, 6, 7), channels=67, points=(200,), padding_mode="border"),
    Case((64, 65), channels=130, points=(150,), batch=2),
    Case((4, 4), channels=3000, points=(40,), padding_mode="reflection"),
    Case((300, 200), channels=2, points=(3000,), coords_unit="index"),
    Case((3, 4), channels=16, points=(33,), batch=2, mode="cubic"),
    Case((8, 8), channels=67, points=(100,), mode="cubic", padding_mode="border"),
    Case((3, 1, 9), channels=5, points=(40,), mode="cubic", padding_mode="reflection"),
    # Read often enough to be copied, with rows that begin with a cache line; in one chunk, in many.
    Case((2, 3), channels=19, points=(450,), batch=2),
    Case((5,), channels=150, points=(400,), padding_mode="border"),
    # Grids larger than a cache; the first two are cut as finely as points allow.
    # (of the first, the points are sorted in two pieces)
    Case((300, 260), channels=3, points=(17_000,)),
    Case(
        *((300, 260), 3, (12_000,)),
        mode="cubic",
        padding_mode="reflection",
        coords_unit="index",
        align_corners=True,
    ),
    Case((40, 41, 42), channels=2, points=(700,), batch=2, mode="cubic", padding_mode="reflection"),
    Case((70_000,), channels=1, points=(900,), padding_mode="border"),
    Case((190, 30), channels=20, points=(9000,), padding_mode="circular"),
    Case((5, 6, 7, 400), channels=3, points=(600,), align_corners=True),
    # Corners of a simplex: few channels, many; of a grid larger than a cache; in many dimensions.
    Case((3, 4, 5), channels=3, points=(90,), mode="simplex", padding_mode="border"),
    Case((5, 6, 7), channels=67, points=(200,), mode="simplex", padding_mode="circular"),
    Case((190, 30), channels=20, points=(9000,), mode="simplex", padding_mode="reflection"),
    Case((2, 3, 1, 2, 2, 3), channels=40, points=(60,), batch=2, mode="simplex"),
    # A hundred points an entry: a float32 sum of more, in another order, would differ by more.
    Case((9,), channels=3, points=(900,), padding_mode="reflection", align_corners=True),
]

# Dtypes of values and coords.
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float64),
    (torch.float16, torch.float64),
]


def sums_vary() -> bool:
    """Whether sums may be taken in another order from run to run, unless told not to.

    On the CPU they never are; on a GPU, gradients may be sums of atomic additions, and so they may
    under ThreadSanitizer, where the threads of an emulated block are threads.
    """
    threads = "libtsan" in os.environ.get("LD_PRELOAD", "")
    return threads or torch.get_default_device().type != "cpu"


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """The same bits of a sample and its gradients; of these, but for rounding where sums vary."""
    assert torch.equal(actual[0], expected[0])
    for got, wanted in zip(actual[1:], expected[1:], strict=True):
        if sums_vary():
            assert got.dtype == wanted.dtype
            assert_near(got, wanted, SAME_INDEX.get(got.dtype, torch.finfo(got.dtype).eps))
        else:
            assert torch.equal(got, wanted)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, magnitude: float = 1.0) -> None:
    """The largest error is at most `tolerance` times the largest magnitude of `expected`.

    Or times `magnitude`, if that is larger: that of the terms, where they may cancel.
    """
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = max(magnitude, expected.abs().max().item()) if expected.numel() else magnitude
    error = (actual - expected).abs().max().item() if expected.numel() else 0.0
    assert math.isfinite(error)
    assert error <= tolerance * scale, f"error {error:.3g} of {scale:.3g}"


def assert_rounded_once(actual: Tensor, exact: Tensor, tolerance: float) -> None:
    """`actual` is `exact`, known to `tolerance` of its largest, rounded to its dtype."""
    info = torch.finfo(actual.dtype)
    error = (actual.double() - exact.double()).abs()
    half_ulp = exact.double().abs() * info.eps / 2 + info.smallest_normal * info.eps / 2
    assert (error <= half_ulp + tolerance * exact.abs().max()).all()
