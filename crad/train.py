"""The command ``python -m crad.train``."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm

from crad.backbones import Backbone, create_backbone
from crad.command_line import BadImages, CommandError, run_command
from crad.config import Config, without_effect
from crad.data import find_dataset
from crad.data.demo import DEMO_NAMES, demo_dataset
from crad.detector import PROTOCOL, create_model, image_scores, multiply_adds
from crad.devices import compile_network, select_device, select_precision, threads_for
from crad.errors import CheckpointError, TrainingError
from crad.files import remove_leftovers
from crad.model.crad import CRAD
from crad.options import TrainOptions, parse_options
from crad.report.results import Results, commit
from crad.report.sheets import colour_scale, scale_images
from crad.scoring.calibration import take_thresholds
from crad.scoring.evaluation import Evaluation, Truths, clear_run, make_results, report
from crad.scoring.metrics import Metrics, better
from crad.scoring.protocols import choose_protocols
from crad.separate import train_separately
from crad.training import processes
from crad.training.checkpoint import ALL_PARTS, CHECKPOINT_NAME, Checkpoint, read_checkpoint
from crad.training.feature_cache import FeatureCache
from crad.training.features import Features, anomaly_maps
from crad.training.inputs import Inputs, load_inputs
from crad.training.loop import Training, split_epoch
from crad_kernels import backends

_BEGIN_AGAIN = "no epoch was finished; start again with the same command"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    run_command(lambda: train(parse_options(arguments)), again="continue with --resume")


def train(options: TrainOptions) -> Results:
    """Train one model for all classes, or with ``--separate`` one for each, as `train_model` does.

    Raises:
        DataError: a class is not there.
        Exception: what `train_model` raises.
    """
    with processes.joined(select_device(options.device)):
        if options.separate:
            return train_separately(options, partial(train_model, show=False))
        return train_model(options)


@dataclass(frozen=True)
class Loaded:
    """What a run has before it trains.

    Attributes:
        backbone: fitted, on the device of the run.
        inputs: the images as features.
        truths: where the defects are.
        bad: the images and masks that were left out.
        seconds: time that the features took.
    """

    backbone: Backbone
    inputs: Inputs
    truths: Truths
    bad: BadImages
    seconds: float


Load = Callable[[TrainOptions, Checkpoint | None, torch.device], Loaded]


def load(options: TrainOptions, stored: Checkpoint | None, device: torch.device) -> Loaded:
    """Make the backbone and compute the features of all images of a run.

    Args:
        options: of the run.
        stored: the checkpoint to go on from, which has the backbone.
        device: where to compute.

    Raises:
        Exception: what `train_model` raises.
    """
    config = options.config
    backbone = create_backbone(
        config.backbone,
        weights=config.weights,
        pretrained=stored is None,
        components=config.components,
    ).to(device)
    if stored:
        with _fitting(options.output):
            backbone.load_state_dict(stored.backbone)
    is_demo = config.data in DEMO_NAMES
    root = processes.on_main(lambda: demo_dataset(config.data)) if is_demo else config.data
    dataset = find_dataset(root, classes=config.classes)
    started = time.perf_counter()
    bad = BadImages(skip=options.skip_bad)
    truths = Truths(config.image_size, bad)
    if processes.is_main():  # a bad mask is found before hours of training, not after
        truths.read(dataset.test, choose_protocols(config.protocol)[0])
    cache = FeatureCache(options.feature_memory)
    inputs = load_inputs(backbone, config, dataset, device, bad, cache, fit=not stored)
    if stored and stored.n_train != inputs.n_train:
        raise CommandError(
            f"data: the training images in '{dataset.root}' are not those that the run in "
            f"'{options.output}' began with; put them back, or begin anew with --overwrite"
        )
    return Loaded(backbone, inputs, truths, bad, time.perf_counter() - started)


def train_model(options: TrainOptions, *, show: bool = True, load: Load = load) -> Results:
    """Train a model, or go on training it, measure it, and leave everything in the output folder.

    Args:
        options: all that determines it.
        show: whether to print the table.
        load: makes what the run has before it trains; another may keep that for the next run.

    Raises:
        BackboneError: the backbone cannot be had, or cannot take these images.
        CheckpointError: the checkpoint to resume is damaged.
        CommandError: the output folder holds a run already, or training failed.
        DataError: the data are not what they should be.
        DeviceError: the device is not there.
        ImageError: an image cannot be read.
        KeyboardInterrupt: the user stopped it; the message says how to go on.
        OSError: a file cannot be read or written.
    """
    former = None if options.resume else _written(options.output)
    try:
        return _train(options, show, load)
    except KeyboardInterrupt as interrupt:
        begun = _written(options.output) != former
        way_on = _how_to_resume(options) if begun else _BEGIN_AGAIN
        raise KeyboardInterrupt(way_on) from interrupt


def _train(options: TrainOptions, show: bool, load: Load) -> Results:
    config, output = options.config, options.output
    commit()  # of the code that trains, which may be another before the results are written
    device = select_device(options.device)
    stored = _prepare_output(options)
    print(_first_line(config, device), flush=True)
    if idle := without_effect(config):
        print(idle, flush=True)

    loaded = load(options, stored, device)
    backbone, inputs, truths = loaded.backbone, loaded.inputs, loaded.truths
    protocols = choose_protocols(config.protocol)
    timing = {"features": loaded.seconds}

    evaluation = Evaluation(inputs.test.samples, inputs.n_train, truths)

    def track(model: CRAD) -> Metrics:
        maps = anomaly_maps(model, inputs.test.features, device)
        return processes.on_main(lambda: evaluation.measure(maps, protocols[0]))

    if processes.is_main() and not stored:
        clear_run(output)
    with threads_for(_step_size(config, inputs.train.features)):
        checkpoint, model = _fit(options, inputs, backbone, device, stored, track)
    timing["training"] = checkpoint.seconds

    started = time.perf_counter()
    maps = anomaly_maps(model, inputs.test.features, device)

    def measure() -> Results:
        metrics = {each.name: evaluation.measure(maps, each) for each in protocols}
        baselines = {}
        if config.data in DEMO_NAMES:
            baselines["nearest_neighbour"] = evaluation.measure(
                inputs.nearest_neighbour, protocols[0]
            )
        decisions = evaluation.decide(maps, checkpoint)
        timing["evaluation"] = time.perf_counter() - started
        results = make_results(
            metrics,
            checkpoint=checkpoint,
            data=config.data,
            left_out=loaded.bad.note(),
            timing=timing,
            device=device,
            baselines=baselines,
            best_on_test=checkpoint.best_on_test,
            decisions=decisions,
        )
        report(results, evaluation, maps, protocols[0], output, show=show)
        return results

    return processes.on_main(measure)


def _fit(
    options: TrainOptions,
    inputs: Inputs,
    backbone: Backbone,
    device: torch.device,
    stored: Checkpoint | None,
    track: Callable[[CRAD], Metrics],
) -> tuple[Checkpoint, CRAD]:
    """Train to the last epoch, writing a checkpoint after each.

    Args:
        track: measures the model on the test images, for ``--track-best``.
    """
    config, output = options.config, options.output
    normal, held_back = inputs.train.features, inputs.held_back
    if (least := min(config.batch_size, len(normal))) < processes.count():
        raise CommandError(
            f"train: {processes.count()} processes cannot share a batch of {least}; lower "
            "--nproc_per_node of torchrun, or raise --batch-size"
        )
    height, width, channels = normal.values.shape[1:]
    precision = select_precision(config.precision, device, _step_size(config, normal))
    config = replace(config, precision=precision)
    torch.manual_seed(config.seed)
    model = create_model(config, (channels, height, width))
    if options.compile:
        compile_network(model.fusion, device)
    AcceleratorState._reset_state()  # of a model before, which may have another precision
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
    )
    training = Training(model, config, accelerator)
    seconds = 0.0
    best = stored.best_on_test if stored else None
    if stored:
        with _fitting(output):
            model.load_state_dict(stored.model)
            training.restore(stored.epoch, stored.optimizer, stored.random)
        seconds = stored.seconds

    checkpoint = stored
    some = torch.tensor(scale_images(len(normal)))
    shown = Features(normal.values[some], [normal.paths[index] for index in some])
    steps = len(split_epoch(torch.arange(len(normal)), config.batch_size, processes.count()))
    done, total = training.epoch * steps, config.epochs * steps
    hidden = not processes.is_main()
    with tqdm(total=total, initial=done, unit="step", mininterval=0.5, disable=hidden) as bar:
        while training.epoch < config.epochs:
            bar.set_description(f"epoch {training.epoch + 1}/{config.epochs}", refresh=False)
            started = time.perf_counter()
            try:
                loss = training.run_epoch(normal, bar)
            except TrainingError as error:
                raise CommandError(str(error)) from error
            maps, _ = PROTOCOL.score(anomaly_maps(model, shown, device), config.image_size)
            scores = image_scores(
                anomaly_maps(model, held_back.features, device), config.image_size
            )
            seconds += time.perf_counter() - started
            if config.track_best:
                best = better(best, {"epoch": training.epoch, **track(model)})
            checkpoint = Checkpoint(
                config=config,
                epoch=training.epoch,
                feature_size=(channels, height, width),
                colour_scale=colour_scale(maps.cpu().numpy()),
                n_train=inputs.n_train,
                seconds=seconds,
                model=model.state_dict(),
                backbone=backbone.state_dict(),
                optimizer=training.optimizer_state(),
                random=training.random_state(),
                best_on_test=best,
                thresholds=take_thresholds(held_back.samples, scores, config.false_alarm_rate),
            )
            if processes.is_main():
                checkpoint.save(output)
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
    assert checkpoint is not None  # there is at least one epoch
    return checkpoint, model


def _step_size(config: Config, features: Features) -> float:
    """Multiply-adds of the fusion network in a training step, about three times those forward."""
    height, width, channels = features.values.shape[1:]
    return 3 * config.batch_size * multiply_adds(config, (channels, height, width))


def _prepare_output(options: TrainOptions) -> Checkpoint | None:
    """Refuse an output folder that cannot be used, and read the run to resume in it, if any."""
    output = options.output
    options.check_output()
    if processes.is_main():
        remove_leftovers(output / CHECKPOINT_NAME)
    if options.resume and (output / CHECKPOINT_NAME).exists():
        return read_checkpoint(output, ALL_PARTS)
    return None


@contextmanager
def _fitting(output: Path) -> Iterator[None]:
    """Turn the failure to restore a state into an error that names the checkpoint."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint: that in '{output}' does not fit this crad and its timm ({error}); use "
            "those that wrote it, or begin anew with --overwrite"
        ) from error


def _first_line(config: Config, device: torch.device) -> str:
    threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else ""
    axes = max(len(config.local.resolution), len(config.global_.resolution))
    kernel = next(name for name, each in backends().items() if each.takes(device, axes))
    if (count := processes.count()) > 1:
        threads += f" x {count} processes"
    classes = f" | classes {', '.join(config.classes)}" if config.classes else ""
    return (
        f"device {device.type}{threads} | kernels {kernel} | backbone {config.backbone} | "
        f"data {config.data}{classes}"
    )


def _written(output: Path) -> int | None:
    """When the checkpoint in a folder was written, in nanoseconds; None if there is none."""
    try:
        return (output / CHECKPOINT_NAME).stat().st_mtime_ns
    except OSError:
        return None


def _how_to_resume(options: TrainOptions) -> str:
    try:
        checkpoint = read_checkpoint(options.output, parts=())
    except CheckpointError:
        return _BEGIN_AGAIN
    python = ["python"]
    if (count := processes.count()) > 1:
        python = ["torchrun", "--nproc_per_node", str(count)]
    command = [*python, "-m", "crad.train", "--resume", "--output", str(options.output)]
    if options.skip_bad:
        command.append("--skip-bad")
    if options.feature_memory is not None:
        command += ["--feature-memory", str(options.feature_memory)]
    if options.compile:
        command.append("--compile")
    if options.device != "auto":
        command += ["--device", options.device]
    return (
        f"epoch {checkpoint.epoch} of {checkpoint.config.epochs} is on disk; "
        f"continue with: {shlex.join(command)}"
    )


if __name__ == "__main__":
    main()
