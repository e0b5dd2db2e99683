"""``crad export``: write a trained detector as one file that other programs run."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from crad.command_line import make_command
from crad.data.folders import IMAGE_SUFFIXES, Folder
from crad.data.images import open_image, to_frame
from crad.data.several import find_datasets
from crad.data.sources import Source
from crad.detector import Choices, Detector, from_checkpoint
from crad.devices import select_device
from crad.edge.description import KEY, Description
from crad.edge.detector import load_exported
from crad.edge.runtimes import open_runtime
from crad.errors import CradError, DataError, ExportError, OutputError, UsageError
from crad.exporting.check import TOLERANCE, Agreement, compare
from crad.exporting.formats import (
    SUFFIXES,
    FormatName,
    PrecisionName,
    check_choice,
    to_float16,
    to_int8,
    to_onnx,
    to_torch,
    write_onnx,
    write_openvino,
    write_torch,
)
from crad.exporting.pipeline import Pipeline
from crad.exporting.thresholds import (
    GoodImages,
    check_held_back,
    find_images,
    own_thresholds,
)
from crad.files import replacing
from crad.outputs import Output, check_outputs
from crad.scoring.calibration import promise
from crad.training.checkpoint import Checkpoint, checkpoint_path, read_checkpoint
from crad.training.separate_run import find_separate
from crad.version import VERSION
from crad.words import count

_N_CHECKED = 64
_RESIZED = 0.02  # as TOLERANCE, of a file that resizes: Pillow rounds twice, it rounds once
_CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class ExportOptions:
    """What the export command takes."""

    checkpoint: Path
    """A checkpoint, or the output folder of a training run."""
    output: tyro.conf.Positional[Path]
    """The file to write: .onnx, .xml (OpenVINO, with a .bin file beside it) or .pt2 (PyTorch)."""
    format: FormatName | None = None
    """The format. Default: that of the suffix."""
    precision: PrecisionName = "float32"
    """Of the numbers; the check then says what float16 or int8 costs."""
    input: Literal["uint8", "float"] = "uint8"
    """Take uint8 images (B, H, W, 3), or float32 images (B, 3, H, W) in [0, 1]; RGB."""
    with_preprocessing: bool = False
    """Take uint8 images of any size, and resize them in the file."""
    images: Path | None = None
    """A folder of images, searched with its sub-folders, to check the file with, and to find the
    ranges of int8. Default: those of training, if they are still where they were."""
    good: Path | None = None
    """A folder of good images that the model was not trained on. A float16 or int8 file has scores
    of its own, and takes its thresholds from them. Default: the images held back from training."""
    false_alarm_rate: float | None = None
    """Share of normal images that may be taken for defective. Default: that of training."""
    uncertain: float | None = None
    """Decide "uncertain" where the p-value is above the false alarm rate, but at most this."""
    overwrite: bool = False
    """Replace an exported file."""


def export(options: ExportOptions) -> Agreement:
    """Export a detector, and check that its file scores, decides and locates as the detector does.

    Nothing is written if it does not.

    Returns:
        How far the two agree.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: there are no images to check with.
        ExportError: the detector cannot be exported, or the file says something else.
        MissingPackageError: a package is not installed.
        OutputError: the file would replace another one.
        UsageError: options contradict each other.
    """
    name = _format(options)
    _check_options(options, name)
    options = replace(options, output=Path(os.path.realpath(options.output)))
    checkpoint = read_checkpoint(options.checkpoint)
    images = _images(options, checkpoint)
    good = None
    if options.precision != "float32" and (options.good or checkpoint.thresholds):
        good = find_images(checkpoint, options.good)
    _check_output(options, [*images, *(good.paths if good else [])])
    choices = Choices(false_alarm_rate=options.false_alarm_rate, uncertain_rate=options.uncertain)
    detector = from_checkpoint(checkpoint, select_device("cpu"), "fp32", choices)
    if good and not options.good:
        check_held_back(detector, good, checkpoint)
    pipeline = Pipeline(
        detector,
        float_input=options.input == "float",
        resizes=options.with_preprocessing,
    ).eval()
    description = _describe(detector, checkpoint, options)
    with tempfile.TemporaryDirectory(prefix="crad-export-") as temporary:
        folder = Path(temporary)
        file = folder / f"model{SUFFIXES[name]}"
        write = _writer(name, pipeline, description, images, folder)
        write(description, file)
        if good:
            own = own_thresholds(
                load_exported(file),
                good,
                detector.false_alarm_rate,
                options.uncertain,
                checkpoint.config.decisions.pixel_false_alarm_rate,
            )
            description = replace(description, **vars(own))
            pipeline.set_thresholds(own.thresholds, own.uncertain)
            write = _writer(name, pipeline, description, images, folder)
            write(description, file)
        agreement = _check(file, detector, images, options)
        write(replace(description, check=asdict(agreement)), file)
        _move(file, options.output)
    for line in _summary(agreement, description, good):
        print(line)
    print(f"written to {options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")
    return agreement


def _format(options: ExportOptions) -> FormatName:
    """The format that is asked for.

    Raises:
        UsageError: the file's suffix says none, or another one.
    """
    suffix = options.output.suffix.lower()
    by_suffix = {each: name for name, each in SUFFIXES.items()}
    if suffix not in by_suffix:
        wanted = SUFFIXES[options.format] if options.format else ", ".join(by_suffix)
        raise UsageError(
            f"export: '{options.output}' has none of the suffixes {wanted}; give it one"
        )
    name = by_suffix[suffix]
    if options.format not in (None, name):
        raise UsageError(
            f"--format: '{options.output}' has the suffix of {name}, not of {options.format}; "
            "leave --format out, or give another name"
        )
    return name


def _check_options(options: ExportOptions, name: FormatName) -> None:
    """Refuse options that contradict each other.

    Raises:
        UsageError: they do.
    """
    check_choice(name, options.precision)
    if options.with_preprocessing and options.input == "float":
        raise UsageError("--with-preprocessing takes uint8 images; leave --input float out")
    if find_separate(options.checkpoint):
        raise UsageError(
            f"export: '{options.checkpoint}' is a separate run, with a model for each class; "
            "export each of them, such as --checkpoint RUN/CLASS"
        )
    if options.good and options.precision == "float32":
        raise UsageError(
            "--good: a float32 file decides by the thresholds of the checkpoint; leave --good out, "
            "or set new ones with crad calibrate"
        )


def _images(options: ExportOptions, checkpoint: Checkpoint) -> list[Path]:
    """Up to 64 images to check with, evenly from all of them.

    Raises:
        DataError: there are none.
    """
    if options.images is not None:
        if not options.images.is_dir():
            raise DataError(f"--images: there is no folder '{options.images}'")
        found = [path for folder in Folder(options.images).walk() for path in folder.images]
        if not found:
            raise DataError(
                f"--images: no images in '{options.images}' (expected {', '.join(IMAGE_SUFFIXES)})"
            )
    else:
        source = checkpoint.config.data.source
        try:
            if not source:
                raise DataError("the checkpoint does not say where its images are")
            added, classes = checkpoint.config.data.added, [*checkpoint.n_train]
            dataset = find_datasets(source, added, classes=classes, need_train=False)
        except CradError as error:
            raise DataError(
                f"export: the images of training cannot be used to check the file with ({error}); "
                "name a folder of others with --images"
            ) from error
        samples = (*dataset.train, *dataset.test)
        found = [sample.path for sample in samples if sample.path]
    step = max(1.0, len(found) / _N_CHECKED)
    return [found[int(number * step)] for number in range(min(_N_CHECKED, len(found)))]


def _check_output(options: ExportOptions, images: Sequence[Path]) -> None:
    """Refuse, before any work is done, to write over what must not be lost."""
    files = [options.output]
    if options.output.suffix.lower() == SUFFIXES["openvino"]:
        files.append(options.output.with_suffix(".bin"))
    outputs = [Output("output", file, _is_own) for file in files]
    check_outputs(outputs, [*images, checkpoint_path(options.checkpoint)])
    if any(file.exists() for file in files) and not options.overwrite:
        raise OutputError(
            f"output: '{options.output}' exists already; --overwrite replaces it, or give another "
            "name"
        )


def _is_own(path: Path) -> bool:
    """Whether crad export wrote a file; a ``.bin`` file is told by the file it belongs to."""
    if path.suffix.lower() in (".bin", SUFFIXES["openvino"]):
        model = path.with_suffix(SUFFIXES["openvino"])
        return model.is_file() and f"<{KEY} value=".encode() in model.read_bytes()
    try:
        return bool(open_runtime(path).description)
    except CradError:
        return False


def _describe(detector: Detector, checkpoint: Checkpoint, options: ExportOptions) -> Description:
    return Description(
        crad=VERSION,
        classes=detector.classes,
        recognises=detector.recognises,
        frame=detector.frame,
        resizes=options.with_preprocessing,
        float_input=options.input == "float",
        precision=options.precision,
        protocol=detector.protocol.name,
        backbone=checkpoint.config.model.backbone,
        colour_scale=detector.colour_scale,
        decoding=detector.decoding,
        false_alarm_rate=detector.false_alarm_rate,
        thresholds=detector.thresholds,
        uncertain=detector.uncertain,
        uncertain_rate=options.uncertain,
        pixel_thresholds=detector.pixel_thresholds,
        calibration=detector.calibration,
        interest=detector.interest,
    )


def _writer(
    name: FormatName,
    pipeline: Pipeline,
    description: Description,
    images: Sequence[Path],
    folder: Path,
) -> Callable[[Description, Path], None]:
    """What writes the file with a description; the model is translated once."""
    if name == "torch":
        return partial(write_torch, to_torch(pipeline))
    model = to_onnx(pipeline)
    if name == "openvino":
        return partial(write_openvino, model)
    if description.precision == "float16":
        model = to_float16(model)
    elif description.precision == "int8":
        model = to_int8(model, _batches(images, description), folder)
    return partial(write_onnx, model)


def _batches(images: Sequence[Path], description: Description) -> list[np.ndarray[Any, Any]]:
    """Images as the file takes them, of the size of the model."""
    frame = description.frame
    pixels = [to_frame(open_image(path, description.decoding), frame) for path in images]
    found = []
    for start in range(0, len(pixels), _CALIBRATION_BATCH):
        batch: np.ndarray[Any, Any] = np.stack(pixels[start : start + _CALIBRATION_BATCH])
        if description.float_input:
            batch = batch.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        found.append(np.ascontiguousarray(batch))
    return found


def _check(
    file: Path, detector: Detector, images: Sequence[Path], options: ExportOptions
) -> Agreement:
    """Compare the file with the detector.

    Raises:
        ExportError: they differ by more than rounding explains.
    """
    exported = load_exported(file)
    tolerance = _RESIZED if options.with_preprocessing else TOLERANCE
    sources: Sequence[Source] = images
    if options.with_preprocessing:  # so that none has the size of the model
        sources = [_another_size(open_image(path, detector.decoding)) for path in images]
    agreement = compare(
        [*tqdm(detector.iterate(sources), "detector", len(images), leave=False)],
        [*tqdm(exported.iterate(sources), "file", len(images), leave=False)],
        tolerance,
    )
    if options.precision != "float32":
        return agreement
    if not agreement.score_error <= tolerance or agreement.n_changed:
        raise ExportError(
            f"export: the file does not say what the detector says: scores differ by up to "
            f"{agreement.score_error:.2g} of their value (at most {tolerance:g} is allowed), and "
            f"{agreement.n_changed} of {agreement.n_images} decisions; nothing was written; try "
            "another --format, or another version of its packages"
        )
    return agreement


def _another_size(image: Image.Image) -> Image.Image:
    """An image that is a fifth wider and an eighth lower."""
    return image.resize((max(2, image.width * 6 // 5), max(2, image.height * 7 // 8)))


def _move(file: Path, output: Path) -> None:
    """Put the file, and what belongs to it, where it was asked for."""
    weights = file.with_suffix(".bin"), output.with_suffix(".bin")
    for source, target in (weights, (file, output)):  # the file that names the other one last
        if source.exists():
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)


def _summary(
    agreement: Agreement, description: Description, good: GoodImages | None
) -> Iterator[str]:
    """What a user of the file must know, line by line."""
    n_changed = agreement.n_changed
    changed = f"{n_changed} decided otherwise" if n_changed else "all decisions are equal"
    yield (
        f"checked with {count(agreement.n_images, 'image')}: scores differ by up to "
        f"{agreement.score_error:.2g} of their value, maps by {agreement.map_error:.2g} of the "
        f"largest; {changed}"
    )
    if not good:
        return
    yield (
        f"the scores of a file in {description.precision} are its own, and so are its thresholds: "
        f"from {count(len(good.samples), 'good image')}"
    )
    numbers = [each.n_images for each in description.thresholds.values()]
    yield str(promise(numbers, description.false_alarm_rate, "name with --good"))


main = make_command(
    ExportOptions,
    export,
    "export",
    "Write a trained detector as one file that other programs run, and check it.",
)

if __name__ == "__main__":
    main()
