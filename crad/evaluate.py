"""``crad evaluate``: measure a trained detector on the test images of a data set."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from crad.command_line import InferenceOptions, make_command
from crad.data import check_apart, full_source
from crad.data.bad_images import BadImages
from crad.data.decoding import MAX_MEGAPIXELS
from crad.data.samples import has_more_note
from crad.data.several import find_datasets
from crad.detector import Choices, Detector, from_checkpoint
from crad.devices import select_device
from crad.errors import DataError, OutputError
from crad.mapping import map_test_images
from crad.report.report import report
from crad.report.results import Results, make_results
from crad.scoring.evaluation import Evaluation, Truths
from crad.scoring.protocols import ProtocolChoice, choose_protocols
from crad.separate_detector import from_separate
from crad.shared_options import BitDepth, FeatureCacheOption, MaxMegapixels, SkipBad
from crad.training import processes
from crad.training.checkpoint import Checkpoint, read_checkpoint
from crad.training.inputs import open_cache
from crad.training.run_folder import RunFolder
from crad.training.separate_run import find_separate, read_separate


@dataclass(frozen=True)
class EvaluateOptions:
    """What the evaluation command takes."""

    checkpoint: Path
    """A checkpoint, or the output folder of a training run."""
    data: str | None = None
    """A folder or a generated set, as for training. Default: the training data."""
    classes: tuple[str, ...] = ()
    """Evaluate these classes only. Default: all; without --data, those of the training run."""
    protocol: tuple[ProtocolChoice, ...] = ()
    """How test images are scored, with a table for each; results.json reports the first, with the
    others beside it. Default: those of the training run."""
    output: Path | None = None
    """Folder to write results.json, scores.csv, report.html with pictures, and sheets into."""
    overwrite: bool = False
    """Replace an earlier measurement in --output."""
    skip_bad: SkipBad = False
    max_megapixels: MaxMegapixels = MAX_MEGAPIXELS
    bit_depth: BitDepth = None
    feature_cache: FeatureCacheOption = None
    compute: InferenceOptions = field(default_factory=InferenceOptions)


def evaluate(options: EvaluateOptions) -> Results:
    """Measure a trained detector on a data set and print the table.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: the data are not what they should be, or not known.
        DeviceError: the device is not there.
        ImageError: an image or mask cannot be read.
        OutputError: the output folder holds results already, or a folder to write into lies among
            the images.
        StorageError: a file cannot be written.
        UsageError: an option is out of range.
    """
    options.compute.check()
    device = select_device(options.compute.device)
    run = RunFolder(options.output) if options.output else None
    with processes.joined(device), run.locked() if run else nullcontext():
        if run:
            _check_output(run, overwrite=options.overwrite)
        return _evaluate(options, run, device)


def _check_output(run: RunFolder, *, overwrite: bool) -> None:
    run.check_foreign()
    if not overwrite and (found := run.measurements()):
        raise OutputError(
            f"output: '{found[0]}' exists already; --overwrite replaces it, --output DIR chooses "
            "another folder"
        )


def _load(options: EvaluateOptions, device: torch.device) -> tuple[Checkpoint, Detector]:
    """The detector, and what is to be known of it beside its models."""
    precision = options.compute.precision
    choices = Choices(options.bit_depth, options.max_megapixels)
    if record := find_separate(options.checkpoint):
        run = read_separate(options.checkpoint, record)
        separate = from_separate(run, device, precision, choices)
        return separate.checkpoint, separate
    checkpoint = read_checkpoint(options.checkpoint)
    return checkpoint, from_checkpoint(checkpoint, device, precision, choices)


def _evaluate(options: EvaluateOptions, run: RunFolder | None, device: torch.device) -> Results:
    checkpoint, detector = _load(options, device)
    trained = checkpoint.config
    protocols = choose_protocols(options.protocol or trained.decisions.protocol)
    if options.compute.compile:
        detector.compile()
    source = full_source(options.data) if options.data else trained.data.source
    if not source:
        raise DataError(
            f"data: '{options.checkpoint}' does not record where its training data are; give a "
            "data set with --data PATH"
        )
    classes = options.classes or (() if options.data else trained.data.classes)
    if run:
        check_apart(run.path, source)
    cache = open_cache(options.feature_cache, source)
    added = () if options.data else trained.data.added
    dataset = processes.on_main(
        lambda: find_datasets(source, added, classes=classes, need_train=False)
    )
    if run:
        run.check_sheets(dataset.classes)

    started = time.perf_counter()
    bad = BadImages(skip=options.skip_bad, quiet=not processes.is_main())
    truths = Truths(detector.frame, bad, detector.decoding)
    if processes.is_main():  # a bad mask is found before the images are computed, not after
        truths.read(dataset.test, protocols[0])
    samples, maps = map_test_images(detector, dataset.test, options.compute.batch_size, bad, cache)
    if cache:
        print(cache.report(), flush=True)
    names = [sample.class_name for sample in samples]
    maps = detector.interest.apply(maps, samples, names)
    bad.share(processes.gather)
    if dataset.test and not samples:
        raise DataError(f"test: none of the images in '{dataset.root}' can be read; replace them")
    if more := has_more_note(samples, lambda path: path.relative_to(dataset.root)):
        print(more)
    n_train = {name: checkpoint.n_train.get(name, 0) for name in dataset.classes}
    evaluation = Evaluation(samples, n_train, truths)

    def measure() -> Results:
        results = make_results(
            {protocol.name: evaluation.measure(maps, protocol) for protocol in protocols},
            checkpoint=checkpoint,
            data=source,
            notes=[*dataset.left_out, bad.note(), *evaluation.notes(protocols)],
            timing={"evaluation": time.perf_counter() - started},
            device=device,
            decisions=evaluation.decide(
                maps,
                checkpoint.thresholds,
                trained.decisions.false_alarm_rate,
                detector.protocol,
            ),
        )
        report(results, evaluation, maps, detector.protocol, run, checkpoint=checkpoint)
        return results

    return processes.on_main(measure)


main = make_command(
    EvaluateOptions,
    evaluate,
    "evaluate",
    "Measure a trained detector on the test images of a data set.",
    shared=True,
)

if __name__ == "__main__":
    main()
