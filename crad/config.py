"""What determines a run: its settings, and the presets they start from."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import tyro

from crad.devices import PrecisionName
from crad.model.crad import AbsentName
from crad.model.memories import AddressName, MemoryName, vector_quantize_class
from crad.scoring.protocols import ProtocolChoice, choose_protocols

PresetName = Literal["tiny", "crad-s", "crad"]


@dataclass(frozen=True)
class LocalConfig:
    """The local memory: a normal feature for every position."""

    memory: MemoryName = "grid"
    """The continuous grid of CRAD, vector quantisation (which needs pip install 'crad[vq]'),
    attention, or no local memory."""
    resolution: tuple[int, ...] = (8, 8)
    """Entries per axis. A grid has as many coordinates as axes (4 4 4 is a grid in 3-D); vq and
    attention have as many entries as the product says."""
    jitter_std: float = 0.05
    """Standard deviation of the noise on a grid's coordinates in training, in [-1, 1] units."""
    jitter_prob: float = 0.5
    """Probability that a training batch is jittered; the paper's text has 1, its results 0.5."""


@dataclass(frozen=True)
class GlobalConfig:
    """The global memory: a normal feature map for every image."""

    memory: MemoryName = "grid"
    """As for the local memory."""
    resolution: tuple[int, ...] = (4, 4)
    """As for the local memory."""


@dataclass(frozen=True)
class DiscreteConfig:
    """Memories that are vq or attention."""

    address: AddressName = "feature"
    """What is compared with the entries: the feature (global: its mean), or what the first layer of
    a coordinate network makes of it."""
    shrinkage: float = 0.0
    """Weights of attention up to this become 0 (0.0025 in MemAE); 0 for none."""


@dataclass(frozen=True)
class RefinementConfig:
    """How much of the feature itself goes into its reconstruction (equations 5 and 6)."""

    off: bool = False
    """No refinement: the reconstruction is what the fusion gives."""
    mse_weight: float = 0.3
    """Weight of the indicator that the squared error is small (lambda 1)."""
    cosine_weight: float = 0.7
    """Weight of the cosine similarity (lambda 2)."""
    mse_threshold: float = 10.0
    """Mean squared error from which the indicator is 0 (k)."""


@dataclass(frozen=True)
class Config:
    """Everything that determines the result of a run; it is stored with the checkpoint."""

    preset: PresetName = "tiny"
    """Sizes and schedule; other options override it. Default: tiny for scattering, else crad."""
    data: str = "demo"
    """A folder in the layout of MVTec AD or of VisA, or a generated set: demo, demo-hard."""
    classes: tuple[str, ...] = ()
    """Those of the classes of the data to take; without it, all."""
    backbone: str = "scattering"
    """A timm model (tf_efficientnet_b4.aa_in1k for your data), or scattering, which needs none."""
    weights: Path | None = None
    """A file with the weights of the timm model, instead of a download."""
    components: int = 16
    """Principal components kept of the scattering features; a timm model has its own channels."""
    image_size: int = 128
    """Side in pixels of the square that images are resized to."""
    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 16
    """Training images in a step."""
    seed: int = 0
    """Seed of everything random."""
    depth: int = 3
    """Bottlenecks that fuse the two representations."""
    absent: AbsentName = "drop"
    """What the fusion has for a memory that is none: nothing, so that it is half as wide, or
    zeros."""
    expansion: int = 64
    """Channels inside a bottleneck."""
    learning_rate: float = 1e-3
    """Learning rate of the networks, a tenth of it for the last fifth of the epochs."""
    memory_learning_rate: float = 0.1
    """Learning rate of the two memories, with the same schedule."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip_norm: float = 0.1
    """Largest norm of the gradient of all parameters together."""
    calibration_share: float = 0.1
    """Share of the normal images of each class that is held back to set the score above which an
    image counts as defective; 0, as in the published protocol, trains on all and decides nothing.
    Default: 0.1; of the generated sets, a third."""
    false_alarm_rate: float = 0.01
    """Share of the normal images that may be taken for defective."""
    protocol: tuple[ProtocolChoice, ...] = ("crad",)
    """How test images are scored, by one or more protocols; results.json is about the first, with
    the metrics by the others beside it."""
    track_best: bool = False
    """Measure the test images after every epoch too, which takes as long again as evaluation each
    time, and put the best epoch beside the last one, as best_on_test; with --separate, that of each
    class."""
    precision: PrecisionName = "auto"
    """Precision of the fusion network in training; auto takes bf16 for large steps on a CPU that
    has matrix instructions for it. The checkpoint holds what was taken."""
    local: LocalConfig = LocalConfig()
    global_: Annotated[GlobalConfig, tyro.conf.arg(name="global")] = GlobalConfig()
    discrete: DiscreteConfig = DiscreteConfig()
    refinement: RefinementConfig = RefinementConfig()

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            MissingPackageError: a memory needs a package that is not installed.
            ValueError: an option is out of its range; the message names it.
        """
        at_least = {
            "components": 1,
            "image_size": 32,
            "epochs": 1,
            "batch_size": 1,
            "depth": 0,
            "expansion": 1,
        }
        for name, least in at_least.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{option(name)}: expected at least {least}, but got {value}")
        choose_protocols(self.protocol)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed: expected 0 to 2**63 - 1, but got {self.seed}")
        if not 0 <= self.local.jitter_prob <= 1:
            raise ValueError(
                f"--local.jitter-prob: expected 0 to 1, but got {self.local.jitter_prob}"
            )
        if not self.calibration_share < 1:
            raise ValueError(
                f"--calibration-share: expected less than 1, but got {self.calibration_share}"
            )
        if not 0 < self.false_alarm_rate < 1:
            raise ValueError(
                f"--false-alarm-rate: expected more than 0 and less than 1, but got "
                f"{self.false_alarm_rate}"
            )
        memories = (self.local.memory, self.global_.memory)
        if memories == ("none", "none"):
            raise ValueError("--local.memory, --global.memory: one of them must not be none")
        if "vq" in memories:
            vector_quantize_class()
        if not self.discrete.shrinkage < 1:
            raise ValueError(
                f"--discrete.shrinkage: expected 0 to 1, but got {self.discrete.shrinkage}"
            )
        for name, number in flatten(self).items():
            if isinstance(number, float) and not 0 <= number < float("inf"):
                raise ValueError(
                    f"{option(name)}: expected a finite number of at least 0, but got {number}"
                )
            if name.endswith("resolution") and not (number and min(number) >= 1):
                raise ValueError(
                    f"{option(name)}: expected one or more numbers of at least 1, "
                    f"but got {' '.join(map(str, number)) or 'none'}"
                )


PRESETS = MappingProxyType(
    {
        "tiny": Config(),
        "crad-s": Config(
            preset="crad-s", image_size=224, epochs=50, batch_size=64, depth=11, expansion=216
        ),
        "crad": Config(
            preset="crad", image_size=224, epochs=50, batch_size=64, depth=11, expansion=864
        ),
    }
)
"""The settings that each preset stands for."""


def _any_memory(*names: MemoryName) -> Callable[[Config], bool]:
    return lambda config: config.local.memory in names or config.global_.memory in names


_NEEDS: Mapping[str, tuple[str, Callable[[Config], bool]]] = MappingProxyType(
    {
        "components": ("--backbone scattering", lambda config: config.backbone == "scattering"),
        "absent": ("a memory that is none", _any_memory("none")),
        "expansion": ("--depth above 0", lambda config: config.depth > 0),
        "false_alarm_rate": (
            "--calibration-share above 0",
            lambda config: config.calibration_share > 0,
        ),
        "local.resolution": (
            "a --local.memory other than none",
            lambda config: config.local.memory != "none",
        ),
        "local.jitter_std": (
            "--local.memory grid and --local.jitter-prob above 0",
            lambda config: config.local.memory == "grid" and config.local.jitter_prob > 0,
        ),
        "local.jitter_prob": (
            "--local.memory grid and --local.jitter-std above 0",
            lambda config: config.local.memory == "grid" and config.local.jitter_std > 0,
        ),
        "global_.resolution": (
            "a --global.memory other than none",
            lambda config: config.global_.memory != "none",
        ),
        "discrete.address": ("a memory that is vq or attention", _any_memory("vq", "attention")),
        "discrete.shrinkage": ("a memory that is attention", _any_memory("attention")),
        **dict.fromkeys(
            ("refinement.mse_weight", "refinement.cosine_weight"),
            ("no --refinement.off", lambda config: not config.refinement.off),
        ),
        "refinement.mse_threshold": (
            "no --refinement.off and --refinement.mse-weight above 0",
            lambda config: not config.refinement.off and config.refinement.mse_weight > 0,
        ),
    }
)
"""Settings, by dotted name, that have no effect without another: what they need, and whether a
configuration has it."""


def without_effect(config: Config) -> str | None:
    """Name the settings that differ from those of the preset but have no effect; None if none."""
    held, usual = flatten(config), flatten(PRESETS[config.preset])
    idle = [
        f"{option(name)} (needs {need})"
        for name, (need, is_met) in _NEEDS.items()
        if held[name] != usual[name] and not is_met(config)
    ]
    return f"no effect: {', '.join(idle)}" if idle else None


def option(name: str) -> str:
    """Name the command line option of a setting as `flatten` names it."""
    return "--" + name.replace("global_", "global").replace("_", "-")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """List every setting by its dotted name."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = value
    return flat


def to_json(config: Config) -> dict[str, Any]:
    """Turn settings into what JSON can hold, by dotted name."""
    flat = flatten(config)
    flat["weights"] = str(config.weights) if config.weights else None
    return flat


def from_json(flat: dict[str, Any]) -> Config:
    """Undo `to_json`.

    Raises:
        ValueError: a setting is missing or unknown, as if another version had written them.
    """
    expected = flatten(Config()).keys()
    if flat.keys() != expected:
        raise ValueError(f"its settings differ in {', '.join(sorted(flat.keys() ^ expected))}")
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, leaf = name.split(".")
        group = nested.setdefault(groups[0], {}) if groups else nested
        group[leaf] = tuple(value) if isinstance(value, list) else value
    nested["weights"] = Path(nested["weights"]) if nested["weights"] else None
    nested["local"] = LocalConfig(**nested["local"])
    nested["global_"] = GlobalConfig(**nested["global_"])
    nested["discrete"] = DiscreteConfig(**nested["discrete"])
    nested["refinement"] = RefinementConfig(**nested["refinement"])
    return Config(**nested)
