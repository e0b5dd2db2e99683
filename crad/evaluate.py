"""``crad evaluate``: measure a trained detector on the test images of a data set."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from crad.command_line import InferenceOptions, make_command
from crad.config import BitDepth, FeatureCacheOption, MaxMegapixels, SkipBad
from crad.data import check_apart, full_source
from crad.data.bad_images import BadImages
from crad.data.decoding import MAX_MEGAPIXELS
from crad.data.samples import Sample, has_more_note
from crad.data.several import find_datasets
from crad.detector import Detector, from_checkpoint
from crad.devices import compile_network, select_device
from crad.errors import DataError, OutputError
from crad.report.report import report
from crad.report.results import Results, make_results
from crad.scoring.evaluation import Evaluation, Truths
from crad.scoring.protocols import ProtocolChoice, choose_protocols
from crad.training import processes
from crad.training.checkpoint import read_checkpoint
from crad.training.feature_cache import FeatureCache
from crad.training.features import extract
from crad.training.inputs import open_cache
from crad.training.run_folder import RunFolder


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


def _evaluate(options: EvaluateOptions, run: RunFolder | None, device: torch.device) -> Results:
    checkpoint = read_checkpoint(options.checkpoint)
    trained = checkpoint.config
    protocols = choose_protocols(options.protocol or trained.decisions.protocol)
    detector = from_checkpoint(
        checkpoint,
        device,
        options.compute.precision,
        bit_depth=options.bit_depth,
        max_megapixels=options.max_megapixels,
    )
    if options.compute.compile:
        compile_network(detector.model.fusion, device)
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
    if cache:
        samples, maps = _map_features(
            detector, dataset.test, options.compute.batch_size, bad, cache
        )
        print(cache.report(), flush=True)
    else:
        samples, maps = _map_images(detector, dataset.test, options.compute.batch_size, bad)
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


def _map_features(
    detector: Detector,
    samples: Sequence[Sample],
    batch_size: int,
    bad: BadImages,
    cache: FeatureCache,
) -> tuple[list[Sample], Tensor]:
    """As `_map_images`, with features that the cache has, or keeps for other runs."""
    with detector.explaining():
        features = extract(
            *(detector.backbone, samples, detector.frame),
            device=detector.device,
            skip=bad,
            cache=cache,
            decoding=detector.decoding,
        )
    rows = processes.share(range(len(features)), batch_size, processes.rank(), processes.count())
    maps = [torch.empty(0, *detector.model.feature_size[1:], device=detector.device)]
    for start in range(0, len(rows), batch_size):
        batch = features.batch(torch.tensor(rows[start : start + batch_size]), detector.device)
        maps.append(detector.map_features(batch))
    return features.samples, processes.gather_rows(rows, torch.cat(maps))[1]


def _map_images(
    detector: Detector, samples: Sequence[Sample], batch_size: int, bad: BadImages
) -> tuple[list[Sample], Tensor]:
    """The images that can be read, with maps ``(M, H, W)``; each process makes some batches."""
    mine = processes.share(range(len(samples)), batch_size, processes.rank(), processes.count())
    numbers = {samples[number].path: number for number in mine}
    found: dict[int, Sample] = {}
    maps = [torch.empty(0, *detector.model.feature_size[1:], device=detector.device)]
    hidden = not processes.is_main()
    with tqdm(total=len(mine), unit="image", leave=False, disable=hidden) as bar:
        for batch, anomaly_maps in detector.map_images(
            [samples[number] for number in mine], batch_size=batch_size, skip=bad
        ):
            found.update({numbers[sample.path]: sample for sample in batch.samples})
            maps.append(anomaly_maps)
            bar.update(len(batch.samples))
    kept, together = processes.gather_rows([*found], torch.cat(maps))
    everywhere = {number: each for part in processes.gather(found) for number, each in part.items()}
    return [everywhere[number] for number in kept], together


main = make_command(
    EvaluateOptions,
    evaluate,
    "evaluate",
    "Measure a trained detector on the test images of a data set.",
    shared=True,
)

if __name__ == "__main__":
    main()
