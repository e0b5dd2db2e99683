"""A small data set and a run on it, made once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crad.train import main
from tests.fixtures import command, demo_root, one_thread, run

__all__ = ["Run", "command", "demo_root", "one_thread"]

# Two images held back judge no epoch, so the last one is kept.
SMALL = (
    *("--backbone", "scattering", "--image-size", "32", "--batch-size", "4", "--epochs", "3"),
    *("--keep", "last"),
)


@dataclass(frozen=True)
class Run:
    """The output folder of a training run, and what it was made from."""

    output: Path
    data: Path
    arguments: tuple[str, ...] = SMALL

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.output / "results.json").read_text())


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory, demo_root: Path) -> Run:
    """A finished run of 3 epochs; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "trained"
    assert train(demo_root, output) == 0
    return Run(output, demo_root)


@pytest.fixture(scope="package")
def train_command() -> Callable[..., int]:
    """The training command with small settings: (data, output, *arguments) -> exit code."""
    return train


def train(data: Path, output: Path, *arguments: str) -> int:
    """Run the training command in this process and give its exit code."""
    return run(main, "--data", str(data), "--output", str(output), *SMALL, *arguments)
