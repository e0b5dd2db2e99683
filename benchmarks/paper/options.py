"""The command line of a reproduction: what to make, from which data, with which settings."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from crad.command_line import refuse
from crad.config import Config, flatten, option
from crad.data.demo import DEMO_NAMES
from crad.options import DeviceName, default_config, full_path

TargetName = Literal[
    "table1", "table2", "table3", "table4", "table5",
    "figure2b", "figure3", "figure4", "figure5", "dims",
]  # fmt: skip

_PROGRAM = "python -m benchmarks.paper"
_DESCRIPTION = (
    "Make tables and figures of the paper (table1 to table5, figure2b, figure3 to figure5), or an "
    "experiment of our own (dims): train what they need, use again what is finished, and leave "
    "each as Markdown and data in --output."
)
_SET_BY_TARGETS = (
    "seed", "local.memory", "local.resolution", "global_.memory", "global_.resolution",
    "refinement.off",
)  # fmt: skip
_DEMO_EPOCHS = 40
_DEMO_LEARNING_RATE = 0.003


@dataclass(frozen=True)
class ReproduceOptions:
    """What the command takes."""

    targets: tyro.conf.Positional[tuple[TargetName, ...]]
    """What to make."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Path
    """Folder for everything, the runs among it. The default is runs/reproduce- and the name of the
    data."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs of each detector."""
    report: Path | None = None
    """A Markdown file to put the results into, each between marks of its own; its data and plots go
    to a folder of the same name beside it."""
    skip_bad: bool = False
    """Leave out images that cannot be read, and name them, instead of stopping."""
    feature_memory: float | None = None
    """Gigabytes of memory for the features of all images; those beyond it go to a temporary file.
    Default: half of what is available."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA if there is a GPU."""
    command: tyro.conf.Suppress[str] = ""


def parse_options(arguments: Sequence[str] | None = None) -> ReproduceOptions:
    """Read the command line; a wrong one prints what is wrong and exits with code 2.

    Args:
        arguments: None takes those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = _default_config(arguments)
    output = Path("runs") / f"reproduce-{Path(full_path(config.data)).name}"
    options = tyro.cli(
        ReproduceOptions,
        args=arguments,
        default=ReproduceOptions((), config, output),
        prog=_PROGRAM,
        description=_DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    options = replace(options, config=replace(options.config, data=full_path(options.config.data)))
    if not options.targets:
        refuse("expected what to make, such as table1; --help lists what there is")
    if not options.seeds or len({*options.seeds}) < len(options.seeds):
        refuse("--seeds: expected one or more, each once")
    before = flatten(config)
    for name, value in flatten(options.config).items():
        if name in _SET_BY_TARGETS and value != before[name]:
            instead = "; give --seeds" if name == "seed" else ", but each target sets it itself"
            refuse(f"{option(name)}: got {value}{instead}")
    try:
        for seed in options.seeds:
            replace(options.config, seed=seed).check()
    except ValueError as error:
        refuse(str(error))
    return replace(options, command=f"{_PROGRAM} {shlex.join(arguments)}")


def _default_config(arguments: Sequence[str]) -> Config:
    """The settings that hold unless options say otherwise: the published protocol, on all images.

    On a generated set, the networks of the preset ``tiny`` are moved about as far as the paper's
    (steps times learning rate). With its own 460 steps at 0.001, for a first look, coordinates stay
    in the cell of the memory where they begin.
    """
    config = replace(default_config(arguments), calibration_share=0.0)
    if config.data in DEMO_NAMES and config.preset == "tiny":
        config = replace(config, epochs=_DEMO_EPOCHS, learning_rate=_DEMO_LEARNING_RATE)
    return config
