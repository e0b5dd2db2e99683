"""The plans of the Triton backend, held against the numbers of GPUs, none of which need be here."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

import pytest
import torch

from benchmarks.cases import CASES
from crad_kernels import sample
from crad_kernels._backends.triton import plan
from crad_kernels._backends.triton.plan import GATHERING, HOLDING, Plan, Problem
from tests.cases import JUDGE, SAME_INDEX, Case, assert_near


class GPU(NamedTuple):
    """Multiprocessors, and KiB of shared memory of each and of a block."""

    multiprocessors: int
    shared: int
    shared_of_block: int


GPUS = {
    "A100": GPU(108, 164, 163),
    "H100": GPU(132, 228, 227),
    "H200": GPU(132, 228, 227),
    "B200": GPU(148, 228, 227),
    "L4": GPU(58, 100, 99),
    "RTX 4090": GPU(128, 100, 99),
}

# What a program works on at least: smaller ones would locate points more often than it is worth.
UNIT = 32 * 32


def problem(
    size: tuple[int, ...],
    channels: int,
    points: int,
    batch: int = 1,
    taps: int = 2,
    wide: bool = False,
) -> Problem:
    ndim = len(size)
    return Problem(batch, prod(size), channels, points, ndim, taps**ndim, 8 if wide else 4)


def _problems() -> Iterator[Problem]:
    for case in CASES:
        yield problem(case.size, case.channels, prod(case.points))
    for channels, points in product(
        (1, 2, 3, 8, 16, 33, 64, 216, 4096, 169_344), (1, 17, 100, 1000, 10**5, 10**7)
    ):
        for size in ((8, 8), (5,), (64, 64), (256, 256, 256)):
            yield problem(size, channels, points)
    for ndim, points, taps in product(range(1, 9), (100, 10**5), (1, 2, 4)):
        for side, channels in ((2, 64), (3, 33), (7, 3), (1, 216)):
            yield problem((side,) * ndim, channels, points, taps=taps)
    for batch, points in ((2, 20_000), (64, 64 * 28 * 28), (1000, 32_000)):
        for size, channels in (((8, 8), 216), ((3, 4, 2), 40), ((64, 64), 3), ((100, 100), 64)):
            yield problem(size, channels, points, batch)
    yield problem((8, 8), 216, 50_176, wide=True)
    yield problem((60, 60), 216, 50_176, wide=True)


PROBLEMS = list(dict.fromkeys(_problems()))


@dataclass(frozen=True)
class Use:
    """What a plan makes of a problem.

    Attributes:
        plan: the plan.
        lanes: of all programs, in all turns of their loops.
        used: that are not masked.
        fill: lanes of one turn of a program.
    """

    plan: Plan
    lanes: int
    used: int
    fill: int


def padded(length: int, block: int) -> int:
    return plan.ceil_div(length, block) * block


def of_gathering(problem: Problem, chosen: Plan) -> Use:
    points, channels = (chosen.arguments[f"BLOCK_{name}"] for name in ("POINTS", "CHANNELS"))
    lanes = padded(problem.points, points) * padded(problem.channels, channels)
    return Use(chosen, lanes, problem.points * problem.channels, points * channels)


def of_holding(problem: Problem, chosen: Plan) -> Use:
    """Lanes of the output's gradient, or of the output; of entries, powers of two are held."""
    points, channels = (chosen.arguments[f"BLOCK_{name}"] for name in ("POINTS", "CHANNELS"))
    chunk, of_item = chosen.arguments["chunk"], problem.points_per_item
    whole, rest = divmod(of_item, chunk)
    lanes = problem.batch * (whole * padded(chunk, points) + padded(rest, points))
    used = problem.batch * of_item * problem.channels
    return Use(chosen, lanes * padded(problem.channels, channels), used, points * channels)


def of_pieces(problem: Problem, pairs: int) -> Use:
    """Lanes that have a piece, however long."""
    chosen = plan.pieces(problem, pairs)
    pieces, channels = (chosen.arguments[f"BLOCK_{name}"] for name in ("PIECES", "CHANNELS"))
    number = plan.ceil_div(pairs, plan.PIECE)
    lanes = padded(number, pieces) * padded(problem.channels, channels)
    return Use(chosen, lanes, number * problem.channels, pieces * channels)


@cache
def uses(problem: Problem) -> dict[str, Use]:
    """Every plan that a call may take."""
    found = {"grad_coords": of_gathering(problem, plan.grad_coords(problem))}
    for configuration in GATHERING:
        use = of_gathering(problem, plan.gathering(problem, configuration))
        if not problem.dense:
            found[f"sample {configuration}"] = use
        if not problem.small:
            found[f"atomic {configuration}"] = use
    for configuration in HOLDING:
        if problem.dense:
            chosen = plan.holding(problem, configuration, summed=False)
            found[f"dense {configuration}"] = of_holding(problem, chosen)
        if problem.small:
            chosen = plan.holding(problem, configuration, summed=True)
            found[f"owned {configuration}"] = of_holding(problem, chosen)
    if not problem.small:
        chunk = plan.sorted_points(problem)
        first = min(problem.points, chunk) * problem.corners
        for i, pairs in enumerate(plan.levels(first)):
            found[f"pieces {i}"] = of_pieces(problem, pairs)
    return found


def test_there_are_cases_of_every_plan() -> None:
    names = {name.split()[0] for each in PROBLEMS for name in uses(each)}
    assert names == {"grad_coords", "sample", "atomic", "dense", "owned", "pieces"}
    assert len(PROBLEMS) > 400


def test_no_more_than_half_of_the_lanes_are_idle() -> None:
    """Where points and channels are as many as fill the lanes of a program."""
    idle = [
        (name, each, use)
        for each in PROBLEMS
        for name, use in uses(each).items()
        if enough(each, name, use) and 2 * use.used < use.lanes
    ]
    assert not idle


def enough(problem: Problem, name: str, use: Use) -> bool:
    """Whether there is enough to fill the lanes; each item of a small grid has its own."""
    if name.startswith(("dense", "owned")):
        return problem.points_per_item >= plan.WARP
    if name.startswith("pieces"):
        return use.plan.parts >= 4 * use.plan.arguments["BLOCK_PIECES"]  # two of each piece
    return use.used >= use.fill


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_there_are_as_many_programs_as_multiprocessors(gpu: GPU) -> None:
    """Where there is work for twice as many."""
    few = [
        (name, each, use)
        for each in PROBLEMS
        for name, use in uses(each).items()
        if use.plan.programs < min(work(each, name, use) // 2, gpu.multiprocessors)
    ]
    assert not few


def work(problem: Problem, name: str, use: Use) -> int:
    """Programs with enough to do; of a gradient, as far as partial sums may be so many."""
    if name.startswith("pieces"):
        return use.used // use.fill
    units = problem.points * problem.channels // UNIT
    if name.startswith("grad_coords"):
        tiles = max(1, problem.channels // (16 * problem.ndim))
        return min(units, plan.ceil_div(problem.points, 8) * tiles)
    if name.startswith("owned"):
        return min(units, allowed_parts(problem) * plan.ceil_div(problem.channels, 32))
    return units


def allowed_parts(problem: Problem) -> int:
    """Chunks of all items whose sums are not too much beside the output's gradient."""
    elements = max(problem.points * problem.channels // 4, 1 << 20) // 2
    return max(problem.batch, elements // (problem.entries * problem.channels))


def test_partial_sums_are_a_small_share_of_what_is_read() -> None:
    """In elements, written and read: of the output's gradient, unless they are a mebi in all."""
    for each in PROBLEMS:
        outputs = each.points * each.channels
        chosen = plan.grad_coords(each)
        if chosen.parts > 1:
            assert 2 * chosen.parts * each.points * each.ndim <= outputs / 8
        for configuration in HOLDING:
            if not each.small:
                continue
            chunks = plan.holding(each, configuration, summed=True).parts
            parts = chunks * each.batch * each.entries * each.channels
            assert chunks == 1 or 2 * parts <= max(outputs / 4, 1 << 20)
        if not each.small:
            pairs = min(each.points, plan.sorted_points(each)) * each.corners
            parts = sum(plan.levels(pairs)[1:])
            assert 2 * parts <= pairs / 15 + 256


def test_chunks_are_those_of_every_configuration() -> None:
    """And so is the order of sums."""
    for each in filter(lambda each: each.small, PROBLEMS):
        plans = [plan.holding(each, configuration, summed=True) for configuration in HOLDING]
        assert len({(chosen.parts, chosen.arguments["chunk"]) for chosen in plans}) == 1


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_shared_memory_is_enough_for_two_programs(gpu: GPU) -> None:
    """Of both factors of a product, each twice: the next is read while one is multiplied.

    What the compiler takes is held against the same limit by `benchmarks.triton_variants`.
    """
    for each in PROBLEMS:
        for name, use in uses(each).items():
            if name.startswith(("dense", "owned")):
                a = use.plan.arguments
                points, entries, channels = a["BLOCK_POINTS"], a["ENTRIES"], a["BLOCK_CHANNELS"]
                taken = 2 * (points * (entries + channels) + entries * channels) * each.accumulator
                assert taken <= gpu.shared_of_block * 1024
                assert 2 * taken <= gpu.shared * 1024


def test_numbers_of_a_program_fit_in_its_registers() -> None:
    """Of the most that a thread has, 255, half are for what is added up and read next."""
    for each in PROBLEMS:
        for name, use in uses(each).items():
            threads = use.plan.warps * plan.WARP
            words = each.accumulator // 4
            if name.startswith(("dense", "owned")):
                a = use.plan.arguments
                held = a["ENTRIES"] * a["BLOCK_CHANNELS"] + a["BLOCK_POINTS"] * (
                    a["ENTRIES"] + a["BLOCK_CHANNELS"]
                )
            elif name.startswith("pieces"):
                held = (plan.TOGETHER + 1) * use.fill
            else:
                held = use.fill * min(each.corners, 4)
            assert held * words <= 128 * threads, (name, each, use)


def test_the_sorted_gradient_has_bounded_memory() -> None:
    for each in filter(lambda each: not each.small, PROBLEMS):
        points = plan.sorted_points(each)
        pairs = points * each.corners
        key = 4 if plan.short_keys(each) else 8
        parts = sum(plan.levels(pairs)[1:]) + 2
        taken = pairs * (3 * key + 16 + each.accumulator)
        taken += parts * (key + each.channels * each.accumulator)
        assert points == 1 or taken <= 1.01 * plan.SORTED_BYTES
        # As many at a time as keep a GPU busy, unless a point alone has too many.
        assert points * each.corners * each.channels >= min(10**6, each.corners * each.channels)


def test_keys_are_short_where_they_count_all_rows() -> None:
    assert plan.short_keys(Problem(1, 2**31 - 1, 1, 1, 1, 2))
    assert not plan.short_keys(Problem(1, 2**31, 1, 1, 1, 2))
    assert not plan.short_keys(Problem(2, 2**30, 1, 1, 1, 2))


@pytest.mark.parametrize("pairs", [1, 64, 65, 4096, 10**6])
def test_a_level_has_the_partial_sums_of_the_last(pairs: int) -> None:
    levels = plan.levels(pairs)
    assert levels[0] == pairs
    assert levels[-1] <= plan.PIECE < min(levels[:-1], default=plan.PIECE + 1)
    for longer, shorter in pairwise(levels):
        assert shorter == 2 * plan.ceil_div(longer, plan.PIECE)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 16, 17, 24, 32])
def test_programs_of_several_levels(number: int) -> None:
    """They have every pair of a point and a level, and as many more at most; whole channels."""
    for points, channels in product((1, 100, 10**6), range(1, 9)):
        chosen = plan.taking_levels(points, number, channels)
        block_points, block_levels, block_channels = (
            chosen.arguments[f"BLOCK_{name}"] for name in ("POINTS", "LEVELS", "CHANNELS")
        )
        assert block_points * block_levels == plan.PAIRS == chosen.warps * plan.WARP
        assert chosen.programs == plan.ceil_div(points, block_points)
        assert padded(number, block_levels) <= 2 * number
        assert channels % block_channels == 0


# ---- what is cut otherwise ----

FEW = {"BUSY": 1, "FEW": 0}  # programs, which loop
MANY = {"BUSY": 10**6, "FEW": 10**9}  # small ones


@pytest.mark.parametrize(
    ("constants", "case", "deterministic"),
    [
        (FEW, Case((5, 4), channels=70, points=(70,), padding_mode="border"), False),
        (MANY, Case((5, 4), channels=70, points=(40,), padding_mode="border"), False),
        (FEW, Case((12, 13), channels=70, points=(20,), batch=2), False),
        (MANY, Case((12, 13), channels=70, points=(10,), batch=2), False),
        (FEW, Case((12, 13), channels=140, points=(20,)), True),
        (FEW, Case((3, 2, 2, 2, 2), channels=20, points=(20,)), False),
    ],
    ids=str,
)
def test_however_the_work_is_cut(
    triton_backend: str,
    constants: dict[str, int],
    case: Case,
    deterministic: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result is that of the reference."""
    for constant, number in constants.items():
        monkeypatch.setattr(plan, constant, number)
    values, coords, grad_output = case.tensors()
    found = []
    for backend in (triton_backend, JUDGE):
        leaves = values.detach().requires_grad_(), coords.detach().requires_grad_()
        out = sample(*leaves, **case.options, deterministic=deterministic, backend=backend)
        found.append((out, *torch.autograd.grad(out, leaves, grad_output)))
    for got, wanted in zip(*found, strict=True):
        assert_near(got, wanted, 10 * SAME_INDEX[torch.float64], case.slope)
