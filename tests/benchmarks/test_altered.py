"""Copies of a data set that are harder."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.detectors.altered import Alteration, main, write
from crad.data import Dataset, find_dataset
from crad.data.images import open_image
from crad.data.samples import Sample
from crad.errors import OutputError, UsageError
from tests.fixtures import command, demo_root

__all__ = ["command", "demo_root"]


@pytest.fixture
def alter(demo_root: Path, tmp_path: Path) -> Callable[..., Dataset]:
    """Write a copy and read it: (**options) -> data set."""
    return lambda **options: find_dataset(
        str(write(Alteration(str(demo_root), tmp_path / "into", **options)))
    )


def read(sample: Sample) -> bytes:
    assert sample.path
    return sample.path.read_bytes()


def pixels(sample: Sample) -> npt.NDArray[np.float64]:
    assert sample.path
    return np.asarray(open_image(sample.path), float)


def counts(dataset: Dataset) -> tuple[Counter[str | None], Counter[bool]]:
    return (
        Counter(each.class_name for each in dataset.train),
        Counter(each.is_anomaly for each in dataset.test),
    )


def test_few_images_are_a_choice_by_the_seed(
    alter: Callable[..., Dataset], demo_root: Path
) -> None:
    whole = find_dataset(str(demo_root))
    few = alter(train_images=3, classes=("gauge",))
    assert few.root.name == f"{demo_root.name}-gauge-3images"
    assert counts(few) == ({"gauge": 3}, {False: 3, True: 3})
    known = {read(each) for each in whole.train}
    chosen = {read(each) for each in few.train}
    assert len(chosen) == 3
    assert chosen < known
    masks = [each.mask for each in few.test if each.is_anomaly]
    assert all(masks)


def test_defective_images_move_from_the_test_to_the_training(
    alter: Callable[..., Dataset], demo_root: Path
) -> None:
    whole = find_dataset(str(demo_root))
    mixed = alter(contamination=1 / 3)
    train, test = counts(mixed)
    assert train == {"brick": 6, "gauge": 6}  # as many as before, of which 2 are defective
    assert test == {False: 6, True: 2}
    defective = {read(each) for each in whole.test if each.is_anomaly}
    moved = [each for each in mixed.train if read(each) in defective]
    assert len(moved) == 4
    left = [each for each in mixed.test if read(each) in defective]
    assert len(left) == 2


def test_light_and_compression_change_test_images_only(
    alter: Callable[..., Dataset], demo_root: Path
) -> None:
    whole = find_dataset(str(demo_root))
    bright, packed = alter(brightness=0.5), alter(jpeg=50)
    assert packed.root.name == f"{demo_root.name}-jpeg50"
    for copy in (bright, packed):
        for before, after in zip(whole.train, copy.train, strict=True):
            assert read(before) == read(after)
    by_kind = [
        sorted((each for each in one.test if each.class_name == "brick"), key=lambda s: str(s.path))
        for one in (whole, bright, packed)
    ]
    for before, dark, jpeg in zip(*by_kind, strict=True):
        values = pixels(before)
        assert np.abs(pixels(dark) - values / 2).max() <= 0.5
        assert read(jpeg).startswith(b"\xff\xd8\xff")  # of a JPEG file
        apart = np.abs(pixels(jpeg) - values)
        assert 0 < apart.mean() < 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing is to be changed"),
        ({"train_images": 0}, "--train-images: expected at least 1"),
        ({"train_images": 7}, "6 normal and 3 defective images, too few for 7 and 0"),
        ({"contamination": 0.5}, "too few for 3 and 3 to train on"),
        ({"contamination": 1.0}, "--contamination: expected 0 to less than 1"),
        ({"brightness": 0.0}, "--brightness: expected"),
        ({"jpeg": 101}, "--jpeg: expected 1 to 100"),
    ],
)
def test_what_cannot_be_is_said(
    options: dict[str, float], words: str, alter: Callable[..., Dataset]
) -> None:
    with pytest.raises(UsageError, match=words):
        alter(**options)


def test_the_command_replaces_nothing(
    command: Callable[..., int], demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", str(demo_root), "--into", str(tmp_path / "into"), "--train-images", "2")
    assert command(main, *arguments) == 0
    folder = tmp_path / "into" / f"{demo_root.name}-2images"
    assert f"written to {folder}" in capsys.readouterr().out
    assert command(main, *arguments) == 1
    assert "exists; remove it" in capsys.readouterr().err
    with pytest.raises(OutputError, match="--into"):
        write(Alteration(str(demo_root), demo_root, train_images=2))
