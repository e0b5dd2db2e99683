"""The frame that images are brought to for a backbone, and the part of it that an image takes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crad.data.tiles import TileGrid, Tiling

if TYPE_CHECKING:
    from torch import Tensor

Size = int | tuple[int, int]
"""The side of a square, or a height and a width, in pixels."""

_MEASURED = 2**20  # pixels of the map of a tiled image
_MASK_SIDE = 1024  # of what counts in tiled images


@dataclass(frozen=True)
class Frame:
    """What all images are brought to: H x W pixels.

    Without a stride, an image is stretched over the frame, whatever its aspect ratio. With one, it
    keeps its aspect ratio as nearly as whole cells allow: it is as high or as wide as the frame,
    its other side is the nearest multiple of the stride, and it lies in the upper left corner. The
    rest, the padding, has the mean colour of the image.

    With a tiling, it is each tile of an image that is brought to H x W pixels.

    Attributes:
        height: H.
        width: W.
        stride: pixels from one cell of a feature map to the next; H and W are multiples of it.
        tiling: how images are cut into tiles; that needs a stride and a square frame.
    """

    height: int
    width: int
    stride: int | None = None
    tiling: Tiling | None = None

    @property
    def size(self) -> Size:
        """The side of a square frame; otherwise height and width."""
        return self.height if self.height == self.width else (self.height, self.width)

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of masks that are stretched over an image of any size."""
        return (_MASK_SIDE, _MASK_SIDE) if self.tiling else (self.height, self.width)

    def content(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of the part of the frame that an image of a height and a width takes.

        The size counts only for a frame with a stride. With a tiling, they are those of all tiles
        together, less `density`.
        """
        if self.stride is None:
            return self.height, self.width
        assert size is not None  # it is known once an image is decoded
        if self.tiling:
            grid, density = self.grid(size), self.density(size)
            rows, columns = (density * self.stride * each for each in (grid.rows, grid.columns))
            return max(1, round(rows)), max(1, round(columns))
        height, width = size
        rows, columns = self.height // self.stride, self.width // self.stride
        as_high = rows, max(1, round(rows * width / height))
        as_wide = max(1, round(columns * height / width)), columns
        fitting = [each for each in (as_high, as_wide) if each[0] <= rows and each[1] <= columns]
        chosen = max(fitting, key=math.prod)
        return chosen[0] * self.stride, chosen[1] * self.stride

    def grid(self, size: tuple[int, int]) -> TileGrid:
        """The tiles of an image of a height and a width; the frame has a tiling."""
        assert self.tiling
        assert self.stride
        return self.tiling.grid(size, self.height // self.stride)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels that an image, or all tiles of it together, are resized to."""
        if not self.tiling:
            return self.content(size)
        grid = self.grid(size)
        assert self.stride
        return grid.rows * self.stride, grid.columns * self.stride

    def density(self, size: tuple[int, int] | None) -> float:
        """Pixels that are measured for one of the frame, along an axis of an image of a size.

        It is 1 but for tiled images of more than a million pixels in all tiles together, or as
        many cells, so that no map fills the memory.
        """
        if not self.tiling:
            return 1.0
        assert size is not None
        assert self.stride
        grid = self.grid(size)
        n_cells = grid.rows * grid.columns
        return min(1.0, math.sqrt(max(_MEASURED, n_cells) / n_cells) / self.stride)

    def crop(self, maps: "Tensor", content: tuple[int, int]) -> "Tensor":
        """The part of maps ``(..., h, w)`` of whole frames that belongs to a content.

        Maps of tiled images are those of the images already.
        """
        if self.tiling:
            return maps
        rows, columns = (
            max(1, round(cells * part / whole))
            for cells, part, whole in zip(
                maps.shape[-2:], content, (self.height, self.width), strict=True
            )
        )
        return maps[..., :rows, :columns]


ImageSize = Size | Frame
"""How images come to the size that a backbone gets: a `Size` stretches them."""


def frame_of(size: ImageSize) -> Frame:
    """The frame that a size stands for."""
    if isinstance(size, Frame):
        return size
    height, width = (size, size) if isinstance(size, int) else size
    return Frame(height, width)


def fit_frame(side: int, stride: int, sizes: Iterable[tuple[int, int]], least: int = 1) -> Frame:
    """Choose the frame of about ``side**2`` pixels that has the median aspect ratio of images.

    Args:
        side: of a square of that area, in pixels.
        stride: as of `Frame`.
        sizes: height and width of the images, at least one image.
        least: what each side has at least, in pixels.
    """
    ordered = sorted(sizes, key=lambda size: size[0] / size[1])
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    height, width = (math.sqrt(one * other) for one, other in zip(low, high, strict=True))
    fewest = math.ceil(least / stride)
    # The longer side first, so that an image of this aspect ratio fills the frame.
    longer = max(round(side * math.sqrt(max(height, width) / min(height, width)) / stride), fewest)
    shorter = max(round(longer * min(height, width) / max(height, width)), fewest)
    rows, columns = (longer, shorter) if height >= width else (shorter, longer)
    return Frame(rows * stride, columns * stride, stride)


def show_size(size: ImageSize) -> str:
    """A size as options have it: one side of a square, or height and width."""
    frame = frame_of(size)
    return " ".join(map(str, dict.fromkeys((frame.height, frame.width))))
