"""Stages of a frozen convolutional network, by their strides, for rivals that use several."""

from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from crad.backbones.timm import TimmBackbone
from crad.errors import UsageError


def stages(backbone: str) -> dict[int, str]:
    """The names of the stages of a timm model by their stride in pixels; of several, the last.

    Raises:
        UsageError: it has none at strides 4, 8 and 16.
    """
    try:
        with torch.device("meta"):
            network: Any = timm.create_model(backbone, features_only=True)
            info = network.feature_info.info
    except (AttributeError, RuntimeError) as error:  # a transformer, or no model of timm
        raise _unfit(backbone) from error
    found = {each["reduction"]: each["module"] for each in info}
    if not {4, 8, 16} <= found.keys():
        raise _unfit(backbone)
    return found


def _unfit(backbone: str) -> UsageError:
    return UsageError(
        "--methods: those on images need a convolutional --backbone of timm with stages at strides "
        f"4, 8 and 16, but got {backbone}"
    )


class Pyramid(nn.Module):
    """The maps of a pretrained network at strides 4, 8 and 16.

    Args:
        backbone: a timm model.

    Attributes:
        channels: of the maps.

    Raises:
        BackboneError: its weights cannot be had.
        UsageError: it has no such stages.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        strides = [*stages(backbone)]
        layers = [strides.index(each) for each in (4, 8, 16)]
        self.backbone = TimmBackbone(backbone, layers=layers)
        sizes = self.backbone.model.model.feature_info
        self.channels: list[int] = [sizes[layer]["num_chs"] for layer in layers]

    def prepared(self, height: int, width: int) -> "Pyramid":
        """The same, faster where the CPU computes it, for images of a size."""
        self.backbone = cast(TimmBackbone, self.backbone.folded(height, width))
        return self

    def normalised(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] as the network takes them."""
        return (images - self.backbone.image_mean) / self.backbone.image_std

    def maps_of(self, normalised: Tensor) -> list[Tensor]:
        """Maps of normalised images, the finest first; gradients pass to the images."""
        maps: list[Tensor] = self.backbone.model.model.forward_intermediates(
            normalised.contiguous(memory_format=torch.channels_last),
            indices=self.backbone.layers,
            intermediates_only=True,
        )
        return maps

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of images ``(B, 3, H, W)`` in [0, 1], the finest first."""
        return self.maps_of(self.normalised(images))
