"""The shapes that are timed."""

from dataclasses import dataclass
from math import prod

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
    """

    name: str
    size: tuple[int, ...]
    channels: int
    points: tuple[int, ...] = (64, 28, 28)

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        return f"{self.name}: {prod(self.points)} points, {size} grid, {self.channels} channels"

    def tensors(self, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``(*size, C)``, coords ``(*points, D)`` in [-1, 1], and the output's gradient."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(*self.size, self.channels, generator=generator)
        coords = torch.rand(*self.points, len(self.size), generator=generator) * 2 - 1
        grad_output = torch.randn(*self.points, self.channels, generator=generator)
        values, coords, grad_output = (t.to(device) for t in (values, coords, grad_output))
        return values.requires_grad_(), coords.requires_grad_(), grad_output

    def fewest_bytes(self, backward: bool) -> int:
        """What float32 has to move: every input read once, every result written once."""
        values = prod(self.size) * self.channels
        coords = prod(self.points) * len(self.size)
        out = prod(self.points) * self.channels
        forward = values + coords + out
        # The output's gradient is read, values and coords again, and their gradients are written.
        return 4 * (forward + (out + 2 * values + 2 * coords if backward else 0))


CASES = (
    Case("CRAD local", (8, 8), 216),
    Case("CRAD global", (4, 4), 216 * 28 * 28, (64,)),
    Case("2-D", (64, 64), 216),
    Case("2-D, few channels", (256, 256), 16),
    Case("3-D", (4, 4, 4), 216),
    Case("3-D, large", (64, 64, 64), 32),
    Case("4-D", (4, 4, 4, 4), 64),
    Case("6-D", (2,) * 6, 64),
)
