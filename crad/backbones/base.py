"""The base of all backbones."""

from collections.abc import Iterable
from typing import Literal, Self

from torch import Tensor, nn

CombineName = Literal["concat", "mean"]
"""How the features of several layers become one: side by side, or averaged."""


class Backbone(nn.Module):
    """A frozen network that turns images into features, without gradients.

    Maps images ``(B, 3, H, W)``, float32 RGB in [0, 1], to features ``(B, C, H / stride, W /
    stride)``, float32. H and W may differ, and differ from call to call, unless the network allows
    no other size than its own.

    Attributes:
        channels: channels C of a feature.
        stride: pixels from one position of a feature to the next.
        is_separate: whether, on a CPU, a feature has the same bits whatever images are beside it in
            the batch.
    """

    channels: int
    stride: int
    is_separate: bool = False

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode for any ``mode``: the backbone is frozen."""
        return super().train(False)

    def folded(self, height: int, width: int) -> "Backbone":
        """Give a copy that computes the same up to rounding, in less time; by default itself.

        Args:
            height: of the images, in pixels.
            width: the same.
        """
        return self

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit the statistics of the training images that the backbone uses; by default none."""
