"""``crad predict``: score images with a trained detector, and decide which have a defect."""

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from crad.command_line import InferenceOptions, make_command
from crad.config import BitDepth, MaxMegapixels, SkipBad
from crad.data.bad_images import BadImages
from crad.data.images import (
    IMAGE_SUFFIXES,
    MAX_MEGAPIXELS,
    find_images,
    open_image,
    subfolders,
)
from crad.data.samples import has_more_note
from crad.detector import Detector, load
from crad.devices import compile_network
from crad.errors import DataError, OutputError, UsageError
from crad.files import check_folder, write_atomically, write_json
from crad.report.heat_maps import heat_map
from crad.report.tables import printable
from crad.scoring.prediction import Prediction

_DECISIONS = {True: "defect", False: "good", None: None}
_COLUMNS = ("image", "score", "decision", "threshold", "class_name")


@dataclass(frozen=True)
class PredictOptions:
    """What the prediction command takes."""

    checkpoint: Path
    """A checkpoint, or the output folder of a training run."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, and folders, which are searched with their sub-folders."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class of all images. Default: from the path of each image, the innermost folder named
    like a class; without one, the highest threshold of all classes decides."""
    output: Path | None = None
    """Folder to write a heat map of each image, scores.csv and scores.json into."""
    csv: Path | None = None
    """Write the scores to this CSV file."""
    json: Path | None = None
    """Write the scores to this JSON file."""
    skip_bad: SkipBad = False
    max_megapixels: MaxMegapixels = MAX_MEGAPIXELS
    bit_depth: BitDepth = None
    compute: InferenceOptions = field(default_factory=InferenceOptions)


def predict(options: PredictOptions) -> list[Prediction]:
    """Score images, decide, print both as a table, and write what the options ask for.

    Whatever stops it on the way, the scores up to there are written.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: an image is not there.
        DeviceError: the device is not there.
        ImageError: an image cannot be read.
        OutputError: the output folder cannot be used.
        StorageError: a file cannot be written.
        UsageError: no images are named, or the model has no such class.
    """
    options.compute.check()
    if not options.images:
        raise UsageError("predict: no images given; name image files or folders")
    if options.output:
        check_folder(options.output)
    detector = load(
        options.checkpoint,
        options.compute.device,
        options.compute.precision,
        bit_depth=options.bit_depth,
        max_megapixels=options.max_megapixels,
    )
    if options.compute.compile:
        compile_network(detector.model.fusion, detector.device)
    found = find_inputs(options.images)
    pictures = _picture_files(found, options.output) if options.output else {}
    done: list[Prediction] = []
    bad = BadImages(skip=options.skip_bad)
    predictions = detector.iterate(found, options.compute.batch_size, bad, options.class_)
    print("     score  decision  image")
    try:
        with tqdm(predictions, total=len(found), unit="image", leave=False) as bar:
            for prediction in bar:
                path = prediction.path
                assert path is not None  # every source is a file
                done.append(prediction)
                decision = _DECISIONS[prediction.is_defective] or "-"
                bar.write(f"{prediction.score:10.4g}  {decision:8}  {printable(str(path))}")
                if path in pictures:
                    with bad.reading():
                        image = open_image(path, detector.decoding)
                        picture = heat_map(image, prediction.anomaly_map, *detector.colour_scale)
                        save = partial(picture.save, format="PNG")
                        write_atomically(pictures[path], save, durable=False)
    except BaseException:
        if done:
            _write_scores(done, options)
            print(f"stopped after {len(done)} of {len(found)} images")
        raise
    _write_scores(done, options)
    notes = _how_decided(done, detector, options.class_)
    for note in filter(None, (bad.note(), has_more_note(done), *notes)):
        print(note)
    return done


def _how_decided(
    done: Sequence[Prediction], detector: Detector, class_name: str | None
) -> Iterator[str]:
    """Say what a reader of the decisions must know."""
    if not detector.thresholds:
        yield (
            "no decisions: the checkpoint has no thresholds; train with --calibration-share above "
            "0 and two or more normal images of a class"
        )
    if class_name is not None or len(detector.classes) < 2:
        return
    counts = Counter(each.class_name for each in done)
    unknown = counts.pop(None, 0)
    if counts:
        told = ", ".join(f"{printable(str(name))} {count}" for name, count in counts.items())
        yield f"images per class, from the names of their folders: {told}; --class NAME overrides"
    if unknown:
        yield (
            f"{unknown} of {len(done)} images: class unknown (no folder named like a class); the "
            "highest threshold of all classes decides; --class NAME sets the class"
        )


def find_inputs(inputs: Iterable[Path]) -> dict[Path, Path]:
    """List images: those named, and those in folders named and their sub-folders.

    Returns:
        Each image once, with its path relative to the folder that was named.

    Raises:
        DataError: there is nothing by a name, or a folder holds no images.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        if not given.is_dir():
            if not given.exists():
                raise DataError(f"predict: there is no file or folder '{given}'")
            found[given] = Path(given.name)
            continue
        below = _images_below(given)
        if not below:
            raise DataError(
                f"predict: no images in '{given}' (expected {', '.join(IMAGE_SUFFIXES)})"
            )
        found |= {path: path.relative_to(given) for path in below}
    return found


def _images_below(folder: Path) -> list[Path]:
    """List the images in a folder, then those in its sub-folders, without hidden ones.

    Links to folders are not followed, as they may lead in circles.
    """
    inner = [each for each in subfolders(folder) if not each.is_symlink()]
    return find_images(folder) + [path for each in inner for path in _images_below(each)]


def _picture_files(found: Mapping[Path, Path], output: Path) -> dict[Path, Path]:
    """A heat map's file for every image, no two the same."""
    files: dict[Path, Path] = {}
    taken: set[str] = set()
    for path, relative in found.items():
        name = f"{relative.stem}_heatmap"
        candidates = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
        free = (relative.with_name(f"{candidate}.png") for candidate in candidates)
        chosen = next(each for each in free if str(each).casefold() not in taken)
        taken.add(str(chosen).casefold())
        files[path] = output / chosen
    inputs = {path.resolve() for path in found}
    for file in files.values():
        if file.resolve() in inputs:
            raise OutputError(
                f"output: '{file}' is one of the images to score; choose another --output"
            )
    return files


def _write_scores(done: Sequence[Prediction], options: PredictOptions) -> None:
    rows = [_row(each) for each in done]
    csv_files = [options.csv, options.output and options.output / "scores.csv"]
    json_files = [options.json, options.output and options.output / "scores.json"]
    for file in filter(None, csv_files):
        _write_csv(rows, file)
    for file in filter(None, json_files):
        write_json(file, rows)


def _row(prediction: Prediction) -> dict[str, Any]:
    values = (
        str(prediction.path),
        prediction.score,
        _DECISIONS[prediction.is_defective],
        prediction.threshold,
        prediction.class_name,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _write_csv(rows: Iterable[Mapping[str, Any]], file: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode("utf-8", errors="backslashreplace")
    write_atomically(file, lambda opened: opened.write(data))


main = make_command(
    PredictOptions,
    predict,
    "predict",
    "Score images with a trained detector, and decide which have a defect.",
)

if __name__ == "__main__":
    main()
