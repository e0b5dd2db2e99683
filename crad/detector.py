"""A trained detector: images in, scores and anomaly maps out."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from crad.backbones import Backbone, create_backbone
from crad.config import Config
from crad.data.batches import Batch, Source, load_batches, split_images
from crad.devices import PrecisionName, select_device, select_precision
from crad.errors import CheckpointError, ImageError
from crad.model.crad import CRAD
from crad.scoring.calibration import Thresholds
from crad.scoring.protocols import PROTOCOLS
from crad.training.checkpoint import Checkpoint, checkpoint_path, read_checkpoint

PROTOCOL = PROTOCOLS["crad"]
BATCH_SIZE = 16


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector says of an image.

    Attributes:
        score: its anomaly score; higher is more anomalous. It has no unit: compare it with the
            scores of normal images from the same checkpoint.
        scored_map: float32 (S, S), the smoothed anomaly map that the score is taken from, at the
            resolution the detector works at.
        size: height and width of the image.
        path: its file; None for an image from memory.
        threshold: the score above which an image of its class is defective; None if training held
            no normal images back to take one from.
        class_name: the class that the threshold is of; None where that is not known, and it is the
            highest of all, or there is none.
    """

    score: float
    scored_map: npt.NDArray[np.float32]
    size: tuple[int, int]
    path: Path | None
    threshold: float | None = None
    class_name: str | None = None

    @property
    def is_defective(self) -> bool | None:
        """The decision; None without a threshold."""
        return None if self.threshold is None else self.score > self.threshold

    @cached_property
    def anomaly_map(self) -> npt.NDArray[np.float32]:
        """The map at the size of the image, float32 (H, W)."""
        scored = torch.from_numpy(self.scored_map)[None, None]
        resized = F.interpolate(scored, self.size, mode="bilinear")[0, 0].numpy()
        return np.asarray(resized, dtype=np.float32)


class Detector:
    """A backbone, a model, and the protocol that scores its maps; `load` makes one.

    Args:
        backbone: fitted, on ``device``.
        model: trained, on ``device``; its BatchNorm is folded in place.
        image_size: side S in pixels of the images that the backbone gets.
        device: where to compute.
        colour_scale: (low, high) of heat maps, from the maps of normal training images.
        precision: of the fusion network, ``"fp32"`` or ``"bf16"``.
        thresholds: of the classes; None has none.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: CRAD,
        *,
        image_size: int,
        device: torch.device,
        colour_scale: tuple[float, float],
        precision: Literal["fp32", "bf16"] = "fp32",
        thresholds: Thresholds | None = None,
    ) -> None:
        self.backbone = backbone
        self.model = model.fold_batch_norm()
        self.image_size = image_size
        self.device = device
        self.colour_scale = colour_scale
        self.precision = precision
        self.thresholds = thresholds or Thresholds()

    def predict(
        self,
        images: Source | Iterable[Source],
        batch_size: int = BATCH_SIZE,
        class_name: str | None = None,
    ) -> list[Prediction]:
        """Score images.

        Args:
            images: one image or any number of them: files, Pillow images, arrays (H, W) or
                (H, W, C), tensors (C, H, W), mixed as you like; or a batch as a 4-D array or
                tensor.
            batch_size: images computed at once.
            class_name: the class that all images are of. Without it, the class of a file is told by
                its folders, as `Thresholds.class_of` says, and where that fails the highest
                threshold of all classes decides.

        Returns:
            A prediction for each image, in order.

        Raises:
            ImageError: an image cannot be read, or its shape, type or range makes no sense.
            ValueError: ``batch_size`` is not positive, or no class has this name.
        """
        return list(self.iterate(images, batch_size, class_name=class_name))

    @torch.inference_mode()
    def iterate(
        self,
        images: Source | Iterable[Source],
        batch_size: int = BATCH_SIZE,
        skip: Callable[[ImageError], object] | None = None,
        class_name: str | None = None,
    ) -> Iterator[Prediction]:
        """Score images as they come, holding no more than a few batches of them.

        Args:
            images: as for `predict`.
            batch_size: images computed at once.
            skip: called with the error of an image that cannot be read, which then has no
                prediction; None raises the error.
            class_name: as for `predict`.

        Raises:
            ImageError: as for `predict`.
            ValueError: as for `predict`.
        """
        if class_name is not None and class_name not in self.thresholds:
            raise ValueError(
                f"predict(): there is no threshold for a class '{class_name}'; there is one for "
                f"{', '.join(self.thresholds) or 'none'}"
            )
        for batch, anomaly_maps in self.anomaly_maps(images, batch_size, skip):
            maps, scores = PROTOCOL.score(anomaly_maps, self.image_size)
            for scored, score, size, path in zip(
                maps.cpu().numpy(), scores.tolist(), batch.sizes, batch.paths, strict=True
            ):
                name = class_name or (self.thresholds.class_of(path) if path else None)
                yield Prediction(score, scored, size, path, self.thresholds.score_of(name), name)

    @torch.inference_mode()
    def anomaly_maps(
        self,
        images: Source | Iterable[Source],
        batch_size: int = BATCH_SIZE,
        skip: Callable[[ImageError], object] | None = None,
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Give the images, batch by batch, with the maps of the model, before any protocol.

        Arguments and errors are those of `iterate`.

        Returns:
            Batches, and their anomaly maps ``(B, H, W)`` on the detector's device.
        """
        if batch_size < 1:
            raise ValueError(f"predict(): expected batch_size of at least 1, but got {batch_size}")
        sources = split_images(images)
        for batch in load_batches(sources, size=self.image_size, batch_size=batch_size, skip=skip):
            features = self.backbone(batch.images.to(self.device))
            bf16 = self.precision == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                anomaly_maps = self.model(features).anomaly_map
            yield batch, anomaly_maps


def create_model(config: Config, feature_size: tuple[int, int, int]) -> CRAD:
    """Make an untrained model as a run's settings say, for features (C, H, W)."""
    return CRAD(
        *feature_size,
        local_memory=config.local.memory,
        global_memory=config.global_.memory,
        local_resolution=config.local.resolution,
        global_resolution=config.global_.resolution,
        address=config.discrete.address,
        shrinkage=config.discrete.shrinkage,
        absent=config.absent,
        depth=config.depth,
        expansion=config.expansion,
        jitter_std=config.local.jitter_std,
        jitter_prob=config.local.jitter_prob,
        mse_weight=0.0 if config.refinement.off else config.refinement.mse_weight,
        cosine_weight=0.0 if config.refinement.off else config.refinement.cosine_weight,
        mse_threshold=config.refinement.mse_threshold,
    )


def multiply_adds(config: Config, feature_size: tuple[int, int, int]) -> float:
    """Count those of the 1x1 convolutions of the bottlenecks for an image, forward."""
    channels, height, width = feature_size
    memories = (config.local.memory, config.global_.memory)
    branches = 1 if "none" in memories and config.absent == "drop" else 2
    return float(height * width * config.depth * 2 * (branches * channels) * config.expansion)


def load(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    precision: PrecisionName = "auto",
) -> Detector:
    """Load a trained detector; nothing is downloaded and nothing in the file is executed.

    Args:
        path: the checkpoint, or the output folder of the run.
        device: where to compute; None takes CUDA if there is a GPU.
        precision: of the fusion network; ``"auto"`` takes bf16 for a large one on a CPU that has
            matrix instructions for it.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or another version wrote it.
        DeviceError: there is no such device.
        MissingPackageError: a memory of the model needs a package that is not installed.
    """
    selected = select_device(device)
    return from_checkpoint(read_checkpoint(path), selected, path, precision)


def from_checkpoint(
    checkpoint: Checkpoint,
    device: torch.device,
    path: str | os.PathLike[str],
    precision: PrecisionName = "auto",
) -> Detector:
    """Put a detector together from what `read_checkpoint` read from ``path``.

    Raises:
        CheckpointError: as for `restore`.
        MissingPackageError: as for `load`.
    """
    backbone, model = restore(checkpoint, path)
    return Detector(
        backbone.to(device),
        model.to(device),
        image_size=checkpoint.config.image_size,
        device=device,
        colour_scale=checkpoint.colour_scale,
        precision=select_precision(
            precision,
            device,
            BATCH_SIZE * multiply_adds(checkpoint.config, checkpoint.feature_size),
        ),
        thresholds=checkpoint.thresholds,
    )


def restore(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> tuple[Backbone, CRAD]:
    """Make the backbone and the model of what `read_checkpoint` read from ``path``, on the CPU.

    Raises:
        CheckpointError: its parts do not fit each other.
        MissingPackageError: as for `load`.
    """
    backbone = create_backbone(
        checkpoint.config.backbone, pretrained=False, components=checkpoint.config.components
    )
    model = create_model(checkpoint.config, checkpoint.feature_size)
    for name, tensor in checkpoint.model.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f"checkpoint: '{name}' in '{checkpoint_path(path)}' holds NaN or infinite numbers; "
                "use a copy of it, or train again with --overwrite"
            )
    try:
        backbone.load_state_dict(checkpoint.backbone)
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint: the parts of '{checkpoint_path(path)}' do not fit this crad and its "
            f"timm ({error}); use those that wrote it, or train again with --overwrite"
        ) from error
    return backbone, model


def image_scores(anomaly_maps: Tensor, image_size: int) -> list[float]:
    """Score images as `Detector.predict` does, from the maps of a model ``(N, H, W)``."""
    return [
        score
        for start in range(0, len(anomaly_maps), BATCH_SIZE)
        for score in PROTOCOL.score(anomaly_maps[start : start + BATCH_SIZE], image_size)[
            1
        ].tolist()
    ]
