"""A whole detector as one program of tensors: from images to scores, decisions and maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad.backbones.scattering import ScatteringBackbone
from crad.detector import Detector
from crad.edge.description import DECISIONS
from crad.errors import UsageError
from crad.exporting.scattering import MatrixScattering
from crad.model.products import UNKNOWN
from crad.scoring.calibration import Thresholds
from crad.scoring.interest import Interest
from crad.separate_detector import SeparateDetector

_GOOD, _UNCERTAIN, _DEFECT, _UNKNOWN = map(
    DECISIONS.index, ("good", "uncertain", "defect", "unknown")
)
_NONE = -1  # no decision, or no class


class Pipeline(nn.Module):
    """What an exported file computes; see `crad.edge.runtimes.Outputs`.

    Args:
        detector: on the CPU, in float32. It is not changed.
        float_input: take float32 images (B, 3, H, W) in [0, 1] instead of uint8 images
            (B, H, W, 3).
        resizes: take images of any size, and bring them to that of the detector.

    Raises:
        UsageError: there is no such program for the detector.
    """

    def __init__(
        self, detector: Detector, *, float_input: bool = False, resizes: bool = False
    ) -> None:
        super().__init__()
        _check(detector, resizes)
        frame = detector.frame
        self.size = frame.height, frame.width
        self.float_input = float_input
        self.resizes = resizes
        self.features: nn.Module
        if isinstance(detector.backbone, ScatteringBackbone):
            self.features = MatrixScattering(detector.backbone, *self.size)
        else:
            self.features = detector.folded_backbone
        self.model = detector.model
        self.products = detector.products
        self.n_classes = len(detector.classes)
        _, height, width = self.model.feature_size
        self.protocol = detector.protocol.prepared((height, width), frame)
        names = [*detector.classes, None]  # the last are the thresholds of no known class
        self._names = names
        self.set_thresholds(detector.thresholds, detector.uncertain)
        self.interest = None
        if detector.interest.masks:
            self.interest = _Interest(detector.interest, names, (height, width))

    def set_thresholds(self, thresholds: Thresholds, uncertain: Thresholds) -> None:
        """Decide by these; arguments are as for `crad.predictor.Predictor`."""
        for which, each in (("thresholds", thresholds), ("uncertain", uncertain)):
            found = [each.score_of(name) for name in self._names]
            values = [float("nan") if score is None else score for score in found]
            self.register_buffer(which, torch.tensor(values))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute a batch of images.

        Returns:
            The scores ``(B,)``, decisions ``(B,)`` int64, maps ``(B, H, W)``, and classes ``(B,)``
            int64.
        """
        if not self.float_input:
            images = images.permute(0, 3, 1, 2).float()
            images = self._resized(images) / 255
        features = self.features(images.contiguous())
        maps = self.model(features).anomaly_map
        index, row = self._classes(features)
        if self.interest is not None:
            maps = self.interest(maps, row)
        scored_maps, scores = self.protocol(maps)
        return scores, self._decide(scores, index, row), scored_maps, index

    def _resized(self, images: Tensor) -> Tensor:
        """Resize, as Pillow does, to whole numbers."""
        if not self.resizes:
            return images
        return F.interpolate(images, self.size, mode="bilinear", antialias=True).round()

    def _classes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The class of each image, -1 for none, and its row in tables of what classes have."""
        n_images = features.shape[0]
        if self.products is not None:
            index = self.products(features)
        else:
            only = 0 if self.n_classes == 1 else _NONE
            index = torch.full((n_images,), only, dtype=torch.int64)
        return index, torch.where(index == UNKNOWN, self.n_classes, index)

    def _decide(self, scores: Tensor, index: Tensor, row: Tensor) -> Tensor:
        threshold = self.get_buffer("thresholds")[row]
        uncertain = self.get_buffer("uncertain")[row]
        decision = torch.where(scores > uncertain, _UNCERTAIN, _GOOD)
        decision = torch.where(scores > threshold, _DEFECT, decision)
        decision = torch.where(threshold == threshold, decision, _NONE)  # not NaN
        if self.products is not None:
            decision = torch.where(index == UNKNOWN, _UNKNOWN, decision)
        return decision


class _Interest(nn.Module):
    """`crad.scoring.interest.Interest.apply`, of classes that are known by their number."""

    def __init__(self, interest: Interest, names: list[str | None], size: tuple[int, int]) -> None:
        super().__init__()
        found = []
        for name in names:
            mask = interest.of(name)
            whole = torch.ones(1, 1, *size) if mask is None else torch.from_numpy(mask).float()
            found.append(F.adaptive_avg_pool2d(whole.view(1, *whole.shape[-2:]), size)[0])
        weights = torch.stack(found)
        self.register_buffer("weights", weights)
        self.register_buffer("counted", weights > 0)
        self.register_buffer("middle", ((weights > 0).sum(dim=(1, 2)) - 1) // 2)

    def forward(self, maps: Tensor, row: Tensor) -> Tensor:
        """Give what does not count the median of what does, for images of classes ``row``."""
        weights, counted = self.get_buffer("weights")[row], self.get_buffer("counted")[row]
        ordered = torch.where(counted, maps, torch.inf).flatten(1).sort(dim=1).values
        level = ordered.gather(1, self.get_buffer("middle")[row][:, None])[:, :, None]
        return torch.where(weights == 1, maps, level + weights * (maps - level))


def _check(detector: Detector, resizes: bool) -> None:
    """Refuse what one program cannot do."""
    if isinstance(detector, SeparateDetector):
        raise UsageError(
            "export: a separate run has a model for each class; export each of them, such as "
            f"--checkpoint RUN/{detector.classes[0]}"
        )
    if detector.frame.tiling:
        raise UsageError(
            "export: images of training with --tile are cut into tiles of their own number, which "
            "no exported file can; use the checkpoint, or train without --tile"
        )
    if resizes and detector.frame.stride:
        raise UsageError(
            "export: with --with-preprocessing, images are stretched over the size of the model, "
            "but training with --fit kept their aspect ratio; leave one of them out"
        )
    if detector.interest.masks and len(detector.classes) > 1 and not detector.recognises:
        raise UsageError(
            "export: the checkpoint has regions of interest of several classes, and cannot "
            "recognise classes, as an older crad wrote it; train again"
        )
