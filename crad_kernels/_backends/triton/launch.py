"""The operators: tensors in, launches, tensors out.

Tensors that do not fit together are refused; results are contiguous. Nothing here copies to the
device, or waits for it unless `tuning` does, so a CUDA graph can capture all of it. The order of
sums depends on shapes and dtypes alone.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from crad_kernels._backends.triton import kernels
from crad_kernels._backends.triton.tuning import GATHERING, HOLDING, Configuration, fastest
from crad_kernels._schema import (
    check_call,
    check_grad_output,
    check_normals,
    check_philox,
    unpack,
)

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}

# A grid of at most so many entries is held in registers where its gradient is summed.
_SMALL = 128

# As many programs as keep a large GPU busy.
_PROGRAMS = 1024

# Pairs of a point and a corner that are sorted at a time.
_PAIRS = 1 << 24

# Of fewer outputs, a GPU makes short work however it is cut: a launch takes longer.
_WORTH_TUNING = 1 << 20


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _up_to(number: int, most: int) -> int:
    """A power of two: the least that is not below `number`, if that is not above `most`."""
    return min(1 << max(number - 1, 0).bit_length(), most)


def run(kernel: Any, programs: int, device: torch.device, warps: int = 4, **arguments: Any) -> None:
    """Launch so many programs of a kernel on the device of its tensors."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](**arguments, num_warps=warps, enable_fp_fusion=False)


@dataclass(frozen=True)
class _Call:
    """What the kernels of a call share."""

    batch: int
    entries: int
    channels: int
    points: int
    points_per_item: int
    accumulator: torch.dtype
    kind: tuple[Hashable, ...]
    arguments: dict[str, Any]

    @property
    def empty(self) -> bool:
        return self.points == 0 or self.channels == 0

    @property
    def corners(self) -> int:
        corners: int = self.arguments["TAPS"] ** self.arguments["NDIM"]
        return corners

    @property
    def dense(self) -> bool:
        """Whether a sample multiplies all entries of the grid by their weights.

        It then adds `entries / corners` times as many products as one that gathers, but locates a
        corner for all channels of a block. Gathering stays the better where its loop over corners
        is unrolled: counted in instructions, see docs/performance.md, not yet timed on a GPU.
        The rule is of the shape alone, as the two round differently.
        """
        return self.entries <= _SMALL and self.corners > kernels.UNROLLED.value

    @property
    def channel_groups(self) -> dict[str, int]:
        """The number of channels, and how many of them are sure to be aligned together."""
        group = gcd(self.channels, 16)
        return {"groups": self.channels // group, "GROUP": group}

    def fastest(
        self,
        kernel: str,
        configurations: Sequence[Configuration],
        launch: Callable[[Configuration], None],
    ) -> Configuration:
        """The configuration to launch a kernel with."""
        if self.points * self.channels < _WORTH_TUNING:
            return configurations[0]
        device = self.arguments["coords"].device
        return fastest((kernel, *self.kind), device, configurations, launch)

    def gathering(self, configuration: Configuration) -> tuple[int, int, dict[str, int]]:
        """Programs, tiles and arguments of a kernel that gathers entries for blocks of points."""
        # Where loops are unrolled, the entries of all corners are on their way at the same time.
        elements = configuration.scale * (1024 if self.corners <= 4 else 512)
        if self.accumulator == torch.float64:
            elements //= 2
        block_channels = _up_to(self.channels, configuration.channels)
        block_points = min(elements // block_channels, 256 * configuration.scale)
        blocks = _ceil_div(self.points, block_points)
        blocks_per_tile = _ceil_div(self.channels, _ceil_div(_PROGRAMS, blocks) * block_channels)
        tiles = _ceil_div(self.channels, blocks_per_tile * block_channels)
        return (
            blocks * tiles,
            tiles,
            {
                "points": self.points,
                "blocks_per_tile": blocks_per_tile,
                **self.channel_groups,
                "SHARED": self.batch == 1,
                "BLOCK_POINTS": block_points,
                "BLOCK_CHANNELS": block_channels,
            },
        )

    def holding(self, most_chunks: int) -> tuple[int, int, dict[str, int]]:
        """Programs, chunks and arguments of a kernel that holds all entries for chunks of points.

        A program holds a tile of their channels.
        """
        # What a thread holds of the tile, and of the factors that make it, fits in its registers.
        entries = max(_up_to(self.entries, _SMALL), 16)
        block_channels = max(_up_to(self.channels, min(2048 // entries, 32)), 16)
        block_points = 16
        tiles = _ceil_div(self.channels, block_channels)
        wanted = _ceil_div(_PROGRAMS, tiles * self.batch)
        chunks = max(1, min(wanted, most_chunks, self.points_per_item // (2 * block_points)))
        chunk = _ceil_div(_ceil_div(self.points_per_item, chunks), block_points) * block_points
        chunks = _ceil_div(self.points_per_item, chunk)
        return (
            self.batch * chunks * tiles,
            chunks,
            {
                **self.channel_groups,
                "chunk": chunk,
                "ENTRIES": entries,
                "BLOCK_POINTS": block_points,
                "BLOCK_CHANNELS": block_channels,
            },
        )


def _call(
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    options: int,
) -> _Call:
    mode, padding_mode, align_corners, _, derivative = unpack(options)
    ndim = coords.shape[-1]
    size = tuple(values.shape[-1 - ndim : -1])
    batch = values.shape[0] if values.ndim == ndim + 2 else 1
    points = coords.numel() // ndim
    points_per_item = points // max(batch, 1)
    jittered = seed is not None and jitter_std is not None
    wide = values.dtype == torch.float64
    return _Call(
        batch,
        prod(size),
        values.shape[-1],
        points,
        points_per_item,
        torch.float64 if wide else torch.float32,
        (
            *(values.dtype, coords.dtype, jittered, ndim),
            *(mode, padding_mode, align_corners, derivative),
            *(number.bit_length() for number in (batch, prod(size), values.shape[-1], points)),
        ),
        {
            "coords": coords.contiguous(),
            "seed": seed if jittered else None,
            "jitter_std": jitter_std.contiguous() if jittered and jitter_std is not None else None,
            "points_per_item": points_per_item,
            "entries": prod(size),
            "size": size,
            "NDIM": ndim,
            "MODE": mode,
            "PADDING": padding_mode,
            "ALIGN_CORNERS": align_corners,
            "TAPS": _TAPS[mode],
            "DERIVATIVE": derivative,
            "ACCUMULATOR": tl.float64 if wide else tl.float32,
        },
    )


def sample(
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    options: int,
) -> Tensor:
    """The sample: gathered, or as a product of matrices (`_Call.dense`)."""
    check_call(values, coords, seed, jitter_std, options)
    call = _call(values, coords, seed, jitter_std, options)
    output = values.new_empty(*coords.shape[:-1], call.channels)
    if call.empty:
        return output
    values = values.contiguous()
    configurations: Sequence[Configuration]
    if call.dense:
        name, kernel, configurations = "dense_sample", kernels.dense_sample_kernel, HOLDING
        held = call.holding(most_chunks=call.points_per_item)
    else:
        name, kernel, configurations = "sample", kernels.sample_kernel, GATHERING
        held = None

    def launch(configuration: Configuration) -> None:
        programs, _, plan = held or call.gathering(configuration)
        run(
            kernel,
            programs,
            values.device,
            configuration.warps,
            values=values,
            output=output,
            **plan,
            **call.arguments,
        )

    launch(call.fastest(name, configurations, launch))
    return output


def sample_backward(
    grad_output: Tensor,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    options: int,
    want_values: bool,
    want_coords: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of sum(grad_output * sample(values, coords)); empty if not wanted."""
    check_call(values, coords, seed, jitter_std, options)
    check_grad_output(grad_output, values, coords)
    call = _call(values, coords, seed, jitter_std, options)
    grad_output = grad_output.contiguous()
    if call.empty:
        return (
            values.new_zeros(values.shape if want_values else 0),
            coords.new_zeros(coords.shape if want_coords else 0),
        )
    if not want_values:
        grad_values = values.new_empty(0)
    elif call.entries <= _SMALL:
        grad_values = _owned_grad_values(call, grad_output, values)
    elif unpack(options)[3]:  # deterministic
        grad_values = _sorted_grad_values(call, grad_output, values)
    else:
        grad_values = _atomic_grad_values(call, grad_output, values)
    grad_coords = _grad_coords(call, grad_output, values, coords) if want_coords else None
    return grad_values, coords.new_empty(0) if grad_coords is None else grad_coords


def _grad_coords(call: _Call, grad_output: Tensor, values: Tensor, coords: Tensor) -> Tensor:
    """Partial sums of tiles of channels, summed in order: the same bits in every run."""
    programs, tiles, plan = call.gathering(GATHERING[0])
    parts = coords.new_empty(tiles, *coords.shape)
    run(
        kernels.grad_coords_kernel,
        programs,
        values.device,
        grad_output=grad_output,
        values=values.contiguous(),
        parts=parts,
        **plan,
        **call.arguments,
    )
    return parts[0] if tiles == 1 else parts.sum(0)


def _owned_grad_values(call: _Call, grad_output: Tensor, values: Tensor) -> Tensor:
    """Partial sums of chunks of points, summed in order: the same bits in every run."""
    # No more chunks than leave the sum of their parts cheaper than reading grad_output.
    affordable = max(call.points_per_item, (1 << 20) // call.channels) // (2 * call.entries)
    programs, chunks, plan = call.holding(affordable)
    shape = (call.batch, chunks, call.entries, call.channels)
    parts = values.new_empty(shape, dtype=call.accumulator)

    def launch(configuration: Configuration) -> None:
        run(
            kernels.owned_grad_values_kernel,
            programs,
            values.device,
            configuration.warps,
            grad_output=grad_output,
            parts=parts,
            **plan,
            **call.arguments,
        )

    launch(call.fastest("owned_grad_values", HOLDING, launch))
    total = parts if chunks == 1 else parts.sum(1)
    return total.to(values.dtype).view(values.shape)


def _atomic_grad_values(call: _Call, grad_output: Tensor, values: Tensor) -> Tensor:
    """Sums in whatever order the device comes to."""
    grad_values = values.new_empty(values.shape, dtype=call.accumulator)

    def launch(configuration: Configuration) -> None:
        programs, _, plan = call.gathering(configuration)
        run(
            kernels.atomic_grad_values_kernel,
            programs,
            values.device,
            configuration.warps,
            grad_output=grad_output,
            grad_values=grad_values,
            **plan,
            **call.arguments,
        )

    configuration = call.fastest("atomic_grad_values", GATHERING, launch)
    grad_values.zero_()  # of what was added while it was timed, too
    launch(configuration)
    return grad_values.to(values.dtype)


def _sorted_grad_values(call: _Call, grad_output: Tensor, values: Tensor) -> Tensor:
    """Sums in order of a stable sort of the pairs of a point and a corner, by the row they read."""
    grad_values = values.new_zeros(values.shape, dtype=call.accumulator)
    block_channels = _up_to(call.channels, 256)
    tiles = _ceil_div(call.channels, block_channels)
    chunk = max(1, _PAIRS // (call.corners * tiles))
    for first in range(0, call.points, chunk):
        points = min(chunk, call.points - first)
        pairs = points * call.corners
        rows = values.new_empty(pairs, dtype=torch.int64)
        weights = values.new_empty(pairs, dtype=call.accumulator)
        run(
            kernels.corners_kernel,
            _ceil_div(points, 128),
            values.device,
            rows=rows,
            weights=weights,
            first_point=first,
            points=points,
            SHARED=call.batch == 1,
            BLOCK_POINTS=128,
            **call.arguments,
        )
        rows, order = torch.sort(rows, stable=True)
        run(
            kernels.segments_kernel,
            pairs * tiles,
            values.device,
            grad_output=grad_output,
            rows=rows,
            order=order,
            weights=weights,
            grad_values=grad_values,
            first_point=first,
            pairs=pairs,
            **call.channel_groups,
            CORNERS=call.corners,
            ACCUMULATOR=call.arguments["ACCUMULATOR"],
            BLOCK_PAIRS=8,
            BLOCK_CHANNELS=block_channels,
        )
    return grad_values.to(values.dtype)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 on int64 tensors of words, ``(N, 4)`` and ``(N, 2)``."""
    check_philox(counter, key)
    words = torch.empty_like(counter, memory_format=torch.contiguous_format)
    if len(counter):
        run(
            kernels.philox_kernel,
            _ceil_div(len(counter), 1024),
            counter.device,
            counter=counter.contiguous(),
            key=key.contiguous(),
            words=words,
            points=len(counter),
            BLOCK_POINTS=1024,
        )
    return words


def normals(seed: Tensor, points: int, ndim: int) -> Tensor:
    """The normals of the jitter, float32 ``(points, ndim)``."""
    check_normals(seed, points, ndim)
    result = seed.new_empty(points, ndim, dtype=torch.float32)
    if points:
        run(
            kernels.normals_kernel,
            _ceil_div(points, 1024),
            seed.device,
            seed=seed,
            normals=result,
            points=points,
            NDIM=ndim,
            BLOCK_POINTS=1024,
        )
    return result
