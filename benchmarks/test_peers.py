"""Every peer on every case, beside the floor of the memory; grouped by case and direction."""

import time
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.cases import CASES, JITTER_STD, Case
from benchmarks.peers import Trial, check, peers

PEERS = peers("cpu")
# What any of them has to do: write the result; read the inputs and write all results.
FLOORS = {"forward": "floor: fill", "forward + backward": "floor: copy"}
GROUPS = [
    (case, direction, jitter_std)
    for case in CASES
    for direction, jitter_std in (
        ("forward", 0.0),
        ("forward", JITTER_STD),
        ("forward + backward", 0.0),
        ("forward + backward", JITTER_STD),
    )
    if (direction == "forward") == (jitter_std == 0.0)
    or (case.name == "CRAD local" and direction == "forward")
    or (case.layout is not None or case.name == "1 point")
    and direction == "forward + backward"
]


@lru_cache(maxsize=1)
def tensors(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the case that is timed now."""
    return case.tensors()


@lru_cache(maxsize=1)
def wanted(case: Case) -> tuple[Tensor, ...]:
    """Our results, which those of every peer are compared with."""
    return Trial(PEERS["crad_kernels cpu"], case, tensors(case)).results(backward=True)


def floor(case: Case, direction: str) -> Callable[[], object]:
    """What moves as much memory as any peer must, in torch's fastest way."""
    values, coords, grad_output = (tensor.detach() for tensor in tensors(case))
    out = torch.empty_like(grad_output)
    if direction == "forward":
        return lambda: out.fill_(0)
    pairs = [(torch.empty_like(t), t) for t in (values, coords)] + [(out, grad_output)]
    return lambda: [target.copy_(source) for target, source in pairs]


def run(benchmark: BenchmarkFixture, step: Callable[[], object]) -> None:
    """Time a step that was warmed up: often if it is short."""
    step()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    if seconds < 0.3:
        rounds = min(max(int(0.3 / seconds), 15), 100)
    else:
        rounds = 5 if seconds < 1 else 3
    iterations = max(int(1e-3 / seconds), 1)
    benchmark.pedantic(step, rounds=rounds, iterations=iterations)  # type: ignore[no-untyped-call]


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
        step = lambda: method(jitter_std)  # noqa: E731
    benchmark.group = f"{case}; {direction}, {'jitter' if jitter_std else 'no jitter'}"
    benchmark.name = name
    benchmark.extra_info.update(
        case.facts, direction=direction, jitter=bool(jitter_std), peer=name
    )
    with torch.set_grad_enabled(backward):
        run(benchmark, step)
