"""A finished run, opened to be looked at: its model, and features of the images that it knows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.paper.runs import Runs
from benchmarks.paper.variants import Variant
from crad.backbones import Backbone
from crad.command_line import BadImages
from crad.config import Config
from crad.data import Dataset, Sample, find_dataset
from crad.data.demo import DEMO_NAMES, demo_dataset
from crad.data.images import open_image, to_tensor
from crad.detector import restore
from crad.devices import select_device
from crad.model.crad import CRAD
from crad.scoring.calibration import hold_back
from crad.training.checkpoint import read_checkpoint
from crad.training.feature_cache import FeatureCache
from crad.training.features import extract
from crad.training.inputs import Images


@dataclass(frozen=True)
class OpenedRun:
    """A finished run.

    Attributes:
        config: its settings.
        model: trained, in evaluation mode, its BatchNorm not folded; on ``device``.
        backbone: on ``device``.
        dataset: the images that it was trained and tested on.
        train: those of them that it was trained on.
        device: where to compute.
        bad: what to do with an image that cannot be read.
        cache: where features are kept.
    """

    config: Config
    model: CRAD
    backbone: Backbone
    dataset: Dataset
    train: tuple[Sample, ...]
    device: torch.device
    bad: BadImages
    cache: FeatureCache

    def some_of_train(self, most: int) -> list[Sample]:
        """So many of the images that it was trained on at most, evenly chosen."""
        count = min(most, len(self.train))
        chosen = torch.linspace(0, len(self.train) - 1, count).round().long()
        return [self.train[index] for index in chosen.tolist()]

    def pixels(self, sample: Sample) -> npt.NDArray[np.uint8]:
        """An image as the backbone gets it, ``(S, S, 3)``.

        Raises:
            ImageError: it cannot be read.
        """
        image = to_tensor(open_image(sample.path), self.config.image_size)
        pixels: npt.NDArray[np.uint8] = image.permute(1, 2, 0).mul(255).round().byte().numpy()
        return pixels

    def images(self, samples: Sequence[Sample]) -> Images:
        """Compute the features of images; those that cannot be read may be left out.

        Raises:
            ImageError: an image cannot be read, and none may be left out.
            OSError: there is no space for the features.
        """
        features = extract(
            self.backbone,
            [sample.path for sample in samples],
            self.config.image_size,
            device=self.device,
            skip=self.bad,
            cache=self.cache,
        )
        kept = {*features.paths}
        return Images([sample for sample in samples if sample.path in kept], features)


def open_run(runs: Runs, variant: Variant) -> OpenedRun:
    """Open the run of a variant with the first of the seeds.

    Raises:
        CheckpointError: its checkpoint is missing or damaged.
        DataError: the data are no longer there.
        DeviceError: the device is not there.
        MissingPackageError: a memory needs a package that is not installed.
    """
    device = select_device(runs.device)
    folder = runs.folder(variant, runs.seeds[0])
    checkpoint = read_checkpoint(folder)
    config = checkpoint.config
    backbone, model = restore(checkpoint, folder)
    root = demo_dataset(config.data) if config.data in DEMO_NAMES else config.data
    dataset = find_dataset(root, classes=config.classes)
    return OpenedRun(
        config=config,
        model=model.to(device).eval(),
        backbone=backbone.to(device),
        dataset=dataset,
        train=tuple(hold_back(dataset, config.calibration_share, config.seed)[0]),
        device=device,
        bad=BadImages(skip=runs.skip_bad),
        cache=FeatureCache(runs.feature_memory),
    )
