"""Protocols: how an anomaly map becomes the map that is measured, and the score of its image."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad.data.frames import Frame, ImageSize, frame_of
from crad.data.masks import MaskResize
from crad.data.samples import Sample
from crad.data.sources import BATCH_SIZE
from crad.errors import UsageError
from crad.scoring.maps import Maps, choose, stack

_IMAGE_SIZE = 224  # the side in pixels of the images for which sizes are given
_TOGETHER = 2**22  # pixels of the maps of tiled images that are scored at once


@dataclass(frozen=True)
class Protocol(ABC):
    """Smooth maps, then score an image by the largest of its means over windows.

    Lengths are in pixels. Without a ``size`` of its own they are for images of 224 x 224, and are
    scaled with the root of the area of the images; a window of 1 means no filter and is not scaled.

    Attributes:
        name: what `results.json` calls it.
        size: side of the square maps and masks that are measured, whatever the size and the aspect
            ratio of the images; None takes the size of the images.
        mask_resize: how masks come to the size of the maps, as `crad.data.masks.open_mask` says.
    """

    name: str
    size: int | None = None
    mask_resize: MaskResize = "nearest"

    def map_size(self, image_size: ImageSize) -> ImageSize:
        """Size of the maps and masks that are measured for images of a given size or frame."""
        return self.size or image_size

    def scale(self, image_size: ImageSize) -> float:
        """By how much the lengths are multiplied for images of a given size or frame."""
        frame = frame_of(image_size)
        return 1.0 if self.size else math.sqrt(frame.height * frame.width) / _IMAGE_SIZE

    def score(
        self, anomaly_maps: Tensor, image_size: ImageSize, frame: ImageSize | None = None
    ) -> tuple[Tensor, Tensor]:
        """Bring anomaly maps to the size that is measured (bilinear), smooth and score them.

        Args:
            anomaly_maps: ``(B, h, w)``, as in `crad.model.crad.Reconstruction`.
            image_size: of the images, in pixels.
            frame: that the images are parts of, which lengths are scaled with; None takes the size
                of the images.

        Returns:
            The maps ``(B, H, W)``, on which pixels are measured, and the scores ``(B,)``; H and W
            are those of `map_size`.
        """
        measured = frame_of(self.map_size(image_size))
        scale = self.scale(image_size if frame is None else frame)
        return self._score(anomaly_maps, (measured.height, measured.width), scale)

    @abstractmethod
    def _score(
        self, anomaly_maps: Tensor, size: tuple[int, int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """The maps at a height and width, and the scores, with lengths multiplied by a scale."""

    def prepared(self, map_size: Sequence[int], image_size: ImageSize) -> "Prepared":
        """The same for float32 maps of one height and width, of images of one size."""
        measured = frame_of(self.map_size(image_size))
        size = measured.height, measured.width
        return self._prepared((map_size[0], map_size[1]), size, self.scale(image_size)).float()

    def _prepared(
        self, map_size: tuple[int, int], size: tuple[int, int], scale: float
    ) -> "Prepared":
        return Prepared(self, size, scale)

    def score_each(
        self, anomaly_maps: Maps, frame: Frame, sizes: Sequence[tuple[int, int] | None]
    ) -> list[tuple[npt.NDArray[np.float32], float]]:
        """Score maps of frames, each on the part of it that its image takes.

        Lengths are scaled with the frame: those of tiled images with a tile.

        Args:
            anomaly_maps: of whole frames, or of tiled images.
            frame: what the images were brought to.
            sizes: height and width of each image, as for `Frame.content`.

        Returns:
            For each image its map ``(H, W)`` and its score.
        """
        kinds = [
            (frame.content(size), frame.density(size), tuple(each.shape))
            for each, size in zip(anomaly_maps, sizes, strict=True)
        ]
        found: dict[int, tuple[npt.NDArray[np.float32], float]] = {}
        for kind in dict.fromkeys(kinds):  # one batch for all of a size
            content, density, _ = kind
            alike = [index for index, each in enumerate(kinds) if each == kind]
            most = max(1, _TOGETHER // math.prod(content)) if frame.tiling else len(alike)
            measured = frame_of(self.map_size(content))
            scale = self.scale(frame) * (1.0 if self.size else density)
            for start in range(0, len(alike), most):
                members = alike[start : start + most]
                cropped = frame.crop(stack(anomaly_maps, members), content)
                maps, scores = self._score(cropped, (measured.height, measured.width), scale)
                scored = zip(maps.cpu().numpy(), scores.tolist(), strict=True)
                found |= zip(members, scored, strict=True)
        return [found[index] for index in range(len(kinds))]

    def score_in_turn(
        self, anomaly_maps: Maps, frame: Frame, sizes: Sequence[tuple[int, int] | None]
    ) -> Iterator[tuple[npt.NDArray[np.float32], float]]:
        """As `score_each`, some images at a time; of tiled images, one.

        So that the maps of many images, which are larger than what they are scored from, need not
        be in memory.
        """
        step = 1 if frame.tiling else BATCH_SIZE
        for start in range(0, len(sizes), step):
            chosen = slice(start, start + step)
            yield from self.score_each(choose(anomaly_maps, chosen), frame, sizes[chosen])


class Prepared(nn.Module):
    """A protocol for maps of one size, which maps ``(B, h, w)`` to what `Protocol.score` gives.

    Args:
        protocol: the protocol.
        size: height and width of the maps that are measured.
        scale: what lengths are multiplied by.
    """

    def __init__(self, protocol: Protocol, size: tuple[int, int], scale: float) -> None:
        super().__init__()
        self.protocol, self.size, self.scale = protocol, size, scale

    def forward(self, anomaly_maps: Tensor) -> tuple[Tensor, Tensor]:
        """Score maps."""
        return self.protocol._score(anomaly_maps, self.size, self.scale)


@dataclass(frozen=True)
class PublishedProtocol(Protocol):
    """One of a paper or its code: what lies outside the image counts as zero, or not at all.

    Attributes:
        mean_window: side of the mean filter that smooths a map; scaled to the nearest odd number.
        gaussian_window: side of the Gaussian filter that smooths a map; scaled likewise.
        gaussian_sigma: its standard deviation.
        score_window: side of the windows whose means are ranked for the score of the image.
        top_share: the share of the largest means of which the score is the mean, at least one.
    """

    mean_window: int = 1
    gaussian_window: int = 1
    gaussian_sigma: float = 1.0
    score_window: int = 1
    top_share: float = 0.0

    @torch.no_grad()
    def _score(
        self, anomaly_maps: Tensor, size: tuple[int, int], scale: float
    ) -> tuple[Tensor, Tensor]:
        smooth = F.interpolate(anomaly_maps[:, None], size, mode="bilinear", align_corners=True)
        smooth = smooth[:, 0]
        if self.mean_window > 1:
            smooth = _mean_filter(smooth, _odd(self.mean_window * scale))
        if self.gaussian_window > 1:
            window = _odd(self.gaussian_window * scale)
            smooth = _gaussian_filter(smooth, window, self.gaussian_sigma * scale)
        means = smooth
        if self.score_window > 1:
            means = _window_means(smooth, max(1, round(self.score_window * scale)))
        count = max(1, int(self.top_share * means.shape[1] * means.shape[2]))
        return smooth, means.flatten(1).topk(count).values.mean(dim=1)


@dataclass(frozen=True)
class InsideProtocol(Protocol):
    """Score a mark on the image the same wherever it lies, also at an edge or in a corner.

    What lies outside the image counts as the median of its map: it neither adds to a score nor
    takes from it. Windows are centred on every pixel, up to the edge. A cell of the model's map
    spreads as far at the edge as inside.

    Mirroring the map at its edges conserves the sum of a mark too, but folds it onto half the
    pixels: in a corner the map then is up to four times as high, and the score up to 1.4 times.

    Attributes:
        mean_window: side of the mean filter that smooths a map; scaled to the nearest odd number.
        score_window: side of the windows of which the largest mean is the score of the image.
    """

    mean_window: int = 1
    score_window: int = 1

    @torch.no_grad()
    def _score(
        self, anomaly_maps: Tensor, size: tuple[int, int], scale: float
    ) -> tuple[Tensor, Tensor]:
        map_size = anomaly_maps.shape[1], anomaly_maps.shape[2]
        prepared: PreparedInside = self._prepared(map_size, size, scale).to(anomaly_maps)
        return prepared(anomaly_maps)  # type: ignore[no-any-return]

    def _prepared(
        self, map_size: tuple[int, int], size: tuple[int, int], scale: float
    ) -> "PreparedInside":
        rows, columns = (
            self._weights(n_cells, side, scale)
            for n_cells, side in zip(map_size, size, strict=True)
        )
        return PreparedInside(self, size, scale, rows, columns)

    def _weights(self, n_cells: int, size: int, scale: float) -> tuple[Tensor, Tensor]:
        """What the cells along an axis add to each pixel of the smoothed map, and to each window.

        Resizing and both means are linear and treat the axes alike, so each is a matrix.
        """
        mean_window = _odd(self.mean_window * scale)
        score_window = max(1, round(self.score_window * scale))
        beyond = score_window // 2
        margin = beyond + mean_window // 2
        pixels = torch.arange(-margin, size + margin, dtype=torch.float64)
        at = (pixels + 0.5) * n_cells / size - 0.5
        resized = (1 - (at[:, None] - torch.arange(n_cells)).abs()).clamp_min(0)
        smooth = resized.unfold(0, mean_window, 1).mean(dim=-1)
        windows = smooth.unfold(0, score_window, 1).mean(dim=-1)
        return smooth[beyond : beyond + size], windows


class PreparedInside(Prepared):
    """`InsideProtocol` for maps of one size.

    Args:
        protocol: the protocol.
        size: height and width of the maps that are measured.
        scale: what lengths are multiplied by.
        rows: what the cells along a column of a map add to each pixel, and to each window.
        columns: the same along a row.
    """

    def __init__(
        self,
        protocol: Protocol,
        size: tuple[int, int],
        scale: float,
        rows: tuple[Tensor, Tensor],
        columns: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__(protocol, size, scale)
        for name, (pixels, windows) in (("rows", rows), ("columns", columns)):
            self.register_buffer(name, pixels)
            self.register_buffer(f"window_{name}", windows)

    def forward(self, anomaly_maps: Tensor) -> tuple[Tensor, Tensor]:
        """Score maps."""
        cells = anomaly_maps.flatten(1)  # their lower median; ONNX has no operator for one
        level = cells.sort(dim=1).values[:, (cells.shape[1] - 1) // 2, None, None]
        above = anomaly_maps - level  # zeros outside now stand for the median
        rows, columns = self.get_buffer("rows"), self.get_buffer("columns")
        maps = rows @ above @ columns.T + level
        rows, columns = self.get_buffer("window_rows"), self.get_buffer("window_columns")
        means = rows @ above @ columns.T + level
        return maps, means.amax(dim=(1, 2))


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # What the paper's published code computes: a 21-pixel mean filter before both scores.
        PublishedProtocol("crad", mean_window=21, score_window=32),
        # What its text says.
        PublishedProtocol("paper", score_window=32),
        # You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022.
        PublishedProtocol("uniad", score_window=16),
        # Zhang et al., "ADer: A Comprehensive Benchmark for Multi-class Visual Anomaly Detection",
        # 2024.
        PublishedProtocol("ader", size=256, mask_resize="bilinear"),
        # Guo et al., "Dinomaly", CVPR 2025.
        PublishedProtocol(
            "dinomaly", size=256, gaussian_window=5, gaussian_sigma=4.0, top_share=0.01
        ),
        # Our own. `inside` has the windows of the published code, in which small defects are lost;
        # `peak`, without the second one, is for decisions and heat maps.
        InsideProtocol("inside", mean_window=21, score_window=32, mask_resize="any"),
        InsideProtocol("peak", mean_window=15, mask_resize="any"),
    )
}
"""The protocols by name."""

DECISION_PROTOCOL = "peak"
"""Name of the protocol of the scores that new runs decide by, whatever protocols are measured."""

if TYPE_CHECKING:
    ProtocolChoice = str
else:
    ProtocolChoice = Literal[(*PROTOCOLS, "all")]


def choose_protocols(choices: Sequence[ProtocolChoice]) -> list[Protocol]:
    """List the protocols that are named, each once and in that order; all of them for ``"all"``.

    Raises:
        UsageError: none is named, or a name is unknown.
    """
    names = [name for choice in choices for name in (PROTOCOLS if choice == "all" else [choice])]
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        raise UsageError(
            f"--protocol: expected all, or one or more of {', '.join(PROTOCOLS)}, but got "
            f"{', '.join(map(repr, unknown)) or 'none'}"
        )
    return [PROTOCOLS[name] for name in dict.fromkeys(names)]


def decision_scores(
    anomaly_maps: Maps, samples: Sequence[Sample], frame: Frame, protocol: Protocol
) -> list[float]:
    """Score images by the protocol that decides; arguments as for `scores_and_peaks`."""
    return [score for score, _ in scores_and_peaks(anomaly_maps, samples, frame, protocol)]


def scores_and_peaks(
    anomaly_maps: Maps, samples: Sequence[Sample], frame: Frame, protocol: Protocol
) -> list[tuple[float, float]]:
    """Score images by the protocol that decides, and take the highest values of their maps.

    Args:
        anomaly_maps: of N images.
        samples: the images.
        frame: what they were brought to.
        protocol: that of the thresholds.
    """
    scored = protocol.score_in_turn(anomaly_maps, frame, [sample.size for sample in samples])
    return [(score, float(scored_map.max())) for scored_map, score in scored]


def _odd(size: float) -> int:
    """The odd number that is nearest to a size, at least 1."""
    return 2 * int(size / 2) + 1


def _mean_filter(maps: Tensor, window: int) -> Tensor:
    """Mean over a square window around each pixel, zeros outside and counted; axis by axis."""
    padding = window // 2
    rows = F.avg_pool2d(maps.unsqueeze(1), (window, 1), stride=1, padding=(padding, 0))
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, padding)).squeeze(1)


def _window_means(maps: Tensor, window: int) -> Tensor:
    """Mean over each square window inside a map; one that is longer than a side is cut to it."""
    height, width = (min(window, side) for side in maps.shape[1:])
    rows = F.avg_pool2d(maps.unsqueeze(1), (height, 1), stride=1)
    return F.avg_pool2d(rows, (1, width), stride=1).squeeze(1)


def _gaussian_filter(maps: Tensor, window: int, sigma: float) -> Tensor:
    """Gaussian filter cut to a square window, of weights that sum to 1, with zeros outside."""
    distances = torch.arange(window, device=maps.device) - window // 2
    weights = torch.softmax(-distances.to(maps.dtype).square() / (2 * sigma**2), dim=0)
    padded = F.pad(maps, [window // 2] * 4)
    return padded.unfold(1, window, 1).matmul(weights).unfold(2, window, 1).matmul(weights)
