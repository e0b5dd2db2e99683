"""How the work of a call is cut into programs: functions of its shapes and dtypes alone.

The device has no say, so that sums are in one order on every GPU. Every plan gives as many programs
as the largest GPU has multiprocessors, where there is work for them, takes no more shared memory
than the smallest lets a block have, and leaves no more than half of its lanes idle: tests hold all
three against the numbers of GPUs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

# A grid of at most so many entries is held in registers where its gradient is summed.
SMALL = 128

# Loops over so many corners are unrolled.
UNROLLED = 16

# As many programs as keep any GPU busy, and as give each of its multiprocessors one.
BUSY = 1024
FEW = 256

WARP = 32

# Pairs of a point and a level that a program takes at a time, a thread each.
PAIRS = 4 * WARP

# Of a sorted list, one lane sums so many elements in a row, in groups that are on their way at the
# same time.
PIECE = 64
TOGETHER = 8

# Bytes of temporary memory that the sorted gradient takes at most, but for a single point's.
SORTED_BYTES = 1 << 29

# Of fewer outputs, a GPU makes short work however it is cut: a launch takes longer.
WORTH_TUNING = 1 << 20

# The last row that a key of 32 bits counts, with one more for what lies outside.
LAST_SHORT = 2**31 - 2


@dataclass(frozen=True)
class Problem:
    """The shapes of a call.

    Attributes:
        batch: grids, each with its own points.
        entries: of a grid.
        channels: of an entry.
        points: of all grids.
        ndim: axes of a grid.
        corners: entries that a point reads.
        accumulator: bytes of a number that sums are in.
    """

    batch: int
    entries: int
    channels: int
    points: int
    ndim: int
    corners: int
    accumulator: int = 4

    @property
    def points_per_item(self) -> int:
        return self.points // max(self.batch, 1)

    @property
    def empty(self) -> bool:
        return self.points == 0 or self.channels == 0

    @property
    def small(self) -> bool:
        """Whether the gradient of the grid is a product of matrices, summed in registers."""
        return self.entries <= SMALL

    @property
    def dense(self) -> bool:
        """Whether a sample multiplies all entries of the grid by their weights.

        It then adds `entries / corners` times as many products as one that gathers, but locates a
        corner for all channels of a block. Gathering stays the better where its loop over corners
        is unrolled: counted in instructions, see docs/performance.md, not yet timed on a GPU.
        """
        return self.small and self.corners > UNROLLED

    @property
    def worth_tuning(self) -> bool:
        return self.points * self.channels >= WORTH_TUNING

    @property
    def channel_groups(self) -> dict[str, int]:
        """The number of channels, and how many of them are sure to be aligned together."""
        group = gcd(self.channels, 16)
        return {"groups": self.channels // group, "GROUP": group}


@dataclass(frozen=True)
class Configuration:
    """One of several ways to cut the same work, of which the fastest may be timed.

    Attributes:
        warps: of a program.
        channels: the most that a block has.
        scale: how many times the usual number of elements a block has.
    """

    warps: int = 4
    channels: int = 32
    scale: int = 1


GATHERING = (
    Configuration(),
    Configuration(channels=128),  # up to four times the channels for the same taps
    Configuration(scale=2),  # twice the loads at a time
    Configuration(warps=8),  # half the registers of a thread
)
HOLDING = (Configuration(), Configuration(warps=8))


@dataclass(frozen=True)
class Plan:
    """A launch.

    Attributes:
        programs: how many.
        warps: of each.
        parts: tiles or chunks, each of which has partial sums of its own.
        arguments: of the kernel.
    """

    programs: int
    warps: int
    parts: int
    arguments: dict[str, int]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def up_to(number: int, most: int) -> int:
    """A power of two: the least that is not below `number`, if that is not above `most`."""
    return min(1 << max(number - 1, 0).bit_length(), most)


def width(number: int, most: int) -> int:
    """Of a block, a power of two: halved down to 8 as long as a quarter of all blocks is empty."""
    block = up_to(number, most)
    while block > 8 and number < 0.75 * block * ceil_div(number, block):
        block //= 2
    return block


def gathering(problem: Problem, configuration: Configuration, most_parts: int = BUSY) -> Plan:
    """For a kernel that gathers entries for blocks of points: a tile of their channels a program.

    Where the points are few, tiles are; not more than are wanted, where each is a partial sum.
    """
    # Where loops are unrolled, the entries of all corners are on their way at the same time.
    lanes = configuration.scale * (1024 if problem.corners <= 4 else 512)
    lanes = lanes * 4 // problem.accumulator
    most_points = 256 * configuration.scale
    if problem.points * problem.channels < FEW * lanes:
        lanes = 4 * WARP
    few = up_to(problem.points, most_points)
    block_channels = width(problem.channels, max(configuration.channels, lanes // few))
    block_channels = min(block_channels, lanes)
    block_points = width(problem.points, min(lanes // block_channels, most_points))
    blocks = ceil_div(problem.points, block_points)
    wanted = min(ceil_div(BUSY, blocks), max(most_parts, 1))
    blocks_per_tile = ceil_div(problem.channels, wanted * block_channels)
    tiles = ceil_div(problem.channels, blocks_per_tile * block_channels)
    return Plan(
        blocks * tiles,
        max(min(configuration.warps, block_points * block_channels // WARP), 1),
        tiles,
        {
            "points": problem.points,
            "blocks_per_tile": blocks_per_tile,
            **problem.channel_groups,
            "SHARED": problem.batch == 1,
            "BLOCK_POINTS": block_points,
            "BLOCK_CHANNELS": block_channels,
        },
    )


def grad_coords(problem: Problem) -> Plan:
    """The gradient of the coordinates: partial sums over tiles of channels.

    They are written and read: an eighth of the elements of the output's gradient, at most.
    """
    return gathering(problem, GATHERING[0], problem.channels // (16 * problem.ndim))


def taking_levels(points: int, number: int, channels: int) -> Plan:
    """For a kernel that gathers from several levels: a program takes all of a block of points.

    A thread takes a point in a level, and as many channels at a time as are sure to be aligned
    together; its neighbours take other levels of the point.
    """
    block_levels = width(number, WARP)
    block_points = PAIRS // block_levels
    return Plan(
        ceil_div(points, block_points),
        4,
        1,
        {
            "points": points,
            "CHANNELS": channels,
            "BLOCK_POINTS": block_points,
            "BLOCK_LEVELS": block_levels,
            "BLOCK_CHANNELS": gcd(channels, 4),
        },
    )


def holding(problem: Problem, configuration: Configuration, summed: bool) -> Plan:
    """For a kernel that holds all entries, a tile of their channels, for chunks of points.

    Where chunks are `summed`, each is a partial sum: written and read, all are a quarter of the
    elements of the output's gradient, or a mebi of elements, at most.
    """
    # The first and last factors of a product of matrices may have any size, those between 16.
    entries = max(up_to(problem.entries, SMALL), 1 if summed else 16)
    each = problem.batch * problem.entries * problem.channels
    most_chunks = ceil_div(problem.points_per_item, WARP)
    if summed:
        outputs = problem.points * problem.channels
        most_chunks = min(most_chunks, max(1, max(outputs // 4, 1 << 20) // (2 * each)))
    # What a thread holds of the tile, and of the factors that make it, fits in its registers.
    held = 2048 * 4 // problem.accumulator
    block_channels = width(problem.channels, min(held // entries, 128))
    tiles = ceil_div(problem.channels, block_channels)
    while block_channels > 32 and tiles * problem.batch * most_chunks < FEW:
        block_channels //= 2
        tiles = ceil_div(problem.channels, block_channels)
    chunks = min(ceil_div(BUSY, tiles * problem.batch), most_chunks)
    chunk = ceil_div(ceil_div(problem.points_per_item, chunks), WARP) * WARP
    chunks = ceil_div(problem.points_per_item, chunk)
    # A sample has two tiles of as many points, one of all entries and one of the channels.
    most_points = min(up_to(chunk, 128), held // max(entries, block_channels)) if summed else 16
    return Plan(
        problem.batch * chunks * tiles,
        configuration.warps,
        chunks,
        {
            **problem.channel_groups,
            "chunk": chunk,
            "ENTRIES": entries,
            "BLOCK_POINTS": max(most_points, 16),
            "BLOCK_CHANNELS": block_channels,
        },
    )


def short_keys(problem: Problem) -> bool:
    """Whether an int32 counts the rows of all grids."""
    return problem.batch * problem.entries - 1 <= LAST_SHORT


def sorted_points(problem: Problem) -> int:
    """Points whose corners are sorted at a time."""
    key = 4 if short_keys(problem) else 8
    # Keys, sorted, and again while they are; their order and what it was; weights.
    pair = 3 * key + 2 * 8 + problem.accumulator
    # Partial sums, two a piece, with their rows: of all levels, which each have 1/32 of the last.
    parts = ceil_div(2 * (key + problem.channels * problem.accumulator), PIECE - 2)
    return max(1, SORTED_BYTES // (problem.corners * (pair + parts)))


def levels(pairs: int) -> Sequence[int]:
    """Lengths of the lists that are summed one after the other: the partial sums of the last."""
    lengths = [pairs]
    while lengths[-1] > PIECE:
        lengths.append(2 * ceil_div(lengths[-1], PIECE))
    return lengths


def pieces(problem: Problem, pairs: int) -> Plan:
    """For the kernel that sums a sorted list: a lane sums a channel of a piece of it."""
    block_channels = width(problem.channels, 4 * WARP)
    block_pieces = 4 * WARP // block_channels
    number = ceil_div(pairs, PIECE)
    tiles = ceil_div(problem.channels, block_channels)
    return Plan(
        ceil_div(number, block_pieces) * tiles,
        1,
        2 * number,
        {
            "pairs": pairs,
            **problem.channel_groups,
            "PIECE": PIECE,
            "TOGETHER": TOGETHER,
            "BLOCK_PIECES": block_pieces,
            "BLOCK_CHANNELS": block_channels,
        },
    )


def flat(elements: int, block: int) -> Plan:
    """For a kernel that does the same for each of some elements."""
    return Plan(ceil_div(elements, block), 4, 1, {"points": elements, "BLOCK_POINTS": block})
