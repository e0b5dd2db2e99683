"""The order in which training takes images."""

from collections.abc import Iterator

import torch
from torch import Tensor


def batches(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of row numbers without end; an epoch has each once, in an order set by the seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).split(batch_size)
