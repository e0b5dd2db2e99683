"""``crad train``: the recipe, from options to a checkpoint and what it reaches, top to bottom."""

import math
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm

from crad.command_line import run_command
from crad.config import Config, DecisionConfig, changed_setting, without_effect
from crad.data import check_apart, find_dataset
from crad.data.demo import DEMO_NAMES
from crad.data.samples import Sample
from crad.detector import create_model, multiply_adds
from crad.devices import compile_network, select_device, select_precision, threads_for
from crad.errors import CheckpointError, OutputError, TrainingError, UsageError
from crad.model.products import UNKNOWN
from crad.report.environment import commit
from crad.report.heat_maps import colour_scale
from crad.report.report import report
from crad.report.results import Results, combine_results, make_results, write_results
from crad.report.summary import summary
from crad.report.tables import lay_out, printable
from crad.scoring.calibration import (
    Calibration,
    Thresholds,
    calibrate,
    check_share,
    decision_scores,
    draw_folds,
    scores_and_peaks,
)
from crad.scoring.evaluation import Evaluation
from crad.scoring.interest import mask_files
from crad.scoring.metrics import EpochMetrics, better
from crad.scoring.protocols import PROTOCOLS, Protocol, choose_protocols
from crad.scoring.suspects import Suspect, find_suspects
from crad.train_options import TrainOptions, parse_options, settle_backbone
from crad.training import processes
from crad.training.checkpoint import ALL_PARTS, Checkpoint, read_checkpoint
from crad.training.features import map_features
from crad.training.inputs import Inputs, bit_depth_of, prepare
from crad.training.loop import Training, split_epoch
from crad.training.run_folder import RunFolder
from crad.training.run_record import RunRecord, read_record
from crad.training.schedule import Pace, choose_epochs, describe
from crad.words import count
from crad_kernels import backends

_SCALE_IMAGES = 64  # training images whose maps set the colour scale
_MEASURED_STEPS = 3
_SHOWN_SUSPECTS = 20
_LESS_MEMORY = (
    "lower --image-size, --batch-size, --depth, --expansion, --local.resolution or "
    "--global.resolution"
)
_LARGE_PARTS = {  # and the option that each is lowered with
    "the fusion network": "--depth or --expansion",
    "the local memory": "--local.resolution",
    "the global memory": "--global.resolution",
}
_BEGIN_AGAIN = "no epoch was finished; start again with the same command"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    run_command(
        lambda: train(arguments),
        again="run the same command again, with --resume if an epoch was finished",
        less_memory=_LESS_MEMORY,
        shared=True,
    )


def train(arguments: Sequence[str] | None = None) -> Results:
    """Train one model for all classes, or with ``--separate`` one for each.

    Args:
        arguments: of a command line; None takes those of the process.

    Raises:
        CradError: what `parse_options` and `train_model` raise.
    """
    options = parse_options(arguments)
    with processes.joined(select_device(options.compute.device)):
        options = settle_backbone(options, arguments)
        return train_separately(options) if options.output.separate else train_model(options)


@dataclass(frozen=True)
class Whole:
    """The separate training that the run of a class is a part of."""

    folder: RunFolder
    record: RunRecord

    def has(self, stored: Checkpoint) -> bool:
        """Whether a run is a part of this training; older versions did not store that."""
        if stored.part_of is None:
            return not self.record.replaces
        return stored.part_of == self.record.id


def train_separately(options: TrainOptions) -> Results:
    """Train a model on each class alone, and measure all of them together.

    The run of a class is an ordinary one, in the folder of its name in the output folder. A class
    that is finished is not trained again when the whole is resumed.

    Raises:
        CradError: what `train_model` raises.
        KeyboardInterrupt: the user stopped it; the message says how to resume.
    """
    output, data, folder = options.output, options.config.data, options.run
    with folder.locked():
        folder.check(overwrite=output.overwrite, resume=output.resume, separate=True)
        dataset = processes.on_main(lambda: find_dataset(data.source, classes=data.classes))
        names = dataset.classes
        if not output.resume:
            check_share(dataset, options.config.decisions.calibrates)
        whole = Whole(folder, processes.on_main(lambda: _separate_record(options, names)))
        roi, ignored = (
            processes.on_main(partial(mask_files, option, path, names)) if path else {}
            for option, path in (("--roi", data.roi), ("--ignore", data.ignored))
        )
        runs = [
            replace(
                options,
                config=replace(
                    options.config,
                    data=replace(
                        data, classes=(name,), roi=roi.get(name), ignored=ignored.get(name)
                    ),
                ),
                output=replace(output, folder=folder.of_class(name), separate=False),
            )
            for name in names
        ]
        # A folder in use is found before hours of training.
        stored = [stored_run(run, parts=(), whole=whole) for run in runs]
        begun = next(filter(None, stored), None)
        known = begun.config.model.bit_depth if begun else options.config.model.bit_depth
        bit_depth = known or bit_depth_of(dataset, options.config)
        runs = [run.with_bit_depth(bit_depth) for run in runs]

        for line in dataset.left_out:
            print(line, flush=True)
        parts: list[Results] = []
        try:
            for number, (name, run, former) in enumerate(zip(names, runs, stored, strict=True), 1):
                done = finished_results(run, former, [name])
                note = " (finished)" if done else ""
                print(f"class {number} of {len(names)}: {name}{note}", flush=True)
                parts.append(done or train_model(run, show=False, whole=whole))
        except KeyboardInterrupt as interrupt:
            way_on = (
                f"{len(parts)} of {len(names)} classes are finished; continue with: "
                f"{shlex.join(_resuming(options))} --separate"
            )
            on_disk = read_record(folder.path) == whole.record
            raise KeyboardInterrupt(way_on if on_disk else _BEGIN_AGAIN) from interrupt

        results = combine_results(parts)
        if processes.is_main():
            write_results(folder.results, results)
            replace(whole.record, replaces=False).write(folder.path)
        print(f"{summary(results)}\nwritten to {folder.path}")
        return results


def _separate_record(options: TrainOptions, names: tuple[str, ...]) -> RunRecord:
    """The record of the run to resume, or of a new one."""
    output, source = options.output, options.config.data.source
    new = RunRecord(source, secrets.token_hex(8), names, replaces=output.overwrite)
    former = read_record(options.run.path) if output.resume else None
    return replace(new, id=former.id, replaces=former.replaces) if former else new


Prepare = Callable[[Config, Checkpoint | None, torch.device], Inputs]


def train_model(
    options: TrainOptions,
    *,
    show: bool = True,
    prepare: Prepare = prepare,
    whole: Whole | None = None,
) -> Results:
    """Train a model or resume its training, measure it, and write all results to a folder.

    A former run in the folder, if it may be replaced, stays until the first checkpoint of this one
    takes its place.

    Args:
        options: all that determines it.
        show: whether to print the table.
        prepare: makes the inputs; another function may keep them for the next run.
        whole: what the run is a part of.

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
    with run.locked(), _saying_how_to_resume(options):
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
            options = options.with_epochs(stored.config.training.epochs)
        elif config.training.epochs_chosen:
            options = _with_chosen_epochs(options, inputs, device)
        config = options.config
        protocols = choose_protocols(config.decisions.protocol)
        decision_protocol = PROTOCOLS[config.decisions.decision_protocol]
        evaluation = Evaluation(inputs.test.samples, inputs.n_train, inputs.truths)

        if stored and processes.is_main():
            RunRecord(config.data.source).write(run.path)
        training = _begin(options, inputs, stored, device)

        def track() -> EpochMetrics:
            maps = map_features(training.model, inputs.test, device)
            metrics = processes.on_main(lambda: evaluation.measure(maps, protocols[0]))
            return {"epoch": training.epoch, **metrics}

        checkpoint, part_of = stored, stored.part_of if stored else ""
        if whole:
            part_of = whole.record.id
        with threads_for(_step_size(config, inputs)), _progress(training, len(inputs.train)) as bar:
            while training.epoch < config.training.epochs:
                started = time.perf_counter()
                loss = training.run_epoch(inputs.train, bar)
                checkpoint = _take_checkpoint(
                    options, inputs, training, checkpoint, device, started
                )
                checkpoint = replace(checkpoint, part_of=part_of)
                if config.decisions.track_best:
                    best = better(checkpoint.best_on_test, track())
                    checkpoint = replace(checkpoint, best_on_test=best)
                if processes.is_main():
                    _save(checkpoint, run, whole, first=stored is None and training.epoch == 1)
                bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
        assert checkpoint is not None  # there is at least one epoch
        if config.decisions.calibration_folds and not checkpoint.calibration:
            checkpoint = _cross_calibrate(options, inputs, checkpoint, device)
            if processes.is_main():
                checkpoint.save(run.path)

        suspects = _find_suspects(training, inputs, decision_protocol, device)

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
                notes=[*inputs.notes(), *evaluation.notes(protocols)],
                timing=timing,
                device=device,
                decisions=decisions,
                baselines=baselines,
                best_on_test=checkpoint.best_on_test,
            )
            report(
                *(results, evaluation, maps, decision_protocol, run),
                checkpoint=checkpoint,
                show=show,
            )
            if show and (recognised := _count_recognised(inputs)):
                print(recognised)
            for line in _list_suspects(suspects, len(inputs.train) + len(inputs.held_back)):
                print(line)
            return results

        return processes.on_main(measure)


def _count_recognised(inputs: Inputs) -> str | None:
    """Say of how many test images the model names the class right; None if it has one class."""
    if not inputs.products or not len(inputs.test):
        return None
    names = [*inputs.n_train]
    truth = torch.tensor([names.index(str(each.class_name)) for each in inputs.test.samples])
    found = inputs.products(inputs.test.channels_first())
    right, unknown = int((found == truth).sum()), int((found == UNKNOWN).sum())
    return (
        f"products: the class of {right} of {count(len(truth), 'test image')} is recognised, "
        f"{unknown} are of an unknown product"
    )


def _find_suspects(
    training: Training, inputs: Inputs, protocol: Protocol, device: torch.device
) -> list[Suspect]:
    """The normal images that may not be normal, worst first."""
    found = []
    for each in (inputs.train, inputs.held_back):  # those of the second score higher
        maps = map_features(training.model, each, device)
        scores = decision_scores(maps, each.samples, inputs.frame, protocol)
        found += find_suspects(each.samples, scores)
    return sorted(found, key=lambda suspect: -suspect.times)


def _list_suspects(suspects: Sequence[Suspect], n_images: int) -> Iterator[str]:
    """Lay out the normal images that may not be normal."""
    if not suspects:
        return
    score = "scores" if len(suspects) == 1 else "score"
    yield (
        f"suspicious: {len(suspects)} of {count(n_images, 'normal image')} {score} far above the "
        "others of the class; look at them, remove those that are defective and train again, or "
        "give the share that may be defective with --contamination"
    )
    rows = [["image", "score", "times the median"]]
    for each in suspects[:_SHOWN_SUSPECTS]:
        image = printable(str(each.sample.path))
        rows.append([image, f"{each.score:.4g}", f"{each.times:.2f}"])
    yield from lay_out(rows)
    if len(suspects) > _SHOWN_SUSPECTS:
        yield f"and {len(suspects) - _SHOWN_SUSPECTS} more"


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


def stored_run(
    options: TrainOptions, parts: Sequence[str], whole: Whole | None = None
) -> Checkpoint | None:
    """Read the checkpoint that a run resumes from; None for a new run.

    Args:
        options: of the run.
        parts: as for `crad.training.checkpoint.read_checkpoint`.
        whole: what the run is a part of.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        OutputError: the folder cannot be used.
        UsageError: the run there has another setting.
    """
    output, run = options.output, options.run
    run.check(overwrite=output.overwrite, resume=output.resume, separate=output.separate)
    if not (output.resume and run.checkpoint.exists()):
        return None
    stored = read_checkpoint(run.checkpoint, parts)
    if whole and not whole.has(stored):
        if whole.record.replaces:
            return None
        raise OutputError(
            f"output: '{run.path}' holds a run that is not a part of the one in "
            f"'{whole.folder.path}'; move it away, or choose another folder with --output DIR"
        )
    changed = changed_setting(options.config, stored.config)
    precision = options.compute.precision
    if not changed and precision not in ("auto", stored.precision):
        changed = "--precision", precision, stored.precision
    if changed:
        name, value, former = changed
        raise UsageError(
            f"{name}: the run in '{run.path}' was started with {former}, not {value}; leave {name} "
            "out to resume it, or start a new run in another --output"
        )
    if "optimizer" in parts and not stored.optimizer:
        raise CheckpointError(
            f"checkpoint: '{run.checkpoint}' was stripped or converted, so training cannot be "
            "resumed; start again with --overwrite or in another --output"
        )
    return stored


def finished_results(
    options: TrainOptions, stored: Checkpoint | None, classes: Sequence[str]
) -> Results | None:
    """The results of a run to resume, if it is complete.

    An evaluation may have replaced them; its results lack some entries of a training run.

    Args:
        options: of the run.
        stored: its `stored_run`.
        classes: of the run.
    """
    results, config = options.run.read_results(), options.config
    epochs = stored.config.training.epochs if stored else None
    if not results or not stored or stored.epoch != epochs:
        return None
    protocols = [protocol.name for protocol in choose_protocols(config.decisions.protocol)]
    try:
        found = (
            results["data"],
            results["epoch"],
            [*results["classes"]],
            [results["protocol"], *results.get("other_protocols", ())],
        )
        is_of_training = "training" in results["timing"]
    except (AttributeError, KeyError, TypeError):
        return None  # they are something else
    expected = (config.data.source, epochs, [*classes], protocols)
    return cast(Results, results) if is_of_training and found == expected else None


def _begin(
    options: TrainOptions, inputs: Inputs, stored: Checkpoint | None, device: torch.device
) -> Training:
    """Make the model and what trains it, as new or as they were after an epoch."""
    config = options.config
    least = min(config.training.batch_size, len(inputs.train))
    if least < processes.count():
        raise TrainingError(
            f"train: a batch of {least} images is too small for {processes.count()} processes; "
            "start fewer processes, raise --batch-size, or add training images"
        )
    precision = (
        stored.precision
        if stored
        else select_precision(options.compute.precision, device, _step_size(config, inputs))
    )
    _check_memory(config, inputs, device)
    torch.manual_seed(config.training.seed)
    model = create_model(config, inputs.feature_size)
    if options.compute.compile:
        compile_network(model.fusion, device)
    AcceleratorState._reset_state()  # of a model before, which may have another precision
    mixed = "no" if precision == "fp32" else precision
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
    training = Training(model, config.training, accelerator)
    if stored:
        with stored.fitting():
            model.load_state_dict(stored.model)
            training.restore(stored.epoch, stored.optimizer, stored.random)
    return training


def _with_chosen_epochs(
    options: TrainOptions, inputs: Inputs, device: torch.device
) -> TrainOptions:
    """Measure a few steps of a model that is thrown away, choose the epochs, and print both."""
    training = _begin(options, inputs, None, device)
    batch_size, count = options.config.training.batch_size, processes.count()
    few = inputs.train.some(_MEASURED_STEPS * batch_size)
    n_few, n_steps = (
        len(split_epoch(torch.arange(len(images)), batch_size, count))
        for images in (few, inputs.train)
    )
    with threads_for(_step_size(options.config, inputs)), tqdm(disable=True) as bar:
        training.run_epoch(few.some(batch_size), bar)  # the first step is slower
        started = time.perf_counter()
        training.run_epoch(few, bar)
        step = (time.perf_counter() - started) / n_few
        started = time.perf_counter()
        _take_checkpoint(options, inputs, training, None, device, started)
        pace = Pace(n_steps, step, time.perf_counter() - started)
    minutes = options.config.training.minutes
    if minutes:  # k folds of (k - 1) / k of the images, and all of them, are k trainings
        minutes /= options.config.decisions.calibration_folds or 1
    epochs = processes.on_main(lambda: choose_epochs(pace, len(inputs.train), minutes))
    print(describe(epochs, pace), flush=True)
    return options.with_epochs(epochs)


def _check_memory(config: Config, inputs: Inputs, device: torch.device) -> None:
    """Refuse a model that memory cannot hold, before the system ends the process."""
    model, (channels, height, width) = config.model, inputs.feature_size
    local = math.prod(model.local_resolution) * channels * (model.local_memory != "none")
    global_ = math.prod(model.global_resolution) * channels * height * width
    copies = 4 if device.type == "cpu" else 1  # with the gradient and the optimizer's two
    numbers = (
        multiply_adds(model, inputs.feature_size) / (height * width),
        local,
        global_ * (model.global_memory != "none"),
    )
    processes.check_memory(
        (f"{name} takes", 4 * copies * number, option)
        for number, (name, option) in zip(numbers, _LARGE_PARTS.items(), strict=True)
    )


def _take_checkpoint(
    options: TrainOptions,
    inputs: Inputs,
    training: Training,
    former: Checkpoint | None,
    device: torch.device,
    started: float,
) -> Checkpoint:
    """The run after an epoch, with thresholds and the colour scale of heat maps."""
    config, model = options.config, training.model
    protocol = PROTOCOLS[config.decisions.decision_protocol]
    shown = inputs.train.some(_SCALE_IMAGES)
    maps = protocol.score_each(
        map_features(model, shown, device), inputs.frame, [sample.size for sample in shown.samples]
    )
    scored = scores_and_peaks(
        map_features(model, inputs.held_back, device),
        inputs.held_back.samples,
        inputs.frame,
        protocol,
    )
    calibration, pixels = _calibrate(inputs.held_back.samples, scored, config.decisions)
    spent = time.perf_counter() - started
    return Checkpoint(
        config=replace(config, model=replace(config.model, masked=bool(inputs.interest.masks))),
        epoch=training.epoch,
        feature_size=inputs.feature_size,
        colour_scale=colour_scale(scored_map for scored_map, _ in maps),
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


def _cross_calibrate(
    options: TrainOptions, inputs: Inputs, checkpoint: Checkpoint, device: torch.device
) -> Checkpoint:
    """Set thresholds with all training images, each scored by a model that has not seen it.

    Cross-conformal prediction: Vovk, "Cross-conformal predictors", Annals of Mathematics and
    Artificial Intelligence 2015. The model that predicts has seen a fold more than those of the
    scores, so that false alarms are rarer than promised, if anything.
    """
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
        rows[fold] = False
        training = _begin(options, inputs, None, device)
        kept = rows.nonzero()[:, 0]
        with (
            threads_for(_step_size(config, inputs)),
            _progress(training, len(kept), f"fold {number} of {len(folds)}") as bar,
        ):
            while training.epoch < config.training.epochs:
                training.run_epoch(train, bar, kept)
        maps = map_features(training.model, train, device, fold)
        samples = [train.samples[row] for row in fold]
        found = scores_and_peaks(maps, samples, inputs.frame, protocol)
        scored.update(zip(fold, found, strict=True))
    ordered = [scored[row] for row in range(len(train))]
    calibration, pixels = _calibrate(train.samples, ordered, decisions)
    return replace(
        checkpoint,
        calibration=calibration,
        thresholds=calibration.thresholds(decisions.false_alarm_rate),
        pixel_thresholds=pixels,
        seconds=checkpoint.seconds + time.perf_counter() - started,
    )


def _step_size(config: Config, inputs: Inputs) -> float:
    """Multiply-adds of the fusion network in a training step, about three times those forward."""
    return 3 * config.training.batch_size * multiply_adds(config.model, inputs.feature_size)


@contextmanager
def _progress(training: Training, n_images: int, what: str = "") -> Iterator["tqdm[None]"]:
    """Progress bar over all steps of a training, starting at the current one."""
    config = training.config
    order = torch.arange(n_images)
    steps = len(split_epoch(order, config.batch_size, processes.count()))
    done, total = training.epoch * steps, config.epochs * steps
    hidden = not processes.is_main()
    with tqdm(
        desc=what or None,
        total=total,
        initial=done,
        unit="step",
        mininterval=0.5,
        disable=hidden,
    ) as bar:
        yield bar


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


@contextmanager
def _saying_how_to_resume(options: TrainOptions) -> Iterator[None]:
    """Give Ctrl-C in the block a message that says what is on disk and how to resume."""
    former = None if options.output.resume else options.run.written()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        begun = options.run.written() != former
        way_on = _how_to_resume(options) if begun else _BEGIN_AGAIN
        raise KeyboardInterrupt(way_on) from interrupt


def _how_to_resume(options: TrainOptions) -> str:
    try:
        checkpoint = read_checkpoint(options.run.checkpoint, parts=())
    except CheckpointError:
        return _BEGIN_AGAIN
    epochs = checkpoint.config.training.epochs
    command = shlex.join(_resuming(options))
    return f"epoch {checkpoint.epoch} of {epochs} is on disk; continue with: {command}"


def _resuming(options: TrainOptions) -> list[str]:
    """The command that resumes a run."""
    command = [*processes.start_command(), "crad", "train"]
    command += ["--resume", "--output", str(options.output.folder)]
    if options.compute.compile:
        command.append("--compile")
    if options.compute.device != "auto":
        command += ["--device", options.compute.device]
    if options.config.data.feature_cache:
        command += ["--feature-cache", str(options.config.data.feature_cache)]
    return command


if __name__ == "__main__":
    main()
