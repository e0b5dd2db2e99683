"""The base of all backbones."""

from collections.abc import Iterable
from typing import Self

from torch import Tensor, nn


class Backbone(nn.Module):
    """A frozen network that turns images into features, without gradients.

    Maps images ``(B, 3, H, W)``, float32 RGB in [0, 1], to features ``(B, C, H / stride, W /
    stride)``, float32.

    Attributes:
        channels: channels C of a feature.
        stride: pixels from one position of a feature to the next.
    """

    channels: int
    stride: int

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode for any ``mode``: the backbone is frozen."""
        return super().train(False)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit the statistics of the training images that the backbone uses; by default none."""
