"""Batches of the tiles of large images, of which a few are decoded at a time."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from crad.data.decoding import DEFAULT_DECODING, Decoding
from crad.data.frames import Frame
from crad.data.images import ChannelOrder
from crad.data.samples import Sample
from crad.data.sources import OnBad, Source, call_ahead, decode_source
from crad.data.tensors import to_tile
from crad.errors import ImageError

_AHEAD = min(4, os.cpu_count() or 1)  # whole images, of up to 0.3 GB each


@dataclass(frozen=True)
class TileBatch:
    """A batch of tiles for a backbone.

    Attributes:
        images: ``(B, 3, H, W)`` float32 RGB in [0, 1].
        samples: the image of each tile, with `Sample.size` and `Sample.has_more`.
        numbers: which tile of its image each is, counted from 0.
    """

    images: Tensor
    samples: list[Sample]
    numbers: list[int]


def load_tiles(
    sources: Iterable[Source],
    *,
    frame: Frame,
    batch_size: int,
    mixed: bool,
    skip: OnBad | None = None,
    digests: bool = False,
    decoding: Decoding = DEFAULT_DECODING,
    channel_order: ChannelOrder = "rgb",
) -> Iterator[TileBatch]:
    """Decode images one after the other, and give their tiles, in order.

    Args:
        sources: as for `crad.data.batches.load_batches`, as are all that are not named here.
        frame: what tiles are brought to, with a tiling.
        batch_size: tiles in a batch; the last one, and one before a bad image, may have fewer.
        mixed: whether a batch may have tiles of several images. Otherwise the last tiles of an
            image do not wait for the next image.

    Raises:
        ImageError: an image cannot be read; the message names it.
    """
    ready: list[tuple[Tensor, Sample, int]] = []

    def batch() -> TileBatch:
        images, samples, numbers = zip(*ready, strict=True)
        ready.clear()
        return TileBatch(torch.stack(images), list(samples), list(numbers))

    decode = partial(
        decode_source, frame=frame, digests=digests, decoding=decoding, channel_order=channel_order
    )
    for future in call_ahead(decode, enumerate(sources), ahead=_AHEAD):
        error = future.exception()
        if isinstance(error, ImageError):
            if ready:
                yield batch()
            if skip is None:
                raise error
            skip(error)
            continue
        image, sample = future.result()
        assert sample.size
        grid = frame.grid(sample.size)
        cut = partial(to_tile, image, frame, grid)
        for number, tile in enumerate(call_ahead(cut, grid.places, ahead=batch_size)):
            ready.append((tile.result(), sample, number))
            if len(ready) == batch_size:
                yield batch()
        if ready and not mixed:
            yield batch()
    if ready:
        yield batch()
