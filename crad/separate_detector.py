"""A separate run as one detector, which applies to each image the model of its class."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crad.backbones import Backbone
from crad.data.batches import Batch
from crad.data.images import ChannelOrder
from crad.data.sources import BATCH_SIZE, OnBad, Source, split_images
from crad.detector import DEFAULT_CHOICES, Choices, Detector, from_checkpoint, restore
from crad.devices import PrecisionName
from crad.errors import ImageError
from crad.model.products import Products
from crad.predictor import Reading
from crad.scoring.calibration import Calibration, Thresholds
from crad.scoring.interest import Interest
from crad.scoring.prediction import Prediction
from crad.training.checkpoint import Checkpoint
from crad.training.separate_run import SeparateRun


class SeparateDetector(Detector):
    """The models of the classes of a separate run, used like one `Detector`.

    Where the backbones of all classes are the same, as those that are not fitted, they are one,
    whose features also name the class of an image. Otherwise, a backbone that is fitted to all
    classes names it.

    Args:
        parts: the detector of each class, in order, on one device; of images of one frame.
        products: names the class of an image; None for a single class.
        checkpoint: as of `crad.training.separate_run.SeparateRun.merged`.
        backbone: of the features that name the class, on that device; None takes that of the parts.
    """

    def __init__(
        self,
        parts: Mapping[str, Detector],
        products: Products | None,
        checkpoint: Checkpoint,
        backbone: Backbone | None = None,
    ) -> None:
        first = next(iter(parts.values()))
        frame = first.frame
        super().__init__(
            backbone or first.backbone,
            first.model,
            image_size=frame,
            device=first.device,
            colour_scale=checkpoint.colour_scale,
            protocol=first.protocol,
            precision=first.precision,
            thresholds=Thresholds(_join(part.thresholds for part in parts.values())),
            false_alarm_rate=first.false_alarm_rate,
            uncertain=Thresholds(_join(part.uncertain for part in parts.values())),
            pixel_thresholds=Thresholds(_join(part.pixel_thresholds for part in parts.values())),
            interest=Interest(_join(part.interest.masks for part in parts.values()), frame),
            calibration=Calibration(_join(part.calibration for part in parts.values())),
            products=products,
            classes=tuple(parts),
            decoding=first.decoding,
        )
        self.parts = dict(parts)
        self.checkpoint = checkpoint
        if backbone is None:
            self.folded_backbone = first.folded_backbone

    @torch.inference_mode()
    def _score(self, reading: Reading, class_name: str | None) -> Iterator[Prediction]:
        if class_name is not None:  # so nothing is computed to name it
            part = self.parts[class_name]
            for batch, _, maps in part._map(reading):
                yield from self._decide(batch.samples, [class_name] * len(batch.samples), maps)
            return
        if self.frame.tiling:
            for batch, names, maps in self._map_tiled(reading):
                yield from self._decide(batch.samples, names, maps)
            return
        for batch, features in self._extract(reading):
            names = self._name(batch, features, None)
            maps = self._map_by_class(batch, features, names)
            yield from self._decide(batch.samples, names, maps)

    def map_images(
        self,
        images: Source | Iterable[Source],
        *,
        batch_size: int = BATCH_SIZE,
        skip: OnBad | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Iterator[tuple[Batch, Tensor]]:
        """As `Detector.map_images`, by the model of the class that is recognised."""
        reading = Reading(images, batch_size, skip, channel_order)
        if self.frame.tiling:
            return ((batch, maps) for batch, _, maps in self._map_tiled(reading))
        return (
            (batch, self._map_by_class(batch, features, self._name(batch, features, None)))
            for batch, features in self._extract(reading)
        )

    @torch.inference_mode()
    def _map_tiled(self, reading: Reading) -> Iterator[tuple[Batch, list[str | None], Tensor]]:
        """Map tiled images one by one, with their classes.

        All tiles of an image name its class, so they are decoded again for the model of the class,
        unless that is the first one, on whose features the class is named.
        """
        waiting: deque[Source] = deque()  # images that are being read

        def remember() -> Iterator[Source]:
            for image in split_images(reading.images):
                waiting.append(image)
                yield image

        def leave_out(error: ImageError) -> None:
            waiting.popleft()
            if reading.skip is None:
                raise error
            reading.skip(error)

        own_reading = replace(reading, images=remember(), skip=leave_out)
        for batch, mean, maps in self._map(own_reading):
            image = waiting.popleft()
            names = self._name(batch, mean, None)
            name = names[0]
            if name is None and self.products is not None:
                name = self.classes[int(self.products.nearest(mean))]
            part = self.parts[name or self.classes[0]]
            if part.model is self.model and part.folded_backbone is self.folded_backbone:
                yield batch, names, maps
                continue
            again = replace(reading, images=image, skip=None)
            for _, _, own in part._map(again):
                yield batch, names, own

    def compile(self) -> None:
        """As `Detector.compile`, of all classes."""
        for part in self.parts.values():
            part.compile()

    @torch.inference_mode()
    def _map_by_class(self, batch: Batch, features: Tensor, names: list[str | None]) -> Tensor:
        """The maps of a batch; of an unknown product by the model of the nearest class."""
        if self.products is not None and None in names:
            nearest = self.products.nearest(features).tolist()
            names = [name or self.classes[at] for name, at in zip(names, nearest, strict=True)]
        maps = torch.empty(0, device=self.device)
        for name in dict.fromkeys(names):
            part = self.parts[name or self.classes[0]]
            rows = [row for row, each in enumerate(names) if each == name]
            own = features[rows]
            if part.folded_backbone is not self.folded_backbone:
                with self.explaining():
                    own = part.folded_backbone(batch.images[rows].to(self.device))
            found = part.map_features(own)
            if not len(maps):
                maps = found.new_empty(len(names), *found.shape[1:])
            maps[rows] = found
        return maps


def from_separate(
    run: SeparateRun,
    device: torch.device,
    precision: PrecisionName = "auto",
    choices: Choices = DEFAULT_CHOICES,
) -> SeparateDetector:
    """Put a detector together from the models of a separate run.

    Args:
        run: as read.
        device: where to compute.
        precision: as for `crad.load`.
        choices: the other arguments of `crad.load`.

    Raises:
        CheckpointError: as for `crad.detector.from_checkpoint`, the classes differ in what all
            images share, or nothing recognises products.
        MissingPackageError: as for `crad.load`.
        UsageError: as for `crad.load`.
    """
    run.check_alike()
    products, state = run.read_products()
    backbone = None
    if state:
        first = next(iter(run.parts.values()))
        backbone = restore(replace(first, backbone=state))[0].to(device)
    parts: dict[str, Detector] = {}
    for name, checkpoint in run.parts.items():
        part = from_checkpoint(checkpoint, device, precision, choices)
        if parts and run.share_backbone(name):
            shared = next(iter(parts.values()))
            part.backbone, part.folded_backbone = shared.backbone, shared.folded_backbone
        parts[name] = part
    named = products.to(device) if products else None
    return SeparateDetector(parts, named, run.merged(), backbone)


def _join(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for each in found for name, value in each.items()}
