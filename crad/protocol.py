"""Protocols: how an anomaly map becomes the map that is measured, and the score of its image."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F

__all__ = ["PROTOCOLS", "Protocol"]

_REFERENCE_SIZE = 224  # the side in pixels for which the windows are given


@dataclass(frozen=True)
class Protocol:
    """Smooth maps by a mean filter, then score an image by the largest mean over a window.

    The windows are for maps of 224 x 224 and are scaled with the size of the maps.

    Attributes:
        name: what `results.json` calls it.
        mean_window: side of the mean filter in pixels; scaled to the nearest odd number.
        score_window: side of the window whose largest mean is the score of the image.
    """

    name: str
    mean_window: int
    score_window: int

    @torch.no_grad()
    def __call__(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Filter and score anomaly maps.

        Args:
            maps: float (B, S, S), at the resolution of the images.

        Returns:
            The filtered maps (B, S, S), on which pixels are measured, and the scores (B,).

        Raises:
            ValueError: `maps` has another shape.
        """
        if maps.ndim != 3 or maps.shape[1] != maps.shape[2] or maps.shape[1] == 0:
            raise ValueError(
                f"Protocol: expected maps of shape (batch, size, size), but got {tuple(maps.shape)}"
            )
        scale = maps.shape[-1] / _REFERENCE_SIZE
        mean_window = 2 * int(self.mean_window * scale / 2) + 1
        score_window = max(1, round(self.score_window * scale))
        filtered = _mean_filter(maps, mean_window, padding=mean_window // 2)
        return filtered, _mean_filter(filtered, score_window, padding=0).amax(dim=(1, 2))


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        # What the paper's published code computes: a 21-pixel mean filter before both scores.
        "crad": Protocol("crad", mean_window=21, score_window=32),
    }
)
"""The protocols by name."""


def _mean_filter(maps: torch.Tensor, window: int, padding: int) -> torch.Tensor:
    """Mean over a square window at stride 1, zeros outside and counted; one axis at a time."""
    rows = F.avg_pool2d(maps.unsqueeze(1), (window, 1), stride=1, padding=(padding, 0))
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, padding)).squeeze(1)
