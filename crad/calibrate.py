"""``crad calibrate``: set the thresholds of a trained detector anew, from new good images."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from tqdm import tqdm
from tyro.conf import arg

from crad.command_line import InferenceOptions, make_command
from crad.data import check_outside_classes
from crad.data.bad_images import BadImages
from crad.data.decoding import MAX_MEGAPIXELS
from crad.data.inputs import find_good
from crad.detector import Choices, Detector, from_checkpoint
from crad.devices import select_device
from crad.errors import DataError, OutputError
from crad.files import full_path
from crad.outputs import Output, check_outputs
from crad.report.tables import lay_out, printable
from crad.scoring.calibration import Calibration, Thresholds, calibrate, promise
from crad.scoring.drift import Drift
from crad.scoring.prediction import Prediction
from crad.separate_detector import from_separate
from crad.shared_options import BitDepth, MaxMegapixels, SkipBad
from crad.training.checkpoint import (
    ALL_PARTS,
    Checkpoint,
    checkpoint_path,
    is_checkpoint,
    read_checkpoint,
)
from crad.training.run_folder import RunFolder
from crad.training.run_record import RunRecord
from crad.training.separate_run import SeparateRun, find_separate, read_separate
from crad.words import count, enumerate_some


@dataclass(frozen=True)
class CalibrateOptions:
    """What the calibration command takes."""

    checkpoint: Path
    """A checkpoint, or the output folder of a training run."""
    good: Path
    """A folder of new good images, searched with its sub-folders. The model must not have been
    trained on them."""
    class_: Annotated[str | None, arg(name="class")] = None
    """The class of all images. Default: a model of several classes recognises that of each
    image."""
    output: Path | None = None
    """Write the checkpoint with the new thresholds to this file; those of a separate run, to this
    folder. Default: write nothing."""
    overwrite: bool = False
    """Replace --output, which may be the checkpoint itself."""
    false_alarm_rate: float | None = None
    """Share of normal images that may be taken for defective. Default: that of training."""
    contamination: float = 0.0
    """Share of the new images that may be defective after all: as many of them, with the highest
    scores, set no threshold."""
    skip_bad: SkipBad = False
    max_megapixels: MaxMegapixels = MAX_MEGAPIXELS
    bit_depth: BitDepth = None
    compute: InferenceOptions = field(default_factory=InferenceOptions)


def calibrate_again(options: CalibrateOptions) -> Checkpoint:
    """Score new good images, set thresholds from them, and say how far scores have drifted.

    Classes without new images keep their thresholds.

    Returns:
        The checkpoint with the new thresholds, which is written if an output is named.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: there are no images, or none whose class is known.
        DeviceError: the device is not there.
        ImageError: an image cannot be read.
        OutputError: the new file would replace another one.
        StorageError: the file cannot be written.
        UsageError: an option is out of range, or the model has no such class.
    """
    options.compute.check()
    images = find_good(options.good)
    with _locked_output(options):
        _check_output(options, images)
        return _calibrate(options, images)


def _calibrate(options: CalibrateOptions, images: Sequence[Path]) -> Checkpoint:
    """As `calibrate_again`, once the output may be written."""
    run = _read_separate(options)
    stored = run.merged() if run else read_checkpoint(options.checkpoint, ALL_PARTS)
    rate = options.false_alarm_rate
    if rate is None:
        rate = stored.config.decisions.false_alarm_rate
    decisions = replace(stored.config.decisions, false_alarm_rate=rate)
    stated = replace(decisions, contamination=options.contamination)
    replace(stored.config, decisions=stated).check_ranges()
    device, precision = select_device(options.compute.device), options.compute.precision
    make = partial(from_separate, run) if run else partial(from_checkpoint, stored)
    detector: Detector = make(device, precision, Choices(options.bit_depth, options.max_megapixels))
    bad = BadImages(skip=options.skip_bad)
    scored, peaks = zip(*_score(detector, images, options, bad), strict=True)
    new = calibrate(scored, [each.score for each in scored], options.contamination)
    pixels = calibrate(scored, peaks, options.contamination).thresholds(
        decisions.pixel_false_alarm_rate
    )
    calibration = Calibration(stored.calibration | new)
    kept = {name: each for name, each in stored.thresholds.items() if name not in calibration}
    thresholds = Thresholds(kept | calibration.thresholds(rate))
    found = replace(
        stored,
        config=replace(stored.config, decisions=decisions),
        calibration=calibration,
        thresholds=thresholds,
        pixel_thresholds=Thresholds(stored.pixel_thresholds | pixels),
    )
    for line in _report(stored, found, scored):
        print(line)
    if n_left_out := len(scored) - sum(map(len, new.values())):
        print(
            f"the highest {count(n_left_out, 'score')} set no threshold (--contamination): as far "
            "as these images are normal, there are more false alarms, by their share"
        )
    if kept:
        print(
            f"thresholds kept, whatever the false alarm rate, as there are neither new images nor "
            f"calibration scores: {enumerate_some([*map(printable, kept)])}"
        )
    if note := bad.note():
        print(note)
    if options.output:
        if run:
            run.with_decisions(found).write(options.output)
        else:
            found.write(options.output)
        print(f"written to {options.output}")
    else:
        print("nothing written; --output FILE writes a checkpoint with the new thresholds")
    return found


def _read_separate(options: CalibrateOptions) -> SeparateRun | None:
    """The models of a separate run with all their parts; None if it is another checkpoint."""
    record = find_separate(options.checkpoint)
    return read_separate(options.checkpoint, record, ALL_PARTS) if record else None


@contextmanager
def _locked_output(options: CalibrateOptions) -> Iterator[None]:
    """Keep other commands out of the folders that a separate run is written into.

    Raises:
        OutputError: another command is writing there, or a folder cannot be used.
        StorageError: a folder cannot be made.
    """
    record = find_separate(options.checkpoint)
    with ExitStack() as locks:
        if options.output and record:
            whole = RunFolder(options.output)
            for folder in (whole.path, *map(whole.of_class, record.classes)):
                locks.enter_context(RunFolder(folder).locked())
        yield


def _check_output(options: CalibrateOptions, images: Sequence[Path]) -> None:
    """Refuse, before any work is done, to write over what must not be lost."""
    if not options.output:
        return
    if record := find_separate(options.checkpoint):
        _check_folder(options, options.output, record)
        return
    output = Output("--output", options.output, is_checkpoint)
    source = checkpoint_path(options.checkpoint)
    check_outputs([output], images if options.overwrite else [*images, source])
    if options.output.exists() and not options.overwrite:
        raise OutputError(
            f"output: '{options.output}' exists already; --overwrite replaces it, or give another "
            "name"
        )


def _check_folder(options: CalibrateOptions, folder: Path, record: RunRecord) -> None:
    """Refuse a folder for a separate run, unless it is to replace that run or a copy of it."""
    if full_path(folder).is_relative_to(full_path(options.good)):
        raise OutputError(
            f"output: '{folder}' lies among the images of '{options.good}'; choose another folder "
            "with --output"
        )
    former = find_separate(folder)
    check_outside_classes(folder, is_earlier=former is not None)
    if former and (former.id, former.classes) == (record.id, record.classes):
        if options.overwrite:
            return
        raise OutputError(
            f"output: '{folder}' holds this run already; --overwrite replaces its thresholds, or "
            "choose another folder"
        )
    runs = [RunFolder(folder), *(RunFolder(RunFolder(folder).of_class(n)) for n in record.classes)]
    for run in runs:
        try:
            run.check(overwrite=False, resume=None)
        except OutputError as error:  # --overwrite is for another copy of the run
            problem = str(error).partition(";")[0]
            raise OutputError(f"{problem}; choose another folder") from error


def _score(
    detector: Detector, images: Sequence[Path], options: CalibrateOptions, bad: BadImages
) -> list[tuple[Prediction, float]]:
    """Score the images, with the highest values of their maps; leave out those of no known class.

    Raises:
        DataError: none is left.
    """
    predictions = detector.iterate(
        images, batch_size=options.compute.batch_size, skip=bad, class_name=options.class_
    )
    scored = [
        (each.without_maps(), float(each.scored_map.max()))
        for each in tqdm(predictions, total=len(images), unit="image", leave=False)
    ]
    known = [(each, peak) for each, peak in scored if each.class_name is not None]
    left_out = [repr(str(each.path)) for each, _ in scored if each.class_name is None]
    if not scored:
        raise DataError(f"good: none of the images in '{options.good}' can be read; replace them")
    if not known:
        raise DataError(
            f"good: no image in '{options.good}' shows a product that the model knows; give other "
            "images, or name their class with --class"
        )
    if left_out:
        print(
            f"{count(len(left_out), 'image')} of no known product left out "
            f"({enumerate_some(left_out)}); --class NAME sets the class"
        )
    return known


def _report(stored: Checkpoint, found: Checkpoint, scored: Sequence[Prediction]) -> list[str]:
    """Lay out, for each class with new images, its thresholds before and after, and the drift."""
    by_class: Mapping[str, list[float]] = defaultdict(list)
    for each in scored:
        by_class[str(each.class_name)].append(each.score)
    rows = [["class", "good images", "threshold", "before", "above it", "drift"]]
    drifted = []
    for name, scores in by_class.items():
        before, former = stored.thresholds.get(name), stored.calibration.get(name)
        cells = ["-", "-", "not known"]
        if before:
            above = sum(score > before.score for score in scores)
            cells[:2] = f"{before.score:.4g}", f"{above} of {len(scores)}"
        if former:
            drift = Drift.measure(former, scores)
            cells[2] = f"{drift.verdict} (in {drift.higher:.0%} of pairs, p = {drift.p_value:.2g})"
            drifted += [name] if drift.verdict.startswith("drifted") else []
        threshold = f"{found.thresholds[name].score:.4g}"
        rows.append([printable(name), str(len(scores)), threshold, *cells])
    lines = lay_out(rows)
    lines.append(
        "drift: in how many pairs of a new and a former image the new one scores higher; without "
        "drift, in about half of them"
    )
    if drifted:
        lines.append(
            f"the normal images of {enumerate_some([*map(printable, drifted)])} have changed since "
            "training: check the products, the light and the camera before you use new thresholds"
        )
    numbers = [found.thresholds[name].n_images for name in by_class]
    return [*lines, str(promise(numbers, found.config.decisions.false_alarm_rate))]


main = make_command(
    CalibrateOptions,
    calibrate_again,
    "calibrate",
    "Set the thresholds of a trained detector anew, from new good images.",
)

if __name__ == "__main__":
    main()
