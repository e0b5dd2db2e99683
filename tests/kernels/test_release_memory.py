"""Memory that the CPU backend keeps: for results of any size, no more than it says, until told."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import crad_kernels
from crad_kernels import backends, release_memory, sample
from crad_kernels._backends import cpu

MiB = 2**20

needs_cpu = pytest.mark.skipif(
    bool(backends()["cpu"].reason), reason="the CPU backend cannot be used here"
)
linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells of memory")


def result(mib: float) -> torch.Tensor:
    """Of so many MiB."""
    return sample(torch.ones(1, int(mib * MiB / 4)), torch.zeros(1, 1), backend="cpu")


# Of a process of its own: heaps that other tests have left hold tensors too.
KEPT = """
import os
import torch
from crad_kernels import release_memory, sample
MiB = 2**20
def result():
    return sample(torch.ones(1, 10 * MiB), torch.zeros(1, 1), backend="cpu")
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
release_memory()
before = resident()
results = [result() for _ in range(8)]
del results
kept = resident() - before
assert 150 * MiB < kept <= 256 * MiB + 16 * MiB, kept
assert release_memory() is None
assert resident() < before + 16 * MiB, resident() - before
"""


@needs_cpu
@linux
@pytest.mark.slow
def test_what_is_kept_can_be_released() -> None:
    subprocess.run([sys.executable, "-c", KEPT], check=True, timeout=600)


@needs_cpu
def test_results_of_varying_size_take_the_same_memory() -> None:
    release_memory()
    sizes = (20, 21.3, 24.7, 22, 20.9, 23.1, 24.9, 21)
    places = set()
    for mib in sizes:
        places.add(result(mib).data_ptr())
    assert len(places) <= 3  # of 20, 22 and 26 MiB


@needs_cpu
def test_a_small_result_does_not_take_a_large_block() -> None:
    release_memory()
    large = result(40).data_ptr()
    assert result(20).data_ptr() != large
    assert result(40).data_ptr() == large


@needs_cpu
@pytest.mark.parametrize("mib", [8, 8.01, 15.99, 33, 256, 256.01])
def test_a_result_has_room(mib: float) -> None:
    """Of every size, and in memory that has been used."""
    release_memory()
    for _ in range(2):
        assert result(mib)[0, [0, -1]].tolist() == [1, 1]


@needs_cpu
def test_results_that_are_used_keep_their_memory() -> None:
    first = result(9)
    kept = first.numpy()
    view = first[..., 5:]
    del first
    release_memory()
    second = result(9).mul_(2)
    assert (kept == 1).all()
    assert (view == 1).all()
    assert (second == 2).all()


@needs_cpu
def test_a_result_has_the_size_that_it_was_made_with() -> None:
    """As the memory is not torch's; a copy can be resized."""
    with pytest.raises(RuntimeError, match="not resizable"):
        result(9).resize_(20 * MiB)
    assert result(9).clone().resize_(20 * MiB).numel() == 20 * MiB


def test_nothing_happens_where_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MISSING", "its library was not built")
    release_memory()


def test_it_is_public() -> None:
    assert "release_memory" in crad_kernels.__all__


@needs_cpu
@pytest.mark.parametrize(
    "shape", [(2**40, 2**40), (2**62, 4), (2**31, 2**31, 2**31), (2**40, 2**20)], ids=str
)
def test_a_result_that_no_memory_holds_is_refused(shape: tuple[int, ...]) -> None:
    values = torch.ones(1, 1).expand(1, shape[-1])
    coords = torch.zeros(1, 1).expand(*shape[:-1], 1)
    with pytest.raises(RuntimeError):
        sample(values, coords, backend="cpu")


# Keeps 240 MiB, and then is given no more than 100 MiB of address space beside them.
SCARCE = """
import resource, sys
import torch
from crad_kernels import sample
values, coords = torch.ones(1, 30 * 2**20), torch.zeros(1, 1)
def result(mib):
    return sample(values[:, : mib * 2**18], coords, backend="cpu")
results = [result(mib) for mib in (40, 48, 48, 48, 56)]
del results
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, resource.RLIM_INFINITY))
assert result(120).eq(1).all()
try:
    result(120), [result(100) for _ in range(9)]
except RuntimeError as error:
    assert "not enough memory for a result of" in str(error)
else:
    raise SystemExit("it was not refused")
"""


@needs_cpu
@linux
@pytest.mark.slow
def test_what_is_kept_is_freed_before_memory_runs_out() -> None:
    subprocess.run([sys.executable, "-c", SCARCE], check=True, timeout=600)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Compiles the program beside this file: (*flags) -> its path."""

    def compile_it(*flags: str) -> Path:
        program, source = tmp_path / "recycler", Path(__file__).with_name("recycler.cpp")
        command = [
            *shlex.split(os.environ.get("CXX", "c++")),
            "-std=c++17",
            "-O1",
            "-pthread",
            *flags,
        ]
        try:
            done = subprocess.run(
                [*command, str(source), "-o", str(program)], capture_output=True, text=True
            )
        except FileNotFoundError:
            pytest.skip("there is no C++ compiler")
        if done.returncode and "tsan" in done.stderr:
            pytest.skip("the compiler has no such sanitizer")
        assert not done.returncode, done.stderr
        return program

    return compile_it


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "forks"), [((), 1000), (("-fsanitize=thread",), 200)], ids=["", "ThreadSanitizer"]
)
@pytest.mark.thorough
def test_threads_share_it_while_the_process_forks(
    build: Callable[..., Path], flags: tuple[str, ...], forks: int
) -> None:
    done = subprocess.run([build(*flags), str(forks)], capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this compiler's sanitizer does not know the addresses of this kernel")
    assert not done.returncode, done.stderr
