"""Data, settings and finished runs for tests of the paper's experiments."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.paper import decoder, figure2b
from benchmarks.paper.__main__ import main
from crad.data.demo import write_demo
from tests.fixtures import command, demo_root, one_thread

__all__ = ["command", "demo_root", "one_thread"]

FIGURES = ("figure2b", "figure3", "figure4", "figure5")


@pytest.fixture(scope="package")
def small() -> tuple[str, ...]:
    """Options for a small network, trained for two epochs with one seed."""
    return (
        "--backbone", "scattering", "--components", "4", "--image-size", "64", "--batch-size", "4",
        "--epochs", "2", "--depth", "1", "--expansion", "8", "--device", "cpu", "--seeds", "0",
    )  # fmt: skip


@pytest.fixture(scope="package", autouse=True)
def _few_steps() -> Iterator[None]:
    """Train decoders, and average over jitter, for a few steps only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "_STEPS", 4)
        patch.setattr(figure2b, "STEPS", 2)
        yield


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory, demo_root: Path, small: tuple[str, ...]) -> Path:
    """The output folder of all figures, with their five runs; not to be changed."""
    pytest.importorskip("matplotlib")
    output = tmp_path_factory.mktemp("figures") / "made"
    main([*FIGURES, "--data", str(demo_root), "--output", str(output), *small])
    return output


@pytest.fixture
def runs_made(made: Path, tmp_path: Path) -> Path:
    """A folder with copies of the runs of `made`, to be changed."""
    for run in made.glob("*-seed0"):
        shutil.copytree(run, tmp_path / "made" / run.name)
    return tmp_path / "made"


@pytest.fixture(scope="package")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of the demo set, to be copied under the names of other data sets."""
    root = tmp_path_factory.mktemp("data") / "two"
    write_demo(root, n_train=4, n_test=4, size=64, classes=("gauge", "brick"))
    return root
