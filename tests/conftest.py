"""Every backend of `crad_kernels` as a fixture, on each type of device that it is tested on."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from crad_kernels import backends
from tests.cases import JUDGE


def pytest_configure() -> None:
    """Take signals as a program in the foreground does; what a shell runs behind ignores some."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@dataclass(frozen=True)
class Placed:
    """A backend on one of the types of device that it takes."""

    name: str
    device: str


# Stands for a backend where a fixture has none that can be used here.
NONE = Placed("none", "")


def _devices(name: str) -> list[str]:
    """The CPU first; a backend that takes every device is tested on those that are here."""
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return list(backends()[name].devices) or there


def _missing(placed: Placed) -> str:
    """Why a backend cannot be tested on a type of device; empty if it can."""
    reason = backends()[placed.name].reason
    if not reason and placed.device == "cuda" and not torch.cuda.is_available():
        reason = "there is no GPU"
    return reason and f"backend {placed.name}: {reason}"


def _params(wanted: Callable[[Placed], bool]) -> list[object]:
    params = []
    for name in backends():
        for device in _devices(name):
            placed = Placed(name, device)
            if wanted(placed):
                suffix = "" if device == _devices(name)[0] else f"-{device}"
                marks = [pytest.mark.cuda] if device == "cuda" else []
                params.append(pytest.param(placed, id=name + suffix, marks=marks))
    return params


def _usable(wanted: Callable[[Placed], bool]) -> list[object]:
    """Those that can be tested here; `NONE`, whose tests are left out, if there are none."""
    return _params(lambda placed: wanted(placed) and not _missing(placed)) or [NONE]


def _place(placed: Placed) -> Iterator[str]:
    """The name of the backend, while tensors are made on its device unless told otherwise."""
    if placed.device == "cpu":  # torch's own default: a mode would hide the shortest way to call
        yield placed.name
        return
    with torch.device(placed.device):
        yield placed.name


@pytest.fixture(params=_usable(lambda placed: True))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that can be used here."""
    yield from _place(request.param)


@pytest.fixture(params=_usable(lambda placed: placed.name != JUDGE))
def compiled_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that stands on the operators, and is judged by the reference."""
    yield from _place(request.param)


@pytest.fixture(params=_usable(lambda placed: placed.name != JUDGE and placed.device == "cuda"))
def cuda_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend with kernels for a GPU."""
    yield from _place(request.param)


@pytest.fixture(params=_usable(lambda placed: placed.name == "cuda"))
def cuda_library(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend in CUDA C++, on a GPU or emulated."""
    yield from _place(request.param)


@pytest.fixture(params=_usable(lambda placed: placed.name == "cpu"))
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the CPU backend."""
    yield from _place(request.param)


@pytest.fixture(params=_usable(lambda placed: placed.name == "triton"))
def triton_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the Triton backend."""
    yield from _place(request.param)


@pytest.fixture(params=_params(lambda placed: True))
def any_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of any backend; one that cannot be used here is skipped with its reason."""
    if missing := _missing(request.param):
        pytest.skip(missing)
    yield from _place(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Some backends alone, which the names of tests do not tell apart from markers; some tests."""
    parser.addoption(
        "--backend", action="append", help="run only tests of this backend; may be repeated"
    )
    parser.addoption("--part", help="run only every Nth test, beginning with the Kth: K/N")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of backends that are not here, or not asked for; and of other parts."""
    names, part = config.getoption("--backend"), config.getoption("--part")
    chosen = [item for item in items if NONE.name not in _placed(item)]
    if names:
        chosen = [item for item in chosen if _placed(item) & set(names)]
    if part:
        first, number = map(int, part.split("/"))
        chosen = chosen[first - 1 :: number]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def _placed(item: pytest.Item) -> set[str]:
    """The backends that a test is of, by name."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {param.name for param in params if isinstance(param, Placed)}
