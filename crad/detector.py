"""A trained detector: images in, scores and anomaly maps out."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crad.backbones import Backbone
from crad.data.batches import Batch, load_batches
from crad.data.decoding import DEFAULT_DECODING, MAX_MEGAPIXELS, Decoding
from crad.data.frames import ImageSize, show_size
from crad.data.images import ChannelOrder
from crad.data.samples import Sample
from crad.data.sources import BATCH_SIZE, OnBad, Source, split_images
from crad.data.tile_batches import TileBatch, load_tiles
from crad.devices import PrecisionName, compile_network, select_precision
from crad.errors import CheckpointError, ImageError, UsageError
from crad.memory import is_out_of_memory
from crad.model.crad import CRAD
from crad.model.products import UNKNOWN, Products
from crad.predictor import Predictor, Reading
from crad.scoring.calibration import FALSE_ALARM_RATE, Calibration, Thresholds, class_of
from crad.scoring.interest import Interest
from crad.scoring.prediction import Prediction
from crad.scoring.protocols import PROTOCOLS, Protocol
from crad.training.checkpoint import Checkpoint
from crad.training.network import create_model, multiply_adds, restore, restore_products
from crad.training.thresholds import thresholds_for

__all__ = ["Detector", "create_model", "from_checkpoint", "multiply_adds", "restore"]


@dataclass(frozen=True)
class Choices:
    """What may be chosen of a trained detector; see the arguments of `crad.load`."""

    bit_depth: int | None = None
    max_megapixels: float = MAX_MEGAPIXELS
    false_alarm_rate: float | None = None
    uncertain_rate: float | None = None


DEFAULT_CHOICES = Choices()


class Detector(Predictor):
    """A backbone, a model, and the protocol that scores its maps; `load` makes one.

    Args:
        backbone: fitted, on ``device``.
        model: trained, on ``device``; its BatchNorm is folded in place.
        device: where to compute.
        protocol: how maps are scored; thresholds and colour scale are of its scores and maps.
        precision: of the fusion network, ``"fp32"`` or ``"bf16"``.
        products: names the class of an image, as an index of ``classes``, on ``device``; None
            takes it from the names of folders.

    The other arguments are those of `crad.predictor.Predictor`.

    Raises:
        UsageError: there is no such precision.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: CRAD,
        *,
        image_size: ImageSize,
        device: torch.device,
        colour_scale: tuple[float, float],
        protocol: Protocol,
        precision: Literal["fp32", "bf16"] = "fp32",
        thresholds: Thresholds | None = None,
        false_alarm_rate: float = FALSE_ALARM_RATE,
        uncertain: Thresholds | None = None,
        pixel_thresholds: Thresholds | None = None,
        interest: Interest | None = None,
        calibration: Calibration | None = None,
        products: Products | None = None,
        classes: Collection[str] = (),
        decoding: Decoding = DEFAULT_DECODING,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise UsageError(f"precision: expected one of fp32, bf16, but got {precision!r}")
        super().__init__(
            image_size=image_size,
            colour_scale=colour_scale,
            thresholds=thresholds,
            false_alarm_rate=false_alarm_rate,
            uncertain=uncertain,
            pixel_thresholds=pixel_thresholds,
            interest=interest,
            calibration=calibration,
            classes=classes,
            decoding=decoding,
        )
        self.backbone = backbone
        self.folded_backbone = backbone.folded(self.frame.height, self.frame.width)
        self.model = model.fold_batch_norm()
        self.device = device
        self.protocol = protocol
        self.precision = precision
        self.products = products

    @property
    def recognises(self) -> bool:
        """Whether it names the class of an image by its features."""
        return self.products is not None

    @torch.inference_mode()
    def _score(self, reading: Reading, class_name: str | None) -> Iterator[Prediction]:
        for batch, features, maps in self._map(reading):
            names = self._name(batch, features, class_name)
            yield from self._decide(batch.samples, names, maps)

    def _decide(
        self, samples: Sequence[Sample], names: Sequence[str | None], anomaly_maps: Tensor
    ) -> Iterator[Prediction]:
        """Score maps ``(B, H, W)`` of images whose classes are known, or None, and decide."""
        maps = self.interest.apply(anomaly_maps, samples, names)
        scores = self.protocol.score_each(maps, self.frame, [sample.size for sample in samples])
        for sample, name, (scored_map, score) in zip(samples, names, scores, strict=True):
            yield self.decide(sample, name, score, scored_map)

    def _name(self, batch: Batch, features: Tensor, class_name: str | None) -> list[str | None]:
        """The class of each image of a batch; None where it is not known."""
        if class_name is not None:
            return [class_name] * len(batch.samples)
        if len(self.classes) == 1:
            return [self.classes[0]] * len(batch.samples)
        if self.products is None:
            paths = [sample.path for sample in batch.samples]
            return [class_of(path, self.classes) if path else None for path in paths]
        found: list[int] = self.products(features).tolist()
        return [None if index == UNKNOWN else self.classes[index] for index in found]

    def map_images(
        self,
        images: Source | Iterable[Source],
        *,
        batch_size: int = BATCH_SIZE,
        skip: OnBad | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Give the images, batch by batch, with the maps of the model, before any protocol.

        Arguments and errors are those of `iterate`, without ``class_name``.

        Returns:
            Batches, and their anomaly maps ``(B, H, W)`` on the detector's device. A tiled image is
            a batch of its own, without its pixels: `Batch.images` is empty.
        """
        reading = Reading(images, batch_size, skip, channel_order)
        return ((batch, maps) for batch, _, maps in self._map(reading))

    @torch.inference_mode()
    def _map(self, reading: Reading) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """The images, with their features and maps; a tiled one has the mean of its features."""
        if self.frame.tiling:
            tiles = load_tiles(
                split_images(reading.images),
                frame=self.frame,
                batch_size=max(reading.batch_size, BATCH_SIZE),
                mixed=False,
                skip=reading.skip,
                decoding=self.decoding,
                channel_order=reading.channel_order,
            )
            yield from self._map_tiles(tiles)
            return
        for batch, features in self._extract(reading):
            yield batch, features, self.map_features(features)

    def _map_tiles(self, batches: Iterable[TileBatch]) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """As `_map`, of an image at a time, from batches that have tiles of one image each."""
        maps: list[Tensor] = []
        means: list[Tensor] = []
        for batch in batches:
            sample = batch.samples[0]
            assert sample.size
            grid = self.frame.grid(sample.size)
            with self.explaining():
                features = self.folded_backbone(batch.images.to(self.device))
            maps.append(self.map_features(features))
            means.append(features.float().mean(dim=(2, 3)))
            if batch.numbers[-1] == len(grid) - 1:
                whole = grid.stitch(torch.cat(maps))[None]
                mean = torch.cat(means).mean(dim=0)[None, :, None, None]
                maps.clear()
                means.clear()
                yield Batch(batch.images[:0], [sample]), mean, whole

    @torch.inference_mode()
    def _extract(self, reading: Reading) -> Iterator[tuple[Batch, Tensor]]:
        """The images, batch by batch, with the features of the backbone."""
        batches = load_batches(
            split_images(reading.images),
            size=self.frame,
            batch_size=reading.batch_size,
            growing=reading.growing,
            skip=reading.skip,
            decoding=self.decoding,
            channel_order=reading.channel_order,
        )
        for batch in batches:
            with self.explaining():
                features = self.folded_backbone(batch.images.to(self.device))
            yield batch, features

    @torch.inference_mode()
    def map_features(self, features: Tensor) -> Tensor:
        """Compute the maps of the model ``(B, H, W)``, before any protocol.

        Args:
            features: of the backbone, ``(B, C, H, W)``, on the detector's device.

        Raises:
            CheckpointError: they are not finite.
        """
        bf16 = self.precision == "bf16"
        with (
            self.explaining(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=bf16),
        ):
            maps: Tensor = self.model(features).anomaly_map
            if not maps.isfinite().all():
                raise ValueError("the anomaly maps are not finite")
        return maps

    def compile(self) -> None:
        """Compile the fusion network, which takes a minute and makes a large one faster."""
        compile_network(self.model.fusion, self.device)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn what a damaged checkpoint leads to in the block into a `CheckpointError`.

        That an image cannot be read stays as it is.
        """
        try:
            yield
        except ImageError:
            raise
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            problem = " ".join(str(error).split())
            raise CheckpointError(
                f"checkpoint: it cannot map images of {show_size(self.frame)} pixels "
                f"({problem}); use another copy of it, or train again with --overwrite"
            ) from error


def from_checkpoint(
    checkpoint: Checkpoint,
    device: torch.device,
    precision: PrecisionName = "auto",
    choices: Choices = DEFAULT_CHOICES,
) -> Detector:
    """Put a detector together from what `read_checkpoint` read; arguments as for `load`.

    Raises:
        CheckpointError: as for `restore`, or it cannot decide for another rate.
        MissingPackageError: as for `load`.
        UsageError: as for `load`.
    """
    rate = choices.false_alarm_rate
    thresholds, uncertain = thresholds_for(checkpoint, rate, choices.uncertain_rate)
    products = restore_products(checkpoint)
    stored, trained = checkpoint.config.decoding, checkpoint.config.decisions
    bit_depth = stored.bit_depth if choices.bit_depth is None else choices.bit_depth
    decoding = Decoding(bit_depth, choices.max_megapixels, stored.reduced)
    backbone, model = restore(checkpoint)
    settings = checkpoint.config.model
    with checkpoint.fitting():
        interest = Interest.from_state(checkpoint.interest, [*checkpoint.n_train], settings.frame)
    work = BATCH_SIZE * multiply_adds(settings, checkpoint.feature_size)
    return Detector(
        backbone.to(device),
        model.to(device),
        image_size=settings.frame,
        device=device,
        colour_scale=checkpoint.colour_scale,
        protocol=PROTOCOLS[trained.decision_protocol],
        precision=select_precision(precision, device, work),
        thresholds=thresholds,
        false_alarm_rate=trained.false_alarm_rate if rate is None else rate,
        uncertain=uncertain,
        pixel_thresholds=checkpoint.pixel_thresholds,
        interest=interest,
        calibration=checkpoint.calibration,
        products=products.to(device) if products else None,
        classes=checkpoint.n_train,
        decoding=decoding,
    )
