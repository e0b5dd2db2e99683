"""Protocols: how an anomaly map becomes the map that is measured, and the score of its image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from crad.data.images import MaskResize
from crad.errors import UsageError

_IMAGE_SIZE = 224  # the side in pixels of the images for which sizes are given


@dataclass(frozen=True)
class Protocol:
    """Smooth maps, then score an image by the largest of its means over windows.

    Lengths are in pixels, for images of 224 x 224, and are scaled with the images; a window of 1
    means no filter and is not scaled.

    Attributes:
        name: what `results.json` calls it.
        size: side of the maps and masks that are measured.
        mean_window: side of the mean filter that smooths a map; scaled to the nearest odd number.
        gaussian_window: side of the Gaussian filter that smooths a map; scaled likewise.
        gaussian_sigma: its standard deviation.
        score_window: side of the windows whose means are ranked for the score of the image.
        top_share: the share of the largest means of which the score is the mean, at least one.
        mask_resize: how masks come to the size of the maps, as `crad.data.images.open_mask` says.
    """

    name: str
    size: int = 224
    mean_window: int = 1
    gaussian_window: int = 1
    gaussian_sigma: float = 1.0
    score_window: int = 1
    top_share: float = 0.0
    mask_resize: MaskResize = "nearest"

    def map_size(self, image_size: int) -> int:
        """Side of the maps and masks that are measured for images of a given side."""
        return round(image_size * self.size / _IMAGE_SIZE)

    @torch.no_grad()
    def score(self, anomaly_maps: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
        """Bring anomaly maps to the size that is measured (bilinear), smooth and score them.

        Args:
            anomaly_maps: ``(B, H, W)``, as in `crad.model.crad.Reconstruction`.
            image_size: side of the images in pixels.

        Returns:
            The maps ``(B, S, S)``, on which pixels are measured, and the scores ``(B,)``; S is
            `map_size`.
        """
        size = self.map_size(image_size)
        resized = F.interpolate(
            anomaly_maps[:, None], (size, size), mode="bilinear", align_corners=True
        )
        return self(resized[:, 0])

    @torch.no_grad()
    def __call__(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth and score maps ``(B, S, S)`` of the size that is measured; returns as `score`."""
        if maps.ndim != 3 or maps.shape[1] != maps.shape[2] or maps.shape[1] == 0:
            raise ValueError(
                f"Protocol: expected maps of shape (batch, size, size), but got {tuple(maps.shape)}"
            )
        scale = maps.shape[-1] / self.size
        smooth = maps
        if self.mean_window > 1:
            window = _odd(self.mean_window * scale)
            smooth = _mean_filter(smooth, window, padding=window // 2)
        if self.gaussian_window > 1:
            window = _odd(self.gaussian_window * scale)
            smooth = _gaussian_filter(smooth, window, self.gaussian_sigma * scale)
        means = smooth
        if self.score_window > 1:
            means = _mean_filter(smooth, max(1, round(self.score_window * scale)), padding=0)
        count = max(1, int(self.top_share * means.shape[1] * means.shape[2]))
        return smooth, means.flatten(1).topk(count).values.mean(dim=1)


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # What the paper's published code computes: a 21-pixel mean filter before both scores.
        Protocol("crad", mean_window=21, score_window=32),
        # What its text says.
        Protocol("paper", score_window=32),
        # You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022.
        Protocol("uniad", score_window=16),
        # Zhang et al., "ADer: A Comprehensive Benchmark for Multi-class Visual Anomaly Detection",
        # 2024.
        Protocol("ader", size=256, mask_resize="bilinear"),
        # Guo et al., "Dinomaly", CVPR 2025.
        Protocol("dinomaly", size=256, gaussian_window=5, gaussian_sigma=4.0, top_share=0.01),
    )
}
"""The protocols by name."""

if TYPE_CHECKING:
    ProtocolChoice = str
else:
    ProtocolChoice = Literal[(*PROTOCOLS, "all")]


def choose_protocols(choices: Sequence[ProtocolChoice]) -> list[Protocol]:
    """List the protocols that are named, each once and in that order; all of them for ``"all"``.

    Raises:
        UsageError: none is named.
    """
    names = [name for choice in choices for name in (PROTOCOLS if choice == "all" else [choice])]
    if not names:
        raise UsageError(f"--protocol: expected all, or one or more of {', '.join(PROTOCOLS)}")
    return [PROTOCOLS[name] for name in dict.fromkeys(names)]


def _odd(size: float) -> int:
    """The odd number that is nearest to a size, at least 1."""
    return 2 * int(size / 2) + 1


def _mean_filter(maps: Tensor, window: int, padding: int) -> Tensor:
    """Mean over a square window at stride 1, zeros outside and counted; one axis at a time."""
    rows = F.avg_pool2d(maps.unsqueeze(1), (window, 1), stride=1, padding=(padding, 0))
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, padding)).squeeze(1)


def _gaussian_filter(maps: Tensor, window: int, sigma: float) -> Tensor:
    """Gaussian filter cut to a square window, of weights that sum to 1, with zeros outside."""
    distances = torch.arange(window, device=maps.device) - window // 2
    weights = torch.softmax(-distances.to(maps.dtype).square() / (2 * sigma**2), dim=0)
    padded = F.pad(maps, [window // 2] * 4)
    return padded.unfold(1, window, 1).matmul(weights).unfold(2, window, 1).matmul(weights)
