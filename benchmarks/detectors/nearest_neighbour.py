"""PatchCore: the nearest neighbour in a coreset of the features of normal images.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from crad.config import Config
from crad.data.sources import BATCH_SIZE
from crad.model.nearest_neighbour import nearest_neighbour_maps
from crad.training.features import Features
from crad.training.inputs import Inputs

_CANDIDATES = 4096  # points that may be chosen before all get their new distances


@dataclass(frozen=True)
class NearestNeighbour:
    """A memory bank of locally aware patch features.

    The paper averages the neighbourhoods of each layer before layers are put together; here they
    are averaged after that, and at the edge over what is inside. Its reweighting of the score of an
    image is left out, as all methods have the image scores of one protocol.

    Attributes:
        share: of all patch features that the coreset keeps.
        neighbourhood: side of the window that a patch feature is averaged over.
        projected: dimensions that distances are taken in while the coreset is chosen.
    """

    share: float = 0.01
    neighbourhood: int = 3
    projected: int = 128

    title: ClassVar[str] = "PatchCore"
    takes_images: ClassVar[bool] = False

    def settings(self, config: Config) -> dict[str, Any]:
        """The attributes."""
        return asdict(self)

    def fit(self, inputs: Inputs, config: Config, device: torch.device) -> "MemoryBank":
        """Choose the coreset; the seed sets the projection and the first entry."""
        batches = averaged(inputs.train, self.neighbourhood, device)
        patches = torch.cat([batch.permute(0, 2, 3, 1).flatten(0, 2) for batch in batches])
        generator = torch.Generator().manual_seed(config.training.seed)
        first = int(torch.randint(len(patches), (), generator=generator))
        points = patches
        if patches.shape[1] > self.projected:
            directions = torch.randn(patches.shape[1], self.projected, generator=generator)
            points = patches @ (directions / self.projected**0.5).to(device)
        chosen = k_center(points, max(1, round(self.share * len(points))), first)
        return MemoryBank(patches[chosen], self.neighbourhood)


@dataclass(frozen=True)
class MemoryBank:
    """A fitted `NearestNeighbour`.

    Attributes:
        entries: ``(K, C)``.
        neighbourhood: as there.
    """

    entries: Tensor
    neighbourhood: int

    @property
    def n_bytes(self) -> int:
        """Size of the entries."""
        return self.entries.nbytes

    def maps(self, features: Features) -> Tensor:
        """Euclidean distance of each averaged patch feature from the nearest entry."""
        bank = self.entries[:, :, None, None]
        batches = averaged(features, self.neighbourhood, self.entries.device)
        return torch.cat(
            [nearest_neighbour_maps(bank, batch, max_entries=len(bank)) for batch in batches]
        )


def averaged(features: Features, window: int, device: torch.device) -> Iterator[Tensor]:
    """Batches ``(B, C, H, W)`` of features, each the mean over a square window around it."""
    for rows in torch.arange(len(features)).split(BATCH_SIZE):
        batch = features.batch(rows, device)
        yield F.avg_pool2d(batch, window, 1, window // 2, count_include_pad=False)


def k_center(points: Tensor, count: int, first: int) -> Tensor:
    """Choose points greedily: each is the farthest from those that were chosen before.

    The largest distance of a point from the nearest one chosen is at most twice the smallest that
    any choice of as many reaches (minimax facility location).

    Distances only become smaller, so the farthest of some candidates is the farthest of all while
    it is farther than any other point was. All points then get the distances from several new ones
    at once, as a product of matrices.

    Args:
        points: ``(N, C)`` float32.
        count: how many to choose, 1 to N.
        first: number of the one to begin with.

    Returns:
        Their numbers ``(count,)``, in order, all different.
    """
    points = points - points.mean(dim=0)  # lengths without need would cost precision
    distances = points.new_full((len(points),), torch.inf)
    chosen, new = [first], [first]
    while True:
        centers = points[new][:, :, None, None]
        from_new = nearest_neighbour_maps(centers, points[:, :, None, None], max_entries=len(new))
        distances = distances.minimum(from_new[:, 0, 0])
        distances[chosen] = -1.0
        if len(chosen) == count:
            return torch.tensor(chosen, device=points.device)
        far, numbers = distances.topk(min(_CANDIDATES, len(points)))
        candidates, others, new = points[numbers], far[-1].clone(), []
        while len(chosen) < count:
            best = far.argmax()
            if new and far[best] < others:
                break
            new.append(int(numbers[best]))
            chosen.append(new[-1])
            far = far.minimum((candidates - candidates[best]).norm(dim=1))
            far[best] = -1.0
