"""How the CUDA backend cuts calls into blocks, on GPUs that are not here.

The plans are pure functions of the call and of a few numbers of the device, so a program for the
processor prints them.
"""

import shlex
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks.cases import CASES
from crad_kernels._schema import MODES

SIMPLEX = MODES.index("simplex")

WARP = 32
REGISTERS = 65536  # of a multiprocessor
KiB = 1024


class Device(NamedTuple):
    """What a plan is told of a GPU: multiprocessors, and bytes of shared memory."""

    multiprocessors: int
    shared: int
    reserve: int
    block: int
    threads: int = 256


DEVICES = {
    "A100": Device(108, 164 * KiB, KiB, 163 * KiB),
    "H100": Device(132, 228 * KiB, KiB, 227 * KiB),
    "H200": Device(132, 228 * KiB, KiB, 227 * KiB),
    "B200": Device(148, 228 * KiB, KiB, 227 * KiB),
    "L4": Device(58, 100 * KiB, KiB, 99 * KiB),
    "RTX 4090": Device(128, 100 * KiB, KiB, 99 * KiB),
}


@dataclass(frozen=True)
class Call:
    """A call of `sample`, or of its backward pass."""

    size: tuple[int, ...]
    channels: int
    points: int
    dtype: torch.dtype = torch.float32
    coord_dtype: torch.dtype = torch.float32
    mode: int = 1  # linear
    grids: int = 1

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        dtype = str(self.dtype).removeprefix("torch.")
        mode = MODES[self.mode]
        return f"{self.grids}x{size}x{self.channels}-{self.points}-{dtype}-{mode}"

    @property
    def value_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def sum_bytes(self) -> int:
        return 8 if self.dtype == torch.float64 else 4

    def line(self, pass_: str, device: Device, wanted: tuple[bool, bool]) -> str:
        """What the program reads."""
        types = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
        numbers = [
            *device,
            types.index(self.dtype),
            types.index(self.coord_dtype),
            self.mode,
            self.grids,
            self.points,
            self.channels,
            *map(int, wanted),
            len(self.size),
            *self.size,
        ]
        return f"{pass_} {' '.join(map(str, numbers))}"


@dataclass(frozen=True)
class Order:
    """As `Order` in csrc/cuda/plan_in_order.h, with the plans of its kernels."""

    corners: int
    items: int
    wide: int
    piece: int
    together: int
    batch: int
    threads: int
    shared: int
    threads_of_keys: int
    shared_of_keys: int


@dataclass(frozen=True)
class Plan:
    """As `Plan` in csrc/cuda/plan.h."""

    family: int
    vector: int
    tile_channels: int
    tiles: int
    chunk_points: int
    chunks: int
    batch: int
    lanes: int
    threads: int
    shared: int

    @property
    def on_chip(self) -> bool:
        return self.family == 0 or self.by_cell

    @property
    def by_cell(self) -> bool:
        return self.family == 3

    @property
    def planes(self) -> bool:
        return self.family == 2


CALLS = [
    *(Call(case.size, case.channels, prod(case.points), case.dtype) for case in CASES),
    # Few channels, and few points.
    *(Call((8, 8), channels, 50_176) for channels in (1, 2, 3, 8, 16, 33, 64, 216)),
    *(Call((8, 8), 216, points) for points in (1, 10, 64, 100, 1000, 10_000_000)),
    Call((8, 8), 216, 50_176, torch.bfloat16),
    Call((4, 4, 4), 216, 50_176),
    Call((16, 16), 256, 256),
    Call((16, 16), 16, 1_000_000),
    Call((16, 16, 16), 16, 1_000_000),
    Call((16, 16, 16), 3, 1_000_000),
    Call((64, 64), 1, 100),
    Call((64, 64), 64, 10_000),
    Call((1024, 1024), 3, 1_000_000, torch.bfloat16),
    Call((256, 256, 256), 4, 1_000_000),
    Call((256, 256, 256), 1, 10_000_000),
    Call((4, 4), 169_344, 64),
    Call((4, 4), 169_344, 1),
    Call((4, 4), 4096, 10_000),
    Call((40,), 4096, 100_000),
    Call((300, 300), 4100, 1000),
    Call((5, 5), 1500, 10_000, torch.bfloat16),
    # Many axes, other modes and types, many grids.
    *(Call((3,) * axes, 64, 100_000) for axes in range(1, 9)),
    *(Call((8,) * axes, 4, 1_000_000) for axes in (4, 5, 6, 8)),
    *(Call((8,) * axes, 32, 100_000, mode=2) for axes in (1, 2, 3, 4)),
    *(Call((3,) * axes, 64, 100_000, mode=SIMPLEX) for axes in (2, 3, 4, 6, 8)),
    *(Call((32, 32), 128, 50_000, dtype) for dtype in (torch.float64, torch.float16)),
    Call((32, 32), 128, 50_000, coord_dtype=torch.float64),
    Call((16, 16), 64, 1000, grids=64),
    Call((8, 8), 1, 10_000, grids=256),
    Call((128, 128), 2, 4096, mode=0, grids=8),
]
CALLS = list(dict.fromkeys(CALLS))

PASSES = [
    ("forward", (False, False)),
    ("backward", (True, True)),
    ("backward", (True, False)),
    ("backward", (False, True)),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prints plans."""
    compiler = shlex.split(sysconfig.get_config_var("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        compiler = ["c++"]
    if shutil.which(compiler[0]) is None:
        pytest.skip("there is no C++ compiler")
    path = tmp_path_factory.mktemp("plans") / "plans"
    source = Path(__file__).with_name("cuda_plans.cpp")
    subprocess.run([*compiler, "-std=c++17", str(source), "-o", str(path)], check=True)
    return path


def answers(program: Path, lines: list[str]) -> list[list[int]]:
    """What the program prints."""
    text = "\n".join(lines)
    result = subprocess.run([program], input=text, text=True, capture_output=True, check=True)
    return [[int(number) for number in line.split()] for line in result.stdout.splitlines()]


def plans(
    program: Path, pass_: str, device: Device, wanted: tuple[bool, bool]
) -> list[tuple[Call, Plan]]:
    """Of all calls."""
    lines = [call.line(pass_, device, wanted) for call in CALLS]
    found = answers(program, lines)
    return [(call, Plan(*numbers)) for call, numbers in zip(CALLS, found, strict=True)]


def busy_lanes(call: Call, plan: Plan, backward: bool) -> float:
    """The share of threads that have a vector of channels of a point to work on."""
    vectors = call.channels / plan.vector
    points = min(plan.batch, plan.chunk_points)
    if backward and plan.on_chip:
        groups = plan.threads // plan.lanes
        return vectors / (plan.tiles * plan.lanes) * min(1, points / groups)
    rows = plan.threads // plan.lanes
    turns = ceil(ceil(plan.tile_channels / plan.vector) / plan.lanes)
    return vectors / (plan.tiles * turns * plan.lanes) * points / (ceil(points / rows) * rows)


def most_blocks(call: Call, plan: Plan, backward: bool) -> int:
    """How many blocks there is work for: of two warps with a vector of channels a thread, or as
    many as partial sums allow."""
    vectors = ceil(call.channels / plan.vector)
    if backward and plan.on_chip:
        chunks = call.points * call.value_bytes // (2 * prod(call.size) * call.sum_bytes)
        return call.grids * max(1, chunks) * ceil(vectors / WARP)
    return call.grids * call.points * vectors // (2 * WARP)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize(("pass_", "wanted"), PASSES)
def test_plans_fit_the_device(
    program: Path, name: str, pass_: str, wanted: tuple[bool, bool]
) -> None:
    device, backward = DEVICES[name], pass_ == "backward"
    faults = []
    for call, plan in plans(program, pass_, device, wanted):
        blocks = call.grids * plan.tiles * plan.chunks
        grad_output = call.grids * call.points * call.channels * call.value_bytes
        partial = 0
        if backward and plan.on_chip and wanted[0] and plan.chunks > 1:
            partial = plan.chunks * call.grids * prod(call.size) * call.channels * call.sum_bytes
        faults += [
            f"{call}: {fault}; {plan}"
            for fault, holds in {
                "covers all": plan.tiles * plan.tile_channels >= call.channels
                and plan.chunks * plan.chunk_points >= call.points,
                "whole warps": plan.threads % WARP == 0 and 0 < plan.threads <= device.threads,
                "whole vectors": plan.tile_channels % plan.vector == 0,
                "shared memory": 0 < plan.shared <= device.block,
                "registers": plan.threads * (128 if backward else 64) <= REGISTERS,
                "half of the lanes": plan.threads == WARP
                or busy_lanes(call, plan, backward) >= 0.5,
                "lanes of a warp": plan.chunk_points * call.channels / plan.vector < WARP
                or busy_lanes(call, plan, backward) >= 0.5,
                "a block a multiprocessor": blocks
                >= min(device.multiprocessors, most_blocks(call, plan, backward)),
                # Written and read again.
                "partial sums": 2 * partial <= grad_output,
            }.items()
            if not holds
        ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", DEVICES)
def test_many_points_of_a_small_grid_are_sorted_by_cell(program: Path, name: str) -> None:
    found = dict(plans(program, "backward", DEVICES[name], (True, True)))
    for dtype in (torch.float32, torch.bfloat16):
        assert found[Call((8, 8), 216, 50_176, dtype)].by_cell
    assert found[Call((4, 4, 4), 216, 50_176)].by_cell
    others = [
        Call((8, 8), 1, 50_176),  # many groups of threads a warp: one always changes its cell
        Call((8, 8), 216, 10),
        Call((1024, 1024), 3, 1_000_000, torch.bfloat16),
        Call((3, 3, 3, 3), 64, 100_000),
        Call((8, 8), 32, 100_000, mode=2),
        Call((3, 3, 3), 64, 100_000, mode=SIMPLEX),
        Call((32, 32), 128, 50_000, coord_dtype=torch.float64),
    ]
    assert not any(found[call].by_cell for call in others)


def test_sums_of_few_results_have_many_blocks(program: Path) -> None:
    for device in DEVICES.values():
        for number, count in ((662, 128), (100, 1), (3, 10**6), (50, 10**6), (1000, 4000)):
            ((columns,),) = answers(
                program, [f"sums {' '.join(map(str, device))} {number} {count}"]
            )
            assert 1 <= columns <= device.threads
            assert columns & (columns - 1) == 0
            if number > 4:
                assert ceil(count / columns) >= min(device.multiprocessors, count)


@pytest.mark.parametrize("name", DEVICES)
def test_threads_share_the_levels_of_a_point(program: Path, name: str) -> None:
    device = DEVICES[name]
    cases = list(product((1, 10, 1000, 2**14, 2**20), (1, 2, 5, 12, 16, 32), (1, 2, 4, 8)))
    lines = [
        f"levels {' '.join(map(str, device))} {points} {levels} {channels}"
        for points, levels, channels in cases
    ]
    faults = []
    for case, (lanes, threads, blocks) in zip(cases, answers(program, lines), strict=True):
        points, levels, channels = case
        work = points * levels // WARP
        faults += [
            f"{case}: {fault}; {lanes} lanes, {threads} threads, {blocks} blocks"
            for fault, holds in {
                "covers all": blocks * threads >= points * lanes > (blocks - 1) * threads,
                "whole warps": threads % WARP == 0 and 0 < threads <= device.threads,
                "lanes of a warp": WARP % lanes == 0,
                "half of the lanes": levels / (ceil(levels / lanes) * lanes) > 0.5,
                "whole sectors": lanes * channels * 4 >= 32 or lanes >= min(levels, WARP),
                "a block a multiprocessor": blocks >= min(device.multiprocessors, work // 2),
            }.items()
            if not holds
        ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", DEVICES)
def test_points_are_sorted_in_bounded_memory(program: Path, name: str) -> None:
    device = DEVICES[name]
    lines = [call.line("order", device, (True, False)) for call in CALLS]
    faults = []
    for call, numbers in zip(CALLS, answers(program, lines), strict=True):
        order = Order(*numbers)
        axes = len(call.size)
        taps = axes + 1 if call.mode == SIMPLEX else (1, 2, 4)[call.mode] ** axes
        items = order.together * order.items
        rests = ceil(items / order.piece) * order.corners * call.channels
        faults += [
            f"{call}: {fault}; {order}"
            for fault, holds in {
                "all corners": order.corners * order.items == taps,
                "whole pieces": order.batch % order.piece == 0 < order.piece,
                "threads": 0 < order.threads <= device.threads >= order.threads_of_keys > 0,
                "shared memory": max(order.shared, order.shared_of_keys) <= device.block,
                "items": items <= max(2**22, order.items),
                "rests": rests <= 2**24 + order.corners * call.channels or order.together == 1,
                "narrow keys": not order.wide,
            }.items()
            if not holds
        ]
    assert not faults, "\n".join(faults)


def test_many_points_are_sorted_once_and_few_by_corner(program: Path) -> None:
    """A launch for each of the corners of a window must be worth it."""
    expected = {
        Call((256, 256, 256), 4, 1_000_000): 1,
        Call((64, 64, 64), 32, 1_000_000): 1,
        Call((64, 64), 216, 50_176): 1,
        Call((64, 64), 216, 1000): 4,
        # A window along two axes, an entry along the third.
        Call((64, 64, 64), 32, 1_000_000, mode=2): 4,
        Call((2**24 + 1,), 4, 100_000_000): 2,
    }
    lines = [call.line("order", DEVICES["H200"], (True, False)) for call in expected]
    assert [numbers[1] for numbers in answers(program, lines)] == list(expected.values())


def test_keys_are_wide_where_they_have_to_be(program: Path) -> None:
    calls = [Call((2**13, 2**13, 2**4), 1, 10**7), Call((2**13, 2**13, 2**6), 1, 10**7)]
    lines = [call.line("order", DEVICES["H200"], (True, False)) for call in calls]
    assert [numbers[2] for numbers in answers(program, lines)] == [0, 1]


# Of images, with many points and few.
PLANES = [
    *CALLS,
    *(Call((1024, 1024), 64, points) for points in (1, 10, 100, 10_000)),
    *(Call((512, 512), 3, 512 * 512, grids=grids) for grids in (1, 32)),
    Call((200, 304), 256, 2048, grids=2),
]


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize(
    ("pass_", "wanted"),
    [
        ("planes", (False, False)),
        ("backward_planes", (True, False)),
        ("backward_planes", (False, True)),
    ],
)
def test_plans_of_planes_fit_the_device(
    program: Path, name: str, pass_: str, wanted: tuple[bool, bool]
) -> None:
    """A thread takes 4 channels of a point at once."""
    device = DEVICES[name]
    lines = [call.line(pass_, device, wanted) for call in PLANES]
    faults = []
    for call, numbers in zip(PLANES, answers(program, lines), strict=True):
        plan = Plan(*numbers)
        fours = ceil(call.channels / 4)
        least = min(call.points, WARP, plan.batch)
        work = call.grids * ceil(call.points / least) * fours
        turns = ceil(ceil(min(plan.tile_channels, call.channels) / 4) / plan.lanes)
        lanes = fours / (plan.tiles * turns * plan.lanes)
        busy = lanes * call.points / (plan.chunks * plan.batch)
        faults += [
            f"{call}: {fault}; {plan}"
            for fault, holds in {
                "planes": plan.planes,
                "covers all": plan.tiles * plan.tile_channels >= call.channels
                and plan.chunks * plan.chunk_points >= call.points,
                "a thread a point and lane": plan.threads == plan.batch * plan.lanes,
                "whole warps": plan.threads % WARP == 0 and 0 < plan.threads <= device.threads,
                "neighbours": plan.batch >= WARP
                or plan.batch >= call.points
                or plan.shared * 2 > device.shared // 2 - device.reserve,
                "shared memory": 0 < plan.shared <= device.block,
                "registers": plan.threads * 128 <= REGISTERS,
                "half of the lanes": busy >= 0.5 or plan.threads == WARP or fours == 1,
                "a block a multiprocessor": call.grids * plan.tiles * plan.chunks
                >= min(device.multiprocessors, work),
            }.items()
            if not holds
        ]
    assert not faults, "\n".join(faults)
