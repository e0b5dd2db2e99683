"""The training runs behind tables and figures: trained once, resumed, reused."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.paper.variants import Variant
from crad.command_line import ComputeOptions
from crad.config import Config
from crad.data import Dataset, find_dataset
from crad.report.results import Results
from crad.train import train_model
from crad.train_options import OutputOptions, TrainOptions
from crad.train_resume import finished_results, stored_run
from crad.train_separate import train_separately
from crad.training.checkpoint import Checkpoint
from crad.training.inputs import Inputs, prepare
from crad.training.run_folder import RunFolder


@dataclass(frozen=True)
class Runs:
    """The runs of each variant with each seed, every one in a folder of its own.

    Attributes:
        base: the settings that all runs share.
        seeds: of the runs of each variant.
        output: the folder that holds the folders of the runs.
        compute: what to compute on.
    """

    base: Config
    seeds: tuple[int, ...]
    output: Path
    compute: ComputeOptions = field(default_factory=ComputeOptions)

    def folder(self, variant: Variant, seed: int) -> Path:
        """The folder of a run."""
        return self.output / f"{variant.name}-seed{seed}"

    def results(self, variant: Variant) -> list[Results]:
        """The results of the finished runs of a variant, in the order of the seeds."""
        paths = [RunFolder(self.folder(variant, seed)).results for seed in self.seeds]
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def dataset(self) -> Dataset:
        """The data set.

        Raises:
            DataError: it is missing or damaged.
        """
        return find_dataset(self.base.data.source, classes=self.base.data.classes)

    def classes(self) -> tuple[str, ...]:
        """The classes of the data set; errors as for `dataset`."""
        return self.dataset().classes

    def finish(self, variants: Iterable[Variant]) -> None:
        """Train the runs that are missing, and resume those that were interrupted.

        Features are computed once and shared by all runs on the same images.

        Raises:
            CradError: what `crad.train.train_model` raises.
            KeyboardInterrupt: the user stopped it; the message says how to resume.
        """
        classes = self.classes()
        needed = dict.fromkeys(variants)
        runs = [
            (f"{each.name}, seed {seed}", self._options(each, seed))
            for seed in self.seeds
            for each in needed
        ]
        stored = []
        for _, run in runs:  # no hours are spent before a folder is found to be in use
            run.config.check()
            stored.append(stored_run(run, parts=()))
        once = _PrepareOnce()
        for number, ((name, run), former) in enumerate(zip(runs, stored, strict=True), 1):
            done = finished_results(run, former, classes)
            print(f"run {number} of {len(runs)}: {name}{' (finished)' if done else ''}", flush=True)
            try:
                if run.output.separate:
                    train_separately(run, train_model)
                elif not done:
                    train_model(run, show=False, prepare=once)
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(
                    f"{number - 1} of {len(runs)} runs are finished; the same command resumes"
                ) from interrupt

    def _options(self, variant: Variant, seed: int) -> TrainOptions:
        return TrainOptions(
            variant.config(self.base, seed),
            OutputOptions(
                self.folder(variant, seed), separate=variant.separate, resume=True, exemplars=0
            ),
            self.compute,
        )


class _PrepareOnce:
    """Prepare the inputs of a run, or reuse those of the run before on the same images."""

    def __init__(self) -> None:
        self._key: object = None
        self._inputs: Inputs | None = None

    def __call__(self, config: Config, stored: Checkpoint | None, device: torch.device) -> Inputs:
        """Prepare as `crad.training.inputs.prepare` does; a resumed run has its own backbone."""
        if stored:
            return prepare(config, stored, device)
        model = config.model
        share = config.decisions.calibration_share
        key = (
            config.data, model.backbone, model.weights, model.components, model.image_size,
            model.fit, share, share and config.training.seed,
        )  # fmt: skip
        if self._inputs and key == self._key:
            return self._inputs
        self._inputs = None  # frees memory first
        inputs = prepare(config, None, device)
        self._key, self._inputs = key, replace(inputs, seconds=0.0)
        return inputs
