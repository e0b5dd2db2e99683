"""The command ``python -m benchmarks.detectors.altered``: a copy of a data set, made harder.

What the comparison measures on such copies says how a method bears it: a few training images,
defective ones among them, light or compression that it was not trained on.
"""

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from crad.command_line import run_command
from crad.data import check_apart, find_dataset, full_source
from crad.data.images import open_image
from crad.data.samples import GOOD, Sample
from crad.errors import OutputError, UsageError

COMMAND = "python -m benchmarks.detectors.altered"
_DESCRIPTION = (
    "Write a copy of a data set, in the layout of MVTec AD, in which something is changed. Its "
    "folder is named after the set and the changes."
)


@dataclass(frozen=True)
class Alteration:
    """The options of the command."""

    data: str
    """The folder of a data set, or a generated set."""
    into: Path
    """Where the folder of the copy is made."""
    classes: tuple[str, ...] = ()
    """Copy these classes only. Default: all."""
    train_images: int | None = None
    """Take so many training images of each class, at random. Default: all."""
    contamination: float = 0.0
    """Share of the training images of each class that are defective ones, moved from the test."""
    brightness: float = 1.0
    """Multiply the values of test images by this."""
    jpeg: int | None = None
    """Compress test images as JPEG of this quality."""
    seed: int = 0
    """Of the choice of images."""

    @property
    def name(self) -> str:
        """Of the folder: the set, and what is changed."""
        changes = [
            "-".join(self.classes),
            f"{self.train_images}images" if self.train_images else "",
            f"contaminated{100 * self.contamination:g}" if self.contamination else "",
            f"brightness{self.brightness:g}" if self.brightness != 1 else "",
            f"jpeg{self.jpeg}" if self.jpeg else "",
        ]
        return "-".join([Path(self.data).name, *filter(None, changes)])

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            UsageError: an option is.
        """
        for option, is_right, expected in (
            ("--train-images", self.train_images is None or self.train_images > 0, "at least 1"),
            ("--contamination", 0 <= self.contamination < 1, "0 to less than 1"),
            ("--brightness", 0 < self.brightness <= 100, "more than 0, at most 100"),
            ("--jpeg", self.jpeg is None or 1 <= self.jpeg <= 100, "1 to 100"),
            ("--seed", self.seed >= 0, "at least 0"),
        ):
            if not is_right:
                raise UsageError(f"{option}: expected {expected}")
        if self.name == Path(self.data).name:
            raise UsageError("nothing is to be changed; give --train-images, --jpeg or another")


def write(options: Alteration) -> Path:
    """Write the copy, and give its folder.

    Raises:
        CradError: the data set or an image cannot be read.
        OutputError: the folder is there already.
        UsageError: a class has too few images, or an option is out of range.
    """
    options.check()
    source = full_source(options.data)
    check_apart(options.into, source, option="--into")
    dataset = find_dataset(source, classes=options.classes)
    folder = options.into / options.name
    if folder.exists():
        raise OutputError(f"into: '{folder}' exists; remove it, or choose another folder")
    for name in dataset.classes:
        train = [each for each in dataset.train if each.class_name == name]
        test = [each for each in dataset.test if each.class_name == name]
        train, test = _chosen(options, name, train, test)
        _write_class(options, folder / name, train, test)
    return folder


def _chosen(
    options: Alteration, name: str, train: Sequence[Sample], test: Sequence[Sample]
) -> tuple[list[Sample], list[Sample]]:
    """The images of a class to train on and to test on."""
    random = np.random.default_rng(options.seed)
    count = options.train_images or len(train)
    n_defective = round(count * options.contamination)
    defective = [each for each in test if each.is_anomaly]
    if count - n_defective > len(train) or n_defective >= len(defective):
        raise UsageError(
            f"'{name}' has {len(train)} normal and {len(defective)} defective images, too few for "
            f"{count - n_defective} and {n_defective} to train on, and defective ones to test on"
        )
    normal = random.choice(len(train), count - n_defective, replace=False)
    moved = [defective[row] for row in sorted(random.choice(len(defective), n_defective, False))]
    rest = [each for each in test if each not in moved]
    return [*(train[row] for row in sorted(normal)), *moved], rest


def _write_class(
    options: Alteration, folder: Path, train: Sequence[Sample], test: Sequence[Sample]
) -> None:
    for sample, name in _named(train):
        assert sample.path
        _copy(sample.path, folder / "train" / GOOD / f"{name}{sample.path.suffix}")
    kinds: dict[str, list[Sample]] = defaultdict(list)
    for sample in test:
        kinds[sample.defect or GOOD].append(sample)
    for kind, members in kinds.items():
        for sample, name in _named(members):
            _write_test(options, sample, folder / "test" / kind / name)
            if sample.mask:
                mask = folder / "ground_truth" / kind / f"{name}_mask{sample.mask.suffix}"
                _copy(sample.mask, mask)


def _named(samples: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
    """Names that are different, in order."""
    for number, sample in enumerate(samples):
        yield sample, f"{number:05d}"


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def _write_test(options: Alteration, sample: Sample, to: Path) -> None:
    """Write a test image; ``to`` has no suffix."""
    assert sample.path
    if options.brightness == 1 and options.jpeg is None:
        _copy(sample.path, to.with_suffix(sample.path.suffix))
        return
    image = open_image(sample.path)
    if options.brightness != 1:
        values = np.asarray(image, np.float32) * options.brightness
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    to.parent.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {"quality": options.jpeg} if options.jpeg else {}
    image.save(to.with_suffix(".jpg" if options.jpeg else ".png"), **how)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; None for those of the process.
    """
    run_command(partial(_run, arguments), again="remove the folder and run the same command again")


def _run(arguments: Sequence[str] | None) -> None:
    options = tyro.cli(Alteration, args=arguments, prog=COMMAND, description=_DESCRIPTION)
    print(f"written to {write(options)}")


if __name__ == "__main__":
    main()
