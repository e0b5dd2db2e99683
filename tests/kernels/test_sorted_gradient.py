"""The gradient of a large grid, in order, by the Triton backend: of runs of a sorted list."""

import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crad_kernels import sample
from crad_kernels._schema import pack
from tests.cases import SAME_INDEX, Case, assert_near

pytest.importorskip("triton")

from crad_kernels._backends.triton import launch, plan

ENTRIES = 200


def gradient(
    backend: str, grad_output: Tensor, coords: Tensor, mode: str = "nearest", entries: int = ENTRIES
) -> Tensor:
    values = torch.zeros(entries, grad_output.shape[-1], dtype=grad_output.dtype)
    leaf = values.requires_grad_()
    out = sample(leaf, coords, mode=mode, deterministic=True, backend=backend)
    (grad,) = torch.autograd.grad(out, leaf, grad_output)
    return grad


def of_runs(lengths: list[int], channels: int) -> tuple[Tensor, Tensor]:
    """A gradient of the output and points, of which as many read each entry, in no order.

    Every fifth entry is left out, and its points are where no entry is.
    """
    entry = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    entry = torch.where(entry % 5 == 4, ENTRIES + 1, entry)
    generator = torch.Generator(entry.device).manual_seed(0)
    entry = entry[torch.randperm(len(entry), generator=generator, device=entry.device)]
    coords = ((2 * entry + 1) / ENTRIES - 1)[:, None].double()
    grad_output = torch.randn(
        len(entry), channels, generator=generator, device=entry.device, dtype=torch.float64
    )
    return grad_output, coords


PIECE = plan.PIECE
RUNS = {
    "of one piece": [PIECE - 3, 1, 2],
    "ends of pieces": [PIECE - 1, 1, 1, PIECE - 1, PIECE, 2 * PIECE, PIECE + 1, 1, PIECE - 1],
    "across pieces": [PIECE + 1, 3 * PIECE, 5, 2 * PIECE + 7, 1, 1, 130, 3, 0, 700],
    "in tiles": [PIECE + 1, 5, PIECE],
    "a hot entry": [3, 1, 2, PIECE * PIECE, 9],
    "all of one": [PIECE * PIECE + 1],
}


@pytest.mark.parametrize(
    ("name", "channels"),
    [*((name, 1) for name in RUNS if name != "in tiles"), ("across pieces", 3), ("in tiles", 130)],
)
def test_runs_of_any_length_are_summed(triton_backend: str, name: str, channels: int) -> None:
    grad_output, coords = of_runs(RUNS[name], channels)
    actual = gradient(triton_backend, grad_output, coords)
    assert_near(actual, gradient("reference", grad_output, coords), 10 * SAME_INDEX[torch.float64])


@pytest.fixture
def linear() -> tuple[Tensor, Tensor]:
    """Some 700 points, every second of them at one place."""
    _, coords, grad_output = Case((ENTRIES,), channels=5, points=(700,)).tensors()
    coords[::2] = 0.101
    return grad_output, coords


@pytest.mark.parametrize("name", ["short keys", "long keys", "a few points at a time"])
def test_however_the_points_are_sorted(
    triton_backend: str, linear: tuple[Tensor, Tensor], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradient("reference", *linear, "linear")
    keys = []
    if name == "long keys":  # as of 2^31 rows
        monkeypatch.setattr(plan, "LAST_SHORT", 0)
    if name == "a few points at a time":
        monkeypatch.setattr(plan, "SORTED_BYTES", 9_000)
    sort = torch.sort
    with mock.patch.object(
        torch, "sort", lambda rows, **options: keys.append(rows) or sort(rows, **options)
    ):
        actual = gradient(triton_backend, *linear, "linear")
    assert_near(actual, expected, 10 * SAME_INDEX[torch.float64])
    assert {rows.dtype for rows in keys} == {torch.int64 if name == "long keys" else torch.int32}
    assert (len(keys) > 3) == (name == "a few points at a time")
    assert sum(map(len, keys)) == 2 * 700


def test_the_length_of_keys_changes_no_bits(
    triton_backend: str, linear: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = gradient(triton_backend, *linear, "linear")
    monkeypatch.setattr(plan, "LAST_SHORT", 0)
    assert torch.equal(gradient(triton_backend, *linear, "linear"), short)


# ---- what is launched, on tensors without memory ----


class Allocated(TorchDispatchMode):
    """Counts the bytes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple) else (result,)
        if not func.is_view:
            self.bytes += sum(each.nbytes for each in made if isinstance(each, Tensor))
        return result


def launched(case: Case) -> tuple[list[tuple[str, int, dict[str, Any]]], int]:
    """Kernels, programs and arguments of a gradient, and the bytes of tensors that were made."""
    found = []

    def record(kernel: Any, programs: int, device: Any, warps: int = 4, **arguments: Any) -> None:
        found.append((kernel.__name__, programs, arguments))

    values = torch.empty(*case.size, case.channels, device="meta")
    coords = torch.empty(*case.points, case.ndim, device="meta")
    grad_output = torch.empty(*case.points, case.channels, device="meta")
    options = pack(case.mode, case.padding_mode, False, True, 0)
    with mock.patch.object(launch, "run", record), Allocated() as allocated:
        launch.sample_backward(
            grad_output, values, coords, None, None, options, want_values=True, want_coords=False
        )
    return found, allocated.bytes


def test_a_hot_entry_is_shared_by_many_programs() -> None:
    """No program sums more than a piece for each of its lanes, whatever the points read."""
    found, _ = launched(Case((512, 512), channels=64, points=(250_000,)))
    levels = [each for each in found if each[0] == "pieces_kernel"]
    lengths = [arguments["pairs"] for _, _, arguments in levels]
    assert lengths == [1_000_000, 31_250, 978, 32]
    for _, programs, arguments in levels:
        lanes = programs * arguments["BLOCK_PIECES"]
        assert lanes * plan.PIECE >= arguments["pairs"]
    for longer, shorter in itertools.pairwise(levels):
        assert longer[2]["parts"] is shorter[2]["terms"]
        assert longer[2]["part_rows"] is shorter[2]["rows"]


@pytest.mark.parametrize("channels", [1, 4, 216, 5000])
@pytest.mark.parametrize("size", [(4000, 3000), (200, 200, 200)], ids=str)
def test_temporary_memory_is_bounded(size: tuple[int, ...], channels: int) -> None:
    """Of as many points as are sorted at a time, and of no more."""
    corners = 2 ** len(size)
    problem = plan.Problem(1, 12_000_000, channels, 10**8, len(size), corners)
    chunk = plan.sorted_points(problem)
    found, made = launched(Case(size, channels=channels, points=(chunk,)))
    assert [name for name, _, _ in found].count("corners_kernel") == 1
    entries = torch.empty(size, device="meta").numel()
    assert made - 4 * entries * channels <= plan.SORTED_BYTES
    found, _ = launched(Case(size, channels=channels, points=(chunk + 1,)))
    assert [name for name, _, _ in found].count("corners_kernel") == 2


def test_a_gpu_takes_no_more(triton_backend: str) -> None:
    if torch.get_default_device().type != "cuda":
        pytest.skip("the CPU does not count")
    case = Case((512, 512), channels=64, points=(3_000_000,), dtype=torch.float32)
    values, coords = torch.zeros(512, 512, 64, requires_grad=True), torch.rand(3_000_000, 2)
    out = sample(values, coords, deterministic=True, backend=triton_backend)
    grad_output = torch.ones_like(out)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    (grad,) = torch.autograd.grad(out, values, grad_output)
    taken = torch.cuda.max_memory_allocated() - before
    assert taken <= grad.nbytes + plan.SORTED_BYTES + 2**22, str(case)
