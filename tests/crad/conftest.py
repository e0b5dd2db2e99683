"""A small data set and a run on it, made once."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from crad.data.demo import write_demo
from crad.train import main

SMALL = ("--backbone", "scattering", "--image-size", "64", "--batch-size", "4", "--epochs", "3")


@dataclass(frozen=True)
class Run:
    """The output folder of a training run, and what it was made from."""

    output: Path
    data: Path
    arguments: tuple[str, ...] = SMALL

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.output / "results.json").read_text())


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors as small as these take longer on two threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of the demo set with 6 training and 6 test images; not to be changed."""
    root = tmp_path_factory.mktemp("data") / "small"
    write_demo(root, n_train=6, n_test=6, size=64, classes=("brick", "gauge"))
    return root


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


@pytest.fixture(scope="package")
def command() -> Callable[..., int]:
    """Any command: (main, *arguments) -> exit code."""
    return run


def train(data: Path, output: Path, *arguments: str) -> int:
    """Run the training command in this process and give its exit code."""
    return run(main, "--data", str(data), "--output", str(output), *SMALL, *arguments)


def run(command: Callable[[list[str]], None], *arguments: str) -> int:
    """Run a command in this process and give its exit code."""
    try:
        command(list(arguments))
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0
