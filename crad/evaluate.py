"""The command ``python -m crad.evaluate``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from crad.command_line import (
    BadImages,
    CommandError,
    check_batch_size,
    check_output,
    run_command,
)
from crad.data import Sample, find_dataset
from crad.data.demo import DEMO_NAMES, demo_dataset
from crad.detector import BATCH_SIZE, Detector, from_checkpoint
from crad.devices import PrecisionName, compile_network, select_device
from crad.options import DeviceName
from crad.report.results import Results
from crad.scoring.evaluation import RESULTS_NAME, Evaluation, Truths, make_results, report
from crad.scoring.protocols import ProtocolChoice, choose_protocols
from crad.training import processes
from crad.training.checkpoint import read_checkpoint


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
    protocol: tuple[ProtocolChoice, ...] = ()
    """How the images are scored, by one or more protocols; a table for each. results.json is about
    the first, with the metrics by the others beside it. The default is that of the training run."""
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
    compile: bool = False
    """Compile the fusion network with torch.compile, which takes a minute or so at the start and
    makes a large network faster."""


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
    with processes.joined(device):
        return _evaluate(options, device)


def _evaluate(options: EvaluateOptions, device: torch.device) -> Results:
    checkpoint = read_checkpoint(options.checkpoint)
    protocols = choose_protocols(options.protocol or checkpoint.config.protocol)
    detector = from_checkpoint(checkpoint, device, options.checkpoint, options.precision)
    if options.compile:
        compile_network(detector.model.fusion, device)
    data = options.data or checkpoint.config.data
    classes = options.classes or (() if options.data else checkpoint.config.classes)
    root = processes.on_main(lambda: demo_dataset(data)) if data in DEMO_NAMES else data
    dataset = find_dataset(root, classes=classes, need_train=False)

    started = time.perf_counter()
    bad = BadImages(skip=options.skip_bad)
    truths = Truths(detector.image_size, bad)
    if processes.is_main():  # a bad mask is found before the images are computed, not after
        truths.read(dataset.test, protocols[0])
    samples, maps = _anomaly_maps(detector, dataset.test, options.batch_size, bad)
    bad.share()
    n_train = {name: checkpoint.n_train.get(name, 0) for name in dataset.classes}
    evaluation = Evaluation(samples, n_train, truths)

    def measure() -> Results:
        results = make_results(
            {protocol.name: evaluation.measure(maps, protocol) for protocol in protocols},
            checkpoint=checkpoint,
            data=data,
            left_out=bad.note(),
            timing={"evaluation": time.perf_counter() - started},
            device=device,
            decisions=evaluation.decide(maps, checkpoint),
        )
        report(results, evaluation, maps, protocols[0], options.output)
        return results

    return processes.on_main(measure)


def _anomaly_maps(
    detector: Detector, samples: Sequence[Sample], batch_size: int, bad: BadImages
) -> tuple[list[Sample], Tensor]:
    """The images that can be read, with maps ``(M, H, W)``; each process makes some batches."""
    mine = processes.share(range(len(samples)), batch_size, processes.rank(), processes.count())
    numbers = {samples[number].path: number for number in mine}
    found: list[int] = []
    maps = [torch.empty(0, *detector.model.feature_size[1:], device=detector.device)]
    hidden = not processes.is_main()
    with tqdm(total=len(mine), unit="image", leave=False, disable=hidden) as bar:
        for batch, anomaly_maps in detector.anomaly_maps(numbers, batch_size, skip=bad):
            found += [numbers[path] for path in batch.paths if path is not None]
            maps.append(anomaly_maps)
            bar.update(len(batch.paths))
    kept, together = processes.gather_rows(found, torch.cat(maps))
    return [samples[number] for number in kept], together


if __name__ == "__main__":
    main()
