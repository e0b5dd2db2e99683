"""The checkpoint: one safetensors file with everything that inference and resuming need."""

import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from crad.config import Config
from crad.data.demo import DEMO_NAMES
from crad.errors import CheckpointError
from crad.files import write_atomically, write_json
from crad.scoring.calibration import Threshold, Thresholds
from crad.scoring.metrics import EpochMetrics

CHECKPOINT_NAME = "checkpoint.safetensors"
PATHS_NAME = "run.json"
"""Beside a checkpoint: the paths of a run, which mean nothing on another machine."""

INFERENCE_PARTS = ("model", "backbone")
ALL_PARTS = (*INFERENCE_PARTS, "optimizer", "random")

_FORMAT = "crad"
VERSION = 2
"""Of what is written. Older ones are read; `_SETTINGS_SINCE` keeps their meaning."""

# Settings that came after a version, and the values that stand for what crad did before there was
# a choice: {version: {group: {name: value}}}. A test refuses a new setting of the model without it.
_SETTINGS_SINCE: Mapping[int, Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

_WAYS = "install a newer crad, or train again with --overwrite"


@dataclass(frozen=True)
class Checkpoint:
    """A run after an epoch.

    Attributes:
        config: its settings; ``data.source`` is empty where it is not known.
        epoch: epochs trained.
        feature_size: (C, H, W) of a feature.
        colour_scale: (low, high) of heat maps, from the maps of normal training images.
        n_train: training images of each class.
        seconds: time spent training.
        precision: of the fusion network in training.
        model: state of `crad.CRAD`.
        backbone: state of the backbone: weights and fitted statistics.
        optimizer: state of the optimizer by parameter name; empty if not read.
        random: state of the random generators by device; empty if not read.
        best_on_test: the epoch so far that is best on the test images, if that is tracked.
        thresholds: of the classes for which normal images were held back.
        file: that it was read from, if it was.
    """

    config: Config
    epoch: int
    feature_size: tuple[int, int, int]
    colour_scale: tuple[float, float]
    n_train: dict[str, int]
    seconds: float
    model: dict[str, Tensor]
    backbone: dict[str, Tensor]
    precision: str = "fp32"
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    best_on_test: EpochMetrics | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    file: Path | None = field(default=None, compare=False)

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Turn the failure to restore a state in the block into an error that says what to do."""
        try:
            yield
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint: '{self.file}' does not match this version of crad or timm "
                f"({' '.join(str(error).split())}); install the versions that wrote it, or start "
                "again with --overwrite"
            ) from error

    def save(self, folder: Path) -> None:
        """Write the checkpoint of a run, replacing the former one, and the paths of the run.

        Raises:
            StorageError: it cannot be written (disk full, no permission); the former one is
                untouched.
        """
        self.write(folder / CHECKPOINT_NAME)
        write_source(folder, self.config.data.source)

    def write(self, file: Path) -> None:
        """Write the checkpoint alone, in a single step; errors as for `save`."""
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part in ALL_PARTS
            for name, tensor in getattr(self, part).items()
        }
        run = {
            "settings": _to_stored(self.config),
            "epoch": self.epoch,
            "feature_size": self.feature_size,
            "colour_scale": self.colour_scale,
            "n_train": self.n_train,
            "seconds": self.seconds,
            "precision": self.precision,
            "best_on_test": self.best_on_test,
            "thresholds": {
                name: dataclasses.asdict(each) for name, each in self.thresholds.items()
            },
        }
        metadata = {"format": _FORMAT, "version": str(VERSION), "run": json.dumps(run)}
        data = safetensors.torch.save(tensors, metadata)
        write_atomically(file, lambda opened: opened.write(data))


def write_source(folder: Path, source: str) -> None:
    """Write where the data of a run are, if that is not what the folder says already."""
    if _source_of(folder / CHECKPOINT_NAME) != source:
        write_json(folder / PATHS_NAME, {"data": source})


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Name the checkpoint file, given it or its folder."""
    path = Path(path).expanduser()
    return path / CHECKPOINT_NAME if path.is_dir() else path


def read_checkpoint(
    path: str | os.PathLike[str], parts: Collection[str] = INFERENCE_PARTS
) -> Checkpoint:
    """Read a checkpoint of this version or an older one. Nothing in it is executed.

    Args:
        path: the file, or the folder it lies in.
        parts: which states to read; the others are empty. Resuming needs `ALL_PARTS`.

    Raises:
        CheckpointError: it is missing or damaged, or a newer version wrote it.
    """
    file = checkpoint_path(path)
    if not file.is_file():
        if inner := sorted(each.parent.name for each in file.parent.glob(f"*/{CHECKPOINT_NAME}")):
            raise CheckpointError(
                f"checkpoint: '{file.parent}' holds a model for each class; give one of its "
                f"folders: {', '.join(inner)}"
            )
        raise CheckpointError(
            f"checkpoint: there is no file '{file}'; give the output folder of a training run, or "
            f"the {CHECKPOINT_NAME} in it"
        )
    states: dict[str, dict[str, Tensor]] = {part: {} for part in ALL_PARTS}
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            version = _check_format(file, metadata)
            for key in opened.keys():  # noqa: SIM118, it is no mapping
                part, _, name = key.partition(".")
                if part in parts:
                    states[part][name] = opened.get_tensor(key)
        run = json.loads(metadata["run"])
        stored = _from_version_1(run) if version == 1 else run["settings"]
        config = _from_stored(stored, version, file)
        return Checkpoint(
            config=config,
            epoch=run["epoch"],
            feature_size=tuple(run["feature_size"]),
            colour_scale=tuple(run["colour_scale"]),
            n_train=run["n_train"],
            seconds=run["seconds"],
            precision=run["precision"],
            best_on_test=run["best_on_test"],
            thresholds=Thresholds(
                {name: Threshold(**each) for name, each in run["thresholds"].items()}
            ),
            file=file,
            **states,
        )
    except CheckpointError:
        raise
    except (
        *(safetensors.SafetensorError, OSError),
        *(AttributeError, KeyError, TypeError, ValueError),
    ) as error:
        raise CheckpointError(
            f"checkpoint: '{file}' is not a checkpoint, or is damaged or cut short ({error}); use "
            "another copy, or train again with --overwrite"
        ) from error


def _check_format(file: Path, metadata: Mapping[str, str]) -> int:
    """The version of a checkpoint; errors as for `read_checkpoint`."""
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"checkpoint: '{file}' is not a crad checkpoint; give the output folder of a training "
            "run (weights of a backbone go to --weights)"
        )
    version = int(metadata["version"])
    if not 1 <= version <= VERSION:
        raise CheckpointError(
            f"checkpoint: '{file}' has version {version}, this crad reads versions 1 to {VERSION}; "
            f"{_WAYS}"
        )
    return version


def _to_stored(config: Config) -> dict[str, dict[str, Any]]:
    """Settings as JSON can hold them, by group and name, without paths of this machine."""
    stored = dataclasses.asdict(config)
    del stored["model"]["weights"]  # the state of the backbone is stored
    if config.data.source not in DEMO_NAMES:
        del stored["data"]["source"]
    return stored


def _from_stored(stored: Mapping[str, Mapping[str, Any]], version: int, file: Path) -> Config:
    """Undo `_to_stored`, of this version or one before.

    A setting that is missing takes its value in `_SETTINGS_SINCE`, so that the checkpoint means
    what it meant to the version that wrote it, or else the default. A setting of the model that is
    not known is refused; others are ignored.
    """
    groups: dict[str, Any] = {}
    for name, group in _groups().items():
        values = dict(stored.get(name, {}))
        for since in sorted(each for each in _SETTINGS_SINCE if each >= version):
            values = {**_SETTINGS_SINCE[since].get(name, {}), **values}
        known = [each.name for each in dataclasses.fields(group)]
        if name == "model" and (unknown := [each for each in values if each not in known]):
            raise CheckpointError(
                f"checkpoint: '{file}' has settings of a model that this crad does not know: "
                f"{', '.join(unknown)}; {_WAYS}"
            )
        groups[name] = group(
            **{
                each: tuple(value) if isinstance(value, list) else value
                for each, value in values.items()
                if each in known
            }
        )
    if "source" not in stored.get("data", {}):
        groups["data"] = dataclasses.replace(groups["data"], source=_source_of(file))
    return Config(**groups)


def _source_of(checkpoint: Path) -> str:
    """The data of a run, from the file beside its checkpoint; empty if that is missing."""
    try:
        paths = json.loads((checkpoint.parent / PATHS_NAME).read_text(encoding="utf-8"))
        return str(paths["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _groups() -> dict[str, Any]:
    return {each.name: each.type for each in dataclasses.fields(Config)}


def _from_version_1(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Put the settings of version 1, one list with dotted names, into groups."""
    renamed = {
        "data": "source",
        "refinement.off": "refinement_off",
        **{f"local.{name}": f"local_{name}" for name in ("memory", "resolution")},
        **{f"global_.{name}": f"global_{name}" for name in ("memory", "resolution")},
    }
    flat = {
        renamed.get(name, name.rpartition(".")[2]): value for name, value in run["config"].items()
    }
    run["precision"] = flat.pop("precision")
    groups: dict[str, dict[str, Any]] = {name: {} for name in _groups()}
    for name, group in _groups().items():
        for each in dataclasses.fields(group):
            if each.name in flat:
                groups[name][each.name] = flat.pop(each.name)
    groups["model"].update(flat, weights=None)  # what is left is not known
    return groups
