"""The command ``python -m benchmarks.decisions``: false alarms and misses against the promise."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks import markdown
from benchmarks.comparison import Record, check_same, read_record, read_records
from benchmarks.decisions.measured import WAYS, Whole, count_defective, divide, measure
from benchmarks.decisions.tables import BEGIN, END, tables
from benchmarks.detectors import clock
from benchmarks.detectors.inputs import prepare_all
from benchmarks.detectors.options import DetectorOptions
from crad.backbones import AUTO, LITE
from crad.command_line import run_command
from crad.config import Config
from crad.data import check_apart, full_source
from crad.data.frames import show_size
from crad.devices import select_device
from crad.errors import OutputError, UsageError
from crad.files import write_atomically, write_json
from crad.outputs import locked
from crad.report.environment import commit, environment

COMMAND = "python -m benchmarks.decisions"
_DESCRIPTION = (
    "Measure how many false alarms and misses thresholds make on fresh images, and write a JSON "
    "file for each training to --output. What is there is not measured again. Images to train on "
    "are chosen from the training part of a set anew for each seed."
)


@dataclass(frozen=True)
class DecisionsOptions:
    """The options of the command."""

    data: tuple[str, ...] = ()
    """Folders of data sets, or generated sets. None: only --report is written."""
    images: int = 60
    """Normal images of each class, to train on and to set its threshold with."""
    ways: tuple[str, ...] = tuple(WAYS)
    """How thresholds are set: with a tenth or a third of the normal images held back, or with 5
    folds."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the division of the images, and of all that is random in training."""
    minutes: float = 1.0
    """Time that each model may train; that of the folds too."""
    backbone: str = LITE
    """Gives the features, as for crad train."""
    image_size: int | None = None
    """Side of the images in pixels. Default: that of crad train for this backbone."""
    device: str = "auto"
    """What to compute on, as for crad train."""
    output: Path = Path("benchmarks") / "results" / "decisions"
    """Folder of the JSON files."""
    overwrite: bool = False
    """Measure again what is there."""
    report: Path | None = None
    """Write the tables of all that is in --output into this page, between its marks."""

    def config(self, source: str, seed: int) -> Config:
        """The settings of trainings on a set."""
        chosen = DetectorOptions(
            backbone=self.backbone, image_size=self.image_size, minutes=self.minutes
        )
        config = chosen.config(source)
        return replace(config, training=replace(config.training, seed=seed))

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            UsageError: an option is.
        """
        if not self.data and not self.report:
            raise UsageError("--data: expected a data set, or --report for the tables")
        if self.backbone == AUTO:
            raise UsageError(f"--backbone: the tables name one; give {LITE} or another, not {AUTO}")
        for name, values in (("--ways", self.ways), ("--seeds", self.seeds)):
            if not values or len({*values}) < len(values):
                raise UsageError(f"{name}: expected one or more, each once")
        names = Counter(Path(source).name for source in map(full_source, self.data))
        if twice := [name for name, number in names.items() if number > 1]:
            raise UsageError(f"--data: two sets are named '{twice[0]}'; rename the folder of one")
        if unknown := [way for way in self.ways if way not in WAYS]:
            raise UsageError(f"--ways: no '{unknown[0]}'; choose from {', '.join(WAYS)}")
        if self.images < 2:
            raise UsageError(f"--images: expected at least 2, but got {self.images}")
        if not self.minutes > 0:
            raise UsageError(f"--minutes: expected more than 0, but got {self.minutes}")
        for source in map(full_source, self.data):
            for seed in self.seeds:
                self.config(source, seed).check()


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        source: the set.
        config: its settings, but for the thresholds.
        way: a key of `WAYS`.
        contaminated: whether some of its images are defective.
        options: of the command.
    """

    source: str
    config: Config
    way: str
    contaminated: bool
    options: DecisionsOptions

    @property
    def path(self) -> Path:
        """The JSON file."""
        data, size, options = self.identity["data"], self.identity["image_size"], self.options
        folder = f"{data}-{options.backbone}-{size}".replace("/", "-").replace(" ", "")
        kind = "-contaminated" if self.contaminated else ""
        return options.output / folder / f"{self.way}{kind}-seed{self.identity['seed']}.json"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others; the first entries of its JSON file."""
        return {
            "made_by": COMMAND,
            "data": Path(self.source).name,
            "backbone": self.config.model.backbone,
            "image_size": show_size(self.config.model.image_size),
            "n_images": self.options.images,
            "minutes": self.options.minutes,
            "way": self.way,
            "contamination": self.contamination,
            "seed": self.config.training.seed,
        }

    @property
    def contamination(self) -> float:
        """Share of its images that is defective."""
        n_images = self.options.images
        return count_defective(n_images) / n_images if self.contaminated else 0.0

    def is_done(self) -> bool:
        """Whether its JSON file is there.

        Raises:
            OutputError: there is another one by that name, or one of other settings.
        """
        stored = read_record(self.path, COMMAND)
        if stored is not None:
            check_same(self.path, stored, self.identity)
        return stored is not None


def runs_on(source: str, options: DecisionsOptions) -> list[Run]:
    """The trainings on a set: each seed by each way, and without folds on contaminated images."""
    return [
        Run(source, options.config(source, seed), way, contaminated, options)
        for seed in options.seeds
        for contaminated in (False, True)
        for way in options.ways
        if not (contaminated and WAYS[way].folds)
    ]


def measure_all(options: DecisionsOptions) -> None:
    """Measure what is missing; each training leaves its file before the next one begins.

    Raises:
        CradError: what `crad.training.inputs.prepare` and `divide` raise.
        OutputError: a file in the output is in the way.
    """
    device = select_device(options.device)
    commit()  # of the code that measures, which may be another before the results are written
    for source in map(full_source, options.data):
        check_apart(options.output, source)
        runs = [run for run in runs_on(source, options) if options.overwrite or not run.is_done()]
        if not runs:
            continue
        whole = Whole.of(prepare_all(runs[0].config, device))
        for run in runs:
            classes = [*whole.inputs.n_train]
            images = divide(
                whole.features.samples,
                len(whole.inputs.train),
                classes,
                options.images,
                run.config.training.seed,
                run.contaminated,
            )
            started = clock.now()
            record: Record = {
                **run.identity,
                **measure(whole, images, run.config, WAYS[run.way], device),
                "clock": clock.kind(),
                "seconds": clock.now() - started,
                "environment": environment(device),
            }
            run.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(run.path, record)
            print(f"written to {run.path} after {record['seconds']:.0f} s", flush=True)


def run(options: DecisionsOptions) -> None:
    """Do what the command line says.

    Raises:
        CradError: what `measure_all` raises.
        OutputError: the page has no place for the tables.
        UsageError: an option is out of range.
    """
    options.check()
    around = None
    if options.report:
        try:
            around = markdown.around(options.report.read_text("utf-8"), BEGIN, END)
        except (OSError, ValueError) as error:
            raise OutputError(f"report: '{options.report}': {error}") from error
    if options.data:
        with locked(options.output):
            measure_all(options)
    if options.report and around:
        lines = [BEGIN, "", *tables(read_records(options.output, COMMAND)), "", END]
        text = around[0] + "\n".join(lines) + around[1]
        write_atomically(options.report, lambda file: file.write(text.encode()))
        print(f"written to {options.report}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; None for those of the process.
    """
    options = tyro.cli(DecisionsOptions, args=arguments, prog=COMMAND, description=_DESCRIPTION)
    run_command(lambda: run(options), again="run the same command again")


if __name__ == "__main__":
    main()
