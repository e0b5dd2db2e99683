"""Every backend of `crad_kernels` as a fixture, on each type of device that it is tested on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

from crad_kernels import backends
from tests.cases import JUDGE


@dataclass(frozen=True)
class Placed:
    """A backend on one of the types of device that it takes."""

    name: str
    device: str


def _devices(name: str) -> list[str]:
    """The CPU first; a backend that takes every device is tested on those that are here."""
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return list(backends()[name].devices) or there


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


def _place(placed: Placed) -> Iterator[str]:
    """The name of the backend, while tensors are made on its device unless told otherwise."""
    record = backends()[placed.name]
    if not record.usable:
        pytest.skip(f"backend {placed.name}: {record.reason}")
    if placed.device == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"backend {placed.name}: there is no GPU")
    if placed.device == "cpu":  # torch's own default: a mode would hide the shortest way to call
        yield placed.name
        return
    with torch.device(placed.device):
        yield placed.name


@pytest.fixture(params=_params(lambda placed: True))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend; those that cannot be used here are skipped with their reason."""
    yield from _place(request.param)


@pytest.fixture(params=_params(lambda placed: placed.name != JUDGE))
def compiled_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend that stands on the operators, and is judged by the reference."""
    yield from _place(request.param)


@pytest.fixture(
    params=_params(lambda placed: placed.name != JUDGE and placed.device == "cuda")
    or [pytest.param(None, marks=pytest.mark.skip("no backend here has kernels for a GPU"))]
)
def cuda_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend with kernels for a GPU."""
    yield from _place(request.param)


@pytest.fixture(params=_params(lambda placed: placed.name == "triton"))
def triton_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the Triton backend."""
    yield from _place(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Some backends alone, which the names of tests do not tell apart from markers; some tests."""
    parser.addoption(
        "--backend", action="append", help="run only tests of this backend; may be repeated"
    )
    parser.addoption("--part", help="run only every Nth test, beginning with the Kth: K/N")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other backends, and those of none; and of other parts."""
    names, part = config.getoption("--backend"), config.getoption("--part")
    chosen = items[:]
    if names:
        chosen = [item for item in chosen if _placed(item) & set(names)]
    if part:
        first, number = map(int, part.split("/"))
        chosen = chosen[first - 1 :: number]
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def _placed(item: pytest.Item) -> set[str]:
    """The backends that a test is of."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {param.name for param in params if isinstance(param, Placed)}
