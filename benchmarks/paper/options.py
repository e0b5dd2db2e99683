"""The options of tables and figures: targets, data, seeds and the settings of all runs."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.paper.files import WRITTEN_BY
from crad.backbones import AUTO, PUBLISHED
from crad.command_line import ComputeOptions
from crad.config import Config, settings
from crad.data import full_source
from crad.data.demo import DEMO_NAMES
from crad.errors import UsageError
from crad.train_options import default_config

TargetName = Literal[
    "table1", "table2", "table3", "table4", "table5",
    "figure2b", "figure3", "figure4", "figure5", "dims", "simplex",
]  # fmt: skip

_DESCRIPTION = (
    "Make tables and figures of the paper (table1 to table5, figure2b, figure3 to figure5), or "
    "ablations of our own (dims, simplex). Train the detectors that they need, reuse finished "
    "runs, resume interrupted ones, and write Markdown and data to --output. 'cost' in place of "
    "targets measures what each memory costs; 'cost --help' lists its options."
)
_SET_BY_TARGETS = (
    "--seed", "--local.memory", "--local.resolution", "--global.memory", "--global.resolution",
    "--refinement.off", "--grid.interpolation",
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
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    command: tyro.conf.Suppress[str] = ""


def parse_options(arguments: Sequence[str] | None = None) -> PaperOptions:
    """Read the command line; a wrong one prints what is wrong and exits with code 2.

    Args:
        arguments: None for those of the process.

    Raises:
        MissingPackageError: a memory needs a package that is not installed.
        UsageError: an option is out of range, or one that the targets set.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = _default_config(arguments)
    output = Path("runs") / f"paper-{Path(full_source(config.data.source)).name}"
    options = tyro.cli(
        PaperOptions,
        args=arguments,
        default=PaperOptions((), config, output),
        prog=WRITTEN_BY,
        description=_DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    data = replace(options.config.data, source=full_source(options.config.data.source))
    options = replace(options, config=replace(options.config, data=data))
    if options.config.model.preset == "auto":
        model = replace(options.config.model, preset=config.model.preset)
        options = replace(options, config=replace(options.config, model=model))
    if options.config.model.backbone == AUTO:
        raise UsageError(f"--backbone: tables name one; give {PUBLISHED} or another, not {AUTO}")
    if not options.targets:
        raise UsageError("expected a target, such as table1; --help lists them")
    if not options.seeds or len({*options.seeds}) < len(options.seeds):
        raise UsageError("--seeds: expected one or more different seeds")
    given, before = settings(options.config), settings(config)
    for name in _SET_BY_TARGETS:
        if given[name] != before[name]:
            instead = "; give --seeds" if name == "--seed" else ", but each target sets it itself"
            raise UsageError(f"{name}: got {given[name]}{instead}")
    if options.config.model.fit:
        raise UsageError(
            "--fit: figures show images of one size; give --image-size HEIGHT WIDTH instead"
        )
    for seed in options.seeds:
        replace(options.config, training=replace(options.config.training, seed=seed)).check()
    return replace(options, command=f"{WRITTEN_BY} {shlex.join(arguments)}")


def _default_config(arguments: Sequence[str]) -> Config:
    """The default settings: the published protocol, trained on all normal images.

    On a demo set, the preset ``tiny`` is trained for about as many steps times learning rate as
    the paper's networks. With its own 460 steps at 0.001, coordinates stay in the cell of the
    memory where they start.
    """
    config = default_config(arguments, auto=PUBLISHED, published=True)
    decisions, training = replace(config.decisions, calibration_share=0.0), config.training
    if config.data.source in DEMO_NAMES and config.model.preset == "tiny":
        training = replace(training, epochs=_DEMO_EPOCHS, learning_rate=_DEMO_LEARNING_RATE)
    return replace(config, decisions=decisions, training=training)
