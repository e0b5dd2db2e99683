"""Images from anywhere, as batches for a backbone: decoded ahead in threads, never all at once."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from crad.data.images import open_image, to_rgb, to_tensor
from crad.errors import ImageError

Source = str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor
"""An image: a file, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W)."""


@dataclass(frozen=True)
class Batch:
    """Some images, ready for a backbone.

    Attributes:
        images: ``(B, 3, S, S)`` float32 RGB in [0, 1].
        paths: their files; None for an image from memory.
        sizes: their heights and widths before resizing, in pixels.
    """

    images: Tensor
    paths: list[Path | None]
    sizes: list[tuple[int, int]]


def load_batches(
    sources: Iterable[Source],
    *,
    size: int,
    batch_size: int,
    skip: Callable[[ImageError], object] | None = None,
) -> Iterator[Batch]:
    """Decode and resize images, a few batches ahead of their use.

    An image that cannot be read raises its error once those before it are out.

    Args:
        sources: the images; taken one by one, so that they may be made on the way.
        size: side S in pixels.
        batch_size: images in a batch; the last batch may have fewer.
        skip: called with the error of an image that cannot be read, which is then left out; None
            raises the error.

    Raises:
        ImageError: an image cannot be read; the message names its file, or its position: images[2]
            is the third.
    """
    images: list[Tensor] = []
    paths: list[Path | None] = []
    sizes: list[tuple[int, int]] = []
    for source, future in _decode_ahead(sources, size, ahead=2 * batch_size):
        error = future.exception()
        if isinstance(error, ImageError):
            if images:
                yield Batch(torch.stack(images), paths, sizes)
                images, paths, sizes = [], [], []
            if skip is None:
                raise error
            skip(error)
            continue
        image, original = future.result()
        images.append(image)
        paths.append(Path(source) if isinstance(source, str | os.PathLike) else None)
        sizes.append(original)
        if len(images) == batch_size:
            yield Batch(torch.stack(images), paths, sizes)
            images, paths, sizes = [], [], []
    if images:
        yield Batch(torch.stack(images), paths, sizes)


def split_images(images: Source | Iterable[Source]) -> Iterator[Source]:
    """Give the images of a single one, a batch array or tensor, or any collection, one by one.

    Raises:
        TypeError: there is something else.
    """
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim == 4:
            yield from images
        else:
            yield images
    elif isinstance(images, str | os.PathLike | Image.Image):
        yield images
    elif isinstance(images, Iterable) and not isinstance(images, bytes | bytearray):
        for image in images:
            yield from split_images(image)
    else:
        raise TypeError(
            "predict(): expected images as file names, Pillow images, arrays or tensors, but got "
            f"{type(images).__name__}"
        )


def _decode_ahead(
    sources: Iterable[Source], size: int, ahead: int
) -> Iterator[tuple[Source, Future[tuple[Tensor, tuple[int, int]]]]]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[Source, Future[tuple[Tensor, tuple[int, int]]]]] = deque()
        try:
            for position, source in enumerate(sources):
                waiting.append((source, pool.submit(_decode, source, position, size)))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(source: Source, position: int, size: int) -> tuple[Tensor, tuple[int, int]]:
    """The resized image, and the height and width it had."""
    if isinstance(source, str | os.PathLike):
        image = open_image(source)
    else:
        try:
            image = to_rgb(source)
        except ImageError as error:
            raise ImageError(f"images[{position}]: {error}") from error
    return to_tensor(image, size), (image.height, image.width)
