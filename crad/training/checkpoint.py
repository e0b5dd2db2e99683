"""The checkpoint: one safetensors file with the model, all it needs, and all to go on training."""

import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from crad.config import Config, from_json, to_json
from crad.errors import CheckpointError
from crad.files import write_atomically
from crad.scoring.calibration import Threshold, Thresholds
from crad.scoring.metrics import EpochMetrics

CHECKPOINT_NAME = "checkpoint.safetensors"
ALL_PARTS = ("model", "backbone", "optimizer", "random")

_FORMAT = "crad"
# To be raised with the meaning of what is written. What another crad wrote with other settings is
# refused by their names.
_VERSION = "1"
_WAYS = "use the crad that wrote it, or train again with --overwrite"


@dataclass(frozen=True)
class Checkpoint:
    """A run after an epoch.

    Attributes:
        config: its settings.
        epoch: epochs trained.
        feature_size: (C, H, W) of a feature.
        colour_scale: (low, high) of heat maps, from the maps of normal training images.
        n_train: training images of each class.
        seconds: time spent training.
        model: state of `crad.CRAD`.
        backbone: state of the backbone: weights and fitted statistics.
        optimizer: state of the optimizer by parameter name; empty if not read.
        random: state of the random generators by device; empty if not read.
        best_on_test: the epoch so far that is best on the test images, if that is tracked.
        thresholds: of the classes, as far as normal images were held back for them.
    """

    config: Config
    epoch: int
    feature_size: tuple[int, int, int]
    colour_scale: tuple[float, float]
    n_train: dict[str, int]
    seconds: float
    model: dict[str, Tensor]
    backbone: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    best_on_test: EpochMetrics | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    def save(self, folder: Path) -> None:
        """Write the checkpoint of a run, replacing the former one in a single step.

        Raises:
            OSError: it cannot be written (disk full, no permission); the former one is untouched.
        """
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part in ALL_PARTS
            for name, tensor in getattr(self, part).items()
        }
        settings = {
            "config": to_json(self.config),
            "epoch": self.epoch,
            "feature_size": self.feature_size,
            "colour_scale": self.colour_scale,
            "n_train": self.n_train,
            "seconds": self.seconds,
            "best_on_test": self.best_on_test,
            "thresholds": {name: asdict(each) for name, each in self.thresholds.items()},
        }
        metadata = {"format": _FORMAT, "version": _VERSION, "run": json.dumps(settings)}
        data = safetensors.torch.save(tensors, metadata)
        write_atomically(folder / CHECKPOINT_NAME, lambda file: file.write(data))


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Name the checkpoint file, given it or its folder."""
    path = Path(path).expanduser()
    return path / CHECKPOINT_NAME if path.is_dir() else path


def read_checkpoint(
    path: str | os.PathLike[str], parts: Collection[str] = ("model", "backbone")
) -> Checkpoint:
    """Read a checkpoint. Nothing in it is executed.

    Args:
        path: the file, or the folder it lies in.
        parts: which states to read; those left out are empty. `ALL_PARTS` is all, to go on
            training.

    Raises:
        CheckpointError: there is none, it is damaged, or another version wrote it.
    """
    file = checkpoint_path(path)
    if not file.is_file():
        raise CheckpointError(
            f"checkpoint: there is no file '{file}'; give the output folder of a training run, or "
            f"the {CHECKPOINT_NAME} in it"
        )
    states: dict[str, dict[str, Tensor]] = {part: {} for part in ALL_PARTS}
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            _check_format(file, metadata)
            for key in opened.keys():  # noqa: SIM118, it is no mapping
                part, _, name = key.partition(".")
                if part in parts:
                    states[part][name] = opened.get_tensor(key)
        run = json.loads(metadata["run"])
        return Checkpoint(
            config=_config(file, run["config"]),
            epoch=run["epoch"],
            feature_size=tuple(run["feature_size"]),
            colour_scale=tuple(run["colour_scale"]),
            n_train=run["n_train"],
            seconds=run["seconds"],
            best_on_test=run["best_on_test"],
            thresholds=Thresholds(
                {name: Threshold(**each) for name, each in run["thresholds"].items()}
            ),
            **states,
        )
    except CheckpointError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint: '{file}' is none, or was damaged or cut short ({error}); use a copy of "
            "it, or train again with --overwrite"
        ) from error


def _config(file: Path, settings: dict[str, Any]) -> Config:
    try:
        return from_json(settings)
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint: '{file}' is of another crad: {error}; {_WAYS}"
        ) from error


def _check_format(file: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"checkpoint: '{file}' holds tensors, but no crad checkpoint; give the output folder "
            "of a training run (weights of a backbone go to --weights)"
        )
    if metadata.get("version") != _VERSION:
        raise CheckpointError(
            f"checkpoint: '{file}' has version {metadata.get('version')}, this crad reads version "
            f"{_VERSION}; {_WAYS}"
        )
