"""The images that a user gives, of any kind: told apart, read, and read ahead in threads."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np
import numpy.typing as npt
from PIL import Image

from crad.data.decoding import Decoding
from crad.data.frames import Frame
from crad.data.images import ChannelOrder, decode_file, is_strided, is_tensor, to_rgb
from crad.data.samples import Sample
from crad.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

BATCH_SIZE = 16
"""Default number of images in a batch."""

Source: TypeAlias = Union[  # which takes the name of a type, PyTorch's
    str, os.PathLike[str], Image.Image, npt.NDArray[Any], "Tensor", Sample
]
"""An image: a file, a Pillow image, an array (H, W) or (H, W, C), a tensor (C, H, W), or a `Sample`
with a file. Channels are RGB or RGBA unless another order is named."""

OnBad = Callable[[ImageError], object]
"""Called with the error of an image that cannot be read, which is then left out."""


def split_images(images: Source | Iterable[Source]) -> Iterator[Source]:
    """Yield the images of an image, a 4-D array or tensor, or a nested collection.

    Raises:
        TypeError: an item is none of these.
    """
    if isinstance(images, np.ndarray):
        yield from images if images.ndim == 4 else [images]
    elif is_tensor(images):
        yield from images if is_strided(images) and images.ndim == 4 else [images]
    elif isinstance(images, str | os.PathLike | Image.Image | Sample):
        yield images
    elif isinstance(images, Iterable) and not isinstance(images, bytes | bytearray):
        try:
            for image in images:
                yield from split_images(image)
        except RecursionError as error:
            raise TypeError(
                "predict(): the images are in a collection that holds itself"
            ) from error
    else:
        raise TypeError(
            "predict(): expected images as file names, Pillow images, arrays or tensors, but got "
            f"{type(images).__name__}"
        )


def call_ahead(
    function: Callable[[T], R], arguments: Iterable[T], *, ahead: int
) -> Iterator[Future[R]]:
    """Call a function in threads, for some arguments ahead of what is used of its results.

    The first call is made at once, here, as a thread would add a fifth to the time of one image.
    Its result needs the first argument only; then one more is looked ahead with each result.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    waiting: deque[Future[R]] = deque()
    used = 0
    try:
        for number, argument in enumerate(arguments):
            waiting.append(pool.submit(function, argument) if number else _call(function, argument))
            if len(waiting) > min(used, ahead):
                yield waiting.popleft()
                used += 1
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _call(function: Callable[[T], R], argument: T) -> Future[R]:
    """The future of a call that is over."""
    over: Future[R] = Future()
    try:
        over.set_result(function(argument))
    except Exception as error:
        over.set_exception(error)
    return over


def decode_source(
    numbered: tuple[int, Source],
    *,
    frame: Frame,
    digests: bool,
    decoding: Decoding,
    channel_order: ChannelOrder,
) -> tuple[Image.Image, Sample]:
    """Read an image, which a file may give reduced for a frame, and make its record.

    Args:
        numbered: its number among all, by which one in memory is known, and the image.
        frame: what the image, or its tiles, will be brought to.
        digests: as for `load_batches`.
        decoding: as for `load_batches`.
        channel_order: as for `load_batches`.

    Raises:
        ImageError: as for `load_batches`.
    """
    position, source = numbered
    if isinstance(source, str | os.PathLike):
        source = Sample(Path(source))
    if isinstance(source, Sample) and source.path is not None:
        decoded = decode_file(source.path, decoding, frame)
        sample = replace(source, has_more=decoded.has_more, size=decoded.size)
        if digests:
            sample = replace(sample, digest=digest_of(source.path))
        return decoded.image, sample
    try:
        image = to_rgb(source, decoding, channel_order)  # type: ignore[arg-type]
    except ImageError as error:
        raise ImageError(f"images[{position}]: {error}") from error
    return image, Sample(size=(image.height, image.width))


def digest_of(path: Path) -> bytes:
    """A hash of the bytes of a file, for `Sample.digest`; collisions are negligible.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
