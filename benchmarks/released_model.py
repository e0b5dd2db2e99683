"""The released CRAD model in plain PyTorch, to compare ours with: its operations, one by one.

Written from the facts of Lee et al., "Continuous Memory Representation for Anomaly Detection",
ECCV 2024, and of how its released code behaves: channels first, `F.grid_sample` with the memory
repeated for every image, noise made by `torch.randn`, a hard-swish of separate operations. Parts
have the released names as far as they are known; what is below them has names of our own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad.model.crad import CRAD
from crad.model.memories import ContinuousMemory


class ReleasedCRAD(nn.Module):
    """What `crad.model.crad.CRAD` computes, as the released model computes it.

    Args:
        channels: channels C of a feature.
        height: height H of a feature.
        width: width W of a feature.
        depth: number of bottlenecks.
        expansion: channels inside a bottleneck.
        jitter_std: standard deviation of the noise on local coordinates in training.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        depth: int = 11,
        expansion: int = 864,
        jitter_std: float = 0.05,
    ) -> None:
        super().__init__()
        self.jitter_std = jitter_std
        local = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.Tanh(), nn.Conv2d(channels, 2, 1), nn.Tanh()
        )
        whole = nn.Sequential(
            nn.Linear(channels, channels), nn.Tanh(), nn.Linear(channels, 2), nn.Tanh()
        )
        self.query = nn.ModuleList([local, whole])
        entries = torch.empty(1, channels, 8, 8), torch.empty(1, channels * height * width, 4, 4)
        self.coord, self.coord_ = (nn.Parameter(nn.init.xavier_normal_(each)) for each in entries)
        self.layer = nn.Sequential(*(_Bottleneck(2 * channels, expansion) for _ in range(depth)))
        self.recover = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give the refined reconstruction of features ``(B, C, H, W)``, and its 0-d loss."""
        batch = x.shape[0]
        coords = self.query[0](x).permute(0, 2, 3, 1)
        if self.training:
            coords = coords + self.jitter_std * torch.randn_like(coords)
        memory = self.coord.repeat(batch, 1, 1, 1)
        local = F.grid_sample(memory, coords, align_corners=False)

        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        coords = self.query[1](pooled).view(batch, 1, 1, 2)
        memory = self.coord_.repeat(batch, 1, 1, 1)
        whole = F.grid_sample(memory, coords, align_corners=False).view_as(x)

        normal = self.recover(self.layer(torch.cat((whole, local), dim=1)))
        mse = (x - normal).square().mean(dim=1, keepdim=True)
        cosine = F.cosine_similarity(x, normal, dim=1).unsqueeze(1)
        similarity = 0.3 * (1 - torch.round(torch.clamp(0.05 * mse, 0, 1))) + 0.7 * cosine
        refined = similarity * x + (1 - similarity) * normal
        return refined, F.mse_loss(x, refined)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Distance of features ``(B, C, H, W)`` from their reconstruction, ``(B, H, W)``."""
        refined, _ = self(x)
        distance: Tensor = torch.norm(x - refined, dim=1)
        return distance

    @torch.no_grad()
    def copy_from(self, model: CRAD) -> None:
        """Take the weights of a model of the same sizes, whose networks have the same order."""
        local, whole = model.local_representation, model.global_representation
        assert isinstance(local, ContinuousMemory)
        assert isinstance(whole, ContinuousMemory)
        channels, height, width = model.feature_size
        self.coord.copy_(local.memory.weight.movedim(-1, 0))
        entries = whole.memory.weight.unflatten(-1, (height, width, channels))
        self.coord_.copy_(entries.permute(4, 2, 3, 0, 1).flatten(0, 2))
        for own, other in (
            (self.query[0], local.coordinates),
            (self.query[1], whole.coordinates),
            (self.layer, model.fusion[:-1]),
            (self.recover, model.fusion[-1]),
        ):
            pairs = zip(own.state_dict().values(), other.state_dict().values(), strict=True)
            for to, tensor in pairs:
                to.copy_(tensor.view(to.shape))


class _HardSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * F.relu6(x + 3) / 6


class _HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.weights = nn.Sequential(
            nn.Linear(channels, channels // 4, bias=False),
            nn.ReLU(),
            nn.Linear(channels // 4, channels, bias=False),
            _HardSigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.weights(self.pool(x).flatten(1))
        return x * weights[:, :, None, None]


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(channels, expansion, 1, bias=False),
            nn.BatchNorm2d(expansion),
            _HardSwish(),
            nn.Conv2d(expansion, expansion, 3, padding=1, groups=expansion, bias=False),
            nn.BatchNorm2d(expansion),
            _SqueezeExcitation(expansion),
            _HardSwish(),
            nn.Conv2d(expansion, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.change(x)
        return x + change
