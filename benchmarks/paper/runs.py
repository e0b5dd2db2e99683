"""The training runs behind tables and figures: trained once, resumed, reused."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from crad.options import DeviceName, TrainOptions
from crad.resume import checked, finished
from crad.separate import train_separately

from benchmarks.paper.variants import Variant
from crad.config import Config
from crad.data import Dataset, find_dataset
from crad.data.demo import DEMO_NAMES, demo_dataset
from crad.report.results import Results
from crad.scoring.evaluation import RESULTS_NAME
from crad.train import Loaded, load, train_model
from crad.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Runs:
    """The runs of each variant with each seed, every one in a folder of its own.

    Attributes:
        base: the settings that all runs share.
        seeds: of the runs of each variant.
        output: the folder that holds the folders of the runs.
        device: where to compute.
        skip_bad: whether to leave out images that cannot be read.
        feature_memory: gigabytes of memory for features, as in `crad.options.TrainOptions`.
    """

    base: Config
    seeds: tuple[int, ...]
    output: Path
    device: DeviceName = "auto"
    skip_bad: bool = False
    feature_memory: float | None = None

    def folder(self, variant: Variant, seed: int) -> Path:
        """The folder of a run."""
        return self.output / f"{variant.name}-seed{seed}"

    def results(self, variant: Variant) -> list[Results]:
        """The results of the finished runs of a variant, in the order of the seeds."""
        paths = [self.folder(variant, seed) / RESULTS_NAME for seed in self.seeds]
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def dataset(self) -> Dataset:
        """The data set.

        Raises:
            DataError: it is missing or damaged.
        """
        data = self.base.data
        root = demo_dataset(data) if data in DEMO_NAMES else data
        return find_dataset(root, classes=self.base.classes)

    def classes(self) -> tuple[str, ...]:
        """The classes of the data set; errors as for `dataset`."""
        return self.dataset().classes

    def finish(self, variants: Iterable[Variant]) -> None:
        """Train the runs that are missing, and resume those that were interrupted.

        Features are computed once and shared by all runs on the same images.

        Raises:
            CheckpointError: the checkpoint of a run is damaged.
            CommandError: a folder holds a run with other settings, or training failed.
            KeyboardInterrupt: the user stopped it; the message says how to resume.
            MissingPackageError: a memory needs a package that is not installed.
            Exception: what `crad.train.train_model` raises.
        """
        classes = self.classes()
        needed = dict.fromkeys(variants)
        todo = [(each, seed) for seed in self.seeds for each in needed]
        runs = [checked(self._options(each, seed)) for each, seed in todo]
        for run in runs:
            run.config.check()
        train_one = partial(train_model, show=False, load=_LoadOnce())
        for number, (run, (variant, seed)) in enumerate(zip(runs, todo, strict=True), 1):
            done = not variant.separate and finished(run, classes)
            print(
                f"run {number} of {len(runs)}: {variant.name}, seed {seed}"
                f"{' (finished)' if done else ''}",
                flush=True,
            )
            try:
                if variant.separate:
                    train_separately(run, train_one)
                elif not done:
                    train_one(run)
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(
                    f"{number - 1} of {len(runs)} runs are finished; the same command resumes"
                ) from interrupt

    def _options(self, variant: Variant, seed: int) -> TrainOptions:
        return TrainOptions(
            variant.config(self.base, seed),
            self.folder(variant, seed),
            separate=variant.separate,
            resume=True,
            skip_bad=self.skip_bad,
            feature_memory=self.feature_memory,
            device=self.device,
        )


class _LoadOnce:
    """Load the inputs of a run, or reuse those of the run before on the same images."""

    def __init__(self) -> None:
        self._key: object = None
        self._loaded: Loaded | None = None

    def __call__(
        self, options: TrainOptions, stored: Checkpoint | None, device: torch.device
    ) -> Loaded:
        """Load as `crad.train.load` does; a resumed run has its own backbone."""
        if stored:
            return load(options, stored, device)
        config = options.config
        key = (
            config.data, config.classes, config.backbone, config.weights, config.components,
            config.image_size, config.calibration_share, config.calibration_share and config.seed,
        )  # fmt: skip
        if self._loaded and key == self._key:
            return replace(self._loaded, seconds=0.0)
        self._loaded = None  # frees memory first
        self._key, self._loaded = key, load(options, stored, device)
        return self._loaded
