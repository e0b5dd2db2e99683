"""The network of a run: made as its settings say, or restored from a checkpoint."""

import torch

from crad.backbones import Backbone, create_backbone
from crad.config import Config, ModelConfig
from crad.errors import CheckpointError
from crad.model.crad import CRAD
from crad.model.products import Products
from crad.training.checkpoint import Checkpoint


def create_model(config: Config, feature_size: tuple[int, int, int]) -> CRAD:
    """Make an untrained model as a run's settings say, for features (C, H, W)."""
    model = config.model
    return CRAD(
        *feature_size,
        local_memory=model.local_memory,
        global_memory=model.global_memory,
        local_resolution=model.local_resolution,
        global_resolution=model.global_resolution,
        interpolation=model.interpolation,
        address=model.address,
        shrinkage=model.shrinkage,
        absent=model.absent,
        depth=model.depth,
        expansion=model.expansion,
        norm_batch=config.training.norm_batch,
        jitter_std=config.training.jitter_std,
        jitter_prob=config.training.jitter_prob,
        mse_weight=0.0 if model.refinement_off else model.mse_weight,
        cosine_weight=0.0 if model.refinement_off else model.cosine_weight,
        mse_threshold=model.mse_threshold,
    )


def multiply_adds(model: ModelConfig, feature_size: tuple[int, int, int]) -> float:
    """Count those of the 1x1 convolutions of the bottlenecks for an image, forward."""
    channels, height, width = feature_size
    memories = (model.local_memory, model.global_memory)
    branches = 1 if "none" in memories and model.absent == "drop" else 2
    return float(height * width * model.depth * 2 * (branches * channels) * model.expansion)


def restore_products(checkpoint: Checkpoint) -> Products | None:
    """Make what names the class of an image, on the CPU; None if the checkpoint has none.

    Raises:
        CheckpointError: its state does not fit.
    """
    if not checkpoint.products:
        return None
    products = Products(len(checkpoint.n_train), checkpoint.feature_size[0])
    with checkpoint.fitting():
        products.load_state_dict(checkpoint.products)
        if not all(tensor.isfinite().all() for tensor in checkpoint.products.values()):
            raise ValueError("the means of classes are not finite")
    return products


def restore(checkpoint: Checkpoint) -> tuple[Backbone, CRAD]:
    """Make the backbone and the model of what `read_checkpoint` read, on the CPU.

    Raises:
        CheckpointError: its parts do not fit each other.
        MissingPackageError: as for `load`.
    """
    settings = checkpoint.config.model
    with checkpoint.fitting():
        backbone = create_backbone(
            settings.backbone,
            pretrained=False,
            components=settings.components,
            layers=settings.layers,
            combine=settings.combine,
        )
        with torch.device("meta"):  # before memory is taken for sizes that make no sense
            _check_shapes(create_model(checkpoint.config, checkpoint.feature_size), checkpoint)
        model = create_model(checkpoint.config, checkpoint.feature_size)
    for name, tensor in checkpoint.model.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f"checkpoint: '{name}' in '{checkpoint.file}' holds NaN or infinite numbers; use a "
                "copy of it, or train again with --overwrite"
            )
    with checkpoint.fitting():
        backbone.load_state_dict(checkpoint.backbone)
        model.load_state_dict(checkpoint.model)
    return backbone, model


def _check_shapes(model: CRAD, checkpoint: Checkpoint) -> None:
    """Refuse a model that is not the one whose state is stored, with a `ValueError`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    for name, tensor in model.state_dict().items():
        if shapes.pop(name, None) != tuple(tensor.shape):
            raise ValueError(f"'{name}' is missing or of another shape")
    if shapes:
        raise ValueError(f"'{next(iter(shapes))}' is no part of the model")
