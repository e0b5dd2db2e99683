"""Backbones: frozen networks that turn images into the features CRAD works on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor

from crad.errors import BackboneError

SCATTERING = "scattering"
"""Name of the backbone that needs no weights; every other name is a timm model."""


class Backbone(Protocol):
    """What CRAD needs from a backbone, an ``nn.Module`` in evaluation mode without gradients.

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
        """Fit what the backbone learns from the training images, if anything."""
        ...

    def to(self, device: Any) -> Self:
        """Move to a device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything `load_state_dict` needs to restore weights and fitted statistics."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore what `state_dict` gave."""
        ...


def create_backbone(
    name: str, *, weights: Path | None = None, pretrained: bool = True, components: int = 16
) -> Backbone:
    """Make a backbone.

    Args:
        name: ``"scattering"``, or a timm model name such as ``"tf_efficientnet_b4.aa_in1k"``.
        weights: a file with the weights of a timm model, instead of a download.
        pretrained: False leaves the weights to `load_state_dict`, and downloads nothing.
        components: principal components that ``"scattering"`` keeps.

    Raises:
        BackboneError: there is no such model, its stages do not fit, or its weights cannot be had.
    """
    if name == SCATTERING:
        if weights is not None:
            raise BackboneError(
                f"weights: the backbone 'scattering' has none to load; drop --weights {weights}, "
                "or name the timm model that they belong to with --backbone"
            )
        from crad.backbones.scattering import ScatteringBackbone

        try:
            return ScatteringBackbone(components)
        except ValueError as error:
            raise BackboneError(f"--components: {error}") from error
    # Importing timm takes seconds, which the default backbone need not wait for.
    from crad.backbones.timm import TimmBackbone

    return TimmBackbone(name, weights=weights, pretrained=pretrained)
