"""Which product an image shows, by the mean of its features over positions."""

import torch
from torch import Tensor, nn

UNKNOWN = -1

# A product is unknown beyond this multiple of the distance that most normal images of the nearest
# class keep, which is raised by so many standard errors, as few images tell it badly.
# docs/studies.md has the measurements.
_QUANTILE, _MARGIN, _ERRORS = 0.95, 2.5, 3.0

_LEAST = 1e-6  # variance, of the mean square of the features, where the images are all alike


class Products(nn.Module):
    """Name the class of images: that of the nearest class mean, unless even that is far away.

    Distances are Mahalanobis distances by a covariance that all classes share, shrunk towards a
    multiple of the identity (Chen et al., "Shrinkage algorithms for MMSE covariance estimation",
    IEEE Transactions on Signal Processing 2010, equation 23).

    Args:
        n_classes: number of classes.
        channels: channels of a feature.
    """

    means: Tensor
    whitening: Tensor
    limits: Tensor

    def __init__(self, n_classes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(n_classes, channels))
        self.register_buffer("whitening", torch.eye(channels))
        self.register_buffer("limits", torch.zeros(n_classes))

    @classmethod
    def fit(cls, pooled: Tensor, classes: Tensor) -> "Products":
        """Learn the classes of normal images.

        Args:
            pooled: ``(N, C)``, the mean of the feature of each image over its positions.
            classes: ``(N,)`` int64, from 0; each class has an image.
        """
        pooled = pooled.double()
        n_classes = int(classes.max()) + 1
        counts = classes.bincount(minlength=n_classes).double()
        means = torch.zeros(n_classes, pooled.shape[1], dtype=pooled.dtype)
        means = means.index_add(0, classes, pooled) / counts[:, None]
        residual = pooled - means[classes]
        freedom = max(len(pooled) - n_classes, 1)
        least = _LEAST * float(pooled.square().mean()) or 1.0
        covariance, kept = _shrink(residual.T @ residual / freedom, freedom, least)
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        # The squared distance of each image if it were left out of the mean and the covariance, in
        # closed form: of an image alone in its class, there is none.
        squared = (residual @ whitening).square().sum(dim=1)
        gain = counts[classes] / (counts[classes] - 1)
        left_out = (gain.square() * squared / (1 - kept * gain * squared / freedom)).sqrt()
        limits = torch.zeros(n_classes, dtype=pooled.dtype)
        for index, count in enumerate(counts.tolist()):
            if count > 1:
                most = left_out[classes == index].quantile(_QUANTILE)
                limits[index] = _MARGIN * most * (1 + _ERRORS / (2 * (count - 1)) ** 0.5)
        limits[counts == 1] = limits.max() if limits.any() else torch.finfo(torch.float32).max
        found = cls(n_classes, pooled.shape[1])
        found.load_state_dict(
            {"means": means.float(), "whitening": whitening.float(), "limits": limits.float()}
        )
        return found

    def forward(self, feature: Tensor) -> Tensor:
        """Give the class of each feature of ``(B, C, H, W)``: ``(B,)`` int64, or `UNKNOWN`."""
        distance, index = self._nearest(feature)
        return torch.where(distance <= self.limits[index], index, UNKNOWN)

    def nearest(self, feature: Tensor) -> Tensor:
        """As `forward`, but of a feature of no class the nearest one."""
        return self._nearest(feature)[1]

    def _nearest(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The distance of the nearest class, and which it is."""
        pooled = feature.float().mean(dim=(2, 3))
        away = (pooled[:, None] - self.means) @ self.whitening
        distance, index = away.square().sum(dim=2).sqrt().min(dim=1)
        return distance, index


def _shrink(covariance: Tensor, freedom: int, least: float) -> tuple[Tensor, float]:
    """Shrink a sample covariance to a mean variance; also give the share of it that is kept."""
    size = len(covariance)
    variance = max(float(covariance.trace()) / size, least)
    squares = float(covariance.square().mean())
    excess = (freedom + 1) * (squares - variance**2 / size)
    share = min((squares + variance**2) / excess, 1.0) if excess > 0 else 1.0
    shrunk = (1 - share) * covariance + share * variance * torch.eye(size, dtype=covariance.dtype)
    return shrunk, 1 - share
