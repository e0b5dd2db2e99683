"""A finished run with its model loaded, for experiments that look inside."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.paper.runs import Runs
from benchmarks.paper.variants import Variant
from crad.backbones import Backbone
from crad.config import Config
from crad.data import Dataset, Sample
from crad.data.bad_images import BadImages
from crad.data.batches import load_batches
from crad.detector import restore
from crad.devices import select_device
from crad.model.crad import CRAD
from crad.scoring.held_back import hold_back
from crad.training.checkpoint import read_checkpoint
from crad.training.feature_memory import FeatureMemory
from crad.training.features import Features, extract


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        config: its settings.
        model: on ``device``, in evaluation mode, with BatchNorm not folded.
        backbone: on ``device``.
        dataset: the data set of the run.
        train: the training images.
        device: where to compute.
        bad: what to do with an image that cannot be read.
        memory: where features are kept.
    """

    config: Config
    model: CRAD
    backbone: Backbone
    dataset: Dataset
    train: tuple[Sample, ...]
    device: torch.device
    bad: BadImages
    memory: FeatureMemory

    def name(self, sample: Sample) -> str:
        """The path of an image in the data set."""
        assert sample.path is not None  # images of a data set are files
        return sample.path.relative_to(self.dataset.root).as_posix()

    def pixels(self, sample: Sample) -> npt.NDArray[np.uint8]:
        """An image at the size that the backbone gets, ``(H, W, 3)``.

        Raises:
            ImageError: it cannot be read.
        """
        (batch,) = load_batches(
            [sample],
            size=self.config.model.frame,
            batch_size=1,
            decoding=self.config.decoding,
        )
        image = batch.images[0].permute(1, 2, 0)
        pixels: npt.NDArray[np.uint8] = image.mul(255).round().byte().numpy()
        return pixels

    def features(self, samples: Sequence[Sample]) -> Features:
        """Compute the features of images.

        Raises:
            ImageError: an image cannot be read, and ``bad`` leaves none out.
            OSError: there is no space for the features.
        """
        return extract(
            self.backbone,
            samples,
            self.config.model.frame,
            device=self.device,
            skip=self.bad,
            memory=self.memory,
            decoding=self.config.decoding,
        )


def load_run(runs: Runs, variant: Variant) -> TrainedRun:
    """Load the run of a variant with the first seed.

    Raises:
        CheckpointError: its checkpoint is missing or damaged.
        DataError: the data set is missing or damaged.
        DeviceError: the device is not there.
        MissingPackageError: a memory needs a package that is not installed.
    """
    device = select_device(runs.compute.device)
    folder = runs.folder(variant, runs.seeds[0])
    checkpoint = read_checkpoint(folder)
    config = checkpoint.config
    backbone, model = restore(checkpoint)
    dataset, data = runs.dataset(), runs.base.data
    share, seed = config.decisions.calibration_share, config.training.seed
    train, _ = hold_back(dataset, share, seed, checkpoint.draws)
    return TrainedRun(
        config=config,
        model=model.to(device).eval(),
        backbone=backbone.to(device),
        dataset=dataset,
        train=tuple(train),
        device=device,
        bad=BadImages(skip=data.skip_bad),
        memory=FeatureMemory(data.feature_memory),
    )
