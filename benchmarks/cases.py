"""The shapes that are timed."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

JITTER_STD = 0.05


@dataclass(frozen=True)
class Case:
    """A grid shared by all points, and the points.

    Attributes:
        name: what the case stands for.
        size: entries per axis of the grid.
        channels: channels C of an entry.
        points: shape that the points are arranged in, the batch first.
        layout: in what order values, result and their gradients lie in memory: ``"channels first"``
            or ``"channels last"``; None leaves every peer the order that it likes best.
        dtype: of values, result and their gradients. Coordinates are float32.
        still: whether forward + backward is timed without jitter, too.
        long: whether only ``--long`` runs it.
    """

    name: str
    size: tuple[int, ...]
    channels: int
    points: tuple[int, ...] = (64, 28, 28)
    layout: str | None = None
    dtype: torch.dtype = torch.float32
    still: bool = False
    long: bool = False

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        text = f"{self.name}: {prod(self.points)} points, {size} grid, {self.channels} channels"
        return text if self.layout is None else f"{text}, {self.layout}"

    @property
    def facts(self) -> dict[str, Any]:
        """What a report tells of it, numbers as numbers."""
        return {
            "case": self.name,
            "dimensions": len(self.size),
            "size": list(self.size),
            "entries": prod(self.size),
            "channels": self.channels,
            "points": prod(self.points),
            "layout": self.layout,
            "dtype": str(self.dtype).removeprefix("torch."),
            "long": self.long,
        }

    def tensors(self, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(*size, C)``, coords ``(*points, D)`` in [-1, 1], and the output's gradient."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(*self.size, self.channels, generator=generator)
        if self.layout is None:
            coords = torch.rand(*self.points, len(self.size), generator=generator) * 2 - 1
        else:
            coords = warp(self.points)
        grad_output = torch.randn(*self.points, self.channels, generator=generator)
        values, grad_output = (t.to(device, self.dtype) for t in (values, grad_output))
        return values.requires_grad_(), coords.to(device).requires_grad_(), grad_output

    def fewest_bytes(self, backward: bool) -> int:
        """What has to be moved: every input read once, every result written once."""
        values = prod(self.size) * self.channels * self.dtype.itemsize
        coords = prod(self.points) * len(self.size) * 4
        out = prod(self.points) * self.channels * self.dtype.itemsize
        forward = values + coords + out
        # The output's gradient is read, values and coords again, and their gradients are written.
        return forward + (out + 2 * values + 2 * coords if backward else 0)


def warp(points: tuple[int, ...]) -> Tensor:
    """The places ``(1, *out, D)`` of a smooth warp: every pixel a few moved, by a wave."""
    _, *out = points
    axes = [(torch.arange(length) * 2 + 1) / length - 1 for length in out]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    return (places + 0.02 * torch.sin(7 * places.roll(1, -1)))[None]


CASES = (
    Case("CRAD local", (8, 8), 216),
    Case("CRAD global", (4, 4), 216 * 28 * 28, (64, 1)),
    Case("2-D", (64, 64), 216),
    Case("2-D, few channels", (256, 256), 16),
    Case("3-D", (4, 4, 4), 216),
    Case("3-D, large", (64, 64, 64), 32),
    Case("4-D", (4, 4, 4, 4), 64),
    Case("6-D", (2,) * 6, 64),
    Case("1-D", (4096,), 64),
    Case("volume", (256, 256, 256), 4, (1_000_000,)),
    Case("image warp", (1024, 1024), 3, (1, 1024, 1024), "channels first", still=True),
    Case("image warp, many channels", (256, 256), 64, (1, 256, 256), "channels first"),
    Case("image warp", (1024, 1024), 3, (1, 1024, 1024), "channels last"),
    Case("image warp, many channels", (256, 256), 64, (1, 256, 256), "channels last"),
    Case("volume warp", (96, 96, 96), 3, (1, 96, 96, 96), "channels first", still=True),
    Case("volume warp, many channels", (40, 40, 40), 64, (1, 40, 40, 40), "channels first"),
    Case("CRAD local, bfloat16", (8, 8), 216, dtype=torch.bfloat16),
    Case("3-D, large, bfloat16", (64, 64, 64), 32, dtype=torch.bfloat16),
    Case("1 point", (64, 64), 16, (1,), still=True),
    *(
        Case(f"10^{power} points", (64, 64), 16, (10**power,), long=power == 7)
        for power in range(3, 8)
    ),
    *(
        Case(f"{side}x{side} entries", (side, side), 216, long=True)
        for side in (2, 16, 32, 128, 256)
    ),
    *(
        Case(f"{channels} channels", (8, 8), channels, long=True)
        for channels in (1, 2, 4, 16, 64, 512)
    ),
    *(
        Case(f"4,096 entries in {ndim}-D", (side,) * ndim, 64, long=True)
        for ndim, side in ((2, 64), (3, 16), (4, 8), (6, 4))
    ),
)

# The shapes of the model, and those beside them that this package was made for.
TARGETS = CASES[:8]
