"""What rivals with a frozen teacher and a student share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.detectors.inputs import SetInputs
from benchmarks.detectors.pyramid import Pyramid
from crad.config import Config
from crad.data.sources import BATCH_SIZE

_SIGMA = 4.0  # of the filter that smooths maps, in pixels


def taught_maps(
    inputs: SetInputs, config: Config, device: torch.device
) -> tuple[Pyramid, list[Tensor]]:
    """The teacher, and its maps of all training images, the finest first.

    Raises:
        BackboneError: the teacher's weights cannot be had.
        UsageError: the backbone has no such stages.
    """
    frame = inputs.pixels.frame
    teacher = Pyramid(config.model.backbone).to(device).prepared(frame.height, frame.width)
    samples = inputs.train.samples
    parts = [
        teacher(inputs.pixels.images(samples[start : start + BATCH_SIZE]).to(device))
        for start in range(0, len(samples), BATCH_SIZE)
    ]
    return teacher, [torch.cat(stage) for stage in zip(*parts, strict=True)]


class Residual(nn.Module):
    """Two convolutions that are added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Give as many channels at the same resolution."""
        return F.relu(x + self.body(x))


def halve(before: int, after: int) -> nn.Module:
    """A convolution of stride 2."""
    convolution = nn.Conv2d(before, after, 3, 2, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def smoothed(maps: Tensor) -> Tensor:
    """A Gaussian filter of ``(B, 1, H, W)``, axis by axis; the edges are mirrored."""
    radius = min(round(4 * _SIGMA), min(maps.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=maps.device)
    weights = torch.exp(-((offsets / _SIGMA) ** 2) / 2)
    weights = weights / weights.sum()
    padded = F.pad(maps, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights[None, None, None]), weights[None, None, :, None])
