"""What the thresholds of one training do on fresh images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.comparison import Record
from benchmarks.detectors import clock
from benchmarks.detectors.inputs import SetInputs, select
from crad.command_line import ComputeOptions
from crad.config import Config
from crad.data import Dataset, Sample
from crad.detector import restore
from crad.errors import UsageError
from crad.scoring.calibration import Calibration, calibrate, measure_decisions
from crad.scoring.held_back import hold_back
from crad.scoring.metrics import measure_ranking
from crad.scoring.protocols import PROTOCOLS, decision_scores
from crad.scoring.suspects import find_suspects
from crad.train import train_model
from crad.train_options import OutputOptions, TrainOptions
from crad.training.checkpoint import read_checkpoint
from crad.training.features import Features, map_features

RATES = (0.01, 0.05, 0.1)
"""Rates of false alarms that are asked for."""
CONTAMINATION = 0.05
"""Share of the normal images that is defective where some are."""
_FRESH = 200  # normal images of a class, at most, that thresholds are tried on


@dataclass(frozen=True)
class Way:
    """How thresholds are set.

    Attributes:
        share: of the normal images, held back for the thresholds.
        folds: for cross-conformal calibration, which holds none back.
    """

    share: float = 0.0
    folds: int | None = None

    def of(self, config: Config) -> Config:
        """The settings of a training that sets its thresholds so."""
        training, decisions = config.training, config.decisions
        if self.folds:  # the time is for all folds; each model gets that of a training
            training = replace(training, minutes=self.folds * (training.minutes or 0))
        decisions = replace(
            decisions, calibration_share=self.share, calibration_folds=self.folds, contamination=0.0
        )
        return replace(config, training=training, decisions=decisions)


WAYS: Mapping[str, Way] = {"tenth": Way(0.1), "third": Way(1 / 3), "folds": Way(folds=5)}


@dataclass(frozen=True)
class Images:
    """The images of a set, by number, as one seed divides them.

    Attributes:
        normal: those taken for normal, by class; some may be defective.
        fresh: normal ones that no training sees, by class.
        defective: defective ones that no training sees, by class.
    """

    normal: Mapping[str, Sequence[int]]
    fresh: Mapping[str, Sequence[int]]
    defective: Mapping[str, Sequence[int]]


def count_defective(n_images: int) -> int:
    """How many of the images of a class are defective where some are: one at least."""
    return max(round(CONTAMINATION * n_images), 1)


def divide(
    samples: Sequence[Sample],
    n_train: int,
    classes: Sequence[str],
    n_images: int,
    seed: int,
    contaminated: bool,
) -> Images:
    """Choose the images of a training at random, and those that its thresholds are tried on.

    Images of the set's training part are trained on, and of its test part thresholds are tried:
    the same thing may be on several images of a part. Trainings with and without defective images
    are tried on the same ones.

    Args:
        samples: all images of a set.
        n_train: how many of them, the first, are of its training part.
        classes: their classes.
        n_images: of each class to train on, with those that set the threshold.
        seed: of the choice.
        contaminated: whether a share of the images to train on is defective.

    Raises:
        UsageError: a class has too few images.
    """
    generator = torch.Generator().manual_seed(seed)
    normal, fresh, defective = {}, {}, {}
    n_wrong = count_defective(n_images)
    for name in classes:
        own = [number for number, each in enumerate(samples) if each.class_name == name]
        kinds = (
            [number for number in own if number < n_train],
            [number for number in own if number >= n_train and not samples[number].is_anomaly],
            [number for number in own if samples[number].is_anomaly],
        )
        train, good, wrong = (
            [kind[place] for place in torch.randperm(len(kind), generator=generator).tolist()]
            for kind in kinds
        )
        if len(train) < n_images or not good or len(wrong) <= n_wrong:
            raise UsageError(
                f"--images: class '{name}' has {len(train)} images to train on, {len(good)} "
                f"normal and {len(wrong)} defective ones to test on; {n_images}, 1 and "
                f"{n_wrong + 1} are needed"
            )
        defects = wrong[:n_wrong] if contaminated else []
        normal[name] = sorted([*train[: n_images - len(defects)], *defects])
        fresh[name] = sorted(good[:_FRESH])
        defective[name] = sorted(wrong[n_wrong:])
    return Images(normal, fresh, defective)


@dataclass(frozen=True)
class Whole:
    """The features of all images of a set.

    Attributes:
        inputs: from `benchmarks.detectors.inputs.prepare_all`.
        features: of its normal and test images.
    """

    inputs: SetInputs
    features: Features

    @classmethod
    def of(cls, inputs: SetInputs) -> "Whole":
        """Put the normal and the test images together."""
        train, test = inputs.train, inputs.test
        values = torch.cat([train.values, test.values])
        return cls(inputs, Features(values, [*train.samples, *test.samples]))

    def to_train_on(self, images: Images, config: Config) -> SetInputs:
        """The inputs of a training on some of the images, without test images."""
        samples = self.features.samples
        rows = {samples[row].path: row for each in images.normal.values() for row in each}
        normal = tuple(samples[row] for row in rows.values())
        dataset = Dataset(Path(), tuple(images.normal), normal, ())
        train, held_back = (
            [rows[sample.path] for sample in part]
            for part in hold_back(dataset, config.decisions.held_back, config.training.seed)
        )
        counts = Counter(samples[row].class_name for row in train)
        return replace(
            self.inputs,
            train=select(self.features, train),
            held_back=select(self.features, held_back),
            test=select(self.features, []),
            n_train={name: counts[name] for name in images.normal},
            digests=torch.arange(len(rows)),
            seconds=0.0,
        )


def measure(whole: Whole, images: Images, config: Config, way: Way, device: torch.device) -> Record:
    """Train, and count false alarms and misses among fresh images.

    Args:
        whole: of the set.
        images: to train on and to try the thresholds on.
        config: of the training, with its seed and its time.
        way: how its thresholds are set.
        device: where to compute.

    Returns:
        The number of epochs; for each class the image AUROC, and false alarms and misses by the
        rate that is asked for and the contamination that is stated; and the suspicious images.
    """
    config = way.of(config)
    inputs = whole.to_train_on(images, config)
    with TemporaryDirectory(prefix="crad-decisions-") as temporary:
        folder = Path(temporary) / "run"
        output, compute = OutputOptions(folder, exemplars=0), ComputeOptions(device=str(device))
        with redirect_stdout(StringIO()):  # which would say that there are no test images
            train_model(
                TrainOptions(config, output, compute),
                show=False,
                prepare=lambda *_: inputs,
                now=clock.now,
            )
        checkpoint = read_checkpoint(folder)
        network = restore(checkpoint)[1].to(device)
    protocol = PROTOCOLS[config.decisions.decision_protocol]

    def scores(features: Features) -> list[float]:
        maps = map_features(network, features, device)
        return decision_scores(maps, features.samples, inputs.frame, protocol)

    tried = chain(*images.fresh.values(), *images.defective.values())
    test = select(whole.features, [*tried])
    return {
        "protocol": protocol.name,
        "epochs": checkpoint.epoch,
        "classes": _count(test.samples, scores(test), checkpoint.calibration),
        "suspects": _count_suspects(
            (each.samples, scores(each)) for each in (inputs.train, inputs.held_back) if len(each)
        ),
    }


def _count(
    samples: Sequence[Sample], scores: Sequence[float], calibration: Calibration
) -> dict[str, Record]:
    """What was measured of each class."""
    found: dict[str, Record] = {}
    for name, own in calibration.items():
        rows = [row for row, sample in enumerate(samples) if sample.class_name == name]
        good, wrong = (
            np.array([scores[row] for row in rows if samples[row].is_anomaly is kind])
            for kind in (False, True)
        )
        ranking = measure_ranking(wrong, good)
        found[name] = {
            "n_calibration": len(own),
            "n_good": len(good),
            "n_defective": len(wrong),
            "image_auroc": ranking.auroc if ranking else None,
            "decisions": [],
        }
    held = [Sample(class_name=name) for name, own in calibration.items() for _ in own]
    held_scores = [*chain(*calibration.values())]
    for stated in (0.0, CONTAMINATION):
        kept = calibrate(held, held_scores, stated)
        for rate in RATES:
            decided = measure_decisions(samples, scores, kept.thresholds(rate), calibration)
            for name, each in decided.items():
                found[name]["decisions"].append(
                    {
                        "false_alarm_rate": rate,
                        "stated_contamination": stated,
                        "false_alarms": each["false_alarms"],
                        "misses": each["misses"],
                    }
                )
    return found


def _count_suspects(parts: Iterable[tuple[Sequence[Sample], Sequence[float]]]) -> Record:
    """How many of the images taken for normal are listed as suspicious, and rightly so."""
    counts = {"n_normal": 0, "n_defective": 0, "listed": 0, "listed_defective": 0}
    for samples, scores in parts:
        listed = find_suspects(samples, scores)
        counts["n_normal"] += len(samples)
        counts["n_defective"] += sum(sample.is_anomaly for sample in samples)
        counts["listed"] += len(listed)
        counts["listed_defective"] += sum(each.sample.is_anomaly for each in listed)
    return counts
