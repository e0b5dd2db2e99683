"""The anomaly maps of many images, which have one size unless the images are tiled."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Maps: TypeAlias = Tensor | list[Tensor]
"""Maps ``(N, h, w)`` of a model, before any protocol; of tiled images a list of N maps ``(h, w)``
on the same device."""


def choose(maps: Maps, rows: Sequence[int] | slice) -> Maps:
    """Some of the maps, in order."""
    if isinstance(maps, Tensor):
        return maps[rows]
    return maps[rows] if isinstance(rows, slice) else [maps[row] for row in rows]


def copy(maps: Maps) -> Maps:
    """A copy of the maps."""
    return maps.clone() if isinstance(maps, Tensor) else [each.clone() for each in maps]


def stack(maps: Maps, rows: Sequence[int] | None = None) -> Tensor:
    """Some of the maps, or all, which have one size, as ``(N, h, w)``."""
    chosen = maps if rows is None else choose(maps, rows)
    return chosen if isinstance(chosen, Tensor) else torch.stack(chosen)


def concatenate(parts: Sequence[Maps]) -> Maps:
    """The maps of all parts, which are all tensors or all lists; those of no part are a list."""
    tensors = [each for each in parts if isinstance(each, Tensor)]
    return torch.cat(tensors) if tensors else [one for each in parts for one in each]
