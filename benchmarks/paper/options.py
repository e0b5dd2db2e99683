"""The options of tables and figures: targets, data, seeds and the settings of all runs."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from crad.options import DeviceName, default_config, full_path

from crad.command_line import refuse
from crad.config import Config, flatten, option
from crad.data.demo import DEMO_NAMES

TargetName = Literal[
    "table1", "table2", "table3", "table4", "table5",
    "figure2b", "figure3", "figure4", "figure5", "dims",
]  # fmt: skip

_PROGRAM = "python -m benchmarks.paper"
_DESCRIPTION = (
    "Make tables and figures of the paper (table1 to table5, figure2b, figure3 to figure5), or an "
    "ablation of our own (dims). Train the detectors that they need, reuse finished runs, resume "
    "interrupted ones, and write Markdown and data to --output. 'cost' in place of targets "
    "measures what each memory costs; 'cost --help' lists its options."
)
_SET_BY_TARGETS = (
    "seed", "local.memory", "local.resolution", "global_.memory", "global_.resolution",
    "refinement.off",
)  # fmt: skip
_DEMO_EPOCHS = 40
_DEMO_LEARNING_RATE = 0.003


@dataclass(frozen=True)
class PaperOptions:
    """The options of the command."""

    targets: tyro.conf.Positional[tuple[TargetName, ...]]
    """Tables and figures to make."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    output: Path
    """Folder for the runs and all that is made of them. Default: runs/paper- and the name of the
    data."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each detector is trained with each."""
    report: Path | None = None
    """A Markdown file to put the results into, between marks; data and plots are copied to a folder
    of the same name beside it."""
    skip_bad: bool = False
    """Leave out images that cannot be read, and name them, instead of stopping."""
    feature_memory: float | None = None
    """Gigabytes of memory for the features of all images; those beyond it go to a temporary file.
    Default: half of what is available."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA if there is a GPU."""
    command: tyro.conf.Suppress[str] = ""


def parse_options(arguments: Sequence[str] | None = None) -> PaperOptions:
    """Read the command line; an error is printed and ends the process with code 2.

    Args:
        arguments: None for those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = _default_config(arguments)
    output = Path("runs") / f"paper-{Path(full_path(config.data)).name}"
    options = tyro.cli(
        PaperOptions,
        args=arguments,
        default=PaperOptions((), config, output),
        prog=_PROGRAM,
        description=_DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    options = replace(options, config=replace(options.config, data=full_path(options.config.data)))
    if not options.targets:
        refuse("expected a target, such as table1; --help lists them")
    if not options.seeds or len({*options.seeds}) < len(options.seeds):
        refuse("--seeds: expected one or more different seeds")
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
    """The default settings: the published protocol, trained on all normal images.

    On a demo set, the preset ``tiny`` is trained for about as many steps times learning rate as
    the paper's networks. With its own 460 steps at 0.001, coordinates stay in the cell of the
    memory where they start.
    """
    config = replace(default_config(arguments), calibration_share=0.0)
    if config.data in DEMO_NAMES and config.preset == "tiny":
        config = replace(config, epochs=_DEMO_EPOCHS, learning_rate=_DEMO_LEARNING_RATE)
    return config
