"""The runs of a comparison: what each one measures, and the JSON file that it leaves."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison import Record, check_same, measured, read_record
from benchmarks.detectors import clock
from benchmarks.detectors.costs import PeakMemory, images_per_second
from benchmarks.detectors.inputs import SetInputs, inputs_of, prepare_all, select
from benchmarks.detectors.methods import Detector, ImageDetector, Method, methods
from benchmarks.detectors.options import COMMAND, DetectorOptions
from benchmarks.detectors.own_scores import OWN, measure_own
from crad.config import Config
from crad.data import Dataset, check_apart, find_dataset
from crad.data.frames import frame_of, show_size
from crad.data.sources import BATCH_SIZE
from crad.devices import select_device
from crad.files import write_json
from crad.report.environment import commit, environment
from crad.scoring.evaluation import Evaluation
from crad.scoring.held_back import check_share, hold_back
from crad.scoring.protocols import choose_protocols
from crad.training.features import Features


@dataclass(frozen=True)
class Run:
    """One method on one set.

    Attributes:
        config: the defaults for the set, with the seed and the protocols.
        classes: of the set.
        name: of the method.
        method: what is measured.
        setting: ``"unified"`` or ``"separate"``.
        n_train: numbers of training images, by class.
        output: the folder of all runs.
    """

    config: Config
    classes: tuple[str, ...]
    name: str
    method: Method
    setting: str
    n_train: Mapping[str, int]
    output: Path

    @property
    def data(self) -> str:
        """The name of the set."""
        return Path(self.config.data.source).name

    @property
    def path(self) -> Path:
        """The JSON file."""
        model, seed = self.config.model, self.config.training.seed
        size = show_size(frame_of(model.image_size)).replace(" ", "")
        folder = f"{self.data}-{model.backbone}-{size}".replace("/", "-")
        minutes = minutes_of(self.method.settings(self.config))
        limit = "" if minutes is None else f"-{minutes:g}min"
        return self.output / folder / f"{self.name}{limit}-{self.setting}-seed{seed}.json"

    def __str__(self) -> str:
        """Its name for a reader."""
        return f"{self.data}, {self.name}, {self.setting}, seed {self.config.training.seed}"

    @property
    def identity(self) -> Record:
        """What tells it from others; the first entries of its JSON file."""
        identity = {
            "made_by": COMMAND,
            "data": self.data,
            "backbone": self.config.model.backbone,
            "image_size": show_size(frame_of(self.config.model.image_size)),
            "method": self.name,
            "setting": self.setting,
            "seed": self.config.training.seed,
            "n_train": self.n_train,
            "method_settings": self.method.settings(self.config),
        }
        stored: Record = json.loads(json.dumps(identity))  # which turns tuples into lists
        return stored

    def is_done(self) -> bool:
        """Whether its JSON file is there.

        Raises:
            OutputError: there is another one by that name, or one of other settings.
        """
        stored = read_record(self.path, COMMAND)
        if stored is None:
            return False
        wanted = [protocol.name for protocol in choose_protocols(self.config.decisions.protocol)]
        if missing := [name for name in wanted if name not in stored["protocols"]]:
            raise measured(self.path, f"without --protocol {missing[0]}")
        check_same(self.path, stored, self.identity)
        return True

    def measure(self, inputs: SetInputs, device: torch.device) -> Record:
        """Fit the models and measure their maps of all test images.

        Args:
            inputs: of the whole set, from `prepare_all`.
            device: where to compute.

        Raises:
            CradError: a model cannot be fitted, or an image or mask cannot be read.
        """
        test = inputs.test
        found: dict[int, tuple[Tensor, Tensor | None]] = {}
        fitting, mapping, n_bytes = 0.0, 0.0, 0
        epochs: dict[str, int | None] = {}
        if self.method.takes_images:
            inputs.pixels.load([*inputs.train.samples, *test.samples])
        memory = PeakMemory()
        for classes in [self.classes] if self.setting == "unified" else zip(self.classes):
            config = replace(self.config, data=replace(self.config.data, classes=classes))
            of_model = inputs_of(inputs, config)
            rows = [row for row, each in enumerate(test.samples) if each.class_name in classes]
            features = select(test, rows)
            started = clock.now()
            detector = self.method.fit(of_model, config, device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            fitted = clock.now()
            maps, scores = _map_all(detector, features, inputs)
            fitting += fitted - started
            mapping += clock.now() - fitted
            n_bytes += detector.n_bytes
            for number, row in enumerate(rows):
                found[row] = maps[number], None if scores is None else scores[number]
            if trained := getattr(detector, "epochs", None):
                epochs = asdict(trained)
        peak = memory.n_bytes()
        protocols = choose_protocols(self.config.decisions.protocol)
        evaluation = Evaluation(test.samples, self.n_train, inputs.truths)
        maps = torch.stack([found[row][0] for row in range(len(test))])
        measured = {each.name: evaluation.measure(maps, each) for each in protocols}
        own = [score for row in range(len(test)) if (score := found[row][1]) is not None]
        if own:
            measured[OWN] = measure_own(
                maps, torch.stack(own), test.samples, self.n_train, inputs.truths
            )
        return {
            **self.identity,
            "protocols": measured,
            "n_test": len(test),
            "n_bytes": n_bytes,
            "peak_bytes": peak,
            "epochs": epochs or None,
            "clock": clock.kind(),
            "seconds": {"features": inputs.seconds, "fit": fitting, "maps": mapping},
            "images_per_second": images_per_second(detector, inputs, device),
            "notes": [*inputs.repeated, *evaluation.notes(protocols)],
            "environment": environment(device),
        }


def minutes_of(method_settings: Mapping[str, Any]) -> float | None:
    """The time that a model was trained for; None without a limit, or if it is not trained."""
    minutes: float | None = method_settings.get("minutes", method_settings.get("--minutes"))
    return minutes


def _map_all(
    detector: Detector | ImageDetector, features: Features, inputs: SetInputs
) -> tuple[Tensor, Tensor | None]:
    """The maps of test images, and the method's own scores if it has some, on the CPU."""
    if not isinstance(detector, ImageDetector):
        return detector.maps(features).cpu(), None
    found = [
        detector.predict(inputs.pixels.images(features.samples[start : start + BATCH_SIZE]))
        for start in range(0, len(features), BATCH_SIZE)
    ]
    maps, scores = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return maps, scores


def measure_all(options: DetectorOptions) -> None:
    """Measure what is missing; each run leaves its file before the next one begins.

    Raises:
        CradError: what `crad.training.inputs.prepare` and `Run.measure` raise.
        KeyboardInterrupt: the user stopped it; the message says how to go on.
        OutputError: a file in the output is in the way.
    """
    device = select_device(options.device)
    commit()  # of the code that measures, which may be another before the results are written
    missing: list[list[Run]] = []
    for source in options.data:  # no hours are spent before a set or a file is found to be wrong
        check_apart(options.output, source)
        config = options.config(source)
        dataset = find_dataset(source)
        check_share(dataset, config.decisions.calibration_share)
        runs = [*_runs(options, config, dataset)]
        missing.append([run for run in runs if options.overwrite or not run.is_done()])
        if done := len(runs) - len(missing[-1]):
            print(f"{runs[0].data}: {done} of {len(runs)} runs are there already", flush=True)
    number, total = 0, sum(map(len, missing))
    try:
        for runs in filter(None, missing):
            inputs = prepare_all(runs[0].config, device)
            for run in runs:
                record = run.measure(inputs, device)
                run.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(run.path, record)
                number += 1
                print(f"run {number} of {total}: {run}: {_in_short(record)}", flush=True)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            f"{number} of {total} runs are measured; the same command, without --overwrite, "
            "measures the others"
        ) from interrupt


def _runs(options: DetectorOptions, config: Config, dataset: Dataset) -> Iterator[Run]:
    """All runs on a set."""
    known = methods()
    for seed in options.seeds:
        seeded = replace(config, training=replace(config.training, seed=seed))
        train, _ = hold_back(dataset, config.decisions.calibration_share, seed)
        counts = Counter(sample.class_name for sample in train)
        n_train = {name: counts[name] for name in dataset.classes}
        # With one class, the settings are one.
        for setting in options.settings[: len(dataset.classes)]:
            for name in options.methods:
                yield Run(
                    seeded, dataset.classes, name, known[name], setting, n_train, options.output
                )


def _in_short(record: Record) -> str:
    mean = next(iter(record["protocols"].values()))["mean"]
    quality = [
        f"{name.replace('_', ' ').replace('auroc', 'AUROC')} {mean[name]:.3f}"
        for name in ("image_auroc", "pixel_auroc")
        if mean[name] is not None
    ]
    seconds = record["seconds"]
    return ", ".join([*quality, f"fit {seconds['fit']:.1f} s, maps {seconds['maps']:.1f} s"])
