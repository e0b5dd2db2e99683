"""Features from two stages of any timm model."""

import argparse
import difflib
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.models import clean_state_dict
from torch import Tensor, nn

from crad.backbones.weights import download_weights
from crad.errors import BackboneError

_STRIDES = range(8, 17)  # finer says little of a part, coarser cannot say where

# What training scripts wrap weights in; averaged ones come first, as in timm.
_WRAPPERS = ("state_dict_ema", "state_dict", "model_state_dict", "model")

# `nn.Module.load_state_dict` belongs to the process, so two threads must not swap it at once.
_recording = threading.Lock()


class TimmBackbone(nn.Module):
    """The stages of a timm model at stride 8 to 16, at the resolution of the finest.

    The last stage of each stride is taken; coarser ones are upsampled bilinearly (corners aligned)
    and all are concatenated. EfficientNet-B4 gives 56 + 160 channels at stride 8, as in the paper.

    Args:
        name: timm model name, with its tag if it has several weights.
        weights: a ``.safetensors`` or PyTorch file with the model's weights; None downloads them.
        pretrained: False makes random weights, to be replaced by `load_state_dict`.

    Raises:
        BackboneError: timm knows no such model, it has no stage at these strides, or its weights
            cannot be had.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, name: str, *, weights: Path | None = None, pretrained: bool = True) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise BackboneError(_unknown(name))
        try:
            blank = _create(name)
        except Exception as error:
            raise BackboneError(
                f"backbone: timm cannot take '{name}' apart into stages ({_reason(error)}); "
                "choose another --backbone"
            ) from error
        stages = {  # of each stride the last
            stride: index
            for index, stride in zip(
                blank.feature_info.out_indices, blank.feature_info.reduction(), strict=True
            )
            if stride in _STRIDES
        }
        if not stages:
            raise BackboneError(
                f"backbone: '{name}' has stages at strides {blank.feature_info.reduction()}, and "
                "none from 8 to 16; choose another --backbone"
            )
        self.model = _create(name, out_indices=tuple(sorted(stages.values())))
        if pretrained:
            _load_weights(name, self.model, weights)
        self.model.requires_grad_(False).to(memory_format=torch.channels_last)
        self.stride = min(stages)
        self.channels = sum(self.model.feature_info.channels())
        self.register_buffer("image_mean", torch.tensor(blank.default_cfg["mean"])[:, None, None])
        self.register_buffer("image_std", torch.tensor(blank.default_cfg["std"])[:, None, None])
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever ``mode`` is: the backbone is frozen."""
        return super().train(False)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Do nothing: all is in the weights."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: ``(B, 3, H, W)`` float32 RGB in [0, 1].

        Returns:
            ``(B, channels, H / stride, W / stride)`` float32.
        """
        normalised = (images - self.image_mean) / self.image_std
        maps = self.model(normalised.contiguous(memory_format=torch.channels_last))
        size = max(tuple(each.shape[2:]) for each in maps)
        return torch.cat(
            [F.interpolate(each, size, mode="bilinear", align_corners=True) for each in maps], dim=1
        )


def _create(name: str, **options: Any) -> Any:
    """The feature extractor, always with the same random weights; the generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # The getter runs no layer after the last stage asked for, and answers channels first.
        return timm.create_model(name, features_only=True, feature_cls="getter", **options)


def _load_weights(name: str, model: Any, weights: Path | None) -> None:
    """Load the weights of a file, or of the hub, into an extractor: all of them or none."""
    if weights is None:
        weights = _download(name, model.default_cfg)
    state = _read(weights)
    try:
        with _recorded_loads() as loads:
            loaded = _create(
                name,
                out_indices=tuple(model.feature_info.out_indices),
                pretrained=True,  # timm renames and resizes what the file holds
                pretrained_cfg_overlay={"state_dict": state},
            )
        _check_complete(loaded, loads)
    except Exception as error:
        raise BackboneError(
            f"weights: '{weights}' does not fit '{name}' ({_reason(error)}); "
            "give the weights of this model"
        ) from error
    model.load_state_dict(loaded.state_dict())  # `loaded` keeps the whole file in its settings


@contextmanager
def _recorded_loads() -> Iterator[dict[nn.Module, Any]]:
    """What `load_state_dict` answers for each module; timm ignores it and tells nobody."""
    loads: dict[nn.Module, Any] = {}
    with _recording:
        load = nn.Module.load_state_dict

        def record(module: nn.Module, *args: Any, **options: Any) -> Any:
            loads[module] = load(module, *args, **options)
            return loads[module]

        nn.Module.load_state_dict = record  # type: ignore[assignment,method-assign]
        try:
            yield loads
        finally:
            nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _check_complete(model: nn.Module, loads: dict[nn.Module, Any]) -> None:
    """Refuse weights that lack a part of the model, or go on where it ends.

    Names outside the stages of the model, such as the classifier's, do not matter.
    """
    loaded = next((module for module in model.modules() if module in loads), None)
    if loaded is None:
        raise ValueError("timm cannot load it")
    used = loaded.state_dict().keys()
    parts = {key.partition(".")[0] for key in used}
    missing = [key for key in loads[loaded].missing_keys if key in used]
    surplus = [key for key in loads[loaded].unexpected_keys if key.partition(".")[0] in parts]
    for found, side in ((missing, "the file"), (surplus, "the model")):
        if keys := [key for key in found if not key.endswith(".num_batches_tracked")]:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{side} lacks '{keys[0]}'{more}")


def _download(name: str, default_cfg: dict[str, Any]) -> Path:
    repository = default_cfg.get("hf_hub_id")
    try:
        if not repository:
            raise OSError("timm names no hub repository for them")
        return download_weights(repository, default_cfg.get("hf_hub_filename"))
    except OSError as error:
        source = f" (https://huggingface.co/{repository})" if repository else ""
        raise BackboneError(
            f"weights: those of '{name}' are not on this machine and cannot be downloaded: "
            f"{error}. Two ways out: --weights FILE with a copy of them{source}, or "
            "--backbone scattering, which needs none"
        ) from error


def _read(weights: Path) -> dict[str, Tensor]:
    """The tensors of a weights file; nothing in it is executed."""
    try:
        if weights.suffix == ".safetensors":
            return clean_state_dict(safetensors.torch.load_file(weights))
        # Training scripts, timm's too, keep their arguments in the file.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes unpicklers raise nearly anything
        raise BackboneError(
            f"weights: cannot read '{weights}': {_reason(error)}; expected a .safetensors file "
            "or a PyTorch file of tensors only"
        ) from error
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not (isinstance(state, dict) and state and all(map(torch.is_tensor, state.values()))):
        raise BackboneError(f"weights: '{weights}' is not a dictionary of tensors")
    return clean_state_dict(state)


def _reason(error: Exception) -> str:
    """The first sentence of an error, of which timm's and torch's can have hundreds of lines."""
    text = str(error) if " " in str(error) else repr(error)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(":\n", ": ")
    sentence = text.partition("\n")[0].partition(". ")[0]
    return " ".join(sentence.split()).rstrip(".:")


def _unknown(name: str) -> str:
    similar = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"; similar names: {', '.join(similar)}" if similar else ""
    return f"backbone: '{name}' is neither 'scattering' nor a timm model{hint}"
