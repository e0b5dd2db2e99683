"""What a program works on: its points and its tile of channels, and where they lie."""

import triton
import triton.language as tl

# Numbers that change from call to call, and tell the compiler nothing that it can use.
CHANGING = [
    "points",
    "points_per_item",
    "entries",
    "groups",
    "blocks_per_tile",
    "first_point",
    "chunk",
    "pairs",
    "outside",
]


@triton.jit
def product_of(number, constant: tl.constexpr):
    """A number of channels, which may be more than an int32 holds."""
    return number.to(tl.int64) * constant


@triton.jit
def item_of(point, points_per_item, SHARED: tl.constexpr):
    """The item of the batch whose grid points read; there is one where it is SHARED."""
    # A division of 64 bits takes as long as a point of few components takes to locate.
    return 0 if SHARED else point // points_per_item


@triton.jit
def tile_of(tensor, row, channels, start, lane):
    """The addresses of the channels from `start` on, a lane each, of rows of `channels`."""
    return (tensor + row * channels + start)[:, None] + lane[None, :]


@triton.jit
def block_of_points(
    channels, blocks_per_tile, BLOCK_POINTS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """What a program works on that takes a block of points.

    The points, the number of its tile, its first channel and the one after the last.
    """
    tile = product_of(blocks_per_tile, BLOCK_CHANNELS)
    tiles = tl.cdiv(channels, tile)
    program = tl.program_id(0).to(tl.int64)
    point = program // tiles * BLOCK_POINTS + tl.arange(0, BLOCK_POINTS)
    begin = program % tiles * tile
    return point, program % tiles, begin, tl.minimum(begin + tile, channels)


@triton.jit
def chunk_of_item(channels, points_per_item, chunk, BLOCK_CHANNELS: tl.constexpr):
    """What a program works on that holds the entries of an item.

    The number of its item and chunk together, its item, the first point of its chunk in the item
    and the one after the last, and its first channel.
    """
    tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    chunks = tl.cdiv(points_per_item, chunk)
    program = tl.program_id(0).to(tl.int64)
    part = program // tiles
    begin = part % chunks * chunk
    end = tl.minimum(begin + chunk, points_per_item)
    return part, part // chunks, begin, end, program % tiles * BLOCK_CHANNELS
