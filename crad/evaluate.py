"""The command ``python -m crad.evaluate``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from crad.checkpoint import read_checkpoint
from crad.command_line import (
    BadImages,
    CommandError,
    check_batch_size,
    check_output,
    run_command,
)
from crad.data import find_dataset
from crad.demo import DEMO_NAMES, demo_dataset
from crad.detector import BATCH_SIZE, from_checkpoint
from crad.devices import PrecisionName, select_device
from crad.evaluation import RESULTS_NAME, make_results, report
from crad.metrics import ScoredImage
from crad.options import DeviceName
from crad.results import Results


@dataclass(frozen=True)
class EvaluateOptions:
    """What the evaluation command takes."""

    checkpoint: Path
    """A checkpoint, or the output folder of a training run."""
    data: str | None = None
    """A folder in the layout of MVTec AD or of VisA, demo or demo-hard; the default is the data
    trained on."""
    classes: tuple[str, ...] = ()
    """Those of the classes of the data to take; without it, all, or with the default data those
    trained on."""
    output: Path | None = None
    """Folder to write results.json and picture sheets into."""
    overwrite: bool = False
    """Replace the results and picture sheets in --output."""
    batch_size: int = BATCH_SIZE
    """Images computed at once."""
    skip_bad: bool = False
    """Leave out images that cannot be read, and name them, instead of stopping."""
    device: DeviceName = "auto"
    """Where to compute; auto takes CUDA if there is a GPU."""
    precision: PrecisionName = "auto"
    """Precision of the fusion network; auto takes bf16 for a large one on a CPU that has matrix
    instructions for it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says."""
    options = tyro.cli(
        EvaluateOptions,
        args=arguments,
        prog="python -m crad.evaluate",
        description="Measure a trained detector on the test images of a data set.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    check_batch_size(options.batch_size)
    run_command(lambda: evaluate(options))


def evaluate(options: EvaluateOptions) -> Results:
    """Measure a trained detector on a data set and print the table.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        CommandError: the output folder holds results already.
        DataError: the data are not what they should be.
        DeviceError: the device is not there.
        ImageError: an image or mask cannot be read.
        OSError: a file cannot be written.
    """
    if options.output:
        check_output(options.output)
        if (options.output / RESULTS_NAME).exists() and not options.overwrite:
            raise CommandError(
                f"output: '{options.output}' holds {RESULTS_NAME} already; --overwrite replaces "
                "it, --output DIR chooses another folder"
            )
    device = select_device(options.device)
    checkpoint = read_checkpoint(options.checkpoint)
    detector = from_checkpoint(checkpoint, device, options.checkpoint, options.precision)
    data = options.data or checkpoint.config.data
    classes = options.classes or (() if options.data else checkpoint.config.classes)
    root = demo_dataset(data) if data in DEMO_NAMES else data
    dataset = find_dataset(root, classes=classes, need_train=False)

    started = time.perf_counter()
    bad = BadImages(skip=options.skip_bad)
    samples = {sample.path: sample for sample in dataset.test}
    images = []
    predictions = detector.iterate(samples, options.batch_size, skip=bad)
    with tqdm(predictions, total=len(samples), unit="image", leave=False) as bar:
        for prediction in bar:
            assert prediction.path is not None  # every source is a file
            sample = samples[prediction.path]
            truth = None
            with bad.reading():
                truth = sample.truth(detector.image_size)
            images.append(ScoredImage(sample, prediction.score, prediction.scored_map, truth))
    results = make_results(
        images,
        checkpoint=checkpoint,
        data=data,
        n_train={name: checkpoint.n_train.get(name, 0) for name in dataset.classes},
        left_out=bad.note(),
        timing={"evaluation": time.perf_counter() - started},
        device=device,
        baselines={},
    )
    report(results, images, options.output)
    return results


if __name__ == "__main__":
    main()
