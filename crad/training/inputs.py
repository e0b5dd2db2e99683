"""The images of a run as features: those to train on, to set thresholds with, and to test on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from crad.backbones import Backbone
from crad.command_line import BadImages, CommandError
from crad.config import Config
from crad.data import Dataset, Sample
from crad.errors import BackboneError, ImageError
from crad.model.nearest_neighbour import nearest_neighbour_maps
from crad.scoring.calibration import hold_back
from crad.training.feature_cache import FeatureCache
from crad.training.features import Features, extract, fit_backbone


@dataclass(frozen=True)
class Images:
    """Images and their features, in the same order."""

    samples: list[Sample]
    features: Features


@dataclass(frozen=True)
class Inputs:
    """The images of a run.

    Attributes:
        train: normal images to train on.
        held_back: normal images to set thresholds with.
        test: images to test on.
        n_train: all classes, in order, with their numbers of images to train on.
    """

    train: Images
    held_back: Images
    test: Images
    n_train: dict[str, int]

    @cached_property
    def nearest_neighbour(self) -> Tensor:
        """Anomaly maps of the test images ``(M, H, W)`` by `nearest_neighbour_maps`."""
        normal, test = (each.features.channels_first() for each in (self.train, self.test))
        return nearest_neighbour_maps(normal, test)


def load_inputs(
    backbone: Backbone,
    config: Config,
    dataset: Dataset,
    device: torch.device,
    bad: BadImages,
    cache: FeatureCache,
    *,
    fit: bool,
) -> Inputs:
    """Compute the features of all images of a run.

    Args:
        backbone: on ``device``.
        config: the settings of the run.
        dataset: its images.
        device: where to compute.
        bad: what to do with an image that cannot be read.
        cache: where the features are kept.
        fit: whether the backbone's statistics are yet to be fitted, to the images to train on.

    Raises:
        BackboneError: the backbone cannot take these images.
        CommandError: no image of a class can be read.
        ImageError: an image cannot be read.
        OSError: there is no space for the features.
    """
    size = config.image_size
    train, held_back = hold_back(dataset, config.calibration_share, config.seed)

    def images(samples: Sequence[Sample]) -> Images:
        features = extract(backbone, _paths(samples), size, device=device, skip=bad, cache=cache)
        kept = {*features.paths}
        return Images([sample for sample in samples if sample.path in kept], features)

    try:
        if fit:
            fit_backbone(backbone, _paths(train), size, device=device, skip=bad)
        found = [images(samples) for samples in (train, held_back, dataset.test)]
    except ImageError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise BackboneError(
            f"backbone: '{config.backbone}' cannot use these images at --image-size {size}: {error}"
        ) from error
    bad.share()
    in_train, in_held_back, in_test = found
    return Inputs(in_train, in_held_back, in_test, _count(dataset, in_train.samples))


def _paths(samples: Sequence[Sample]) -> list[Path]:
    return [sample.path for sample in samples]


def _count(dataset: Dataset, train: Sequence[Sample]) -> dict[str, int]:
    counts = Counter(sample.class_name for sample in train)
    for name in dataset.classes:
        if not counts[name]:
            raise CommandError(
                f"train: no image of class '{name}' in '{dataset.root}' can be read; replace them, "
                "or remove the class"
            )
    return {name: counts[name] for name in dataset.classes}
