"""``crad convert``: turn a checkpoint of the released CRAD into one of ours."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from crad.backbones import PUBLISHED, Backbone, create_backbone
from crad.command_line import make_command
from crad.config import PRESETS, Config, DataConfig
from crad.data import check_apart, find_dataset
from crad.errors import BackboneError
from crad.files import full_path
from crad.model.crad import CRAD, Bottleneck
from crad.model.released import ReleasedStateError, from_released
from crad.report.heat_maps import colour_scale
from crad.scoring.maps import stack
from crad.scoring.protocols import PROTOCOLS
from crad.tensor_files import read_tensors
from crad.training.checkpoint import Checkpoint
from crad.training.features import extract, map_features
from crad.training.run_folder import RunFolder


@dataclass(frozen=True)
class ConvertOptions:
    """What the conversion takes."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="IN")]]
    """A checkpoint of the released implementation."""
    output: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Folder to write the checkpoint into, as a training run does."""
    backbone: str = PUBLISHED
    """The timm model that the features are from, frozen at its ImageNet weights."""
    weights: Path | None = None
    """A file with the weights of the timm model, instead of a download."""
    image_size: int = 224
    """Side in pixels of the square that images are resized to; released models have no other."""
    data: Path | None = None
    """The data it was trained on, in the MVTec AD layout: their normal images set the colour scale
    of heat maps, and they are the default of evaluation."""
    ignore: tuple[str, ...] = ()
    """Prefixes of tensor names to leave out, such as a backbone's in the same file."""
    overwrite: bool = False
    """Replace the run in OUT."""


def convert(options: ConvertOptions) -> Checkpoint:
    """Read a released checkpoint and write ours.

    Raises:
        BackboneError: the backbone cannot be made, or its features do not fit the model.
        DataError: the layout of the data is wrong.
        ImageError: an image cannot be read.
        OutputError: the output folder already holds a run.
        ReleasedStateError: the file cannot be converted.
        StorageError: a file cannot be written.
        UsageError: an option is out of range.
    """
    run = RunFolder(options.output)
    with run.locked():
        return _convert(options, run)


def _convert(options: ConvertOptions, run: RunFolder) -> Checkpoint:
    run.check(overwrite=options.overwrite, resume=None)
    if options.data:
        check_apart(run.path, str(options.data))
    try:
        model = from_released(read_tensors(options.source), options.ignore).eval()
    except ValueError as error:
        raise ReleasedStateError(f"'{options.source}' cannot be converted: {error}") from error
    config = _config(model, options)
    config.check()
    backbone = create_backbone(config.model.backbone, weights=config.model.weights)
    _check_features(backbone, model, options)
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
    run.begin(checkpoint)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{millions:.2f} M parameters written to {run.checkpoint}")
    if not options.data:
        print("the colours of heat maps are not set by normal images; --data PATH sets them")
    return checkpoint


def _config(model: CRAD, options: ConvertOptions) -> Config:
    """The settings of the released training, with the sizes of this model."""
    local, whole = model.memory_parameters()
    bottlenecks = [module for module in model.fusion if isinstance(module, Bottleneck)]
    released = PRESETS["crad"]
    return replace(
        released,
        data=DataConfig(source=str(full_path(options.data)) if options.data else ""),
        model=replace(
            released.model,
            backbone=options.backbone,
            weights=options.weights,
            image_size=options.image_size,
            bit_depth=16,
            reduced=False,
            depth=len(bottlenecks),
            expansion=bottlenecks[0].expand.out_channels,
            local_resolution=tuple(local.shape[:-1]),
            global_resolution=tuple(whole.shape[:-1]),
        ),
        decisions=replace(released.decisions, calibration_share=0.0),
    )


def _check_features(backbone: Backbone, model: CRAD, options: ConvertOptions) -> None:
    size = options.image_size
    with torch.inference_mode():
        feature = backbone(torch.zeros(1, 3, size, size))
    if tuple(feature.shape[1:]) != model.feature_size:
        raise BackboneError(
            f"backbone: '{options.backbone}' at --image-size {size} gives features of "
            f"{tuple(feature.shape[1:])}, the model takes {model.feature_size}; name the backbone "
            "and the size that it was trained with"
        )


def _colour_scale(backbone: Backbone, model: CRAD, config: Config) -> tuple[float, float]:
    """The colour scale of heat maps, from normal images if there are any.

    Otherwise it ends at the smallest distance, at cosine similarity 1, of a feature whose squared
    error reaches the threshold of the refinement.
    """
    if not config.data.source:
        distance = math.sqrt(model.feature_size[0] * model.mse_threshold)
        return 0.0, (1 - model.cosine_weight) * distance
    train = find_dataset(config.data.source).train
    chosen = np.linspace(0, len(train) - 1, min(64, len(train))).astype(int)
    frame, cpu = config.model.frame, torch.device("cpu")
    samples = [train[index] for index in chosen]
    features = extract(backbone, samples, frame, device=cpu, skip=None)
    protocol = PROTOCOLS[config.decisions.decision_protocol]
    maps, _ = protocol.score(stack(map_features(model, features, cpu)), frame)
    return colour_scale(maps.numpy())


main = make_command(
    ConvertOptions,
    convert,
    "convert",
    "Turn a checkpoint of the authors' implementation into one of ours.",
)

if __name__ == "__main__":
    main()
