"""The checkpoint of an epoch, with thresholds from images held back or from folds."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from crad.config import DecisionConfig
from crad.data.samples import Sample
from crad.devices import threads_for
from crad.report.heat_maps import colour_scale, some_pixels
from crad.scoring.calibration import Calibration, Thresholds, calibrate
from crad.scoring.held_back import draw_folds
from crad.scoring.protocols import PROTOCOLS, scores_and_peaks
from crad.train_options import TrainOptions
from crad.train_start import begin, progress, step_size
from crad.training import processes
from crad.training.checkpoint import Checkpoint
from crad.training.features import map_features
from crad.training.inputs import Inputs
from crad.training.keeping import held_back_error, keep_best
from crad.training.loop import Training

_SCALE_IMAGES = 64  # training images whose maps set the colour scale


def take_checkpoint(
    options: TrainOptions,
    inputs: Inputs,
    training: Training,
    former: Checkpoint | None,
    device: torch.device,
    started: float,
) -> Checkpoint:
    """The run after an epoch, with thresholds and the colour scale of heat maps.

    Its model is that of the epoch that is kept, which may be one before.

    Args:
        options: of the run.
        inputs: of the run.
        training: after the epoch.
        former: the checkpoint of the epoch before.
        device: where to score images.
        started: `time.perf_counter` at the beginning of the epoch.

    Raises:
        TrainingError: the model has no finite anomaly maps any more.
    """
    config, model = options.config, training.model
    protocol = PROTOCOLS[config.decisions.decision_protocol]
    shown = inputs.train.some(_SCALE_IMAGES)
    scored_maps = protocol.score_in_turn(
        map_features(model, inputs.train, device, shown),
        inputs.frame,
        [inputs.train.samples[image].size for image in shown],
    )
    held_back = map_features(model, inputs.held_back, device)
    scored = scores_and_peaks(held_back, inputs.held_back.samples, inputs.frame, protocol)
    calibration, pixels = _calibrate(inputs.held_back.samples, scored, config.decisions)
    spent = time.perf_counter() - started
    checkpoint = Checkpoint(
        config=replace(config, model=replace(config.model, masked=bool(inputs.interest.masks))),
        epoch=training.epoch,
        feature_size=inputs.feature_size,
        colour_scale=colour_scale(some_pixels(scored_map) for scored_map, _ in scored_maps),
        n_train=inputs.n_train,
        seconds=(former.seconds if former else 0.0) + spent,
        precision=training.precision,
        model=model.state_dict(),
        backbone=inputs.backbone.state_dict(),
        products=inputs.products.state_dict() if inputs.products else {},
        interest=inputs.interest.state([*inputs.n_train]),
        optimizer=training.optimizer_state(),
        random=training.random_state(),
        images={"digests": inputs.digests},
        draws=inputs.draws,
        best_on_test=former.best_on_test if former else None,
        thresholds=calibration.thresholds(config.decisions.false_alarm_rate),
        pixel_thresholds=pixels,
        calibration=calibration,
    )
    if config.training.keep == "last" or not len(held_back):
        return checkpoint
    channels = inputs.feature_size[0]
    error = processes.on_main(lambda: held_back_error(held_back, channels))  # in all the same
    return keep_best(former, checkpoint, error)


def keep_thresholds(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """Give classes that have no threshold the one that they have in another model."""
    return replace(
        checkpoint,
        calibration=Calibration(base.calibration | checkpoint.calibration),
        thresholds=Thresholds(base.thresholds | checkpoint.thresholds),
        pixel_thresholds=Thresholds(base.pixel_thresholds | checkpoint.pixel_thresholds),
    )


def _calibrate(
    samples: Sequence[Sample], scored: Sequence[tuple[float, float]], decisions: DecisionConfig
) -> tuple[Calibration, Thresholds]:
    """The calibration scores of normal images, and the thresholds of the pixels of their maps."""
    scores, peaks = ([each[which] for each in scored] for which in (0, 1))
    pixels = calibrate(samples, peaks, decisions.contamination)
    return (
        calibrate(samples, scores, decisions.contamination),
        pixels.thresholds(decisions.pixel_false_alarm_rate),
    )


def cross_calibrate(
    options: TrainOptions,
    inputs: Inputs,
    checkpoint: Checkpoint,
    device: torch.device,
    epochs: int,
) -> Checkpoint:
    """Set thresholds with all training images, each scored by a model that has not seen it.

    Cross-conformal prediction: Vovk, "Cross-conformal predictors", Annals of Mathematics and
    Artificial Intelligence 2015. The model that predicts has seen a fold more than those of the
    scores, so that false alarms are rarer than promised, if anything.

    Args:
        options: of the run.
        inputs: of the run.
        checkpoint: of the last epoch, which has no thresholds yet.
        device: where to train.
        epochs: of each of these models, which start from nothing.

    Raises:
        TrainingError: a training failed.
    """
    options = options.with_epochs(epochs)
    config, decisions = options.config, options.config.decisions
    started = time.perf_counter()
    n_folds, protocol = decisions.calibration_folds, PROTOCOLS[decisions.decision_protocol]
    assert n_folds
    train = inputs.train
    folds = draw_folds(train.samples, n_folds, config.training.seed)
    print(
        f"calibration: {len(folds)} more trainings, each without the images of a fold", flush=True
    )
    scored: dict[int, tuple[float, float]] = {}
    for number, fold in enumerate(folds, 1):
        rows = torch.ones(len(train), dtype=torch.bool)
        rows[train.rows_of(fold)] = False
        training = begin(options, inputs, None, device)
        kept = rows.nonzero()[:, 0]
        with (
            threads_for(step_size(config, inputs)),
            progress(training, len(kept), f"fold {number} of {len(folds)}") as bar,
        ):
            while training.epoch < config.training.epochs:
                training.run_epoch(train, bar, kept)
        maps = map_features(training.model, train, device, fold)
        samples = [train.samples[row] for row in fold]
        found = scores_and_peaks(maps, samples, inputs.frame, protocol)
        scored.update(zip(fold, found, strict=True))
    ordered = [scored[image] for image in range(len(train.samples))]
    calibration, pixels = _calibrate(train.samples, ordered, decisions)
    return replace(
        checkpoint,
        calibration=calibration,
        thresholds=calibration.thresholds(decisions.false_alarm_rate),
        pixel_thresholds=pixels,
        seconds=checkpoint.seconds + time.perf_counter() - started,
    )
