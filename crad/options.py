"""The command line of training: a `Config`, and where and how it runs."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from crad.backbones import SCATTERING
from crad.checkpoint import CHECKPOINT_NAME, read_checkpoint
from crad.command_line import refuse
from crad.config import PRESETS, Config, flatten, option
from crad.demo import DEMO_NAMES

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
    resume: bool = False
    """Continue the run in --output with its settings; begin it if there is no checkpoint yet."""
    overwrite: bool = False
    """Replace the run in --output."""
    skip_bad: bool = False
    """Leave out images that cannot be read, and name them, instead of stopping."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA if there is a GPU."""


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
    options = replace(options, config=replace(options.config, data=_data(options.config.data)))
    try:
        options.config.check()
    except ValueError as error:
        refuse(str(error))
    if options.resume and options.overwrite:
        refuse("--resume and --overwrite exclude each other")
    if stored:
        given = flatten(options.config)
        for name, value in flatten(stored).items():
            if given[name] != value:
                refuse(
                    f"{option(name)}: the run in '{options.output}' has {value}, not {given[name]};"
                    f" leave {option(name)} out, or train anew in another --output"
                )
    return options


def _default(arguments: Sequence[str]) -> tuple[TrainOptions, Config | None]:
    """The defaults that the command line asks for, and the settings of the run to resume."""
    early = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("--data", "--backbone", "--preset", "--output"):
        early.add_argument(name, nargs="?")
    early.add_argument("--resume", action="store_true")
    found, _ = early.parse_known_args(arguments)

    data = found.data or "demo"
    output = Path(found.output) if found.output else Path("runs") / Path(_data(data)).name
    if found.resume and (output / CHECKPOINT_NAME).exists():
        stored = read_checkpoint(output, parts=()).config
        return TrainOptions(stored, output), stored

    backbone = found.backbone or (SCATTERING if data in DEMO_NAMES else _DEFAULT_BACKBONE)
    preset = found.preset or ("tiny" if backbone == SCATTERING else "crad")
    config = PRESETS.get(preset, PRESETS["tiny"])  # tyro refuses an unknown one
    return TrainOptions(replace(config, data=data, backbone=backbone), output), None


def _data(data: str) -> str:
    """The name of a generated set, or a full path: a run goes on from any folder."""
    return data if data in DEMO_NAMES else str(Path(data).expanduser().resolve())
