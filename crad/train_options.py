"""The options of ``crad train``, and the defaults that depend on others."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Fixed, Suppress, arg

from crad.backbones import AUTO, SCATTERING
from crad.command_line import ComputeOptions, parse
from crad.config import PRESETS, Config, ModelConfig, PresetName
from crad.data import full_source
from crad.data.demo import DEMO_CALIBRATION_SHARE, DEMO_NAMES
from crad.data.frames import Frame
from crad.devices import select_device
from crad.errors import DeviceError, UsageError
from crad.training import processes
from crad.training.checkpoint import read_checkpoint
from crad.training.run_folder import RunFolder
from crad.training.run_record import RunRecord, read_record

_DESCRIPTION = "Train a detector on normal images, for all classes, and measure it on test images."


@dataclass(frozen=True)
class OutputOptions:
    """Where results are written."""

    folder: Annotated[Path, arg(name="output")]
    """Folder for everything the run writes. Default: runs/NAME, with the name of the data."""
    separate: bool = False
    """Train a model for each class, each in a folder of --output, instead of one for all."""
    resume: bool = False
    """Continue the run in --output with its settings, or with another number of --epochs; begin it
    if there is no checkpoint yet."""
    overwrite: bool = False
    """Replace the run in --output."""
    exemplars: int = 32
    """Features of so many normal images a class lie in exemplars.safetensors beside the checkpoint,
    in half precision, and as many of those held back, for a later --add; 0 writes none. A run that
    is resumed keeps those that it has."""


@dataclass(frozen=True)
class AddOptions:
    """A class to add to a trained model.

    Attributes:
        gives_data: whether the command line says where the images of the other classes are.
        gives_depth: whether it says which bit depth the images have.
    """

    add: Path | None = None
    """Folder of a class, with train/good/*.png, that the model of --checkpoint is to learn too.
    The new model is written to --output."""
    checkpoint: Path | None = None
    """The model that --add adds to, which stays as it is: the output folder of its training."""
    gives_data: Annotated[bool, Fixed, Suppress] = field(default=False, compare=False)
    gives_depth: Annotated[bool, Fixed, Suppress] = field(default=False, compare=False)


@dataclass(frozen=True)
class TrainOptions:
    """What the training command takes.

    Attributes:
        gives_epochs: whether a run to resume gets the number of epochs of ``config``; otherwise it
            keeps its own, and another one is refused.
    """

    config: Annotated[Config, arg(name="")]
    output: OutputOptions
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    adding: AddOptions = field(default_factory=AddOptions)
    gives_epochs: Annotated[bool, Fixed, Suppress] = field(default=False, compare=False)

    @property
    def run(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder(self.output.folder)

    def with_bit_depth(self, bit_depth: int) -> "TrainOptions":
        """The same options for images of a bit depth."""
        return self._with_model(replace(self.config.model, bit_depth=bit_depth))

    def with_backbone(self, backbone: str) -> "TrainOptions":
        """The same options with another backbone."""
        return self._with_model(replace(self.config.model, backbone=backbone))

    def with_epochs(self, epochs: int) -> "TrainOptions":
        """The same options with a number of epochs."""
        training = replace(self.config.training, epochs=epochs)
        return replace(self, config=replace(self.config, training=training))

    def _with_model(self, model: ModelConfig) -> "TrainOptions":
        return replace(self, config=replace(self.config, model=model))

    def with_frame(self, frame: Frame) -> "TrainOptions":
        """The same options for images that are brought to a frame."""
        fitted = (frame.height, frame.width, frame.stride) if frame.stride else None
        model = replace(self.config.model, fitted=fitted)
        return replace(self, config=replace(self.config, model=model))


def parse_options(arguments: Sequence[str] | None = None, *, auto: str = AUTO) -> TrainOptions:
    """Read the command line; a wrong one prints what is wrong and exits with code 2.

    The defaults depend on the data, the backbone and the preset, or come from the checkpoint to
    resume; ``--help`` shows those that hold.

    Args:
        arguments: None takes those of the process.
        auto: the backbone that ``auto`` stands for, once `settle_backbone` knows it.

    Raises:
        CheckpointError: the checkpoint to resume cannot be read.
        UsageError: an option is out of range.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    default = _default_options(arguments, auto)
    options = parse(
        TrainOptions, arguments, command="train", description=_DESCRIPTION, default=default
    )
    if options.config.model.backbone == AUTO:  # a run to resume has one already
        options = options.with_backbone(default.config.model.backbone)
    if options.config.model.preset == "auto":
        options = options._with_model(
            replace(options.config.model, preset=default.config.model.preset)
        )
    found = _look_ahead(arguments)
    if found.epochs and found.minutes:
        raise UsageError("use either --epochs or --minutes, not both")
    if found.epochs:
        training = replace(options.config.training, epochs_chosen=False, minutes=None)
        config = replace(options.config, training=training)
        options = replace(options, config=config, gives_epochs=True)
    if options.output.resume and options.output.overwrite:
        raise UsageError("use either --resume or --overwrite, not both")
    if options.adding.add is not None or options.adding.checkpoint is not None:
        options = _check_adding(options, found)
    elif not options.config.data.source:
        raise UsageError(
            f"--data: the run in '{options.output.folder}' does not record where its data are; "
            "give the folder with --data PATH"
        )
    if source := options.config.data.source:
        data = replace(options.config.data, source=full_source(source))
        options = replace(options, config=replace(options.config, data=data))
    if options.output.exemplars < 0:
        raise UsageError(f"--exemplars: expected at least 0, but got {options.output.exemplars}")
    options.config.check()
    return options


def _check_adding(options: TrainOptions, found: argparse.Namespace) -> TrainOptions:
    """Refuse options that make no sense with ``--add``, and note whether the data are given."""
    if not (found.add and found.checkpoint):
        raise UsageError(
            "--add FOLDER and --checkpoint RUN go together: the class, and the model to add it to"
        )
    if not found.output:
        raise UsageError("--add: give the folder of the new model with --output DIR")
    for name in ("separate", "minutes", "classes"):
        if getattr(found, name):
            raise UsageError(f"--{name}: it makes no sense with --add; leave it out")
    adding = replace(options.adding, gives_data=bool(found.data), gives_depth=bool(found.bit_depth))
    return replace(options, adding=adding)


def settle_backbone(options: TrainOptions, arguments: Sequence[str] | None) -> TrainOptions:
    """Choose the backbone that ``auto`` stands for, in all processes the same, and say why.

    Args:
        options: as `parse_options` gives them; those with a backbone stay as they are.
        arguments: of the command line, which is read again, as defaults depend on the backbone.
    """
    if options.config.model.backbone != AUTO:
        return options
    from crad.backbones.auto import choose_backbone  # imports timm, which takes seconds

    choice = processes.on_main(lambda: choose_backbone(options.config.model.weights))
    print(choice, flush=True)
    return parse_options(arguments, auto=choice.name)


def _default_options(arguments: Sequence[str], auto: str) -> TrainOptions:
    """The defaults that a command line asks for, which may be those of the run to resume."""
    found = _look_ahead(arguments)
    name = Path(full_source(found.data or "demo")).name + ("-separate" if found.separate else "")
    run = RunFolder(Path(found.output) if found.output else Path("runs") / name)
    config = default_config(arguments, auto=auto)
    if found.add and found.checkpoint and not (found.resume and run.checkpoint.exists()):
        config = read_checkpoint(found.checkpoint, parts=()).config
        training = replace(config.training, epochs_chosen=False, minutes=None)
        config = replace(config, training=training)
    elif found.resume:
        stored = _config_of(run, separate=found.separate)
        if not stored and found.output and not found.data:
            raise UsageError(
                f"--resume: there is no checkpoint in '{run.path}'; give --data PATH to begin a run"
            )
        config = stored or config
    return TrainOptions(config, OutputOptions(run.path))


def _config_of(run: RunFolder, *, separate: bool) -> Config | None:
    """The settings of a run to resume; None if it has no checkpoint yet."""
    if not separate:
        return read_checkpoint(run.checkpoint, parts=()).config if run.checkpoint.exists() else None
    record = read_record(run.path) or RunRecord()
    parts = [RunFolder(run.path / name) for name in record.classes]
    for part in parts:
        if part.checkpoint.exists():
            stored = read_checkpoint(part.checkpoint, parts=())
            if stored.part_of == record.id:
                data = replace(stored.config.data, source=record.data, classes=record.classes)
                return replace(stored.config, data=data)
    return None


def default_config(
    arguments: Sequence[str], *, auto: str = AUTO, published: bool = False
) -> Config:
    """The settings that hold unless options say otherwise: those for the data and the backbone.

    Args:
        arguments: of a command line; those that others depend on count.
        auto: the backbone that ``auto`` stands for, if that is known.
        published: whether the preset ``auto`` stands for the published one on every device.
    """
    found = _look_ahead(arguments)
    source = found.data or "demo"
    backbone = found.backbone or (SCATTERING if source in DEMO_NAMES else AUTO)
    backbone = auto if backbone == AUTO else backbone
    name = found.preset or "auto"
    if name == "auto":
        name = _automatic_preset(backbone, published or _on_gpu(found.device))
    config = PRESETS.get(name, PRESETS["tiny"])  # tyro refuses an unknown one
    chosen = (config.training.epochs_chosen or bool(found.minutes)) and not found.epochs
    share = DEMO_CALIBRATION_SHARE if source in DEMO_NAMES else config.decisions.calibration_share
    return replace(
        config,
        data=replace(config.data, source=source),
        model=replace(config.model, backbone=backbone),
        training=replace(config.training, epochs_chosen=chosen),
        decisions=replace(config.decisions, calibration_share=share),
    )


def _automatic_preset(backbone: str, published: bool) -> PresetName:
    """What the preset ``auto`` stands for."""
    if backbone == SCATTERING:  # longer training learns few images by heart
        return "tiny"
    return "crad" if published else "cpu"


def _on_gpu(device: str | None) -> bool:
    try:
        return select_device(device).type == "cuda"
    except DeviceError:  # reported later: the command may only be asked for its help
        return False


def _look_ahead(arguments: Sequence[str]) -> argparse.Namespace:
    """The options that defaults of others depend on."""
    early = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    names = ("data", "output", "device", "backbone", "preset", "epochs", "minutes")
    for name in (*names, "add", "checkpoint", "classes", "bit-depth"):
        early.add_argument(f"--{name}", nargs="?")
    for name in ("--resume", "--separate"):
        early.add_argument(name, action="store_true")
    return early.parse_known_args(arguments)[0]
