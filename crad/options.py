"""The command line of training: a `Config`, and where and how it runs."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from crad.backbones import SCATTERING
from crad.command_line import CommandError, check_output, refuse
from crad.config import PRESETS, Config, flatten, option
from crad.data.demo import DEMO_CALIBRATION_SHARE, DEMO_NAMES
from crad.scoring.evaluation import RESULTS_NAME
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint

DeviceName = Literal["auto", "cpu", "cuda"]

_PROGRAM = "python -m crad.train"
_DESCRIPTION = (
    "Train one anomaly detector on the normal images of all classes of a data set, measure it on "
    "the test images, and leave checkpoint, results.json and picture sheets in --output."
)
_DEFAULT_BACKBONE = "tf_efficientnet_b4.aa_in1k"


@dataclass(frozen=True)
class TrainOptions:
    """What the training command takes."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Path
    """Folder for everything the run writes. The default is runs/ and the name of the data."""
    separate: bool = False
    """Train a model for each class, each in a folder of --output, instead of one for all."""
    resume: bool = False
    """Continue the run in --output with its settings; begin it if there is no checkpoint yet."""
    overwrite: bool = False
    """Replace the run in --output."""
    skip_bad: bool = False
    """Leave out images that cannot be read, and name them, instead of stopping."""
    feature_memory: float | None = None
    """Gigabytes of memory for the features of all images; those beyond it go to a temporary file.
    Default: half of what is available."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA if there is a GPU."""
    compile: bool = False
    """Compile the fusion network with torch.compile, which takes a minute or so at the start and
    makes a large network faster."""

    def check_output(self) -> None:
        """Refuse, before any work is done for it, an output folder that is not for this run.

        Raises:
            CommandError: it cannot be written into, or holds what should not be lost.
        """
        check_output(self.output)
        has_checkpoint = (self.output / CHECKPOINT_NAME).exists()
        has_results = (self.output / RESULTS_NAME).exists()
        if self.overwrite or not (has_checkpoint or has_results):
            return
        if not self.resume:
            problem = "already holds a run; --resume continues it, --overwrite replaces it"
        elif has_checkpoint and self.separate:
            problem = "holds one model for all classes; --overwrite replaces it"
        elif not has_checkpoint and not self.separate:
            problem = "holds results, but no model to go on with; --overwrite replaces them"
        else:
            return
        raise CommandError(
            f"output: '{self.output}' {problem}, --output DIR chooses another folder"
        )


def parse_options(arguments: Sequence[str] | None = None) -> TrainOptions:
    """Read the command line; a wrong one prints what is wrong and exits with code 2.

    The defaults depend on the data, the backbone and the preset, or come from the checkpoint to
    resume; ``--help`` shows those that hold.

    Args:
        arguments: None takes those of the process.

    Raises:
        CheckpointError: the checkpoint to resume cannot be read.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    default, stored = _default(arguments)
    options = tyro.cli(
        TrainOptions,
        args=arguments,
        default=default,
        prog=_PROGRAM,
        description=_DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    options = replace(options, config=replace(options.config, data=full_path(options.config.data)))
    try:
        options.config.check()
    except ValueError as error:
        refuse(str(error))
    if options.feature_memory is not None and not options.feature_memory >= 0:
        refuse(f"--feature-memory: expected at least 0, but got {options.feature_memory}")
    if options.resume and options.overwrite:
        refuse("--resume and --overwrite exclude each other")
    if stored and (message := other_settings(options.config, stored, options.output)):
        refuse(message)
    return options


def other_settings(config: Config, stored: Config, output: Path) -> str | None:
    """Say which setting is not that of the run to resume; None if all are."""
    held = flatten(stored)
    for name, value in flatten(config).items():
        if value != held[name]:
            return (
                f"{option(name)}: the run in '{output}' has {held[name]}, not {value}; leave "
                f"{option(name)} out, or train anew in another --output"
            )
    return None


def _default(arguments: Sequence[str]) -> tuple[TrainOptions, Config | None]:
    """The defaults that the command line asks for, and the settings of the run to resume."""
    early = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("--data", "--output"):
        early.add_argument(name, nargs="?")
    early.add_argument("--resume", action="store_true")
    early.add_argument("--separate", action="store_true")
    found, _ = early.parse_known_args(arguments)

    name = Path(full_path(found.data or "demo")).name + ("-separate" if found.separate else "")
    output = Path(found.output) if found.output else Path("runs") / name
    if found.resume and not found.separate and (output / CHECKPOINT_NAME).exists():
        stored = read_checkpoint(output, parts=()).config
        return TrainOptions(stored, output), stored

    return TrainOptions(default_config(arguments), output), None


def default_config(arguments: Sequence[str]) -> Config:
    """The settings that hold unless options say otherwise: those for the data and the backbone.

    Args:
        arguments: of a command line, of which ``--data``, ``--backbone`` and ``--preset`` count.
    """
    early = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("--data", "--backbone", "--preset"):
        early.add_argument(name, nargs="?")
    found, _ = early.parse_known_args(arguments)
    data = found.data or "demo"
    backbone = found.backbone or (SCATTERING if data in DEMO_NAMES else _DEFAULT_BACKBONE)
    preset = found.preset or ("tiny" if backbone == SCATTERING else "crad")
    config = PRESETS.get(preset, PRESETS["tiny"])  # tyro refuses an unknown one
    if data in DEMO_NAMES:
        config = replace(config, calibration_share=DEMO_CALIBRATION_SHARE)
    return replace(config, data=data, backbone=backbone)


def full_path(data: str) -> str:
    """The name of a generated set, or a full path: a run goes on from any folder."""
    return data if data in DEMO_NAMES else str(Path(data).expanduser().resolve())
