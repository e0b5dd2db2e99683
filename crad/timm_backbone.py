"""Features from two stages of any timm model."""

import difflib
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad.backbones import BackboneError
from crad.hub import download_weights

_STRIDES = range(8, 17)  # finer says little of a part, coarser cannot say where


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
        blank = _create(name, out_indices=tuple(sorted(stages.values())))
        self.model = _with_weights(name, blank, weights) if pretrained else blank
        self.model.requires_grad_(False).to(memory_format=torch.channels_last)
        self.name = name
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


def _with_weights(name: str, blank: Any, weights: Path | None) -> Any:
    """The same extractor with the weights of a file, or of the hub."""
    if weights is None:
        weights = _download(name, blank.default_cfg)
    state = _read(weights)
    out_indices = tuple(blank.feature_info.out_indices)
    source = {"state_dict": state}
    try:
        model = _create(
            name, out_indices=out_indices, pretrained=True, pretrained_cfg_overlay=source
        )
    except Exception as error:
        raise BackboneError(
            f"weights: '{weights}' does not fit '{name}' ({_reason(error)}); "
            "give the weights of this model"
        ) from error
    # timm ignores missing names, so weights of another model would load in silence: every
    # parameter that was drawn at random must have changed.
    before = dict(blank.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        drawn = before[parameter_name]
        if drawn.numel() > 1 and drawn.std() > 0 and torch.equal(drawn, parameter):
            raise BackboneError(
                f"weights: '{weights}' holds no '{parameter_name}' for '{name}'; "
                "give the weights of this model"
            )
    return model


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
            return safetensors.torch.load_file(weights)
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        raise BackboneError(
            f"weights: cannot read '{weights}': {_reason(error)}; expected a .safetensors file "
            "or a PyTorch file of tensors only"
        ) from error
    for key in ("state_dict", "model"):  # what training scripts wrap weights in
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not (isinstance(state, dict) and state and all(map(torch.is_tensor, state.values()))):
        raise BackboneError(f"weights: '{weights}' is not a dictionary of tensors")
    return state


def _reason(error: Exception) -> str:
    """The first line of an error, of which timm's and torch's can have hundreds."""
    return str(error).partition("\n")[0].rstrip(":") or type(error).__name__


def _unknown(name: str) -> str:
    similar = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"; similar names: {', '.join(similar)}" if similar else ""
    return f"backbone: '{name}' is neither 'scattering' nor a timm model{hint}"
