"""Batches of images for a backbone, decoded ahead in threads."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from crad.data.decoding import DEFAULT_DECODING, Decoding
from crad.data.frames import ImageSize, frame_of
from crad.data.images import ChannelOrder
from crad.data.samples import Sample
from crad.data.sources import OnBad, Source, call_ahead, decode_source
from crad.data.tensors import to_tensor
from crad.errors import ImageError


@dataclass(frozen=True)
class Batch:
    """A batch of images for a backbone.

    Attributes:
        images: ``(B, 3, H, W)`` float32 RGB in [0, 1].
        samples: the records of the images, with `Sample.size` and `Sample.has_more`.
    """

    images: Tensor
    samples: list[Sample]


def load_batches(
    sources: Iterable[Source],
    *,
    size: ImageSize,
    batch_size: int,
    growing: bool = False,
    skip: OnBad | None = None,
    digests: bool = False,
    decoding: Decoding = DEFAULT_DECODING,
    channel_order: ChannelOrder = "rgb",
) -> Iterator[Batch]:
    """Decode and resize images, a few batches ahead of their use.

    Args:
        sources: the images; read one by one, so that it may be a generator.
        size: side of a square, or height H and width W, or a frame, as for
            `crad.data.tensors.to_tensor`.
        batch_size: images in a batch; the last batch, and one before a bad image, may have fewer.
        growing: begin with a batch of one image and double it up to the batch size, so that the
            first result takes the time of one image.
        skip: called with the error of an image that cannot be read; None raises the error, after
            the images before it.
        digests: whether to set `Sample.digest`, by which files are compared.
        decoding: how pixels are read.
        channel_order: of arrays and tensors, as for `crad.data.images.to_rgb`.

    Raises:
        ImageError: an image cannot be read; the message has its file name, or its index
            (``images[2]``).
    """
    ready: list[tuple[Tensor, Sample]] = []
    full = 1 if growing else batch_size

    def batch() -> Batch:
        images, samples = zip(*ready, strict=True)
        ready.clear()
        return Batch(torch.stack(images), list(samples))

    decode = partial(
        _decode, size=size, digests=digests, decoding=decoding, channel_order=channel_order
    )
    for future in call_ahead(decode, enumerate(sources), ahead=2 * batch_size):
        error = future.exception()
        if isinstance(error, ImageError):
            if ready:
                yield batch()
            if skip is None:
                raise error
            skip(error)
            continue
        ready.append(future.result())
        if len(ready) == full:
            yield batch()
            full = min(2 * full, batch_size)
    if ready:
        yield batch()


def _decode(
    numbered: tuple[int, Source],
    *,
    size: ImageSize,
    digests: bool,
    decoding: Decoding,
    channel_order: ChannelOrder,
) -> tuple[Tensor, Sample]:
    """The resized image and its record."""
    image, sample = decode_source(
        numbered,
        frame=frame_of(size),
        digests=digests,
        decoding=decoding,
        channel_order=channel_order,
    )
    return to_tensor(image, size), sample
