"""The peers that are timed compute what ours computes, in every layout and dtype."""

import pytest
import torch

from benchmarks.cases import CASES, Case
from benchmarks.memories import attention, grid, tensors, vector_quantize_pytorch, vq
from benchmarks.peers import Trial, check, peers

PEERS = peers("cpu")
SMALL = (
    Case("shared", (5, 7), 6, (4, 3, 5)),
    Case("volume", (3, 4, 5), 6, (4, 3, 5)),
    Case("line", (9,), 6, (30,)),
    Case("4-D", (2, 3, 2, 3), 6, (30,)),
    Case("half", (5, 7), 6, (4, 3, 5), dtype=torch.bfloat16),
    *(
        Case("warp", size, 6, (1, *size), layout)
        for layout in ("channels first", "channels last")
        for size in ((6, 8), (4, 6, 8))
    ),
)


@pytest.mark.parametrize("name", [name for name in PEERS if "compiled" not in name])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_peers_agree(case: Case, name: str) -> None:
    peer = PEERS[name]
    if reason := peer.why_not(case):
        pytest.skip(reason)
    if name == "torch-interpol":
        pytest.importorskip("interpol")
    ours = Trial(PEERS["crad_kernels reference"], case, case.tensors())
    check(Trial(peer, case, case.tensors()), ours.results(backward=True))
    check(Trial(peer, case, case.tensors()), ours.results(backward=False))


def test_a_peer_that_is_wrong_is_found() -> None:
    case = SMALL[0]
    trial = Trial(PEERS["F.embedding_bag"], case, case.tensors())
    wanted = Trial(PEERS["crad_kernels reference"], case, case.tensors(seed=1)).results(True)
    with pytest.raises(AssertionError, match="not close"):
        check(trial, wanted)


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("name", ["crad_kernels reference", "F.grid_sample, over threads"])
def test_results_have_the_layout_of_the_case(layout: str, name: str) -> None:
    case = Case("warp", (6, 8), 6, (1, 6, 8), layout)
    trial = Trial(PEERS[name], case, case.tensors())
    out, grad_values, _ = trial.results(backward=True)
    for tensor in (out[0], grad_values):
        first = tensor.movedim(-1, 0).is_contiguous()
        assert (first, tensor.is_contiguous()) == (layout == "channels first", layout[9:] == "last")


def test_cases_have_names_of_their_own() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)


def test_memories_look_up() -> None:
    features, entries = tensors(16, points=50)
    nearest = (features[:, None] - entries).square().sum(-1).argmin(1)
    torch.testing.assert_close(vq(features, entries), entries[nearest])
    weight = torch.softmax(features @ entries.T / features.shape[1] ** 0.5, 1)
    torch.testing.assert_close(attention(features, entries), weight @ entries)
    assert grid(features, entries).shape == features.shape


def test_vq_is_what_the_field_uses() -> None:
    pytest.importorskip("vector_quantize_pytorch")
    features, entries = tensors(16, points=50)
    with torch.no_grad():
        theirs = vector_quantize_pytorch(features, entries)
    torch.testing.assert_close(theirs, vq(features, entries))
