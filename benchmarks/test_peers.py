"""Every peer on every case, beside the floor of the memory; grouped by case and direction."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.cases import CASES, JITTER_STD, Case
from benchmarks.peers import Trial, check, grid_sample_compiled, peers
from benchmarks.timing import run

PEERS = peers("cpu")
# What any of them has to do: write the result; read the inputs and write all results.
FLOORS = {"forward": "floor: fill", "forward + backward": "floor: copy"}


def directions(case: Case) -> Iterator[tuple[Case, str, float]]:
    """What is timed of a case, and with how much jitter."""
    yield case, "forward", 0.0
    if case.name == "CRAD local":
        yield case, "forward", JITTER_STD
    if case.still:
        yield case, "forward + backward", 0.0
    yield case, "forward + backward", JITTER_STD


GROUPS = [
    pytest.param(*group, marks=[pytest.mark.long] * case.long)
    for case in CASES
    for group in directions(case)
]


@lru_cache(maxsize=1)
def tensors(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the case that is timed now."""
    return case.tensors()


@lru_cache(maxsize=1)
def wanted(case: Case) -> tuple[Tensor, ...]:
    """Our results, which those of every peer are compared with."""
    return Trial(next(iter(PEERS.values())), case, tensors(case)).results(backward=True)


def floor(case: Case, direction: str) -> Callable[[], object]:
    """What moves as much memory as any peer must, in torch's fastest way."""
    values, coords, grad_output = (tensor.detach() for tensor in tensors(case))
    out = torch.empty_like(grad_output)
    if direction == "forward":
        return lambda: out.fill_(0)
    pairs = [(torch.empty_like(t), t) for t in (values, coords)] + [(out, grad_output)]
    return lambda: [target.copy_(source) for target, source in pairs]


@pytest.mark.parametrize("name", ["floor", *PEERS])
@pytest.mark.parametrize(("case", "direction", "jitter_std"), GROUPS, ids=str)
def test_peer(
    benchmark: BenchmarkFixture, case: Case, direction: str, jitter_std: float, name: str
) -> None:
    backward = direction == "forward + backward"
    if name == "floor":
        name, step = FLOORS[direction], floor(case, direction)
    else:
        peer = PEERS[name]
        if reason := peer.why_not(case):
            pytest.skip(reason)
        torch.compiler.reset()
        trial = Trial(peer, case, tensors(case))
        check(trial, wanted(case) if backward else wanted(case)[:1])
        method = trial.forward_backward if backward else trial.forward
        step = partial(method, jitter_std)
        if peer.call is grid_sample_compiled:
            with torch.set_grad_enabled(backward):
                step()  # compiled once more, with the noise
    benchmark.group = f"{case}; {direction}, {'jitter' if jitter_std else 'no jitter'}"
    benchmark.name = name
    benchmark.extra_info.update(case.facts, direction=direction, jitter=bool(jitter_std))
    with torch.set_grad_enabled(backward):
        run(benchmark, step)
