"""``crad train``: the recipe, from options to a checkpoint and what it reaches, top to bottom."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from crad.command_line import run_command
from crad.config import Config
from crad.data import check_apart, find_dataset
from crad.data.demo import DEMO_NAMES
from crad.devices import select_device, threads_for
from crad.idle_options import without_effect
from crad.model.products import UNKNOWN
from crad.report.environment import commit
from crad.report.report import report
from crad.report.results import Results, make_results
from crad.report.suspects import list_suspects
from crad.report.suspects_page import write_suspects
from crad.scoring.calibration import warn_if_few
from crad.scoring.evaluation import Evaluation
from crad.scoring.maps import Maps, choose, concatenate
from crad.scoring.metrics import EpochMetrics, better
from crad.scoring.protocols import PROTOCOLS, Protocol, choose_protocols, decision_scores
from crad.scoring.suspects import Suspect, find_suspects
from crad.train_add import add_class
from crad.train_options import TrainOptions, parse_options, settle_backbone
from crad.train_resume import saying_how_to_resume, settle_epochs, stored_run
from crad.train_separate import train_separately
from crad.train_start import begin, progress, step_size
from crad.train_thresholds import cross_calibrate, keep_thresholds, take_checkpoint
from crad.training import processes
from crad.training.checkpoint import ALL_PARTS, Checkpoint
from crad.training.exemplars import Exemplars, has_exemplars
from crad.training.features import map_features
from crad.training.inputs import Inputs, prepare
from crad.training.keeping import kept_note
from crad.training.loop import Training, split_epoch
from crad.training.run_folder import RunFolder
from crad.training.run_record import read_record
from crad.training.schedule import Pace, choose_epochs, describe, warn_if_short
from crad.training.whole import Whole
from crad.words import count
from crad_kernels import backends

_MEASURED_STEPS = 3
_LESS_MEMORY = (
    "lower --image-size, --batch-size, --depth, --expansion, --local.resolution or "
    "--global.resolution"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    run_command(
        lambda: train(arguments),
        again="run the same command again, with --resume if an epoch was finished",
        less_memory=_LESS_MEMORY,
        shared=True,
    )


def train(arguments: Sequence[str] | None = None) -> Results:
    """Train one model for all classes, with ``--separate`` one for each; or ``--add`` a class.

    Args:
        arguments: of a command line; None takes those of the process.

    Raises:
        CradError: what `parse_options` and `train_model` raise.
    """
    options = parse_options(arguments)
    with processes.joined(select_device(options.compute.device)):
        options = settle_backbone(options, arguments)
        if options.adding.add:
            return add_class(options, train_model)
        if options.output.separate:
            return train_separately(options, train_model)
        return train_model(options)


Prepare = Callable[[Config, Checkpoint | None, torch.device], Inputs]


def train_model(
    options: TrainOptions,
    *,
    show: bool = True,
    prepare: Prepare = prepare,
    whole: Whole | None = None,
    base: Checkpoint | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> Results:
    """Train a model or resume its training, measure it, and write all results to a folder.

    A former run in the folder, if it may be replaced, stays until the first checkpoint of this one
    takes its place.

    Args:
        options: all that determines it.
        show: whether to print the table.
        prepare: makes the inputs; another function may keep them for the next run.
        whole: what the run is a part of.
        base: a trained model that a new one starts from; classes without images that are held back
            keep its thresholds.
        now: the clock, in seconds, that ``--minutes`` is by.

    Raises:
        BackboneError: the backbone cannot be had, or cannot take these images.
        CheckpointError: the checkpoint to resume is damaged.
        DataError: the data are not what they should be.
        DeviceError: the device is not there.
        ImageError: an image cannot be read.
        KeyboardInterrupt: the user stopped it; the message says how to resume.
        OutputError: the output folder holds a run already.
        StorageError: a file cannot be written.
        TrainingError: training cannot begin, or failed.
        UsageError: the run to resume has another setting.
    """
    config, run = options.config, options.run
    commit()  # of the code that trains, which may be another before the results are written
    device = select_device(options.compute.device)
    with run.locked(), saying_how_to_resume(options):
        check_apart(run.path, config.data.source)
        stored = stored_run(options, ALL_PARTS, whole)
        run.check_sheets(_class_names(config))
        if stored:  # a run keeps the protocol of its thresholds
            kept = stored.config.decisions.decision_protocol
            config = replace(config, decisions=replace(config.decisions, decision_protocol=kept))
            options = replace(options, config=config)
        if processes.is_main():
            run.remove_leftovers()
        print(_first_line(config, device), flush=True)
        if idle := without_effect(config):
            print(idle, flush=True)

        inputs = prepare(config, stored, device)
        for line in (*(inputs.left_out if show else ()), *inputs.repeated):
            print(line, flush=True)
        options = options.with_bit_depth(inputs.decoding.bit_depth).with_frame(inputs.frame)
        if stored:
            stored = settle_epochs(options, stored)
            options = options.with_epochs(stored.config.training.epochs)
        elif config.training.epochs_chosen:
            options = _with_chosen_epochs(options, inputs, device, now)
        config = options.config
        n_shown = len(inputs.train if inputs.rows is None else inputs.rows)
        warning = None if base else _warn_if_short(config, n_shown)
        for line in filter(None, (warning, _warn_if_few(config, inputs))):
            print(line, flush=True)
        protocols = choose_protocols(config.decisions.protocol)
        decision_protocol = PROTOCOLS[config.decisions.decision_protocol]
        evaluation = Evaluation(inputs.test.samples, inputs.n_train, inputs.truths)

        if stored and processes.is_main():
            replace(stored, config=config).record.write(run.path)
            _keep_exemplars(options, inputs)
        training = begin(options, inputs, stored, device, base)

        def track() -> EpochMetrics:
            maps = map_features(training.model, inputs.test, device)
            metrics = processes.on_main(lambda: evaluation.measure(maps, protocols[0]))
            return {"epoch": training.epoch, **metrics}

        checkpoint, part_of = stored, stored.part_of if stored else ""
        if whole:
            part_of = whole.record.id
        with threads_for(step_size(config, inputs)), progress(training, n_shown) as bar:
            while training.epoch < config.training.epochs:
                started = time.perf_counter()
                loss = training.run_epoch(inputs.train, bar, inputs.rows)
                checkpoint = take_checkpoint(options, inputs, training, checkpoint, device, started)
                checkpoint = replace(checkpoint, part_of=part_of)
                if base and not config.decisions.calibration_folds:
                    checkpoint = keep_thresholds(checkpoint, base)
                if config.decisions.track_best:
                    best = better(checkpoint.best_on_test, track())
                    checkpoint = replace(checkpoint, best_on_test=best)
                if processes.is_main():
                    _save(checkpoint, run, whole, first=stored is None and training.epoch == 1)
                    _keep_exemplars(options, inputs)
                bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
        assert checkpoint is not None  # there is at least one epoch
        training.model.load_state_dict(checkpoint.model)  # of the epoch that is kept
        if config.decisions.calibration_folds and not checkpoint.calibration:
            # A model that a class is added to has learned before.
            epochs = max(each.training.epochs for each in (config, base.config if base else config))
            checkpoint = cross_calibrate(options, inputs, checkpoint, device, epochs)
            if processes.is_main():
                checkpoint.save(run.path)

        suspects, suspect_maps = _find_suspects(training, inputs, decision_protocol, device)

        started = time.perf_counter()
        maps = map_features(training.model, inputs.test, device)

        def measure() -> Results:
            metrics = {each.name: evaluation.measure(maps, each) for each in protocols}
            baselines = {}
            if config.data.source in DEMO_NAMES:
                baselines["nearest_neighbour"] = evaluation.measure(
                    inputs.nearest_neighbour, protocols[0]
                )
            decisions = evaluation.decide(
                maps,
                checkpoint.thresholds,
                config.decisions.false_alarm_rate,
                decision_protocol,
            )
            timing = {
                "features": inputs.seconds,
                "training": checkpoint.seconds,
                "evaluation": time.perf_counter() - started,
            }
            results = make_results(
                metrics,
                checkpoint=checkpoint,
                data=config.data.source,
                notes=[
                    warning,
                    *inputs.notes(),
                    *evaluation.notes(protocols),
                    kept_note(checkpoint),
                ],
                timing=timing,
                device=device,
                decisions=decisions,
                baselines=baselines,
                best_on_test=checkpoint.best_on_test,
                suspects=suspects,
            )
            write_suspects(
                *(run, suspects, suspect_maps, decision_protocol),
                frame=inputs.frame,
                decoding=inputs.decoding,
                colour_scale=checkpoint.colour_scale,
            )
            report(
                *(results, evaluation, maps, decision_protocol, run),
                checkpoint=checkpoint,
                show=show,
            )
            if show and (recognised := _count_recognised(inputs)):
                print(recognised)
            normal = [*inputs.train.samples, *inputs.held_back.samples]
            for line in list_suspects(suspects, len(normal), run.suspects):
                print(line)
            return results

        return processes.on_main(measure)


def _count_recognised(inputs: Inputs) -> str | None:
    """Say of how many test images the model names the class right; None if it has one class."""
    if not inputs.products or not len(inputs.test):
        return None
    names = [*inputs.n_train]
    truth = torch.tensor([names.index(str(each.class_name)) for each in inputs.test.samples])
    found = inputs.products(inputs.test.pooled()[:, :, None, None])
    right, unknown = int((found == truth).sum()), int((found == UNKNOWN).sum())
    return (
        f"products: the class of {right} of {count(len(truth), 'test image')} is recognised, "
        f"{unknown} are of an unknown product"
    )


def _find_suspects(
    training: Training, inputs: Inputs, protocol: Protocol, device: torch.device
) -> tuple[list[Suspect], Maps]:
    """The normal images that may not be normal, the worst first, and their maps."""
    found: list[Suspect] = []
    parts = []
    for each in (inputs.train, inputs.held_back):  # those of the second score higher
        maps = map_features(training.model, each, device)
        scores = decision_scores(maps, each.samples, inputs.frame, protocol)
        at_hand = [one for one in find_suspects(each.samples, scores) if one.sample.path]
        found += at_hand
        if at_hand:  # the maps of no images have no size
            parts.append(choose(maps, [suspect.number for suspect in at_hand]))
    order = sorted(range(len(found)), key=lambda place: -found[place].times)
    return [found[place] for place in order], choose(concatenate(parts), order)


def _class_names(config: Config) -> tuple[str, ...]:
    data = config.data
    return data.classes or processes.on_main(lambda: find_dataset(data.source)).classes


def _save(checkpoint: Checkpoint, run: RunFolder, whole: Whole | None, *, first: bool) -> None:
    """Write the checkpoint; the first one of a run puts it in the place of a former run."""
    if not first:
        checkpoint.save(run.path)
        return
    new = whole if whole and read_record(whole.folder.path) != whole.record else None
    if new:  # first, so that a class whose run is not of this training is known as that
        new.record.write(new.folder.path)
    run.begin(checkpoint)
    if new:
        new.folder.clear()


def _keep_exemplars(options: TrainOptions, inputs: Inputs) -> None:
    """Write the features by which another training can remember the classes, unless it is done."""
    most, folder = options.output.exemplars, options.output.folder
    if most and not inputs.frame.tiling and not has_exemplars(folder, inputs.digests):
        Exemplars.of(inputs, most).write(folder)


def _with_chosen_epochs(
    options: TrainOptions, inputs: Inputs, device: torch.device, now: Callable[[], float]
) -> TrainOptions:
    """Measure a few steps of a model that is thrown away, choose the epochs, and print both."""
    training = begin(options, inputs, None, device)
    batch_size, count = options.config.training.batch_size, processes.count()
    every = torch.arange(len(inputs.train))
    few = every[: _MEASURED_STEPS * batch_size]
    n_few, n_steps = (len(split_epoch(rows, batch_size, count)) for rows in (few, every))
    with threads_for(step_size(options.config, inputs)), tqdm(disable=True) as bar:
        training.run_epoch(inputs.train, bar, few[:batch_size])  # the first step is slower
        started = now()
        training.run_epoch(inputs.train, bar, few)
        step = (now() - started) / n_few
        started = now()
        take_checkpoint(options, inputs, training, None, device, time.perf_counter())
        pace = Pace(n_steps, step, now() - started)
    minutes = options.config.training.minutes
    if minutes:  # k folds of (k - 1) / k of the images, and all of them, are k trainings
        minutes /= options.config.decisions.calibration_folds or 1
    epochs = processes.on_main(lambda: choose_epochs(pace, len(inputs.train), minutes))
    print(describe(epochs, pace), flush=True)
    return options.with_epochs(epochs)


def _warn_if_short(config: Config, n_images: int) -> str | None:
    training = config.training
    steps = len(split_epoch(torch.arange(n_images), training.batch_size, processes.count()))
    return warn_if_short(training.epochs, steps, training.minutes)


def _warn_if_few(config: Config, inputs: Inputs) -> str | None:
    """Say whether a class has too few normal images for a threshold that promises anything."""
    held = inputs.train if config.decisions.calibration_folds else inputs.held_back
    numbers = Counter(str(each.class_name) for each in held.samples)
    normal = [*inputs.train.samples, *inputs.held_back.samples]
    in_all = Counter(str(each.class_name) for each in normal)
    return warn_if_few(numbers, in_all, config.decisions.false_alarm_rate)


def _first_line(config: Config, device: torch.device) -> str:
    threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else ""
    axes = max(len(config.model.local_resolution), len(config.model.global_resolution))
    kernel = next(name for name, each in backends().items() if each.takes(device, axes))
    if (count := processes.count()) > 1:
        threads += f" x {count} processes"
    classes = f" | classes {', '.join(config.data.classes)}" if config.data.classes else ""
    return (
        f"device {device.type}{threads} | kernels {kernel} | backbone {config.model.backbone} | "
        f"data {config.data.source}{classes}"
    )


if __name__ == "__main__":
    main()
