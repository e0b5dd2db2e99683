"""Thresholds of a file in float16 or int8, whose scores are not those of its detector."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from crad.data.inputs import find_good
from crad.data.samples import Sample
from crad.data.several import find_datasets
from crad.errors import CradError, DataError
from crad.predictor import Predictor
from crad.scoring.calibration import Calibration, Thresholds, calibrate, thresholds_at
from crad.scoring.held_back import hold_back
from crad.training.checkpoint import Checkpoint
from crad.words import enumerate_some

_WAY = (
    "a float16 or int8 file has scores of its own, and needs thresholds of its own; name a folder "
    "of good images that the model was not trained on with --good"
)


@dataclass(frozen=True)
class GoodImages:
    """Good images that the model was not trained on.

    Attributes:
        samples: the images; a class of None is to be recognised.
        contamination: share of them that may be defective after all.
    """

    samples: list[Sample]
    contamination: float

    @property
    def paths(self) -> list[Path]:
        """The files of the images."""
        return [sample.path for sample in self.samples if sample.path]


@dataclass(frozen=True)
class OwnThresholds:
    """What a file decides by; as in `crad.edge.description.Description`."""

    calibration: Calibration
    thresholds: Thresholds
    uncertain: Thresholds
    pixel_thresholds: Thresholds


def find_images(checkpoint: Checkpoint, good: Path | None) -> GoodImages:
    """Find images to set the thresholds of a file with.

    Args:
        checkpoint: of the detector.
        good: a folder of them; None takes the images of training that were held back.

    Raises:
        DataError: there are none, or those held back are not what the thresholds of the checkpoint
            come from.
    """
    if good is not None:
        return GoodImages([Sample(path) for path in find_good(good)], contamination=0)
    config = checkpoint.config
    try:
        if not config.data.source:
            raise DataError("the checkpoint does not say where its images are")
        dataset = find_datasets(
            config.data.source, config.data.added, classes=[*checkpoint.n_train]
        )
    except CradError as error:
        raise DataError(
            f"export: the images held back from training are not there ({error}); {_WAY}"
        ) from error
    share, contamination = config.decisions.held_back, config.decisions.contamination
    held = hold_back(dataset, share, config.training.seed, checkpoint.draws)[1]
    numbers = {name: len(each) for name, each in checkpoint.calibration.items()}
    expected = calibrate(held, [0.0] * len(held), contamination)
    if not held or numbers != {name: len(each) for name, each in expected.items()}:
        raise DataError(
            "export: the thresholds of the checkpoint come from other images than those held back "
            f"from training, such as those of crad calibrate or of folds; {_WAY}"
        )
    return GoodImages(held, contamination)


def check_held_back(detector: Predictor, held_back: GoodImages, checkpoint: Checkpoint) -> None:
    """Refuse images that are no longer those that set the thresholds of a checkpoint.

    Args:
        detector: of the checkpoint, in fp32.
        held_back: as `find_images` found them; the first of each class are scored.
        checkpoint: whose thresholds they set.

    Raises:
        DataError: the score of one is not among those of the checkpoint.
        ImageError: an image cannot be read.
    """
    by_class: defaultdict[str, list[Path]] = defaultdict(list)
    for sample in held_back.samples:
        if sample.path and sample.class_name:
            by_class[sample.class_name].append(sample.path)
    # Far more than the rounding of other kernels, or of another batch.
    tolerance = 1e-3 if checkpoint.precision == "fp32" else 0.03
    for name, files in by_class.items():
        known = checkpoint.calibration[name]
        for each, file in zip(detector.iterate(files[:3], class_name=name), files, strict=False):
            suspicious = held_back.contamination > 0 and each.score > known[-1]  # set none
            same = any(math.isclose(each.score, score, rel_tol=tolerance) for score in known)
            if not suspicious and not same:
                raise DataError(
                    f"export: the images held back from training have changed since ('{file}' "
                    f"scores {each.score:.6g} now, as none did that set the threshold of '{name}');"
                    f" {_WAY}"
                )


def own_thresholds(
    file: Predictor,
    good: GoodImages,
    false_alarm_rate: float,
    uncertain_rate: float | None,
    pixel_false_alarm_rate: float,
) -> OwnThresholds:
    """Set the thresholds of a file from its scores of good images.

    Args:
        file: whose scores and maps are final.
        good: the images.
        false_alarm_rate: as for `crad.scoring.calibration.thresholds_at`.
        uncertain_rate: as for `crad.scoring.calibration.thresholds_at`.
        pixel_false_alarm_rate: share of normal images in which any pixel may be marked.

    Raises:
        DataError: a class has no good image.
        ImageError: an image cannot be read.
    """
    scored = [*_score(file, good)]
    names = {sample.class_name for sample, _, _ in scored}
    if missing := [name for name in file.classes if name not in names]:
        raise DataError(
            f"good: no image shows {enumerate_some(missing)}, whose threshold would not fit the "
            "scores of the file; add good images of every class"
        )
    samples, scores, peaks = zip(*scored, strict=True)
    calibration = calibrate(samples, scores, good.contamination)
    pixels = calibrate(samples, peaks, good.contamination)
    thresholds, uncertain = thresholds_at(
        Thresholds(), calibration, false_alarm_rate, false_alarm_rate, uncertain_rate
    )
    return OwnThresholds(
        calibration,
        thresholds,
        Thresholds() if uncertain is None else uncertain,
        pixels.thresholds(pixel_false_alarm_rate),
    )


def _score(file: Predictor, good: GoodImages) -> Iterator[tuple[Sample, float, float]]:
    """Images whose class is known, their scores, and the highest values of their maps."""
    found = file.iterate(good.paths)
    progress = tqdm(found, "good images", len(good.samples), leave=False)
    for sample, each in zip(good.samples, progress, strict=True):
        name = sample.class_name or each.class_name
        if name is not None:
            yield Sample(sample.path, name), each.score, float(each.scored_map.max())
