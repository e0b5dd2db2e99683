"""CRAD, trained as ``crad train`` does with its defaults."""

from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.detectors import clock
from benchmarks.detectors.budget import Epochs
from crad.command_line import ComputeOptions
from crad.config import Config, settings
from crad.detector import restore
from crad.model.crad import CRAD
from crad.scoring.maps import stack
from crad.train import train_model
from crad.train_options import OutputOptions, TrainOptions
from crad.training.checkpoint import read_checkpoint
from crad.training.features import Features, map_features
from crad.training.inputs import Inputs

# Recorded elsewhere, different in each run, or without influence on the maps.
_NOT_OURS = (
    "--data", "--classes", "--weights", "--feature-memory", "--max-megapixels", "--skip-bad",
    "--seed", "--bit-depth", "--protocol", "--false-alarm-rate", "--track-best",
)  # fmt: skip


@dataclass(frozen=True)
class Crad:
    """The detector of this library.

    Attributes:
        refinement: whether the reconstruction is refined.
    """

    refinement: bool = True

    takes_images: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """CRAD, or what it lacks."""
        return "CRAD" if self.refinement else "CRAD without refinement"

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings of the training run."""
        held = settings(self._config(config))
        if config.training.epochs_chosen:  # by the number of images, which is recorded elsewhere
            held["--epochs"] = "chosen"
        if held["--keep"] == "last":  # as in all records from before there was a choice
            del held["--keep"]
        return {name: value for name, value in held.items() if name not in _NOT_OURS}

    def fit(self, inputs: Inputs, config: Config, device: torch.device) -> "Model":
        """Train; the images held back set thresholds, which are not used here."""
        with TemporaryDirectory(prefix="crad-detectors-") as temporary:
            folder = Path(temporary) / "run"
            options = TrainOptions(
                self._config(config),
                OutputOptions(folder, exemplars=0),
                ComputeOptions(device=str(device)),
            )
            with redirect_stdout(StringIO()):  # which would say that there are no test images
                train_model(options, show=False, prepare=lambda *_: inputs, now=clock.now)
            checkpoint = read_checkpoint(folder)
            _, model = restore(checkpoint)
        return Model(model.to(device), device, Epochs(checkpoint.epoch))

    def _config(self, config: Config) -> Config:
        if self.refinement:
            return config
        return replace(config, model=replace(config.model, refinement_off=True))


@dataclass(frozen=True)
class Model:
    """A trained `Crad`."""

    network: CRAD
    device: torch.device
    epochs: Epochs

    @property
    def n_bytes(self) -> int:
        """Size of the parameters and buffers."""
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())

    def maps(self, features: Features) -> Tensor:
        """The anomaly maps of the model."""
        return stack(map_features(self.network, features, self.device))
