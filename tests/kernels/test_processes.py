"""Processes that have sampled start others, by every method, and those sample, too."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.multiprocessing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crad_kernels import backends, grid_sample, sample

STRATEGIES = sorted(torch.multiprocessing.get_all_sharing_strategies())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not backends()["cpu"].usable, reason="the CPU backend, which recycles memory, is not here"
    ),
    # Python 3.12 and later warn of what is tested here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

VALUES = torch.arange(8 * 8 * 216.0).view(8, 8, 216)


def samples(number: int) -> tuple[Tensor, Tensor]:
    """Of 9 MiB each, which is recycled memory."""
    coords = torch.linspace(-1, 1, 2 * 11_000).view(-1, 2) * (number + 1) / 4
    image, grid = VALUES.movedim(-1, 0)[None], coords[None, None]
    return sample(VALUES, coords, backend="cpu"), grid_sample(image, grid, backend="cpu")


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Sampled where a worker loads them."""

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        torch.multiprocessing.set_sharing_strategy(self.strategy)
        return samples(number)


@pytest.fixture
def strategy(request: pytest.FixtureRequest) -> Iterator[str]:
    """How processes share memory."""
    usual = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy(request.param)
    yield request.param
    torch.multiprocessing.set_sharing_strategy(usual)


@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        *(("fork", name) for name in STRATEGIES),
        *((name, STRATEGIES[0]) for name in ("spawn", "forkserver")),
    ],
    indirect=["strategy"],
)
def test_workers_of_a_data_loader_sample(method: str, strategy: str) -> None:
    expected = [samples(number) for number in range(4)]
    loader = DataLoader(
        Samples(strategy),
        batch_size=None,
        num_workers=1,
        multiprocessing_context=method,
        timeout=600,
    )
    for got, wanted in zip(loader, expected, strict=True):
        assert all(map(torch.equal, got, wanted))


@pytest.mark.parametrize("strategy", STRATEGIES, indirect=True)
def test_results_move_to_shared_memory(strategy: str) -> None:
    for result in samples(0):
        expected = result.clone()
        pickled = ForkingPickler.dumps(result)
        assert result.is_shared()
        assert torch.equal(result, expected)
        if strategy == "file_system":  # the other one sends to processes alone
            assert torch.equal(pickle.loads(pickled), expected)
        # In the memory that it had before.
        assert not torch.equal(samples(1)[0], expected)
        assert torch.equal(result, expected)


# Two threads make large results and free them while the main one, which has used the threads of
# OpenMP, forks; a child samples as much as needs them. Prints how many children do not end. The
# argument: how many there are.
FORKS = """
import os, select, signal, sys, threading
import torch
from crad_kernels import release_memory, sample

values, coords = torch.rand(8, 8, 216), torch.rand(12_000, 2)
torch.set_num_threads(2)
expected = sample(values, coords, backend="cpu")
done = False

def churn():
    while not done:
        sample(values, coords, backend="cpu")

threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads:
    thread.start()
waiting = 0
for _ in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        out = sample(values, coords, backend="cpu")
        torch.set_num_threads(1)  # as torch itself would wait for them
        same = torch.equal(out, expected)
        release_memory()
        os._exit(not same)
    handle = os.pidfd_open(child)
    if not select.select([handle], [], [], 60)[0]:
        waiting += 1
        os.kill(child, signal.SIGKILL)
    os.close(handle)
    assert os.waitpid(child, 0)[1] in (0, signal.SIGKILL)
done = True
for thread in threads:
    thread.join()
print(waiting)
"""


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells of an end")
def test_no_child_waits_for_what_its_parent_does() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, "200"],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.split() == ["0"]
