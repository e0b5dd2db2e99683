"""Recognising how many bits the values of 16-bit images have."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from crad.data.decoding import Decoding, largest_deep_value
from crad.errors import ImageError
from crad.words import count

_USUAL = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class BitDepth:
    """What the 16-bit images of a data set say.

    Attributes:
        bit_depth: the least usual one that holds ``largest``.
        largest: the largest value.
        n_images: the number of 16-bit images.
    """

    bit_depth: int
    largest: int
    n_images: int

    @property
    def note(self) -> str:
        """One line for a person."""
        images = count(self.n_images, "16-bit image")
        return (
            f"bit depth {self.bit_depth}: the largest value of {images} is {self.largest}; "
            "--bit-depth overrides"
        )


def recognise_bit_depth(paths: Sequence[Path], decoding: Decoding) -> BitDepth | None:
    """Find the bit depth that holds all 16-bit images; None if there are none.

    Only 16-bit images are decoded. What cannot be read counts for nothing here.

    Args:
        paths: image files.
        decoding: its largest size counts.
    """

    def largest(path: Path) -> int | None:
        try:
            return largest_deep_value(path, decoding)
        except ImageError:
            return None  # told when the image is needed

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        values = pool.map(largest, paths)
        bar = tqdm(values, "bit depth", len(paths), leave=False, unit="image")
        found = [value for value in bar if value is not None]
    if not found:
        return None
    top = max(found)
    depth = next((each for each in _USUAL if top < 2**each), _USUAL[-1])
    return BitDepth(depth, top, len(found))
