"""The options of the comparison."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks.detectors.methods import check_possible, methods
from crad.backbones import AUTO, LITE
from crad.config import Config
from crad.data import full_source
from crad.errors import UsageError
from crad.scoring.protocols import DECISION_PROTOCOL, ProtocolChoice, choose_protocols
from crad.train_options import default_config

COMMAND = "python -m benchmarks.detectors"
SETTINGS = ("unified", "separate")
OUTPUT = Path("benchmarks") / "results" / "detectors"

_METHODS = ("crad", "nearest_neighbour", "padim")
_DESCRIPTION = (
    "Measure detectors on the same features of the same images, by the same protocol, and write a "
    "JSON file for each of them to --output. What is there is not measured again."
)


@dataclass(frozen=True)
class DetectorOptions:
    """The options of the command."""

    data: tuple[str, ...] = ()
    """Folders of data sets, or generated sets. None: only --report is written."""
    methods: tuple[str, ...] = _METHODS
    """crad, crad_without_refinement; on the same features nearest_neighbour (PatchCore), padim,
    uniad, hvq_trans; on the same images reverse_distillation, mkd and, with pip install
    'crad[anomalib]', anomalib_patchcore, anomalib_padim, anomalib_dfm, anomalib_stfpm,
    anomalib_supersimplenet."""
    settings: tuple[str, ...] = SETTINGS
    """unified: one model for all classes of a set; separate: one for each class."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the images held back, and of all that is random in a method."""
    backbone: str = LITE
    """Gives the features, as for crad train."""
    image_size: int | None = None
    """Side of the images in pixels. Default: that of crad train for this backbone."""
    protocol: tuple[ProtocolChoice, ...] = (DECISION_PROTOCOL, "crad")
    """How test images are scored, all from the same maps. Methods on images are measured by their
    own maps and scores too."""
    minutes: float | None = None
    """Time that each model may train: as many epochs as this allows, of rivals at most those that
    were published. Default: those that were published, and of crad those of crad train."""
    device: str = "auto"
    """What to compute on, as for crad train."""
    output: Path = OUTPUT
    """Folder of the JSON files."""
    overwrite: bool = False
    """Measure again what is there."""
    report: Path | None = None
    """Write a page of all that is in --output to this Markdown file."""

    def config(self, source: str) -> Config:
        """The defaults of ``crad train`` for a data set with this backbone."""
        config = default_config(["--data", source, "--backbone", self.backbone])
        model = config.model
        if self.image_size is not None:
            model = replace(model, image_size=self.image_size)
        decisions = replace(config.decisions, protocol=self.protocol)
        training = replace(config.training, minutes=self.minutes)
        return replace(config, model=model, training=training, decisions=decisions)


def parse_options(arguments: Sequence[str] | None = None) -> DetectorOptions:
    """Read the command line; a wrong one prints what is wrong and exits with code 2.

    Args:
        arguments: None for those of the process.

    Raises:
        UsageError: an option is out of range.
    """
    options = tyro.cli(DetectorOptions, args=arguments, prog=COMMAND, description=_DESCRIPTION)
    if not options.data and not options.report:
        raise UsageError("--data: expected a data set, or --report for a page of what is there")
    for name, given, known in (
        ("--methods", options.methods, tuple(methods())),
        ("--settings", options.settings, SETTINGS),
    ):
        if unknown := [each for each in given if each not in known]:
            raise UsageError(f"{name}: no '{unknown[0]}'; choose from {', '.join(known)}")
    for name, values in (
        ("--methods", options.methods),
        ("--settings", options.settings),
        ("--seeds", options.seeds),
    ):
        if not values or len({*values}) < len(values):
            raise UsageError(f"{name}: expected one or more, each once")
    for name in options.methods:
        check_possible(name, options.backbone)
    if options.backbone == AUTO:
        raise UsageError(f"--backbone: the page names one; give {LITE} or another, not {AUTO}")
    choose_protocols(options.protocol)
    sources = tuple(map(full_source, options.data))
    names = Counter(Path(source).name for source in sources)
    if twice := [name for name, number in names.items() if number > 1]:
        raise UsageError(f"--data: two sets are named '{twice[0]}'; rename the folder of one")
    for source in sources:
        for seed in options.seeds:
            config = options.config(source)
            replace(config, training=replace(config.training, seed=seed)).check()
    return replace(options, data=sources)
