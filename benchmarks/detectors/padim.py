"""PaDiM: a Gaussian of the features of normal images for each position.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization", ICPR 2021 workshops.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from crad.config import Config
from crad.data.sources import BATCH_SIZE
from crad.training.features import Features
from crad.training.inputs import Inputs


@dataclass(frozen=True)
class Padim:
    """Means and covariances at each position.

    Attributes:
        channels: number of channels, chosen at random (the paper's number for its smallest
            network); of features with fewer, all.
        regularisation: what is added to the variances.
    """

    channels: int = 100
    regularisation: float = 0.01

    title: ClassVar[str] = "PaDiM"
    takes_images: ClassVar[bool] = False

    def settings(self, config: Config) -> dict[str, Any]:
        """The attributes."""
        return asdict(self)

    def fit(self, inputs: Inputs, config: Config, device: torch.device) -> "Gaussians":
        """Take means and covariances; the seed sets the channels."""
        values = inputs.train.values
        generator = torch.Generator().manual_seed(config.training.seed)
        channels = torch.randperm(values.shape[3], generator=generator)[: self.channels]
        channels = channels.sort().values
        means, whitenings = [], []
        # One by one: inverting all matrices at once fails with some builds of MKL.
        for position in values[..., channels].flatten(1, 2).unbind(1):
            position = position.to(device, torch.float64)
            means.append(position.mean(dim=0))
            centred = position - means[-1]
            covariance = centred.T @ centred / max(1, len(centred) - 1)
            covariance.diagonal().add_(self.regularisation)
            identity = torch.eye(len(covariance), device=device, dtype=torch.float64)
            factor = torch.linalg.cholesky(covariance)
            whitenings.append(torch.linalg.solve_triangular(factor, identity, upper=False))
        return Gaussians(
            channels.to(device), torch.stack(means).float(), torch.stack(whitenings).float()
        )


@dataclass(frozen=True)
class Gaussians:
    """A fitted `Padim`, for P positions and K channels.

    Attributes:
        channels: ``(K,)``.
        means: ``(P, K)``.
        whitenings: ``(P, K, K)``, inverses of the Cholesky factors of the covariances.
    """

    channels: Tensor
    means: Tensor
    whitenings: Tensor

    @property
    def n_bytes(self) -> int:
        """Size of all three."""
        return self.channels.nbytes + self.means.nbytes + self.whitenings.nbytes

    def maps(self, features: Features) -> Tensor:
        """Mahalanobis distance of each feature from the Gaussian of its position."""
        maps = []
        for rows in torch.arange(len(features)).split(BATCH_SIZE):
            batch = features.batch(rows, self.means.device)
            positions = batch[:, self.channels].flatten(2).permute(2, 0, 1)
            centred = positions - self.means[:, None]
            distances = (centred @ self.whitenings.mT).norm(dim=2)
            maps.append(distances.T.unflatten(1, batch.shape[2:]))
        return torch.cat(maps)
