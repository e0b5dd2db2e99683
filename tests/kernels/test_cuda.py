"""What a CPU cannot show: streams, graphs, waiting, many runs, large tensors, several devices."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from crad_kernels import _op, reference, sample
from tests.cases import DTYPES, JUDGE, SAME_INDEX, Case, assert_near, assert_same
from tests.kernels.test_large import MANY, need

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

FLOAT32 = {"dtype": torch.float32, "coords_dtype": torch.float32}

# Of these the gradients are always summed in one order.
SMALL_GRIDS = [
    Case((8, 8), channels=216, points=(3000,), **FLOAT32),
    Case((4, 4), channels=30_000, points=(16,), **FLOAT32),
    Case((3, 4, 2), channels=40, points=(500,), batch=3, padding_mode="border", **FLOAT32),
    Case((2,) * 8, channels=8, points=(600,), padding_mode="border", **FLOAT32),
    Case((4, 4), channels=67, points=(900,), mode="cubic", **FLOAT32),
    Case((3,) * 5, channels=8, points=(600,), mode="simplex", **FLOAT32),
]
LARGE_GRIDS = [
    Case((200, 300), channels=8, points=(5000,), **FLOAT32),
    Case((40, 50, 60), channels=32, points=(3000,), padding_mode="reflection", **FLOAT32),
    Case((100, 120), channels=6, points=(4000,), mode="cubic", padding_mode="border", **FLOAT32),
]
# Some 50 ms on any GPU: long beside what the host takes to queue a sample and its gradients.
LONG = 100_000_000


def results(case: Case, tensors: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """A jittered sample and its gradients."""
    values, coords, grad_output = tensors
    leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
    out = sample(*leaves, **{**case.options, "jitter_std": 0.1, "seed": 3, **options})
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_output)]


# ---- streams ----


@pytest.mark.parametrize("case", SMALL_GRIDS + LARGE_GRIDS, ids=str)
def test_runs_on_the_current_stream(cuda_backend: str, case: Case) -> None:
    """Behind what is queued there: the tensors are NaN until a long kernel has ended."""
    tensors = case.tensors()
    expected = results(case, tensors, backend=cuda_backend)
    late = [torch.full_like(tensor, torch.nan) for tensor in tensors]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(LONG)
        for buffer, tensor in zip(late, tensors, strict=True):
            buffer.copy_(tensor)
        actual = results(case, late, backend=cuda_backend)
    torch.cuda.synchronize()
    assert_same(actual, expected)


def test_streams_share_no_memory(cuda_backend: str) -> None:
    """Calls that overlap give what they give alone."""
    cases = SMALL_GRIDS[0], SMALL_GRIDS[1], LARGE_GRIDS[0], LARGE_GRIDS[1]
    tensors = [case.tensors() for case in cases]
    pairs = list(zip(cases, tensors, strict=True))
    expected = [results(case, given, backend=cuda_backend) for case, given in pairs]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(10):
        actual = []
        for stream, (case, given) in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                actual.append(results(case, given, backend=cuda_backend))
        torch.cuda.synchronize()
        for got, wanted in zip(actual, expected, strict=True):
            assert_same(got, wanted)


def test_threads_do_not_disturb_each_other(cuda_backend: str) -> None:
    """Of one kernel, launched at the same time with more and with less shared memory."""
    cases = [Case((4 * n, 8), channels=216, points=(2000,), **FLOAT32) for n in (1, 2, 1, 2)]
    tensors = [case.tensors() for case in cases]
    pairs = list(zip(cases, tensors, strict=True))
    expected = [results(case, given, backend=cuda_backend) for case, given in pairs]

    def often(pair: tuple[Case, tuple[Tensor, ...]]) -> list[list[Tensor]]:
        with torch.device(pair[1][0].device):  # which is a thread's own
            return [results(*pair, backend=cuda_backend) for _ in range(20)]

    with ThreadPoolExecutor(len(pairs)) as pool:
        for runs, wanted in zip(pool.map(often, pairs), expected, strict=True):
            for got in runs:
                assert_same(got, wanted)


# ---- waiting ----


@contextmanager
def errors_on_waiting() -> Iterator[None]:
    """PyTorch's own waits raise; those of others show in that the queue is empty afterwards."""
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
        before_the_end = torch.cuda.Event()
        before_the_end.record()
        assert not before_the_end.query(), "waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode("default")


SEEDS: dict[str, Callable[[], Any]] = {
    "drawn": lambda: None,
    "int": lambda: 2**40 + 7,
    "tensor": lambda: torch.tensor(7),
}
STDS: dict[str, Callable[[], Any]] = {
    "float": lambda: 0.1,
    "floats": lambda: (0.1, 0.2),
    "tensor": lambda: torch.tensor([0.1, 0.2]),
}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", [SMALL_GRIDS[0], SMALL_GRIDS[1], LARGE_GRIDS[0]], ids=str)
def test_does_not_wait_for_the_device(
    cuda_backend: str, case: Case, seed: str, std: str, deterministic: bool
) -> None:
    tensors = case.tensors()
    options = {
        "seed": SEEDS[seed](),
        "jitter_std": STDS[std](),
        "deterministic": deterministic,
        "backend": cuda_backend,
    }
    for _ in range(2):  # the first call may compile, load and allocate
        results(case, tensors, **options)
    with errors_on_waiting():
        results(case, tensors, **options)


# ---- graphs ----


def captured(function: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """The function as a graph, and the tensors that a replay writes to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = function()
    return graph, written


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", SMALL_GRIDS + LARGE_GRIDS, ids=str)
def test_a_graph_has_the_noise_of_the_seed_it_is_given(
    cuda_backend: str, case: Case, deterministic: bool
) -> None:
    tensors = case.tensors()
    options = {"deterministic": deterministic, "backend": cuda_backend}
    seed = torch.tensor(1)
    graph, written = captured(lambda: results(case, tensors, seed=seed, **options))
    for number in (1, 2, 2**40, -5):
        seed.fill_(number)
        for tensor in written:
            tensor.fill_(torch.nan)
        graph.replay()
        assert_same(written, results(case, tensors, seed=number, **options))


def test_a_graph_draws_a_new_seed_at_every_replay(cuda_backend: str) -> None:
    case = SMALL_GRIDS[0]
    tensors = case.tensors()
    graph, (out, *_) = captured(lambda: results(case, tensors, seed=None, backend=cuda_backend))
    outs = []
    for _ in range(3):
        graph.replay()
        outs.append(out.clone())
    assert not torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[1], outs[2])


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("case", [SMALL_GRIDS[0], LARGE_GRIDS[0]], ids=str)
def test_compiles_whole(cuda_backend: str, case: Case, mode: str) -> None:
    """Forward and backward, with work around them; the second mode puts them in CUDA graphs."""
    values, coords, grad_output = case.tensors()

    def call(values: Tensor, coords: Tensor, seed: Tensor) -> Tensor:
        options = {**case.options, "jitter_std": 0.1, "seed": seed, "backend": cuda_backend}
        return sample(values * 2, coords * 0.9, **options).relu()

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, mode=mode)
    for number in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        both = []
        for function in (call, compiled):
            leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
            out = function(*leaves, torch.tensor(number))
            gradients = torch.autograd.grad(out, leaves, grad_output)
            both.append([result.detach().clone() for result in (out, *gradients)])
        for got, wanted in zip(*both, strict=True):
            assert_near(got, wanted, 10 * SAME_INDEX[torch.float32])


# ---- the same in every run ----

RUNS = 20


@pytest.mark.parametrize("dtypes", [DTYPES[0], *DTYPES[3:6]], ids=str)
@pytest.mark.parametrize(
    ("case", "deterministic"),
    [
        *itertools.product(SMALL_GRIDS, (False, True)),
        *((case, True) for case in LARGE_GRIDS),
    ],
    ids=str,
)
def test_every_run_gives_the_same_bits(
    cuda_backend: str, case: Case, deterministic: bool, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    case = replace(case, dtype=dtypes[0], coords_dtype=dtypes[1])
    tensors = case.tensors()
    options = {"deterministic": deterministic, "backend": cuda_backend}
    expected = results(case, tensors, **options)
    for _ in range(RUNS - 1):
        for got, wanted in zip(results(case, tensors, **options), expected, strict=True):
            assert torch.equal(got, wanted)


# ---- the same on every device ----


def test_the_jitter_is_that_of_the_cpu(cuda_backend: str) -> None:
    """To 1e-6."""
    for seed in (0, -1, 2**40 + 7, -(2**63)):
        ours = _op.normals(cuda_backend, torch.tensor(seed), 100_000, 8)
        theirs = _op.normals(JUDGE, torch.tensor(seed, device="cpu"), 100_000, 8)
        assert (ours.cpu() - theirs).abs().max() <= 1e-6


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
@pytest.mark.parametrize("case", SMALL_GRIDS + LARGE_GRIDS, ids=str)
def test_runs_on_the_device_of_the_tensors(cuda_backend: str, case: Case) -> None:
    """Also where another is the current one, which stays so."""
    tensors = case.tensors()
    expected = results(case, tensors, backend=cuda_backend)
    second = torch.device("cuda", 1)
    actual = results(case, [t.to(second) for t in tensors], backend=cuda_backend)
    assert torch.cuda.current_device() == 0
    assert {result.device for result in actual} == {second}
    assert_same([result.to(expected[0].device) for result in actual], expected)


# ---- memory ----


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 4, 8, 216])
def test_memory_need_not_be_aligned(
    cuda_backend: str, channels: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Tensors may begin anywhere, which wide accesses may not."""
    for size, padding_mode in itertools.product(((8, 8), (60, 70)), ("zeros", "border")):
        case = Case(size, channels, (300,), None, "linear", padding_mode, False, *dtypes)
        tensors = case.tensors()
        moved = []
        for tensor in tensors:
            moved.append(tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape))
            moved[-1].copy_(tensor)
        expected = results(case, tensors, backend=cuda_backend)
        assert_same(results(case, moved, backend=cuda_backend), expected)


# Partial sums of the blocks, and what PyTorch's allocator rounds up.
WORKSPACE = 32 * 2**20


@pytest.mark.parametrize("dtypes", [DTYPES[3], DTYPES[4]], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case((8, 8), channels=216, points=(50_176,)),
        Case((4, 4), channels=169_344, points=(64,)),
        Case((4, 4, 4), channels=216, points=(50_176,), batch=None),
    ],
    ids=str,
)
def test_small_grids_take_no_memory_but_for_the_results(
    cuda_backend: str, case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    case = replace(case, dtype=dtypes[0], coords_dtype=dtypes[1])
    tensors = case.tensors()
    results(case, tensors, backend=cuda_backend)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    held = results(case, tensors, backend=cuda_backend)
    taken = torch.cuda.max_memory_allocated() - before
    assert taken <= sum(result.nbytes for result in held) + WORKSPACE


# ---- more than 2^31 elements; see also test_large ----


def test_many_points_of_a_small_grid(cuda_backend: str) -> None:
    """Forward and backward, at the last of them, with their noise."""
    need(on_cpu=0, on_gpu=24)
    channels, points, last = 136, 2**24, slice(-50, None)
    options = {"padding_mode": "border", "backend": cuda_backend}
    values = torch.randn(8, 8, channels).bfloat16()
    coords = torch.rand(points, 2) * 2 - 1
    jittered = sample(values, coords, jitter_std=0.1, seed=3, **options)
    assert jittered.numel() > MANY
    noise = _op.normals(cuda_backend, torch.tensor(3), points, 2)[last]
    assert torch.equal(jittered[last], sample(values, coords[last] + 0.1 * noise, **options))
    del jittered
    grad_output = torch.zeros(points, channels, dtype=torch.bfloat16)
    grad_output[last] = torch.randn(50, channels).bfloat16()
    case = Case((8, 8), padding_mode="border")
    tensors = values, coords, grad_output
    actual = results(case, tensors, jitter_std=0, backend=cuda_backend)
    near = values, coords[last], grad_output[last]
    expected = results(case, near, jitter_std=0, backend=cuda_backend)
    assert not actual[2][:-50].any()
    assert_near(actual[1], expected[1], torch.finfo(torch.bfloat16).eps)
    assert_near(actual[2][last], expected[2], SAME_INDEX[torch.float32])


def test_more_points_than_a_word_counts(cuda_backend: str) -> None:
    """The noise beyond 2^32 points is not that of the first points again."""
    need(on_cpu=0, on_gpu=64)
    points = 2**32 + 1000
    values = torch.linspace(-1, 1, 2)[:, None]
    coords = torch.zeros(1, 1).expand(points, 1)
    out = sample(
        values,
        coords,
        align_corners=True,
        padding_mode="border",
        jitter_std=0.1,
        seed=3,
        backend=cuda_backend,
    )
    index = torch.arange(2**32, points)
    counter = torch.stack((index & 0xFFFFFFFF, index >> 32, 0 * index, 0 * index), -1)
    words = reference.philox(counter, torch.tensor([[3, 0]]).expand(1000, 2)) >> 8
    radius = (-2 * ((words[:, 0] + 1).double() / 2**24).log()).sqrt()
    normal = radius * (2 * torch.pi * words[:, 1].double() / 2**24).cos()
    # The grid is the line through its two entries: a sample of it is its coordinate.
    assert_near(out[2**32 :, 0], (0.1 * normal).clamp(-1, 1), 1e-6)
