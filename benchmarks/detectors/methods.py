"""What a detector is to the comparison, and the ones that there are.

A new one is a `Method` in a file of its own and a line in `METHODS`.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from benchmarks.detectors.inputs import SetInputs
from crad.config import Config
from crad.training.features import Features


class Detector(Protocol):
    """A method that has been fitted to features.

    One that was trained for epochs also has ``epochs``, a
    `benchmarks.detectors.budget.Epochs`.
    """

    @property
    def n_bytes(self) -> int:
        """Size of all that it must keep for new images, without the backbone."""

    def maps(self, features: Features) -> Tensor:
        """Anomaly maps ``(M, H, W)`` of test images, before any protocol, on any device.

        Nothing tells the method the class of an image: with one model for all classes, it may not
        look at `Sample.class_name`.
        """


@runtime_checkable
class ImageDetector(Protocol):
    """A method that has been fitted to images; it has a backbone of its own, or none."""

    @property
    def n_bytes(self) -> int:
        """Size of all that it must keep for new images, without what `Detector` leaves out."""

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``(B, h, w)`` and scores ``(B,)`` as the method itself makes them.

        Args:
            images: ``(B, 3, H, W)`` in [0, 1], on the CPU.
        """


class Method(Protocol):
    """A way to make a detector from normal images."""

    @property
    def title(self) -> str:
        """What the page calls it."""

    @property
    def takes_images(self) -> bool:
        """Whether it needs the images, and not the features."""

    def settings(self, config: Config) -> dict[str, Any]:
        """What determines it beside the features, the seed and the images; for JSON."""

    def fit(
        self, inputs: SetInputs, config: Config, device: torch.device
    ) -> Detector | ImageDetector:
        """Fit one model to normal images.

        Args:
            inputs: those of one model; ``train`` holds the images to learn from, and ``n_train``
                names their classes. There are no test images.
            config: the library's defaults for these data, with the seed of everything random.
            device: where to compute.
        """


def methods() -> Mapping[str, Method]:
    """The methods by name, in the order of the page."""
    from benchmarks.detectors.hvq_trans import HVQTrans
    from benchmarks.detectors.mkd import MKD
    from benchmarks.detectors.nearest_neighbour import NearestNeighbour
    from benchmarks.detectors.ours import Crad
    from benchmarks.detectors.padim import Padim
    from benchmarks.detectors.reverse_distillation import ReverseDistillation
    from benchmarks.detectors.through_anomalib import RECIPES, ThroughAnomalib
    from benchmarks.detectors.uniad import UniAD

    return {
        "crad": Crad(),
        "crad_without_refinement": Crad(refinement=False),
        "nearest_neighbour": NearestNeighbour(),
        "padim": Padim(),
        "uniad": UniAD(),
        "hvq_trans": HVQTrans(),
        "reverse_distillation": ReverseDistillation(),
        "mkd": MKD(),
        **{f"anomalib_{name}": ThroughAnomalib(name) for name in RECIPES},
    }


def check_possible(name: str, backbone: str) -> None:
    """Refuse a method that cannot be had here.

    Args:
        name: a key of `methods`.
        backbone: of the comparison.

    Raises:
        MissingPackageError: it needs a package that is not installed.
        UsageError: it needs another backbone.
    """
    from benchmarks.detectors.pyramid import stages
    from benchmarks.detectors.through_anomalib import ThroughAnomalib, check_installed

    method = methods()[name]
    if isinstance(method, ThroughAnomalib):
        check_installed()
    if method.takes_images:
        stages(backbone)
