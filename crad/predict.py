"""``crad predict``: score images with a trained detector, and decide which have a defect."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image
from tqdm import tqdm

from crad.command_line import DetectorOptions, InferenceOptions, make_command
from crad.data import check_outside_classes
from crad.data.bad_images import BadImages
from crad.data.images import open_image
from crad.data.inputs import find_inputs
from crad.data.samples import has_more_note
from crad.detector import Detector
from crad.errors import DataError, OutputError, UsageError
from crad.files import LONGEST_NAME, cut_name, full_path, remove_leftovers
from crad.outputs import Output, check_outputs, locked
from crad.png import is_own_png, write_png
from crad.predictor import Predictor
from crad.report.decided import how_decided
from crad.report.heat_maps import heat_map
from crad.report.scores import Csv, Json, ScoreFile, row_of
from crad.report.tables import printable
from crad.scoring.interest import read_interest
from crad.scoring.prediction import Prediction
from crad.shared_options import IgnoreOption, RoiOption, SkipBad
from crad.training.checkpoint import checkpoint_path
from crad.words import count


@dataclass(frozen=True)
class PredictOptions:
    """What the prediction command takes."""

    checkpoint: Path
    """A checkpoint, the output folder of a training run, or a file of crad export."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, and folders, which are searched with their sub-folders."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class of all images. Default: a model of several classes recognises that of each
    image."""
    output: Path | None = None
    """Folder to write a heat map and a mask of each image, scores.csv and scores.json into."""
    csv: Path | None = None
    """Write the scores to this CSV file."""
    json: Path | None = None
    """Write the scores to this JSON file."""
    roi: RoiOption = None
    ignored: IgnoreOption = None
    skip_bad: SkipBad = False
    detector: DetectorOptions = field(default_factory=DetectorOptions)
    compute: InferenceOptions = field(default_factory=InferenceOptions)


def predict(options: PredictOptions) -> list[Prediction]:
    """Score images, decide, print both as a table, and write what the options ask for.

    Whatever stops it on the way, the scores up to there are written.

    Returns:
        The predictions, without their maps.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: an image is not there, or none can be read.
        DeviceError: the device is not there.
        ImageError: an image cannot be read.
        OutputError: an output cannot be used, or would replace what must not be lost.
        StorageError: a file cannot be written.
        UsageError: no images are named, the model has no such class, or a rate is out of range.
    """
    options.compute.check()
    if not options.images:
        raise UsageError("predict: no images given; name image files or folders")
    found, n_masks = find_inputs(options.images)
    with locked(options.output) if options.output else nullcontext():
        pictures = _picture_files(found, options)
        tables = _tables(options)
        _check_outputs(options, found, pictures, tables)
        detector = options.compute.load(options.checkpoint, options.detector.choices())
        if options.roi or options.ignored:  # instead of those of training
            if not isinstance(detector, Detector):
                raise UsageError(
                    "--roi, --ignore: an exported file has the regions of interest of training; "
                    "leave them out, or use the checkpoint"
                )
            detector.interest = read_interest(
                options.roi,
                options.ignored,
                detector.classes,
                detector.frame,
                detector.decoding,
            )
        if counts := detector.interest.note():
            print(counts)
        with ExitStack() as stack:
            for table in tables:
                stack.enter_context(closing(table))
            done, notes = _predict(detector, found, options, pictures, tables)
    masks = f"{count(n_masks, 'mask')} of a data set left out; name their folder to score them"
    for note in filter(None, (masks if n_masks else None, *notes)):
        print(note)
    return done


def _predict(
    detector: Predictor,
    found: Mapping[Path, Path],
    options: PredictOptions,
    pictures: Mapping[Path, Path],
    tables: Sequence[ScoreFile],
) -> tuple[list[Prediction], list[str | None]]:
    """Score the images, and say what a reader of the scores must know."""
    done: list[Prediction] = []
    bad = BadImages(skip=options.skip_bad)
    predictions = detector.iterate(
        found, batch_size=options.compute.batch_size, skip=bad, class_name=options.class_
    )
    print("     score  p-value   decision  image")
    try:
        with tqdm(predictions, total=len(found), unit="image", leave=False) as bar:
            for prediction in bar:
                path = prediction.path
                assert path is not None  # every source is a file
                for table in tables:
                    table.add(row_of(prediction))
                done.append(prediction.without_maps())
                p_value = "-" if prediction.p_value is None else f"{prediction.p_value:.3f}"
                decision = prediction.decision or "-"
                bar.write(
                    f"{prediction.score:10.4g}  {p_value:>7}  {decision:>9}  {printable(str(path))}"
                )
                if path in pictures:
                    with bad.reading():
                        image = open_image(path, detector.decoding)
                        picture = heat_map(image, prediction.anomaly_map, *detector.colour_scale)
                        write_png(pictures[path], picture, durable=False)
                    if prediction.anomaly_mask is None:  # of an earlier checkpoint
                        _mask_file(pictures[path]).unlink(missing_ok=True)
                    else:
                        marked = Image.fromarray(prediction.anomaly_mask)
                        write_png(_mask_file(pictures[path]), marked, durable=False)
    except BaseException:
        if done:
            print(f"stopped after {len(done)} of {len(found)} images")
        raise
    if not done:
        raise DataError(f"predict: none of {count(len(found), 'image')} can be read; replace them")
    more = has_more_note(done, lambda path: found[path])
    return done, [bad.note(), more, *how_decided(done, detector, options.class_)]


def _picture_files(found: Mapping[Path, Path], options: PredictOptions) -> dict[Path, Path]:
    """A heat map's file for every image, no two the same; none without an output folder.

    Raises:
        OutputError: heat maps would lie among images, where they would be taken for images.
    """
    if options.output is None:
        return {}
    check_outside_classes(options.output, is_earlier=_has_scores(options.output))
    output = full_path(options.output)
    for given in options.images:
        if given.is_dir() and output.is_relative_to(full_path(given)):
            problem = f"lies in '{given}', which is searched for images"
        elif not given.is_dir() and output == full_path(given.parent):
            problem = f"is the folder of '{given}', where heat maps would lie among images"
        else:
            continue
        raise OutputError(
            f"output: '{options.output}' {problem}; choose another folder with --output"
        )
    files: dict[Path, Path] = {}
    taken: set[str] = set()
    for path, relative in found.items():
        endings = (f"_heatmap{f'-{n}' * (n > 1)}.png" for n in itertools.count(1))
        names = (cut_name(relative.stem, LONGEST_NAME - len(end)) + end for end in endings)
        free = (relative.with_name(name) for name in names)
        chosen = next(each for each in free if str(each).casefold() not in taken)
        taken.add(str(chosen).casefold())
        files[path] = options.output / chosen
    return files


def _mask_file(picture: Path) -> Path:
    """The file of the mask that belongs to that of a heat map."""
    before, ending, after = picture.name.rpartition("_heatmap")
    return picture.with_name(f"{before}{ending.replace('heatmap', 'mask')}{after}")


def _tables(options: PredictOptions) -> list[ScoreFile]:
    """The tables of scores to write."""
    tables = []
    if options.csv:
        tables.append(ScoreFile("--csv", options.csv, Csv()))
    if options.json:
        tables.append(ScoreFile("--json", options.json, Json()))
    if options.output:
        tables.append(ScoreFile("--output", options.output / "scores.csv", Csv()))
        tables.append(ScoreFile("--output", options.output / "scores.json", Json()))
    return tables


def _has_scores(output: Path) -> bool:
    """Whether an earlier prediction has written into a folder."""
    scores = output / "scores.csv"
    return scores.is_file() and Csv().is_own(scores)


def _check_outputs(
    options: PredictOptions,
    found: Mapping[Path, Path],
    pictures: Mapping[Path, Path],
    tables: Sequence[ScoreFile],
) -> None:
    """Refuse to write over what must not be lost, and remove what a killed process left."""
    # Heat maps of older versions have no mark, and lie beside scores.
    is_older = bool(options.output and _has_scores(options.output)) and not any(
        is_own_png(path) for path in pictures.values()
    )
    outputs = [table.output for table in tables]
    outputs += [
        Output("--output", path, lambda file: is_older or is_own_png(file))
        for path in pictures.values()
    ]
    outputs += [Output("--output", _mask_file(path), is_own_png) for path in pictures.values()]
    check_outputs(outputs, [*found, checkpoint_path(options.checkpoint)])
    for table in tables:
        table.check()
    remove_leftovers([*pictures.values(), *map(_mask_file, pictures.values())])


main = make_command(
    PredictOptions,
    predict,
    "predict",
    "Score images with a trained detector, and decide which have a defect.",
)

if __name__ == "__main__":
    main()
