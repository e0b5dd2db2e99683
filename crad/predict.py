"""The command ``python -m crad.predict``."""

import csv
import io
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from PIL import Image
from tqdm import tqdm

from crad.command_line import (
    BadImages,
    CommandError,
    check_batch_size,
    check_output,
    refuse,
    run_command,
)
from crad.data.images import IMAGE_SUFFIXES, find_images, open_image, subfolders
from crad.detector import BATCH_SIZE, load
from crad.devices import PrecisionName, compile_network
from crad.files import write_atomically, write_json
from crad.options import DeviceName
from crad.report.results import one_line
from crad.report.sheets import heat_map
from crad.scoring.calibration import Thresholds

_DECISIONS = {True: "defect", False: "good", None: None}


@dataclass(frozen=True)
class PredictOptions:
    """What the prediction command takes."""

    checkpoint: Path
    """A checkpoint, or the output folder of a training run."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, and folders whose images are all taken, those of sub-folders too."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class that all images are of, whose threshold decides. Without it, an image is of the
    class that the innermost folder of its full path with the name of a class says; if there is
    none, the highest threshold decides. The output says which class each was taken to be of."""
    output: Path | None = None
    """Folder to write a heat map of each image, scores.csv and scores.json into."""
    csv: Path | None = None
    """File to write the scores into, as CSV."""
    json: Path | None = None
    """File to write the scores into, as JSON."""
    batch_size: int = BATCH_SIZE
    """Images computed at once."""
    skip_bad: bool = False
    """Leave out images that cannot be read, and name them, instead of stopping."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA if there is a GPU."""
    precision: PrecisionName = "auto"
    """Precision of the fusion network; auto takes bf16 for a large one on a CPU that has matrix
    instructions for it."""
    compile: bool = False
    """Compile the fusion network with torch.compile, which takes a minute or so at the start and
    makes a large network faster."""


class Scored(NamedTuple):
    """What is reported of an image.

    Attributes:
        image: its file.
        score: its anomaly score.
        decision: ``"good"``, ``"defect"``, or None without a threshold.
        threshold: the score above which the image is defective.
        class_name: the class that the threshold is of; None where it is the highest of all, or
            there is none.
    """

    image: Path
    score: float
    decision: str | None
    threshold: float | None
    class_name: str | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict as the command line says."""
    options = tyro.cli(
        PredictOptions,
        args=arguments,
        prog="python -m crad.predict",
        description="Score images with a trained detector, the higher the more anomalous, and "
        "decide which are good and which have a defect.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if not options.images:
        refuse("predict: no images given; name image files or folders")
    check_batch_size(options.batch_size)
    run_command(lambda: predict(options))


def predict(options: PredictOptions) -> list[Scored]:
    """Score images, decide, print both as a table, and write what the options ask for.

    Whatever stops it on the way, the scores up to there are written.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        CommandError: there are no images, the class has no threshold, or the output folder cannot
            be used.
        DeviceError: the device is not there.
        ImageError: an image cannot be read.
        OSError: a file cannot be written.
    """
    if options.output:
        check_output(options.output)
    detector = load(options.checkpoint, options.device, options.precision)
    if options.compile:
        compile_network(detector.model.fusion, detector.device)
    thresholds = detector.thresholds
    if options.class_ is not None and options.class_ not in thresholds:
        raise CommandError(
            f"class: '{options.checkpoint}' has no threshold for '{options.class_}'; it has "
            f"{', '.join(thresholds) or 'none'}"
        )
    found = find_inputs(options.images)
    pictures = _picture_files(found, options.output) if options.output else {}
    scores: list[Scored] = []
    bad = BadImages(skip=options.skip_bad)
    predictions = detector.iterate(found, options.batch_size, bad, options.class_)
    print("     score  decision  image")
    try:
        with tqdm(predictions, total=len(found), unit="image", leave=False) as bar:
            for prediction in bar:
                assert prediction.path is not None  # every source is a file
                decision = _DECISIONS[prediction.is_defective]
                path, score = prediction.path, prediction.score
                scores.append(
                    Scored(path, score, decision, prediction.threshold, prediction.class_name)
                )
                bar.write(f"{score:10.4g}  {decision or '-':8}  {_printable(str(path))}")
                if prediction.path in pictures:
                    with bad.reading():
                        image = open_image(prediction.path)
                        picture = heat_map(image, prediction.anomaly_map, *detector.colour_scale)
                        _write_picture(picture, pictures[prediction.path])
    except BaseException:
        if scores:
            _write_scores(scores, options)
            print(f"stopped after {len(scores)} of {len(found)} images")
        raise
    _write_scores(scores, options)
    for note in filter(None, (bad.note(), *_how_decided(scores, thresholds, options.class_))):
        print(note)
    return scores


def _how_decided(
    scores: Sequence[Scored], thresholds: Thresholds, class_name: str | None
) -> Iterator[str]:
    """Say what a reader of the decisions must know."""
    if not thresholds:
        yield (
            "no decisions: training held no normal images back to set thresholds with; train with "
            "--calibration-share 0.1"
        )
    if class_name is not None or len(thresholds) < 2:
        return
    counts = Counter(each.class_name for each in scores)
    unknown = counts.pop(None, 0)
    if counts:
        told = ", ".join(f"{_printable(str(name))} {count}" for name, count in counts.items())
        yield (
            f"images of each class, as the innermost folder named after one says: {told}; "
            "--class NAME says it of all"
        )
    if unknown:
        yield (
            f"{unknown} of {len(scores)} images lie in no folder named after a class: the highest "
            "threshold of all classes decided; --class NAME takes that of a class"
        )


def find_inputs(inputs: Iterable[Path]) -> dict[Path, Path]:
    """List images: those named, and those in folders named and their sub-folders.

    Returns:
        Each image once, with its path relative to the folder that was named.

    Raises:
        CommandError: there is nothing by a name, or a folder holds no images.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        if not given.is_dir():
            if not given.exists():
                raise CommandError(f"predict: there is no file or folder '{given}'")
            found[given] = Path(given.name)
            continue
        below = _images_below(given)
        if not below:
            raise CommandError(
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
            raise CommandError(
                f"output: '{file}' is one of the images to score; choose another --output"
            )
    return files


def _write_picture(picture: Image.Image, file: Path) -> None:
    write_atomically(file, lambda opened: picture.save(opened, format="PNG"))


def _write_scores(scores: Sequence[Scored], options: PredictOptions) -> None:
    csv_files = [options.csv, options.output and options.output / "scores.csv"]
    json_files = [options.json, options.output and options.output / "scores.json"]
    for file in filter(None, csv_files):
        _write_csv(scores, file)
    for file in filter(None, json_files):
        write_json(file, [each._asdict() | {"image": str(each.image)} for each in scores])


def _write_csv(scores: Iterable[Scored], file: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Scored._fields)
    writer.writerows(scores)
    data = text.getvalue().encode("utf-8", errors="backslashreplace")
    write_atomically(file, lambda opened: opened.write(data))


def _printable(name: str) -> str:
    """A path or name as the terminal can show it, whatever bytes are in it."""
    encoding = sys.stdout.encoding or "utf-8"
    return one_line(name).encode(encoding, errors="backslashreplace").decode(encoding)


if __name__ == "__main__":
    main()
