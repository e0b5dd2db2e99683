"""From what a model says of test images to what a person sees: results.json, table and sheets."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crad.command_line import BadImages
from crad.data import Sample
from crad.data.demo import DEMO_NAMES, demo_dataset
from crad.data.images import MaskResize
from crad.detector import BATCH_SIZE, image_scores
from crad.report.results import DEMO_NOTE, Results, environment, table, write_results
from crad.report.sheets import write_sheets
from crad.scoring.calibration import Decisions, measure_decisions
from crad.scoring.metrics import EpochMetrics, Metrics, ScoredImage, measure_class, summarise
from crad.scoring.protocols import Protocol
from crad.training.checkpoint import CHECKPOINT_NAME, Checkpoint

RESULTS_NAME = "results.json"
SHEETS_NAME = "sheets"


class Truths:
    """Where the defects of test images are, at the size and by the rule of any protocol.

    A mask is read once for each of these, and kept.

    Args:
        image_size: side in pixels of the images that the backbone gets.
        bad: what to do with a mask that cannot be read; the truth is then not known.
    """

    def __init__(self, image_size: int, bad: BadImages) -> None:
        self.image_size = image_size
        self._bad = bad
        self._read: dict[tuple[Path, int, MaskResize], npt.NDArray[np.bool_] | None] = {}

    def __call__(self, sample: Sample, protocol: Protocol) -> npt.NDArray[np.bool_] | None:
        """Give the truth of an image, bool (S, S); None where it is not known.

        Raises:
            ImageError: its mask cannot be read, and none may be left out.
        """
        size, resize = protocol.map_size(self.image_size), protocol.mask_resize
        if sample.mask is None:
            return sample.truth(size)
        key = (sample.mask, size, resize)
        if key not in self._read:
            self._read[key] = None
            with self._bad.reading():
                self._read[key] = sample.truth(size, resize)
        return self._read[key]

    def read(self, samples: Iterable[Sample], protocol: Protocol) -> None:
        """Read all masks now; errors as for a call."""
        for sample in samples:
            self(sample, protocol)


class Evaluation:
    """Measure models on test images, by any protocol.

    A model's maps are kept as it gives them. Those that a protocol measures, which are larger by
    far, are made from them when they are needed, and only those of one class are held.

    Args:
        samples: the test images.
        n_train: all classes, in order, with their numbers of training images.
        truths: where the defects are.
    """

    def __init__(
        self, samples: Sequence[Sample], n_train: Mapping[str, int], truths: Truths
    ) -> None:
        self.samples = samples
        self._truths = truths
        self._n_train = n_train
        self._by_class: dict[str, list[int]] = {name: [] for name in n_train}
        for index, sample in enumerate(samples):
            self._by_class[sample.class_name].append(index)

    def measure(self, anomaly_maps: Tensor, protocol: Protocol) -> Metrics:
        """Measure each class, and the mean over classes.

        Args:
            anomaly_maps: ``(M, H, W)``, of the test images in order, before any protocol.
            protocol: how they are scored.

        Raises:
            ImageError: a mask cannot be read.
            ValueError: a map is not finite.
        """
        classes = {
            name: measure_class(
                self.score(anomaly_maps, protocol, name),
                n_train=n_train,
                n_test=len(self._by_class[name]),
            )
            for name, n_train in self._n_train.items()
        }
        return summarise(classes)

    def decide(self, anomaly_maps: Tensor, checkpoint: Checkpoint) -> Decisions | None:
        """Count what the thresholds of a model do to the test images; None if it has none.

        Args:
            anomaly_maps: as for `measure`.
            checkpoint: the model.
        """
        if not checkpoint.thresholds:
            return None
        scores = image_scores(anomaly_maps, self._truths.image_size)
        return {
            "false_alarm_rate": checkpoint.config.false_alarm_rate,
            "classes": measure_decisions(
                self.samples, scores, checkpoint.thresholds, self._n_train
            ),
        }

    def score(
        self, anomaly_maps: Tensor, protocol: Protocol, class_name: str
    ) -> Iterator[ScoredImage]:
        """Score the test images of a class, one by one; arguments and errors as for `measure`."""
        members = self._by_class[class_name]
        for start in range(0, len(members), BATCH_SIZE):
            chosen = members[start : start + BATCH_SIZE]
            maps, scores = protocol.score(anomaly_maps[chosen], self._truths.image_size)
            for index, scored, score in zip(
                chosen, maps.cpu().numpy(), scores.tolist(), strict=True
            ):
                sample = self.samples[index]
                yield ScoredImage(sample, score, scored, self._truths(sample, protocol))

    def write_sheets(
        self, folder: Path, anomaly_maps: Tensor, protocol: Protocol, note: str | None
    ) -> None:
        """Replace the picture sheets in a folder, one for each class that has test images.

        Raises:
            OSError: a sheet cannot be written.
            ImageError: an image cannot be read any more.
        """
        shutil.rmtree(folder, ignore_errors=True)
        for name in self._by_class:
            write_sheets(folder, self.score(anomaly_maps, protocol, name), note=note)


def make_results(
    metrics: Mapping[str, Metrics],
    *,
    checkpoint: Checkpoint,
    data: str,
    left_out: str | None,
    timing: Mapping[str, float],
    device: torch.device,
    baselines: Mapping[str, Metrics] = MappingProxyType({}),
    best_on_test: EpochMetrics | None = None,
    decisions: Decisions | None = None,
) -> Results:
    """Say what was measured on what.

    Args:
        metrics: by name of the protocol; the first is the one that is reported.
        checkpoint: what was measured.
        data: where the test images are from.
        left_out: how many images and masks could not be read, as a sentence.
        timing: seconds by phase.
        device: what computed.
        baselines: what other detectors reach on the same images, by the first protocol.
        best_on_test: the best epoch on these images, by the first protocol, if that was tracked.
        decisions: what thresholds do to these images, if there are any.
    """
    (protocol, reported), *others = metrics.items()
    results: Results = {
        "protocol": protocol,
        "seed": checkpoint.config.seed,
        "epoch": checkpoint.epoch,
        "classes": reported["classes"],
        "mean": reported["mean"],
        "timing": {phase: round(seconds, 2) for phase, seconds in timing.items()},
        "environment": environment(device),
        "data": data,
    }
    if note := "; ".join(filter(None, [DEMO_NOTE if _is_demo(data) else None, left_out])):
        results["note"] = note
    if baselines:
        results["baselines"] = dict(baselines)
    if others:
        results["other_protocols"] = dict(others)
    if best_on_test:
        results["best_on_test"] = best_on_test
    if decisions:
        results["decisions"] = decisions
    return results


def report(
    results: Results,
    evaluation: Evaluation,
    anomaly_maps: Tensor,
    protocol: Protocol,
    output: Path | None,
    *,
    show: bool = True,
) -> None:
    """Print the tables and what cannot be measured; replace results and sheets in ``output``.

    Args:
        results: what to write and print.
        evaluation: the test images.
        anomaly_maps: those of the model, before any protocol.
        protocol: the one that the sheets show.
        output: the folder; None writes nothing.
        show: whether to print the table.

    Raises:
        OSError: a file cannot be written.
        ImageError: an image for a sheet cannot be read any more.
    """
    if output:
        write_results(output / RESULTS_NAME, results)
    if show:
        print(table(results))
    if missing := _not_measured(results, evaluation.samples):
        print(missing)
    if output:
        note = f"{results['data']}: {results['note']}" if "note" in results else None
        evaluation.write_sheets(output / SHEETS_NAME, anomaly_maps, protocol, note)
        print(f"written to {output}")


def clear_run(output: Path) -> None:
    """Remove a former run from a folder, so that no file of it is taken for one of another."""
    for name in (RESULTS_NAME, CHECKPOINT_NAME):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / SHEETS_NAME, ignore_errors=True)


def _is_demo(data: str) -> bool:
    """Whether the data are a generated set: its name, its folder in the cache, or a class of it."""
    if data in DEMO_NAMES:
        return True
    path = Path(data).expanduser().resolve()
    return any(
        folder.name.startswith(f"{name}-v") and folder == demo_dataset(name).resolve()
        for name in DEMO_NAMES
        for folder in (path, path.parent)
    )


def _not_measured(results: Results, samples: Sequence[Sample]) -> str | None:
    if not samples:
        return "not measured: there are no test images (expected <class>/test/{good,<defect>})"
    if results["mean"]["image_auroc"] is None:
        return "not measured: the metrics need normal and anomalous test images of a class"
    if results["mean"]["pixel_auroc"] is None:
        return (
            "pixel metrics not measured: there are no usable masks (<class>/ground_truth/<defect>)"
        )
    defective = [sample for sample in samples if sample.is_anomaly]
    if without := sum(sample.mask is None for sample in defective):
        return (
            f"pixel metrics are of part of the images: {without} of {len(defective)} defective "
            "images have no mask"
        )
    return None
