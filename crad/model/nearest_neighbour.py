"""A memory bank of features with nearest-neighbour search, a baseline of CRAD."""

import torch
from torch import Tensor

_QUERIES = 4096  # rows of the distance matrix held at once


@torch.no_grad()
def nearest_neighbour_maps(
    train: Tensor, test: Tensor, *, max_entries: int = 20_000, seed: int = 0
) -> Tensor:
    """Anomaly maps: distance of each test feature from the nearest training feature.

    One memory bank serves all classes and positions. It is that of Roth et al., "Towards Total
    Recall in Industrial Anomaly Detection", CVPR 2022, with a random subset instead of the coreset.

    Args:
        train: (N, C, H, W) floating point, the features of normal images.
        test: (M, C, H', W') floating point, on the same device.
        max_entries: size of the memory bank; more features are subsampled at random.
        seed: of the subsampling.

    Returns:
        (M, H', W') Euclidean distances, at least 0, in the dtype of `test`.

    Raises:
        ValueError: the memory bank would be empty, or the numbers of channels differ.
    """
    if train.ndim != 4 or test.ndim != 4 or train.shape[1] != test.shape[1]:
        raise ValueError(
            "nearest_neighbour_maps: expected features (N, C, H, W) and (M, C, H', W'), but got "
            f"{tuple(train.shape)} and {tuple(test.shape)}"
        )
    if train.numel() == 0 or max_entries < 1:
        raise ValueError(
            "nearest_neighbour_maps: expected at least one training feature and one entry, but got "
            f"train of shape {tuple(train.shape)} and max_entries={max_entries}"
        )
    memory = train.movedim(1, -1).flatten(0, -2)
    if len(memory) > max_entries:
        generator = torch.Generator().manual_seed(seed)
        kept = torch.randperm(len(memory), generator=generator)[:max_entries]
        memory = memory[kept.to(memory.device)]
    memory = memory.float()
    squares = memory.square().sum(1)
    queries = test.movedim(1, -1)
    distances = [
        # |q - m|^2 = |q|^2 + (|m|^2 - 2 q m), the bracket as one matrix product.
        chunk.square().sum(1) + torch.addmm(squares, chunk, memory.T, alpha=-2).amin(1)
        for chunk in torch.split(queries.flatten(0, -2).float(), _QUERIES)
    ]
    return torch.cat(distances).clamp_min_(0).sqrt_().reshape(queries.shape[:-1]).to(test.dtype)
