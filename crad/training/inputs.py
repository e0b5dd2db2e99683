"""What a run has before it trains: the backbone, and the features of all images."""

import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from crad.backbones import Backbone, create_backbone
from crad.config import Config
from crad.data import find_dataset
from crad.data.bad_images import BadImages
from crad.data.batches import BATCH_SIZE
from crad.errors import BackboneError, CradError, DataError, TrainingError
from crad.model.nearest_neighbour import nearest_neighbour_maps
from crad.scoring.calibration import hold_back
from crad.scoring.evaluation import Truths
from crad.scoring.protocols import choose_protocols
from crad.training import processes
from crad.training.checkpoint import Checkpoint
from crad.training.feature_cache import FeatureCache, available_memory
from crad.training.features import Features, extract, fit_backbone


@dataclass(frozen=True)
class Inputs:
    """What a run has before it trains.

    Attributes:
        backbone: fitted, on the device of the run.
        train: features of the normal images to train on.
        held_back: features of the normal images to set thresholds with.
        test: features of the images to test on.
        n_train: all classes, in order, with their numbers of images to train on.
        truths: where the defects are.
        bad: the images and masks that were left out.
        seconds: time that the features took.
    """

    backbone: Backbone
    train: Features
    held_back: Features
    test: Features
    n_train: dict[str, int]
    truths: Truths
    bad: BadImages
    seconds: float

    @property
    def feature_size(self) -> tuple[int, int, int]:
        """(C, H, W) of a feature."""
        height, width, channels = self.train.values.shape[1:]
        return channels, height, width

    @cached_property
    def nearest_neighbour(self) -> Tensor:
        """Anomaly maps of the test images ``(M, H, W)`` by `nearest_neighbour_maps`."""
        return nearest_neighbour_maps(self.train.channels_first(), self.test.channels_first())


def prepare(config: Config, stored: Checkpoint | None, device: torch.device) -> Inputs:
    """Make the backbone and compute the features of all images of a run.

    Args:
        config: the settings of the run.
        stored: the checkpoint to resume from, which has the backbone.
        device: where to compute.

    Raises:
        BackboneError: the backbone cannot be had, or cannot take these images.
        CheckpointError: the stored backbone does not fit.
        DataError: the data are not what they should be, or not those of the stored run.
        ImageError: an image or a mask cannot be read.
        StorageError: there is no space for the features.
        TrainingError: memory cannot hold a batch of images of this size.
    """
    size = config.model.image_size
    needed, available = 4 * 3 * size**2 * BATCH_SIZE, available_memory()
    if needed > available:
        raise TrainingError(
            f"memory: {BATCH_SIZE} images of {size} pixels take {needed / 1e9:.3g} GB, but "
            f"{available / 1e9:.3g} GB are available; lower --image-size"
        )
    backbone = create_backbone(
        config.model.backbone,
        weights=config.model.weights,
        pretrained=stored is None,
        components=config.model.components,
    ).to(device)
    if stored:
        with stored.fitting():
            backbone.load_state_dict(stored.backbone)
    dataset = processes.on_main(
        lambda: find_dataset(config.data.source, classes=config.data.classes)
    )
    started = time.perf_counter()
    bad = BadImages(skip=config.data.skip_bad, quiet=not processes.is_main())
    truths = Truths(size, bad)
    if processes.is_main():  # a bad mask is found before hours of training, not after
        truths.read(dataset.test, choose_protocols(config.decisions.protocol)[0])

    train, held_back = hold_back(dataset, config.decisions.calibration_share, config.training.seed)
    cache = FeatureCache(config.data.feature_memory)
    try:
        if not stored:
            fit_backbone(backbone, train, size, device=device, skip=bad)
        features, features_held_back, features_test = (
            extract(backbone, samples, size, device=device, skip=bad, cache=cache)
            for samples in (train, held_back, dataset.test)
        )
    except CradError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise BackboneError(
            f"backbone: '{config.model.backbone}' cannot use these images at --image-size {size}: "
            f"{error}"
        ) from error
    bad.share(processes.gather)
    counts = Counter(sample.class_name for sample in features.samples)
    n_train = {name: counts[name] for name in dataset.classes}
    if missing := [name for name, count in n_train.items() if not count]:
        raise DataError(
            f"train: none of the training images of class '{missing[0]}' in '{dataset.root}' can "
            "be read; replace them, or leave the class out with --classes"
        )
    if stored and stored.n_train != n_train:
        raise DataError(
            f"data: the training images in '{dataset.root}' have changed since the run of "
            f"'{stored.file}' was started; restore them, or start again with --overwrite"
        )
    seconds = time.perf_counter() - started
    return Inputs(
        backbone, features, features_held_back, features_test, n_train, truths, bad, seconds
    )
