"""The checkpoint: one safetensors file with everything that inference and resuming need."""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import safetensors
import safetensors.torch
from torch import Tensor

from crad.config import Config
from crad.data.demo import DEMO_NAMES
from crad.edge.runtimes import is_exported
from crad.errors import CheckpointError, CradError
from crad.files import irregular, write_atomically
from crad.scoring.calibration import Calibration, Threshold, Thresholds
from crad.scoring.held_back import Draws
from crad.scoring.metrics import EpochMetrics
from crad.scoring.protocols import PROTOCOLS
from crad.training.run_record import RunRecord, read_record

CHECKPOINT_NAME = "checkpoint.safetensors"

INFERENCE_PARTS = ("model", "backbone", "products", "interest")
ALL_PARTS = (*INFERENCE_PARTS, "latest", "optimizer", "random", "images")

_FORMAT = "crad"
VERSION = 3
"""Of what is written. Older ones are read; `_IMPLIED_UP_TO` keeps their meaning."""

# Settings that came after a version, and the values that stand for what crad did before there was
# a choice: {version: {group: {name: value}}}. A test refuses a new setting of the model without it.
_IMPLIED_UP_TO: Mapping[int, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        2: {"model": {"bit_depth": 16}, "decisions": {"decision_protocol": "crad"}},
        3: {
            "model": {
                "layers": (),  # the last of each stride, of a transformer too
                "combine": None,
                "fit": False,
                "fitted": None,
                "masked": False,
                "tile": None,
                "overlap": None,
                "reduced": False,
                "interpolation": "linear",
            },
            "training": {"keep": "last"},
        },
    }
)

# What a parameter is called, and what it was called when the format was made.
_ENTRIES, _STORED_ENTRIES = ".memory.weight", ".memory.values"

# Of what is stored beside the settings.
_TYPES: Mapping[str, Any] = MappingProxyType(
    {
        "epoch": int,
        "feature_size": tuple[int, int, int],
        "colour_scale": tuple[float, float],
        "n_train": dict[str, int],
        "seconds": float,
        "precision": Literal["fp32", "bf16"],
        "draws": Draws,
        "best_on_test": dict[str, Any] | None,
        "thresholds": dict[str, dict[str, float]],
        "pixel_thresholds": dict[str, dict[str, float]],
        "calibration": dict[str, tuple[float, ...]],
        "part_of": str | None,
        "kept": dict[str, float] | None,
    }
)

AGAIN = ", or train again with --overwrite"
"""The last way out of an error of `read_checkpoint`; of a run of several models, another one is."""

_WAYS = f"install a newer crad{AGAIN}"


@dataclass(frozen=True)
class Kept:
    """The epoch that a detector is of, and its `crad.training.keeping.held_back_error`."""

    epoch: int
    error: float


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
        model: state of `crad.CRAD`, of the epoch that is kept.
        backbone: state of the backbone: weights and fitted statistics.
        interest: state of `crad.scoring.interest.Interest`; empty if all of the images counts.
        products: state of `crad.model.products.Products`; empty for a model of one class, or if an
            older version wrote it.
        latest: as model, after the last epoch; empty if that is the one that is kept, or not read.
        optimizer: state of the optimizer by parameter name; empty if not read.
        random: state of the random generators by device; empty if not read.
        images: ``digests`` of the normal images, trained on or held back, by which a resumed run
            knows them; empty if not read, or written before there were any.
        draws: how the images held back were chosen, as for `crad.scoring.held_back.hold_back`.
        kept: the epoch that all but what training goes on from is of; None if it is the last.
        best_on_test: the epoch so far that is best on the test images, if that is tracked.
        thresholds: of the classes for which normal images were held back, for the false alarm rate
            of the run.
        calibration: the scores that they were taken from; empty if an older version wrote it.
        pixel_thresholds: as thresholds, of the pixels of maps; empty if an older version wrote it.
        part_of: the id of the separate training that the run is a part of; empty if of none, None
            if an older version wrote it.
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
    interest: dict[str, Tensor] = field(default_factory=dict)
    products: dict[str, Tensor] = field(default_factory=dict)
    precision: str = "fp32"
    latest: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    draws: Draws = "class"
    kept: Kept | None = None
    best_on_test: EpochMetrics | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    pixel_thresholds: Thresholds = field(default_factory=Thresholds)
    calibration: Calibration = field(default_factory=Calibration)
    part_of: str | None = ""
    file: Path | None = field(default=None, compare=False)

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Turn the failure to restore a state in the block into an error that says what to do."""
        try:
            yield
        except CradError:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint: '{self.file}' does not match this version of crad or timm "
                f"({' '.join(str(error).split())}); install the versions that wrote it, or start "
                "again with --overwrite"
            ) from error

    @property
    def record(self) -> RunRecord:
        """What is written beside it."""
        return RunRecord(self.config.data.source, added=self.config.data.added)

    def save(self, folder: Path) -> None:
        """Write the checkpoint of a run, replacing the former one, and the paths of the run.

        Raises:
            StorageError: it cannot be written (disk full, no permission); the former one is
                untouched.
        """
        self.record.write(folder)  # first: no checkpoint is without it
        self.write(folder / CHECKPOINT_NAME)

    def write(self, file: Path) -> None:
        """Write the checkpoint alone, in a single step; errors as for `save`."""
        tensors = {
            f"{part}.{name.replace(_ENTRIES, _STORED_ENTRIES)}": tensor.detach().cpu().contiguous()
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
            "draws": self.draws,
            "kept": dataclasses.asdict(self.kept) if self.kept else None,
            "best_on_test": self.best_on_test,
            "thresholds": {
                name: dataclasses.asdict(each) for name, each in self.thresholds.items()
            },
            "pixel_thresholds": {
                name: dataclasses.asdict(each) for name, each in self.pixel_thresholds.items()
            },
            "calibration": self.calibration,
            "part_of": self.part_of,
        }
        metadata = {"format": _FORMAT, "version": str(VERSION), "run": json.dumps(run)}
        data = safetensors.torch.save(tensors, metadata)
        write_atomically(file, lambda opened: opened.write(data))


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Name the checkpoint file, given it or its folder."""
    path = Path(os.path.expanduser(path))
    return path / CHECKPOINT_NAME if path.is_dir() else path


def is_checkpoint(path: Path) -> bool:
    """Whether crad wrote a file as a checkpoint, of any version and however it ends."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))  # of the header, which is JSON
            header = json.loads(file.read(min(length, 2**26)))
            return bool(header["__metadata__"]["format"] == _FORMAT)
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError):
        return False


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
    if is_exported(file):
        raise CheckpointError(
            f"checkpoint: '{file}' is a file of crad export, not a checkpoint; crad predict and "
            "crad.load_exported take it, else name the checkpoint that it was made of"
        )
    kind = irregular(file)
    if kind or not file.exists():
        folder = file.parent if file.name == CHECKPOINT_NAME else file
        if inner := sorted(each.parent.name for each in folder.glob(f"*/{CHECKPOINT_NAME}")):
            raise CheckpointError(
                f"checkpoint: '{folder}' holds no model, and no run.json that joins those of its "
                f"folders; give one of these: {', '.join(inner)}"
            )
        problem = f"'{file}' is {kind}" if kind else f"there is no file '{file}'"
        raise CheckpointError(
            f"checkpoint: {problem}; give the output folder of a training run, or the "
            f"{CHECKPOINT_NAME} in it"
        )
    states: dict[str, dict[str, Tensor]] = {part: {} for part in ALL_PARTS}
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            version = _check_format(file, metadata)
            for key in opened.keys():  # noqa: SIM118, it is no mapping
                part, _, name = key.partition(".")
                if part in parts:
                    states[part][name.replace(_STORED_ENTRIES, _ENTRIES)] = opened.get_tensor(key)
        run = {
            "pixel_thresholds": {},
            "calibration": {},
            "draws": "run",
            "part_of": None,
            "kept": None,
            **json.loads(metadata["run"]),
        }
        stored = _from_version_1(run) if version == 1 else run["settings"]
        config = _from_stored(stored, version, file)
        for name, kind in _TYPES.items():
            _check_type(name, run[name], kind)
        counted = [each["n_images"] for each in run["thresholds"].values()]
        if min(run["epoch"], *run["feature_size"], *run["n_train"].values(), *counted) < 0:
            raise ValueError("a number of epochs, images or cells is negative")
        if not all(run["calibration"].values()):
            raise ValueError("a class has no calibration scores")
        return Checkpoint(
            config=config,
            epoch=run["epoch"],
            feature_size=tuple(run["feature_size"]),
            colour_scale=tuple(run["colour_scale"]),
            n_train=run["n_train"],
            seconds=run["seconds"],
            precision=run["precision"],
            draws=run["draws"],
            kept=Kept(**run["kept"]) if run["kept"] else None,
            best_on_test=run["best_on_test"],
            thresholds=Thresholds(
                {name: Threshold(**each) for name, each in run["thresholds"].items()}
            ),
            pixel_thresholds=Thresholds(
                {name: Threshold(**each) for name, each in run["pixel_thresholds"].items()}
            ),
            calibration=Calibration(
                {name: tuple(sorted(each)) for name, each in run["calibration"].items()}
            ),
            part_of=run["part_of"],
            file=file,
            **states,
        )
    except CheckpointError:
        raise
    except (
        *(safetensors.SafetensorError, OSError, RecursionError),
        *(AttributeError, KeyError, OverflowError, TypeError, ValueError),
    ) as error:
        raise CheckpointError(
            f"checkpoint: '{file}' is not a checkpoint, or is damaged or cut short ({error}); use "
            f"another copy{AGAIN}"
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
    for name in ("feature_cache", "roi", "ignored", "added"):
        del stored["data"][name]
    if not config.model.masked:  # so that an older crad reads it
        del stored["model"]["masked"]
    if config.model.tile is None:
        del stored["model"]["tile"], stored["model"]["overlap"]
    if config.data.source not in DEMO_NAMES:
        del stored["data"]["source"]
    return stored


def _from_stored(stored: Mapping[str, Mapping[str, Any]], version: int, file: Path) -> Config:
    """Undo `_to_stored`, of this version or one before.

    A setting that is missing takes its value in `_IMPLIED_UP_TO`, so that the checkpoint means
    what it meant to the version that wrote it, or else the default. A setting of the model that is
    not known is refused; others are ignored.
    """
    groups: dict[str, Any] = {}
    for name, group in _groups().items():
        values = dict(stored.get(name, {}))
        for since in sorted(each for each in _IMPLIED_UP_TO if each >= version):
            values = {**_IMPLIED_UP_TO[since].get(name, {}), **values}
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
    if (protocol := groups["decisions"].decision_protocol) not in PROTOCOLS:
        raise CheckpointError(
            f"checkpoint: '{file}' decides by a protocol that this crad does not know: {protocol}; "
            f"{_WAYS}"
        )
    for name, kind in groups.items():
        hints = get_type_hints(type(kind))
        for each, value in vars(kind).items():
            _check_type(f"{name}.{each}", value, hints[each])
    Config(**groups).check_ranges()
    record = read_record(file.parent) or RunRecord()
    places: dict[str, Any] = {"added": record.added}
    if "source" not in stored.get("data", {}):
        places["source"] = record.data
    groups["data"] = dataclasses.replace(groups["data"], **places)
    return Config(**groups)


def _check_type(name: str, value: object, kind: Any) -> None:
    """Refuse a value of another type than it had when it was written, with a `ValueError`."""
    if not _is_of_type(value, kind):
        raise ValueError(f"'{name}' is {value!r:.80}")


def _is_of_type(value: object, kind: Any) -> bool:
    """Whether a value is of a type, which may be composed; numbers are finite."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_is_of_type(value, each) for each in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of_type(v, inner[1]) for v in value.values())
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(_is_of_type, value, kinds))
    if kind is float:
        return type(value) in (float, int) and math.isfinite(cast(float, value))
    if kind is int:
        return type(value) is int
    return isinstance(value, kind)


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
