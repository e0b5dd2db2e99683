"""What the compiler knows of a call, beside how its work is cut."""

from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import prod
from typing import Any

import triton.language as tl

from crad_kernels._backends.triton import INTERPRETED

# Of a point along an axis.
TAPS = {"nearest": 1, "linear": 2, "cubic": 4, "simplex": 2}


def corners_of(mode: str, ndim: int) -> int:
    """The entries that a point reads."""
    return ndim + 1 if mode == "simplex" else TAPS[mode] ** ndim


# Known by identity: Triton looks for the compiled kernel by its constants, at every launch.
@dataclass(frozen=True, eq=False)
class Options:
    """Constants, one argument of a kernel.

    Attributes:
        ndim: axes of the grid.
        mode: as `crad_kernels.sample` takes it.
        padding: of each axis, and so is what follows; see ``mode``.
        align_corners: see ``mode``.
        unit: of coordinates; see ``mode``.
        derivative: see `crad_kernels._schema.pack`.
        taps: of a point along an axis.
        corners: of a point.
        accumulator: dtype that sums are taken in.
    """

    ndim: Any
    mode: Any
    padding: Any
    align_corners: Any
    unit: Any
    derivative: Any
    taps: Any
    corners: Any
    accumulator: Any

    def __str__(self) -> str:
        """For tables."""
        return " ".join(str(getattr(each, "value", each)) for each in vars(self).values())


@cache
def options_of(
    ndim: int,
    mode: str,
    padding: tuple[str, ...],
    align_corners: tuple[bool, ...],
    unit: str,
    derivative: int,
    wide: bool,
) -> Options:
    """Those of a call, always in the same object; `wide` where it sums in float64."""
    taps = TAPS[mode]
    accumulator = tl.float64 if wide else tl.float32
    corners = corners_of(mode, ndim)
    values = (ndim, mode, padding, align_corners, unit, derivative, taps, corners, accumulator)
    # The compiler has to be told that these are constants, the interpreter must not be.
    return Options(*(values if INTERPRETED else map(tl.constexpr, values)))


# Constants, too: a table in memory would have to be copied to the device.
@dataclass(frozen=True, eq=False)
class Levels:
    """The levels of a call, which lie one behind the other: one argument of a kernel.

    Attributes:
        number: how many.
        size: entries per axis, of one level behind the other.
        first: the first entry of each.
    """

    number: Any
    size: Any
    first: Any

    def __str__(self) -> str:
        """All of it, for tables, and for Triton to find the compiled kernel on disk."""
        return f"levels {getattr(self.size, 'value', self.size)}"


@cache
def levels_of(ndim: int, flat: tuple[int, ...]) -> Levels:
    """Those of a call, always in the same object; `flat` has the sizes one behind the other."""
    entries = [prod(flat[i : i + ndim]) for i in range(0, len(flat), ndim)]
    values = (len(entries), flat, (0, *accumulate(entries[:-1])))
    return Levels(*(values if INTERPRETED else map(tl.constexpr, values)))
