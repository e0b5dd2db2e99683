"""How much memory a call takes beside its results, whatever the strides of its tensors.

Every call is made in a process of its own, a fork of one that has imported torch: what a former
call has freed would hide what this one takes. The system tells the peak of the memory that the
process has touched, whoever allocated it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crad_kernels import sample

MiB = 2**20

# Beside results: partial sums, and copies of what is small; pages of 2 MiB that a result is not
# the whole of.
BOUND = 24 * MiB + 3 * 2 * MiB
# Of a grid that is larger than a cache: the points are sorted by the part of it that they read.
SORTED = 12

Results = tuple[Tensor, ...]
Call = Callable[[], Results]
# A name, bytes beyond `BOUND`, and what makes tensors and returns a call on them.
Named = tuple[str, int, Callable[[], Call]]


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, dtype=dtype).mul_(2).sub_(1)


def forward(values: Tensor, coords: Tensor) -> Call:
    return lambda: (sample(values, coords, backend="cpu"),)


def backward(
    values: Tensor,
    coords: Tensor,
    grad_output: Tensor,
    want_values: bool = True,
    want_coords: bool = True,
    mode: str = "linear",
) -> Call:
    leaves = values.requires_grad_(want_values), coords.requires_grad_(want_coords)
    out = sample(*leaves, mode=mode, jitter_std=0.01, seed=1, backend="cpu")
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    return lambda: torch.autograd.grad(out, asked, grad_output.expand_as(out))


def one() -> Tensor:
    """The gradient of a sum, once it is expanded."""
    return torch.ones(())


def of_coords() -> Iterator[Named]:
    points = 1_000_000
    coords: dict[str, Callable[[], Tensor]] = {
        "transposed": lambda: uniform(4, points, dtype=torch.float64).T,
        "expanded": lambda: uniform(points // 20, 4, dtype=torch.float64).expand(20, -1, -1),
        "sliced": lambda: uniform(points, 6, dtype=torch.float64)[:, 1:5],
    }
    for name, make in coords.items():
        yield (
            f"coords {name}, forward",
            0,
            lambda make=make: forward(torch.ones(3, 3, 3, 3, 2), make()),
        )
        yield (
            f"coords {name}, backward",
            SORTED * points,
            lambda make=make: backward(
                torch.ones(20, 20, 20, 20, 1), make(), one(), want_coords=False, mode="nearest"
            ),
        )


def of_grad_output() -> Iterator[Named]:
    points, channels = 100_000, 128
    gradients: dict[str, Callable[[], Tensor]] = {
        "of a sum": one,
        "of sums of rows": lambda: torch.ones(points, 1),
        "of sums of columns": lambda: torch.ones(channels),
        "transposed": lambda: torch.ones(channels, points).T,
        "sliced": lambda: torch.ones(points, channels + 8)[:, 3 : channels + 3],
    }
    for size, bands in ((8, 8), 0), ((90, 80), SORTED * points):
        for name, make in gradients.items():
            if bands and name == "transposed":
                continue  # which is copied there
            yield (
                f"grad_output {name}, {size}",
                bands,
                lambda make=make, size=size: backward(
                    torch.ones(*size, channels), uniform(points, 2), make()
                ),
            )


def of_values() -> Iterator[Named]:
    points = 20_000
    values: dict[str, Callable[[], Tensor]] = {
        "sliced": lambda: torch.ones(802, 800, 20)[1:-1, :, 2:18],
        "every other channel": lambda: torch.ones(800, 800, 32)[..., ::2],
        "expanded channels": lambda: torch.ones(800, 800, 1).expand(-1, -1, 16),
        "transposed": lambda: torch.ones(800, 800, 16).transpose(0, 1),
        "cropped planes": lambda: torch.ones(16, 806, 800)[:, 3:-3].movedim(0, -1),
        "expanded": lambda: torch.ones(200, 200, 16).expand(20, -1, -1, -1),
        "every other item": lambda: torch.ones(40, 200, 200, 16)[::2],
    }
    for name, make in values.items():
        batched = make().ndim == 4
        where = (20, points // 20, 2) if batched else (points, 2)
        yield (
            f"values {name}, forward",
            SORTED * points,
            lambda make=make, where=where: forward(make(), uniform(*where)),
        )
        yield (
            f"values {name}, backward",
            SORTED * points,
            lambda make=make, where=where: backward(make(), uniform(*where), one()),
        )


def of_much() -> Iterator[Named]:
    yield (
        "tiles of channels",
        SORTED * 200_000,
        lambda: backward(torch.ones(40, 40, 40, 256), uniform(200_000, 3), one()),
    )
    yield (
        "partial sums",
        0,
        lambda: backward(
            torch.ones(*(6,) * 6, 64), uniform(200_000, 6), one(), want_coords=False, mode="nearest"
        ),
    )
    yield (
        "grids in bands",
        SORTED * 160_000,
        lambda: backward(torch.ones(400, 30, 20, 70), uniform(400, 400, 2), one()),
    )
    yield (
        "planes",
        SORTED * 810_000,
        lambda: forward(torch.ones(9, 300, 300, 7), uniform(9, 90_000, 2)),
    )
    yield (
        "half precision",
        SORTED * 100_000,
        lambda: backward(
            torch.ones(1024, 1024, 32, dtype=torch.bfloat16), uniform(100_000, 2), one(), False
        ),
    )


def of_channels_first() -> Iterator[Named]:
    """Values and their gradient may be copied once each, and the result or its gradient."""
    points, grid, out = 200_000, 4 * 64 * 500 * 600, 4 * 64 * 200_000

    def values() -> Tensor:
        return torch.ones(64, 500, 600).movedim(0, -1)

    def grad_output() -> Tensor:
        return torch.ones(64, points).T

    copies = SORTED * points + out
    yield (
        "channels first, forward",
        copies + grid,
        lambda: forward(values(), uniform(points, 2)),
    )
    yield (
        "channels first, backward",
        copies + 2 * grid,
        lambda: backward(values(), uniform(points, 2), grad_output()),
    )


def temporary_of_torch() -> Results:
    return (torch.zeros(25 * MiB).sum(),)


def temporary_of_a_result() -> Results:
    """Of memory that the CPU backend keeps for the next one."""
    out = sample(torch.ones(8, 8, 64), uniform(100 * MiB // 256, 2), backend="cpu")
    return (out.sum(),)


def temporary_of_the_c_library() -> Results:
    return (torch.tensor(len(bytearray(b"1") * (100 * MiB))),)


TEMPORARIES = [temporary_of_torch, temporary_of_a_result, temporary_of_the_c_library]


def status(name: str) -> int:
    """A number of bytes from what the system tells of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise LookupError(name)


def taken(make: Callable[[], Call]) -> int:
    """Bytes that a call takes beside its results, in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            backward(
                torch.ones(2, 2, 1), uniform(1, 2), one()
            )()  # what is loaded at the first call
            call = make()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = status("VmRSS")
            results = call()
            peak = status("VmHWM") - before
            peak -= sum(result.numel() * result.element_size() for result in results)
            os.write(write, str(peak).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return int(answer)


def measure() -> None:
    """Print what every call takes, as JSON: name to bytes and bound."""
    torch.set_num_threads(1)  # one that has started others must not fork
    forward(torch.ones(2, 2, 1), uniform(1, 2))()
    calls = chain(of_coords(), of_grad_output(), of_values(), of_much(), of_channels_first())
    peaks = {name: (taken(make), BOUND + more) for name, more, make in calls}
    peaks |= {f.__name__: (taken(lambda f=f: f), 0) for f in TEMPORARIES}
    print(json.dumps(peaks))


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells of peaks")
def test_a_call_takes_little_beside_its_results() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", __name__],
        check=True,
        capture_output=True,
        text=True,
        # What is freed goes back to the system, and is not taken again unseen.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    ).stdout
    peaks = json.loads(printed)
    for temporary in TEMPORARIES:
        assert peaks.pop(temporary.__name__)[0] > 98 * MiB
    too_much = {name: peak for name, (peak, bound) in peaks.items() if peak > bound}
    assert not too_much


if __name__ == "__main__":
    measure()
