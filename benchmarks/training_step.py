"""A step of training of CRAD's network, ours and the released model's, on features."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.released_model import ReleasedCRAD
from crad.model.crad import CRAD

FeatureSize = tuple[int, int, int]


def models(
    feature_size: FeatureSize,
    *,
    depth: int = 11,
    expansion: int = 864,
) -> tuple[CRAD, ReleasedCRAD]:
    """Ours and the released one with equal weights, both with jitter in every training batch."""
    torch.manual_seed(0)
    ours = CRAD(*feature_size, jitter_prob=1, depth=depth, expansion=expansion)
    released = ReleasedCRAD(*feature_size, depth=depth, expansion=expansion)
    released.copy_from(ours)
    return ours, released


def features(
    batch: int, feature_size: FeatureSize, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform in [0, 1], float32 ``(batch, C, H, W)``, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, *feature_size, generator=generator).to(device)


def training_step(
    model: CRAD | ReleasedCRAD, x: Tensor, autocast: torch.autocast
) -> Callable[[], None]:
    """A step as `crad.training.loop.Training` makes it, on a batch that is already on the device.

    Ours gets it channels last and has a fused AdamW; the released model has neither.
    """
    ours = isinstance(model, CRAD)
    if ours:
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=ours)

    def step() -> None:
        with autocast:
            result = model(x)
        loss: Tensor = result.loss if ours else result[1]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step
