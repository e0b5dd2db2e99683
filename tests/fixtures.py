"""Fixtures that the tests of the detector and those of the paper's experiments share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from crad.data.demo import write_demo


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
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
def command() -> Callable[..., int]:
    """Any command: (main, *arguments) -> exit code."""
    return run


def run(command: Callable[[list[str]], None], *arguments: str) -> int:
    """Run a command in this process and give its exit code."""
    try:
        command(list(arguments))
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0
