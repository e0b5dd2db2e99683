"""The tiles that a large image is cut into, and how their maps become one map without seams."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """How images are cut into square tiles.

    Attributes:
        side: of a tile, in pixels of the image.
        overlap: what neighbouring tiles have in common at least, in the same pixels.
    """

    side: int
    overlap: int

    def grid(self, size: tuple[int, int], n_cells: int) -> "TileGrid":
        """Cut an image of a height and a width into tiles.

        The image becomes a grid of cells, the positions of feature maps, and tiles begin at
        borders of cells. For that, it is stretched to whole cells, by up to half of one.

        Args:
            size: height and width in pixels.
            n_cells: cells along a side of a tile.
        """
        rows, columns = (max(1, round(length * n_cells / self.side)) for length in size)
        overlap = math.ceil(self.overlap * n_cells / self.side)
        tops, lefts = (_spread(length, n_cells, overlap) for length in (rows, columns))
        return TileGrid(rows, columns, n_cells, tops, lefts)


def _spread(length: int, n_cells: int, overlap: int) -> tuple[int, ...]:
    """Where tiles begin along an axis: as few as overlap so much, spread evenly."""
    beyond = length - n_cells
    if beyond <= 0:
        return (0,)
    steps = math.ceil(beyond / max(1, n_cells - overlap))
    return tuple(round(step * beyond / steps) for step in range(steps + 1))


@dataclass(frozen=True)
class TileGrid:
    """The tiles of an image, all lengths in cells.

    Attributes:
        rows: of the image.
        columns: the same.
        n_cells: along a side of a tile. A shorter image takes the upper left part of its tiles.
        tops: the first rows of the tiles, ascending.
        lefts: the first columns.
    """

    rows: int
    columns: int
    n_cells: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def part(self) -> tuple[int, int]:
        """Height and width of the part of a tile that the image takes."""
        return min(self.n_cells, self.rows), min(self.n_cells, self.columns)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Top and left of each tile, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    @cached_property
    def weights(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """How much each tile counts for the cells along each axis ``(tiles, cells of a part)``.

        They fall towards the edges that a tile shares with a neighbour, and sum to 1 in each cell.
        """
        height, width = self.part
        return _ramps(self.tops, height, self.rows), _ramps(self.lefts, width, self.columns)

    def stitch(self, maps: "Tensor") -> "Tensor":
        """Blend the maps of all tiles ``(tiles, h, w)`` into that of the image ``(rows, columns)``.

        With one tile, it is the part of its map that the image takes, to the bit.
        """
        height, width = self.part
        if len(self) == 1:
            return maps[0, :height, :width]
        vertical, horizontal = (maps.new_tensor(each) for each in self.weights)
        whole = maps.new_zeros(self.rows, self.columns)
        for number, (top, left) in enumerate(self.places):
            row, column = divmod(number, len(self.lefts))
            weights = vertical[row][:, None] * horizontal[column]
            whole[top : top + height, left : left + width] += (
                weights * maps[number, :height, :width]
            )
        return whole


def _ramps(starts: Sequence[int], part: int, length: int) -> npt.NDArray[np.float32]:
    """The weights of tiles along an axis, which rise and fall linearly where tiles overlap."""
    weights = np.ones((len(starts), part), np.float32)
    for number in range(len(starts) - 1):
        common = starts[number] + part - starts[number + 1]
        if common > 0:
            rise = (np.arange(common, dtype=np.float32) + np.float32(0.5)) / np.float32(common)
            weights[number + 1, :common] *= rise
            weights[number, part - common :] *= rise[::-1]
    total = np.zeros(length, np.float32)
    for start, each in zip(starts, weights, strict=True):
        total[start : start + part] += each
    return np.stack(
        [each / total[start : start + part] for start, each in zip(starts, weights, strict=True)]
    )
