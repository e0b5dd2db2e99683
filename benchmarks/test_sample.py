"""Forward and backward of a jittered look-up, every peer on every case, grouped by case."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.cases import CASES, JITTER_STD, Case
from benchmarks.peers import check, grad_output_of, peers, why_not

PEERS = peers("cpu")


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_backward(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    reason = why_not(name, case)
    if reason:
        pytest.skip(reason)
    peer = PEERS[name]
    check(peer, case)
    values, coords, grad_output = case.tensors()
    grad_output = grad_output_of(name, grad_output)

    def step() -> tuple[Tensor, ...]:
        out = peer(values, coords, JITTER_STD)
        return torch.autograd.grad(out, (values, coords), grad_output)

    benchmark.group = f"forward + backward, {case}"
    benchmark.name = name
    benchmark.pedantic(step, rounds=15, warmup_rounds=2)  # type: ignore[no-untyped-call]
