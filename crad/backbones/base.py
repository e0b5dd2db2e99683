"""What CRAD needs from a backbone."""

from collections.abc import Iterable
from typing import Any, Protocol, Self

from torch import Tensor


class Backbone(Protocol):
    """A frozen network that turns images into features: a `torch.nn.Module` without gradients.

    Attributes:
        channels: channels C of a feature.
        stride: pixels from one position of a feature to the next.
    """

    channels: int
    stride: int

    def __call__(self, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` float32 in [0, 1] to ``(B, C, H / stride, W / stride)``."""
        ...

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit the statistics of the training images that the backbone uses, if any."""
        ...

    def to(self, device: Any) -> Self:
        """Move to a device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The weights and fitted statistics."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore a `state_dict`."""
        ...
