"""What a detector is to the comparison, and the ones that there are.

A new one is a `Method` in a file of its own and a line in `METHODS`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from crad.config import Config
from crad.training.features import Features
from crad.training.inputs import Inputs


class Detector(Protocol):
    """A method that has been fitted."""

    @property
    def n_bytes(self) -> int:
        """Size of all that it must keep for new images, without the backbone."""

    def maps(self, features: Features) -> Tensor:
        """Anomaly maps ``(M, H, W)`` of test images, before any protocol, on any device.

        Nothing tells the method the class of an image: with one model for all classes, it may not
        look at `Sample.class_name`.
        """


class Method(Protocol):
    """A way to make a detector from normal images."""

    def settings(self, config: Config) -> dict[str, Any]:
        """What determines it beside the features, the seed and the images; for JSON."""

    def fit(self, inputs: Inputs, config: Config, device: torch.device) -> Detector:
        """Fit one model to normal images.

        Args:
            inputs: those of one model; ``train`` holds the images to learn from, and ``n_train``
                names their classes. There are no test images.
            config: the library's defaults for these data, with the seed of everything random.
            device: where to compute.
        """


def methods() -> Mapping[str, Method]:
    """The methods by name, in the order of the page."""
    from benchmarks.detectors.nearest_neighbour import NearestNeighbour
    from benchmarks.detectors.ours import Crad
    from benchmarks.detectors.padim import Padim

    return {
        "crad": Crad(),
        "crad_without_refinement": Crad(refinement=False),
        "nearest_neighbour": NearestNeighbour(),
        "padim": Padim(),
    }
