"""Features from intermediate stages of any timm model."""

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad.backbones.base import Backbone
from crad.backbones.weights import read_weights, summary
from crad.errors import BackboneError

_SEED = 20240924  # of random weights, which no file holds
_STRIDES = range(8, 17)  # finer stages have little context, coarser ones cannot localise


class TimmBackbone(Backbone):
    """The stages of a timm model at strides 8 to 16, concatenated at the resolution of the finest.

    The last stage of each stride is used; coarser ones are upsampled bilinearly (corners aligned).
    EfficientNet-B4 has 56 + 160 channels at stride 8, as in the paper. For the arguments and errors
    see `crad.backbones.create_backbone`.
    """

    model: Any
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, name: str, *, weights: Path | None = None, pretrained: bool = True) -> None:
        super().__init__()
        network = _load(name, weights) if pretrained else _create(name)
        if not hasattr(network, "forward_intermediates"):
            raise BackboneError(
                f"backbone: timm cannot take '{name}' apart into stages; choose another --backbone"
            )
        strides = [stage["reduction"] for stage in network.feature_info]
        last = {stride: i for i, stride in enumerate(strides) if stride in _STRIDES}
        if not last:
            raise BackboneError(
                f"backbone: '{name}' has stages at strides {strides}, and none from 8 to 16; "
                "choose another --backbone"
            )
        self.stride = min(last)
        self.stages = sorted(last.values())
        self.channels = sum(network.feature_info[i]["num_chs"] for i in self.stages)
        network.prune_intermediate_layers(self.stages, prune_norm=True)
        network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.model = nn.ModuleDict({"model": network})  # as checkpoints name its weights
        for key in ("mean", "std"):
            value = torch.tensor(network.pretrained_cfg[key])
            self.register_buffer(f"image_{key}", value[:, None, None])
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute features."""
        normalised = (images - self.image_mean) / self.image_std
        maps = self.model.model.forward_intermediates(
            normalised.contiguous(memory_format=torch.channels_last),
            indices=self.stages,
            intermediates_only=True,
        )
        size = max(tuple(each.shape[2:]) for each in maps)
        return torch.cat(
            [F.interpolate(each, size, mode="bilinear", align_corners=True) for each in maps], dim=1
        )


def create(name: str, weights: Path | None, pretrained: bool, components: int) -> TimmBackbone:
    """Make the backbone of a timm model, for `crad.backbones.create_backbone`."""
    return TimmBackbone(name, weights=weights, pretrained=pretrained)


def _create(name: str, state: dict[str, Tensor] | None = None, **classes: Any) -> Any:
    """The whole model, with the weights of `state` or the same random ones in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network: Any = timm.create_model(
            name,
            pretrained=state is not None,  # timm renames and resizes weights, and loads strictly
            pretrained_cfg_overlay=classes | {"state_dict": state},
            **classes,
        )
    network.pretrained_cfg.pop("state_dict", None)  # frees the memory
    return network


def _create_loaded(name: str, state: dict[str, Tensor], **classes: Any) -> Any:
    """The whole model with all weights of `state`; timm itself lets some models lack a few.

    Raises:
        Exception: a weight is missing or too many; timm raises nearly anything.
    """
    network, blank = _create(name, state, **classes), _create(name, **classes)
    random = dict(blank.named_parameters())
    for key, weight in network.named_parameters():
        if weight.ndim > 1 and weight.std() > 0 and torch.equal(weight, random[key]):
            raise ValueError(f"the file lacks '{key}'")
    return network


def _load(name: str, path: Path | None) -> Any:
    """The whole model with the weights of a file, or those found, of any number of classes."""
    state, path = read_weights(name, path)
    config: Any = timm.get_pretrained_cfg(name)
    try:
        return _create_loaded(name, dict(state))
    except Exception:  # timm raises nearly anything for weights that do not fit
        heads = [config.classifier] if isinstance(config.classifier, str) else config.classifier
        state = {k: v for k, v in state.items() if k.rpartition(".")[0] not in (heads or ())}
    try:  # with other classes, or none
        return _create_loaded(name, state, num_classes=0)
    except Exception as error:
        raise BackboneError(
            f"weights: '{path}' does not fit '{name}' ({summary(error)}); give the weights of this "
            "model, or name theirs with --backbone"
        ) from error
