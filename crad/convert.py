"""``crad convert``: turn a checkpoint of the released CRAD into one of ours."""

import codecs
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from crad.backbones import Backbone, create_backbone
from crad.command_line import parse, run_command
from crad.config import DEFAULT_BACKBONE, PRESETS, Config, DataConfig
from crad.data import find_dataset
from crad.errors import BackboneError
from crad.model.crad import CRAD, Bottleneck
from crad.model.released import ReleasedStateError, from_released
from crad.report.heat_maps import colour_scale
from crad.report.tables import printable
from crad.scoring.calibration import DECISION_PROTOCOL
from crad.training.checkpoint import Checkpoint
from crad.training.features import extract, map_features
from crad.training.run_folder import RunFolder

# Metrics beside the weights may be NumPy's numbers, which are as harmless as Python's.
_MAKE_NUMBER = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: list[Any] = [
    codecs.encode,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    (_MAKE_NUMBER, "numpy.core.multiarray.scalar"),  # as NumPy 1 names it
    (_MAKE_NUMBER, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class ConvertOptions:
    """What the conversion takes."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="IN")]]
    """A checkpoint of the released implementation."""
    output: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Folder to write the checkpoint into, as a training run does."""
    backbone: str = DEFAULT_BACKBONE
    """The timm model that the features are from, frozen at its ImageNet weights."""
    weights: Path | None = None
    """A file with the weights of the timm model, instead of a download."""
    image_size: int = 224
    """Side in pixels of the square that images are resized to."""
    data: Path | None = None
    """The data it was trained on, in the MVTec AD layout: their normal images set the colours of
    heat maps, and evaluation takes them if told no others."""
    ignore: tuple[str, ...] = ()
    """What the names of tensors to leave out begin with, such as a backbone's in the same file."""
    overwrite: bool = False
    """Replace the run in OUT."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert as the command line says."""
    run_command(
        lambda: convert(
            parse(
                ConvertOptions,
                arguments,
                command="convert",
                description="Turn a checkpoint of the authors' implementation into one of ours.",
            )
        )
    )


def convert(options: ConvertOptions) -> Checkpoint:
    """Read a released checkpoint and write ours.

    Raises:
        BackboneError: the backbone cannot be had, or its features are not those of the model.
        DataError: the data are not what they should be.
        ImageError: an image cannot be read.
        OutputError: the output folder holds a run already.
        ReleasedStateError: the file cannot be converted.
        StorageError: a file cannot be written.
        UsageError: an option is out of range.
    """
    run = RunFolder(options.output)
    run.check(overwrite=options.overwrite)
    try:
        model = from_released(_read(options.source), options.ignore).eval()
    except ReleasedStateError as error:
        raise ReleasedStateError(f"'{options.source}' cannot be converted: {error}") from error
    config = _config(model, options)
    config.check()
    backbone = create_backbone(config.model.backbone, weights=config.model.weights)
    _check_features(backbone, model, config)
    checkpoint = Checkpoint(
        config=config,
        epoch=config.training.epochs,
        feature_size=model.feature_size,
        colour_scale=_colour_scale(backbone, model, config),
        n_train={},
        seconds=0.0,
        model=model.state_dict(),
        backbone=backbone.state_dict(),
    )
    run.clear()
    checkpoint.save(run.path)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{millions:.2f} M parameters written to {run.checkpoint}")
    if not options.data:
        print("the colours of heat maps are not set by normal images; --data PATH sets them")
    return checkpoint


def _read(path: Path) -> Mapping[str, Tensor]:
    """The state in a PyTorch file; nothing in it is executed."""
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file makes unpicklers raise nearly anything
        reason = "it is damaged, of another kind, or holds other objects"
        if names := _other_objects(path):
            reason = f"it holds {', '.join(names)} too, which is not loaded: that could run code"
        raise ReleasedStateError(
            f"cannot read '{path}' as a PyTorch file of tensors and numbers: {reason}; give the "
            "weights alone, as torch.save(model.state_dict(), FILE) writes them"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not (
        isinstance(state, dict)
        and state
        and all(isinstance(name, str) and torch.is_tensor(each) for name, each in state.items())
    ):
        raise ReleasedStateError(
            f"'{path}' holds no weights; expected tensors by name, or a 'state_dict' of them"
        )
    return state


def _other_objects(path: Path) -> list[str]:
    """Name the first few things in a PyTorch file that are neither tensors nor numbers."""
    with suppress(Exception), torch.serialization.safe_globals(_NUMPY_NUMBERS):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        return [printable(name) for name in sorted(names)[:3]]
    return []  # it is damaged


def _config(model: CRAD, options: ConvertOptions) -> Config:
    """The settings of the released training, with the sizes of this model."""
    local, whole = model.memory_parameters()
    bottlenecks = [module for module in model.fusion if isinstance(module, Bottleneck)]
    released = PRESETS["crad"]
    return replace(
        released,
        data=DataConfig(source=str(options.data.expanduser().resolve()) if options.data else ""),
        model=replace(
            released.model,
            backbone=options.backbone,
            weights=options.weights,
            image_size=options.image_size,
            depth=len(bottlenecks),
            expansion=bottlenecks[0].expand.out_channels
            if bottlenecks
            else released.model.expansion,
            local_resolution=tuple(local.shape[:-1]),
            global_resolution=tuple(whole.shape[:-1]),
        ),
        decisions=replace(released.decisions, calibration_share=0.0),
    )


def _check_features(backbone: Backbone, model: CRAD, config: Config) -> None:
    size = config.model.image_size
    with torch.inference_mode():
        feature = backbone(torch.zeros(1, 3, size, size))
    if tuple(feature.shape[1:]) != model.feature_size:
        raise BackboneError(
            f"backbone: '{config.model.backbone}' at --image-size {size} gives features of "
            f"{tuple(feature.shape[1:])}, the model takes {model.feature_size}; name the backbone "
            "and the size that it was trained with"
        )


def _colour_scale(backbone: Backbone, model: CRAD, config: Config) -> tuple[float, float]:
    """Colours for heat maps, from normal images if there are any.

    Else the last colour is the least distance, at cosine similarity 1, of a feature that the
    refinement takes for abnormal.
    """
    if not config.data.source:
        distance = math.sqrt(model.feature_size[0] * model.mse_threshold)
        return 0.0, (1 - model.cosine_weight) * distance
    train = find_dataset(config.data.source).train
    chosen = np.linspace(0, len(train) - 1, min(64, len(train))).astype(int)
    size, cpu = config.model.image_size, torch.device("cpu")
    samples = [train[index] for index in chosen]
    features = extract(backbone, samples, size, device=cpu, skip=None)
    maps, _ = DECISION_PROTOCOL.score(map_features(model, features, cpu), size)
    return colour_scale(maps.numpy())


if __name__ == "__main__":
    main()
