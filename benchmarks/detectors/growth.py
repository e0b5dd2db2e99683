"""The command ``python -m benchmarks.detectors.growth``: costs as images and classes become more.

A set is made as large as is asked for by taking its features again, with noise: what a method costs
depends on how many there are. Only methods on features are measured, without the backbone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.detectors import clock
from benchmarks.detectors.costs import PeakMemory, seconds_of
from benchmarks.detectors.inputs import SetInputs, prepare_all, select
from benchmarks.detectors.methods import ImageDetector, methods
from benchmarks.detectors.options import OUTPUT, DetectorOptions
from crad.backbones import LITE
from crad.command_line import run_command
from crad.config import Config
from crad.data import full_source
from crad.devices import select_device
from crad.errors import OutputError, UsageError
from crad.files import read_json, write_json
from crad.report.environment import environment

COMMAND = "python -m benchmarks.detectors.growth"
NAME = "growth.json"
"""The file in the folder of the comparison."""

OF_A_CLASS = 200
"""Training images of each class, where there are more and more classes."""

_DESCRIPTION = "Measure what detectors cost as training images and classes become more."
_NOISE = 0.1  # of the deviation of each channel
_TESTED = 32  # images at once


@dataclass(frozen=True)
class GrowthOptions:
    """The options of the command."""

    data: str = "demo"
    """The folder of a data set, or a generated set."""
    methods: tuple[str, ...] = ("crad", "nearest_neighbour", "padim")
    """Those that take features: crad, crad_without_refinement, nearest_neighbour, padim, uniad,
    hvq_trans."""
    images: tuple[int, ...] = (50, 200, 1000)
    """Numbers of training images, of the first class alone."""
    classes: tuple[int, ...] = (1, 3, 6)
    """Numbers of classes, with 200 training images each."""
    minutes: float = 0.5
    """Time that each model that is trained may train."""
    backbone: str = LITE
    """Gives the features, as for crad train."""
    image_size: int | None = None
    """Side of the images in pixels. Default: that of crad train for this backbone."""
    device: str = "auto"
    """What to compute on, as for crad train."""
    output: Path = OUTPUT
    """The folder of the comparison, in which growth.json is written."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Pairs of images a class and classes, each once."""
        pairs = [*((n, 1) for n in self.images), *((OF_A_CLASS, n) for n in self.classes)]
        return [*dict.fromkeys(pairs)]

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            UsageError: an option is.
        """
        known = [name for name, method in methods().items() if not method.takes_images]
        if unknown := [name for name in self.methods if name not in known]:
            raise UsageError(f"--methods: no '{unknown[0]}'; choose from {', '.join(known)}")
        for option, numbers in (("--images", self.images), ("--classes", self.classes)):
            if any(number < 1 for number in numbers):
                raise UsageError(f"{option}: expected numbers of at least 1")


def enlarged(inputs: SetInputs, n_images: int, n_classes: int) -> SetInputs:
    """Inputs with so many training images of each of the first classes, and no others.

    Args:
        inputs: of a set, from `prepare_all`.
        n_images: of each class; its features are taken again, with noise.
        n_classes: at most those of the set.
    """
    names = [*inputs.n_train][:n_classes]
    rows: list[int] = []
    for name in names:
        own = [row for row, each in enumerate(inputs.train.samples) if each.class_name == name]
        rows += [own[number % len(own)] for number in range(n_images)]
    train = select(inputs.train, rows)
    noise = torch.randn(train.values.shape, generator=torch.Generator().manual_seed(0))
    values = train.values.addcmul_(noise, _NOISE * inputs.train.values.std(dim=(0, 1, 2)))
    return replace(
        inputs,
        train=replace(train, values=values),
        held_back=select(inputs.train, []),
        test=select(inputs.test, []),
        n_train=dict.fromkeys(names, n_images),
        digests=inputs.digests[rows],
        seconds=0.0,
    )


def measure(
    name: str, inputs: SetInputs, test: SetInputs, config: Config, device: torch.device
) -> Mapping[str, Any]:
    """Fit a method, and map test images.

    Args:
        name: a key of `methods`.
        inputs: to fit it to, from `enlarged`.
        test: with the test images.
        config: with their classes.
        device: where to compute.
    """
    rows = [number % len(test.test) for number in range(_TESTED)]
    features = select(test.test, rows)
    memory = PeakMemory()
    started = clock.now()
    detector = methods()[name].fit(inputs, config, device)
    fitted = clock.now() - started
    assert not isinstance(detector, ImageDetector)
    with torch.inference_mode():
        look_up = seconds_of(lambda: detector.maps(features).cpu()) / _TESTED
    return {
        "method": name,
        "n_images": len(inputs.train),
        "n_classes": len(inputs.n_train),
        "fit": fitted,
        "look_up": look_up,
        "n_bytes": detector.n_bytes,
        "peak_bytes": memory.n_bytes(),
    }


def run(options: GrowthOptions) -> None:
    """Measure all, and write the file.

    Raises:
        CradError: what `crad.training.inputs.prepare` raises.
        OutputError: another file is in the way.
        UsageError: an option is out of range, or the set has fewer classes.
    """
    options.check()
    path = options.output / NAME
    if path.exists() and read_growth(options.output) is None:
        raise OutputError(
            f"output: '{path}' was not written by {COMMAND}; move it away, or choose "
            "another folder with --output"
        )
    device = select_device(options.device)
    source = full_source(options.data)
    chosen = DetectorOptions(
        backbone=options.backbone, image_size=options.image_size, minutes=options.minutes
    )
    config = chosen.config(source)
    everything = prepare_all(config, device)
    if (most := max(options.classes, default=1)) > len(everything.n_train):
        raise UsageError(f"--classes: '{options.data}' has {len(everything.n_train)}, not {most}")
    records = []
    for n_images, n_classes in options.sizes:
        inputs = enlarged(everything, n_images, n_classes)
        of_size = replace(config, data=replace(config.data, classes=tuple(inputs.n_train)))
        for name in options.methods:
            records.append(measure(name, inputs, everything, of_size, device))
            print(records[-1], flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "made_by": COMMAND,
            **{name: value for name, value in asdict(options).items() if name != "output"},
            "clock": clock.kind(),
            "records": records,
            "environment": environment(device),
        },
    )
    print(f"written to {path}")


def read_growth(output: Path) -> dict[str, Any] | None:
    """What was measured last, in the folder of the comparison; None if nothing was."""
    path = output / NAME
    found = read_json(path) if path.exists() else None
    return found if isinstance(found, dict) and found.get("made_by") == COMMAND else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; None for those of the process.
    """
    options = tyro.cli(GrowthOptions, args=arguments, prog=COMMAND, description=_DESCRIPTION)
    run_command(lambda: run(options), again="run the same command again")


if __name__ == "__main__":
    main()
