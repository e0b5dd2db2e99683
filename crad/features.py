"""Features of many images, computed once and kept in memory."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from crad.backbones import Backbone
from crad.batches import Batch, load_batches
from crad.images import ImageError

_BATCH_SIZE = 16  # images computed at once


@dataclass(frozen=True)
class Features:
    """Features in memory.

    Attributes:
        values: ``(N, H, W, C)`` float32, on the CPU.
        paths: the N files they were computed from.
    """

    values: Tensor
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def channels_first(self) -> Tensor:
        """All features, ``(N, C, H, W)``, without a copy."""
        return self.values.permute(0, 3, 1, 2)

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """Copy some to a device, ``(B, C, H, W)`` in channels-last memory format."""
        chosen = self.values.index_select(0, indices)
        return chosen.to(device, non_blocking=True).permute(0, 3, 1, 2)

    def batches(self, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """Copy all to a device, one batch after another."""
        for start in range(0, len(self), batch_size):
            yield self.batch(torch.arange(start, min(start + batch_size, len(self))), device)


def fit_backbone(
    backbone: Backbone,
    paths: Sequence[Path],
    image_size: int,
    *,
    device: torch.device,
    skip: Callable[[ImageError], object] | None,
) -> None:
    """Fit the backbone's statistics on the images of some files; arguments as in `extract`."""
    loaded = load_batches(paths, size=image_size, batch_size=_BATCH_SIZE, skip=skip)
    with closing(_progress(loaded, len(paths), "statistics")) as batches:
        backbone.fit(batch.images.to(device) for batch in batches)


@torch.no_grad()
def extract(
    backbone: Backbone,
    paths: Sequence[Path],
    image_size: int,
    *,
    device: torch.device,
    skip: Callable[[ImageError], object] | None,
) -> Features:
    """Compute the features of the images of some files.

    Args:
        backbone: fitted, on ``device``.
        paths: the files, at least one.
        image_size: side in pixels that images are resized to.
        device: where to compute.
        skip: called with the error of an image that cannot be read, which is left out; None raises.

    Raises:
        ImageError: an image cannot be read; the message names it.
    """
    values: Tensor | None = None
    kept: list[Path] = []
    loaded = load_batches(paths, size=image_size, batch_size=_BATCH_SIZE, skip=skip)
    with closing(_progress(loaded, len(paths), "features")) as batches:
        for batch in batches:
            computed = backbone(batch.images.to(device)).permute(0, 2, 3, 1)
            if values is None:
                values = torch.empty(len(paths), *computed.shape[1:])
            values[len(kept) : len(kept) + len(computed)] = computed
            kept += [path for path in batch.paths if path is not None]
    if values is None:
        values = torch.empty(0, 0, 0, 0)
    return Features(values[: len(kept)], kept)


def _progress(batches: Iterable[Batch], total: int, what: str) -> Generator[Batch]:
    with tqdm(total=total, desc=what, unit="image", leave=False, mininterval=0.5) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.paths))
