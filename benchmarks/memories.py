"""Memories of normal features, as they are looked up: a grid, VQ, attention.

Each takes features ``(N, C)`` and has ``n`` entries of C channels; each gives ``(N, C)``.

``python -m benchmarks.memories NAME ENTRIES`` prints the most memory, in bytes, that a look-up
takes beyond the features and the entries, in a process of its own.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import crad_kernels

CHANNELS = 216
POINTS = 64 * 28 * 28
# Distances that VQ keeps at a time: 1 GiB of them.
MOST_DISTANCES = 2**28

LookUp = Callable[[Tensor, Tensor], Tensor]


def grid(features: Tensor, entries: Tensor) -> Tensor:
    """A square grid, at coordinates that are a linear function of the feature."""
    side = math.isqrt(len(entries))
    weight = torch.full((2, features.shape[1]), features.shape[1] ** -0.5)
    weight[1, ::2] *= -1
    coords = torch.tanh(F.linear(features, weight))
    return crad_kernels.sample(entries.view(side, side, -1), coords)


def vq(features: Tensor, entries: Tensor) -> Tensor:
    """The nearest entry, in as many pieces as keep the distances within memory."""
    step = max(MOST_DISTANCES // len(entries), 1)
    nearest = [torch.cdist(piece, entries).argmin(1) for piece in features.split(step)]
    return entries[torch.cat(nearest)]


def vector_quantize_pytorch(features: Tensor, entries: Tensor) -> Tensor:
    """The same, by the package that the field uses."""
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(entries.shape[1], codebook_size=len(entries)).eval()
    layer.codebook = entries
    quantized: Tensor = layer(features[None])[0][0]
    return quantized


def attention(features: Tensor, entries: Tensor) -> Tensor:
    """Entries as keys and values, features as queries."""
    keys = entries[None, None]
    return F.scaled_dot_product_attention(features[None, None], keys, keys)[0, 0]


MEMORIES: dict[str, LookUp] = {
    "grid": grid,
    "VQ": vq,
    "vector-quantize-pytorch": vector_quantize_pytorch,
    "attention": attention,
}


def tensors(entries: int, points: int = POINTS) -> tuple[Tensor, Tensor]:
    """Features and entries."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(points, CHANNELS, generator=generator),
        torch.randn(entries, CHANNELS, generator=generator),
    )


def resident_bytes(field: str) -> int:
    """Of this process: ``VmRSS`` is what it has now, ``VmHWM`` the most that it had."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if field in line)


def peak_bytes(look_up: LookUp, entries: int) -> int:
    """How much the process grows at most; once in a process."""
    inputs = tensors(entries)
    look_up(inputs[0][:64], inputs[1][:64])  # what is loaded and started once
    before = resident_bytes("VmRSS")
    look_up(*inputs)
    return resident_bytes("VmHWM") - before


def main(arguments: list[str]) -> None:
    """Print the peak."""
    name, entries = arguments
    with torch.no_grad():
        print(peak_bytes(MEMORIES[name], int(entries)))


if __name__ == "__main__":
    main(sys.argv[1:])
