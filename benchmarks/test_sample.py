"""Forward and backward of a jittered look-up, every peer on every case, grouped by case."""

from math import prod

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.cases import CASES, JITTER_STD, Case
from benchmarks.peers import PEERS, Peer, grid_sample_flat, why_not
from crad_kernels import sample


def agrees(peer: Peer, case: Case) -> None:
    """Without jitter, a peer computes what we compute, and its gradients."""
    values, coords, grad_output = case.tensors()
    out = peer(values, coords, 0.0)
    gradients = torch.autograd.grad(out, (values, coords), grad_output)
    ours = sample(values, coords)
    wanted = torch.autograd.grad(ours, (values, coords), grad_output)
    pairs = zip((out.detach(), *gradients), (ours.detach(), *wanted), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_backward(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    ndim = len(case.size)
    reason = why_not(name, ndim, 2**ndim * prod(case.points) * case.channels)
    if reason:
        pytest.skip(reason)
    peer = PEERS[name]
    agrees(peer, case)
    values, coords, grad_output = case.tensors()
    if peer is not grid_sample_flat and name.startswith("F.grid_sample"):
        # The model that calls it so goes on channels first.
        grad_output = grad_output.movedim(-1, 1).contiguous().movedim(1, -1)

    def step() -> tuple[Tensor, ...]:
        out = peer(values, coords, JITTER_STD)
        return torch.autograd.grad(out, (values, coords), grad_output)

    benchmark.group = f"forward + backward, {case}"
    benchmark.name = name
    benchmark.pedantic(step, rounds=15, warmup_rounds=2)  # type: ignore[no-untyped-call]
