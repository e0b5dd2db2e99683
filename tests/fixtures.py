"""Fixtures that the tests of the detector and those of the paper's experiments share."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from crad.data.demo import write_demo
from crad.model.crad import CRAD


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


@contextmanager
def before_call(kind: type[nn.Module], act: Callable[[int, nn.Module], object]) -> Iterator[None]:
    """Do something before each call of a kind of module; it gets the number of the call, from 0."""
    calls = 0

    def hook(module: nn.Module, _: object) -> None:
        nonlocal calls
        if isinstance(module, kind):
            calls += 1
            act(calls - 1, module)

    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def before_step(number: int, act: Callable[[CRAD], object]) -> Iterator[None]:
    """Do something before a training step, whose number is counted from 0 over all epochs."""
    steps = 0

    def step(_: int, model: nn.Module) -> None:
        nonlocal steps
        if model.training:
            assert isinstance(model, CRAD)
            steps += 1
            if steps - 1 == number:
                act(model)

    with before_call(CRAD, step):
        yield


def ctrl_c(*_: object) -> None:
    """Interrupt this process as a user does."""
    signal.raise_signal(signal.SIGINT)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size in bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_of(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, with its content."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in found}
