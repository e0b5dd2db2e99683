"""How the Triton backend picks what it launches: the fastest, timed once, with the same bits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from crad_kernels._schema import pack
from tests.cases import Case, assert_same
from tests.kernels.test_cuda import FLOAT32, errors_on_waiting, results

pytest.importorskip("triton")

from crad_kernels._backends.triton import launch, plan, tuning
from crad_kernels._backends.triton.plan import GATHERING, HOLDING, Configuration
from crad_kernels._backends.triton.tuning import fastest

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been timed yet."""
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.delenv("CRAD_KERNELS_TUNE", raising=False)


class Stopwatch:
    """Runs each launch once, of which the third of a kind is the fastest."""

    def __init__(self) -> None:
        self.launched: list[Configuration] = []

    def __call__(self, launch: Callable[[], None]) -> float:
        launch()
        return abs(2 - GATHERING.index(self.launched[-1]))

    def pick(self, kind: str, device: torch.device = GPU) -> Configuration:
        return fastest(kind, device, GATHERING, self.launched.append)


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    """Stands in for the timing of a GPU."""
    stopwatch = Stopwatch()
    monkeypatch.setattr(tuning, "_time", stopwatch)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.device("cpu"))
    return stopwatch


def test_the_fastest_is_taken_and_timed_once(stopwatch: Stopwatch) -> None:
    for _ in range(3):
        assert stopwatch.pick("a") == GATHERING[2]
    assert stopwatch.launched == list(GATHERING)


def test_each_kind_is_timed_on_each_device(stopwatch: Stopwatch) -> None:
    for kind, device in (("a", GPU), ("b", GPU), ("a", torch.device("cuda", 1))):
        stopwatch.launched.clear()
        stopwatch.pick(kind, device)
        assert stopwatch.launched == list(GATHERING)


def test_a_graph_takes_what_is_known_or_the_first(
    stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopwatch.pick("known")
    stopwatch.launched.clear()
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert stopwatch.pick("known") == GATHERING[2]
        assert stopwatch.pick("unknown") == GATHERING[0]
    assert not stopwatch.launched
    assert stopwatch.pick("unknown") == GATHERING[2]


def test_nothing_is_timed_off_a_gpu_or_if_told_so(
    stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("cpu", "meta"):
        assert stopwatch.pick("a", torch.device(device)) == GATHERING[0]
    monkeypatch.setenv("CRAD_KERNELS_TUNE", "0")
    assert stopwatch.pick("a") == GATHERING[0]
    assert not stopwatch.launched


class Clock:
    """An event that stands for the number of launches so far."""

    launches = 0

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0

    def record(self) -> None:
        self.at = Clock.launches

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: "Clock") -> float:
        return other.at - self.at


def test_the_run_that_compiles_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch() -> None:
        Clock.launches += 1

    monkeypatch.setattr(Clock, "launches", 0)
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    assert tuning._time(launch) == Clock.launches - 1 == tuning._RUNS


def test_what_cannot_run_is_not_taken() -> None:
    def too_large() -> None:
        raise tuning.OutOfResources(2**20, 2**16, "shared memory")

    assert tuning._time(too_large) == float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case((5, 4), channels=136, points=(20,)),
        Case((2, 3, 2), channels=150, points=(9,), batch=2, padding_mode="border"),
        Case((3, 4), channels=1, points=(600,), mode="nearest"),
        Case((2, 3, 2, 2, 2), channels=40, points=(5,), padding_mode="border"),
    ],
    ids=str,
)
def test_every_configuration_gives_the_same_bits(
    triton_backend: str, case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = dtype == torch.float64
    case = replace(case, dtype=dtype, coords_dtype=torch.float64 if wide else torch.float32)
    tensors = case.tensors()
    monkeypatch.setattr(plan, "FEW", 0)  # else, for so few, all have small blocks
    found = []
    for i in range(len(GATHERING)):

        def pick(call: Any, kernel: str, choices: Any, run: Any, i: int = i) -> Any:
            return choices[i % len(choices)]

        monkeypatch.setattr(launch._Call, "fastest", pick)
        found.append(results(case, tensors, backend=triton_backend))
    for others in found[1:]:
        for got, wanted in zip(others, found[0], strict=True):
            assert torch.equal(got, wanted)


def test_a_fixed_order_of_sums_is_no_kind_of_its_own() -> None:
    """What it changes is which kernel is launched, and not how fast one is."""
    kinds = set()
    for deterministic in (False, True):
        options = pack("linear", "zeros", False, deterministic, 0)
        kinds.add(launch._call(torch.zeros(4, 3, 2), torch.zeros(5, 2), None, None, options).kind)
    assert len(kinds) == 1


@pytest.mark.parametrize(
    ("size", "kernels"),
    [
        ((4, 3), ["sample", "owned_grad_values"]),
        ((2,) * 5, ["dense_sample", "owned_grad_values"]),
        ((12, 13), ["sample", "atomic_grad_values"]),
    ],
    ids=["small", "of many corners", "large"],
)
def test_what_is_timed_leaves_no_trace(
    triton_backend: str,
    size: tuple[int, ...],
    kernels: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor in a gradient that is added to."""

    def run_each(kind: Any, device: Any, choices: Any, run: Callable[[Any], None]) -> Any:
        kinds.append(kind[0])
        for choice in choices:
            run(choice)
        return choices[0]

    case = Case(size, points=(20,), **FLOAT32)
    tensors = case.tensors()
    expected = results(case, tensors, backend=triton_backend)
    kinds: list[str] = []
    monkeypatch.setattr(plan, "WORTH_TUNING", 0)
    monkeypatch.setattr(launch, "fastest", run_each)
    assert_same(results(case, tensors, backend=triton_backend), expected)
    assert kinds == kernels


def test_a_call_on_a_gpu_is_timed_once_and_not_in_a_graph(triton_backend: str) -> None:
    if torch.get_default_device().type != "cuda":
        pytest.skip("nothing is timed on the CPU")
    options: dict[str, Any] = {"backend": triton_backend}
    for case, gradient in (
        (Case((8, 8), channels=216, points=(8192,), **FLOAT32), HOLDING),
        (Case((60, 60), channels=216, points=(8192,), **FLOAT32), GATHERING),
    ):
        tuning._known.clear()
        tensors = case.tensors()
        expected = results(case, tensors, **options)
        forward, backward = tuning._known.values()
        assert forward in GATHERING
        assert backward in gradient
        with errors_on_waiting():
            results(case, tensors, **options)
        tuning._known.clear()
        seed = torch.tensor(3)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            written = results(case, tensors, seed=seed, **options)
        assert not tuning._known
        graph.replay()
        assert_same(written, expected)
