"""Backbones: frozen networks that turn images into features for CRAD.

To add one, write a module with a function `create` like that of `crad.backbones.timm`, and add it
to `BACKBONES`.
"""

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path

from crad.backbones.base import Backbone, CombineName
from crad.errors import BackboneError

__all__ = [
    "AUTO", "BACKBONES", "LITE", "PUBLISHED", "SCATTERING", "Backbone", "CombineName",
    "create_backbone",
]  # fmt: skip

SCATTERING = "scattering"

PUBLISHED = "tf_efficientnet_b4.aa_in1k"
"""The timm model of the paper."""

LITE = "tf_efficientnet_lite0"
"""The timm model for machines that cannot reach the hub: a package has its weights."""

AUTO = "auto"
"""Stands for the best of these three whose weights can be had; see `crad.backbones.auto`."""

BACKBONES = {SCATTERING: "crad.backbones.scattering"}
"""Modules of our own backbones by name; any other name is that of a timm model."""


def create_backbone(
    name: str,
    *,
    weights: Path | None = None,
    pretrained: bool = True,
    components: int = 16,
    layers: Sequence[int] | None = None,
    combine: CombineName | None = None,
) -> Backbone:
    """Make a backbone.

    Args:
        name: one of `BACKBONES`, or a timm model such as ``"tf_efficientnet_b4.aa_in1k"``.
        weights: a ``.safetensors`` or PyTorch file with the weights of a timm model. None takes
            those in the cache of the hub, in a package of ``crad[lite]`` or on the hub.
        pretrained: False downloads nothing and leaves the weights to `load_state_dict`.
        components: principal components that ``"scattering"`` keeps.
        layers: of a timm model that give the features, by their index in its ``feature_info``,
            negative from the end. None takes those that `crad.backbones.timm.TimmBackbone` names;
            an empty sequence the last of each stride from 8 to 16, also of transformers.
        combine: the layers by ``"concat"``, or by ``"mean"``, for which all must have the same
            channels and stride. None takes the mean where all layers of the model have.

    Raises:
        BackboneError: there is no such model, it has no such layers, their mean makes no sense, or
            its weights cannot be loaded.
    """
    if name not in BACKBONES:
        import timm  # takes seconds; our own backbones do not need it

        if not timm.is_model(name):
            similar = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=3)
            own = ", ".join(f"'{each}'" for each in BACKBONES)
            hint = f"; similar names: {', '.join(similar)}" if similar else ""
            raise BackboneError(f"backbone: '{name}' is neither {own} nor a timm model{hint}")
    module = importlib.import_module(BACKBONES.get(name, "crad.backbones.timm"))
    backbone: Backbone = module.create(
        name, weights, pretrained, components=components, layers=layers, combine=combine
    )
    return backbone
