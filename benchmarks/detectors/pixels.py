"""The images of a set as a network gets them, decoded once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from crad.data.batches import load_batches
from crad.data.decoding import Decoding
from crad.data.frames import Frame
from crad.data.samples import Sample
from crad.data.sources import BATCH_SIZE


@dataclass(frozen=True)
class Pixels:
    """The pixels of images, kept as 8-bit numbers once they were asked for.

    Attributes:
        frame: what images are brought to.
        decoding: how they are read.
    """

    frame: Frame
    decoding: Decoding
    _kept: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    def load(self, samples: Sequence[Sample]) -> None:
        """Decode what is not there yet.

        Raises:
            ImageError: an image cannot be read.
        """
        missing = [each for each in samples if each.path not in self._kept]
        for batch in load_batches(
            missing, size=self.frame, batch_size=BATCH_SIZE, decoding=self.decoding
        ):
            bytes_of = (batch.images * 255).round().to(torch.uint8)
            for sample, image in zip(batch.samples, bytes_of, strict=True):
                assert sample.path
                self._kept[sample.path] = image.clone()

    def images(self, samples: Sequence[Sample]) -> Tensor:
        """Images ``(B, 3, H, W)`` float32 in [0, 1], the same that a backbone of crad gets."""
        self.load(samples)
        return torch.stack([self._kept[each.path] for each in samples if each.path]).float() / 255
