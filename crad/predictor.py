"""What every detector offers, whatever computes its maps: images in, predictions out."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from numbers import Integral

import numpy as np
import numpy.typing as npt

from crad.data.decoding import DEFAULT_DECODING, Decoding
from crad.data.frames import ImageSize, Size, frame_of
from crad.data.images import ChannelOrder, check_channel_order
from crad.data.samples import Sample
from crad.data.sources import BATCH_SIZE, OnBad, Source
from crad.errors import UsageError
from crad.scoring.calibration import FALSE_ALARM_RATE, Calibration, Thresholds
from crad.scoring.interest import Interest
from crad.scoring.prediction import Prediction


@dataclass(frozen=True)
class Reading:
    """Which images are to be read, and how.

    Attributes:
        images: as for `Predictor.predict`.
        batch_size: images, or tiles of one, that are computed at once.
        skip: as for `Predictor.iterate`.
        channel_order: as for `Predictor.predict`.
        growing: whether to begin with a batch of one image, and to double it up to the batch size.

    Raises:
        TypeError: an attribute is of another type.
        UsageError: an attribute is out of range.
    """

    images: Source | Iterable[Source]
    batch_size: int = BATCH_SIZE
    skip: OnBad | None = None
    channel_order: ChannelOrder = "rgb"
    growing: bool = False

    def __post_init__(self) -> None:
        size = self.batch_size
        if not isinstance(size, Integral):
            raise TypeError(f"predict(): expected batch_size as a whole number, but got {size!r}")
        if int(size) < 1:
            raise UsageError(f"predict(): expected batch_size of at least 1, but got {size!r}")
        if self.skip is not None and not callable(self.skip):
            raise TypeError(
                f"predict(): expected skip as a function or None, but got {self.skip!r}"
            )
        check_channel_order(self.channel_order)


class Predictor(ABC):
    """Scores images, decides, and shows where they are anomalous.

    Args:
        image_size: of the images that are computed: the side of a square, height and width, or a
            frame that says how images come to it.
        colour_scale: (low, high) of heat maps, from the maps of normal training images.
        thresholds: of the classes; None has none.
        false_alarm_rate: that these thresholds are for.
        uncertain: scores above which an image that is no defect is uncertain; None has none.
        pixel_thresholds: values of the maps above which a pixel is anomalous; None marks no
            regions.
        interest: what part of the images of each class counts; None is all.
        calibration: scores that p-values come from; None has none.
        classes: all classes, in order; by default, those with a threshold.
        decoding: how images are read.
    """

    def __init__(
        self,
        *,
        image_size: ImageSize,
        colour_scale: tuple[float, float],
        thresholds: Thresholds | None = None,
        false_alarm_rate: float = FALSE_ALARM_RATE,
        uncertain: Thresholds | None = None,
        pixel_thresholds: Thresholds | None = None,
        interest: Interest | None = None,
        calibration: Calibration | None = None,
        classes: Collection[str] = (),
        decoding: Decoding = DEFAULT_DECODING,
    ) -> None:
        self.frame = frame_of(image_size)
        self.colour_scale = colour_scale
        self.thresholds = thresholds or Thresholds()
        self.false_alarm_rate = false_alarm_rate
        self.uncertain = uncertain or Thresholds()
        self.pixel_thresholds = pixel_thresholds or Thresholds()
        self.interest = interest or Interest()
        self.calibration = calibration or Calibration()
        self.classes = tuple(classes or self.thresholds)
        self.decoding = decoding

    @property
    def image_size(self) -> Size:
        """The side of a square, or height and width, of the images that are computed."""
        return self.frame.size

    @property
    @abstractmethod
    def recognises(self) -> bool:
        """Whether it names the class of an image by what the image shows."""

    def predict(
        self,
        images: Source | Iterable[Source],
        *,
        batch_size: int = BATCH_SIZE,
        class_name: str | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> list[Prediction]:
        """Score images.

        Args:
            images: one image or any number of them: files, Pillow images, arrays (H, W) or
                (H, W, C), tensors (C, H, W), mixed as you like; or a batch as a 4-D array or
                tensor. Channels are RGB or RGBA.
            batch_size: images, or tiles of one, that are computed at once.
            class_name: the class that all images are of. Without it, a model of several classes
                recognises that of each image, whatever the names of its folders. A checkpoint of an
                older crad cannot; the class of a file is then told by its folders
                (`crad.scoring.calibration.class_of`), and where that fails, the highest threshold
                of all classes decides.
            channel_order: ``"bgr"`` takes the channels of arrays and tensors for BGR or BGRA, as
                of OpenCV; files and Pillow images name their channels themselves.

        Returns:
            A prediction for each image, in order. `Prediction.has_more` says whether a file has
            further pages or frames, of which only the first is used.

        Raises:
            CheckpointError: the model has no finite anomaly maps of them.
            ImageError: an image cannot be read, or its shape, type or range makes no sense.
            TypeError: an argument is of another type.
            UsageError: ``batch_size`` is not positive, no class has this name, or there is no
                such order of channels.
        """
        return list(
            self.iterate(
                images, batch_size=batch_size, class_name=class_name, channel_order=channel_order
            )
        )

    def predict_one(
        self,
        image: Source,
        *,
        class_name: str | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Prediction:
        """Score one image, as of a camera, in the time that one image takes.

        Arguments and errors are those of `predict`.

        Raises:
            UsageError: as for `predict`, or it is not one image but several, or none.
        """
        found = self.iterate(
            image, batch_size=1, class_name=class_name, channel_order=channel_order
        )
        first_two = [*islice(found, 2)]
        if len(first_two) != 1:
            got = "several; use predict()" if first_two else "none"
            raise UsageError(f"predict_one(): expected one image, but got {got}")
        return first_two[0]

    def iterate(
        self,
        images: Source | Iterable[Source],
        *,
        batch_size: int = BATCH_SIZE,
        skip: OnBad | None = None,
        class_name: str | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Iterator[Prediction]:
        """Score images as they come, holding no more than a few batches of them.

        Args:
            images: as for `predict`.
            batch_size: images, or tiles of one, that are computed at once. The first batch has one
                image, and the next ones twice as many as the one before, so that the first result
                comes at once.
            skip: called with the error of an image that cannot be read, which then has no
                prediction; None raises the error.
            class_name: as for `predict`.
            channel_order: as for `predict`.

        Raises:
            CheckpointError: as for `predict`.
            ImageError: as for `predict`.
            TypeError: as for `predict`, or ``skip`` cannot be called.
            UsageError: as for `predict`.
        """
        if class_name is not None and not isinstance(class_name, str):
            raise TypeError(
                f"predict(): expected class_name as text or None, but got {class_name!r}"
            )
        if class_name is not None and class_name not in self.classes:
            raise UsageError(
                f"class: the model has no class '{class_name}'; it has "
                f"{', '.join(self.classes) or 'none with a threshold'}"
            )
        reading = Reading(images, batch_size, skip, channel_order, growing=True)
        return self._score(reading, class_name)

    @abstractmethod
    def compile(self) -> None:
        """Compile what can be compiled.

        Raises:
            UsageError: nothing can.
        """

    @abstractmethod
    def _score(self, reading: Reading, class_name: str | None) -> Iterator[Prediction]:
        """As `iterate`."""

    def decide(
        self,
        sample: Sample,
        class_name: str | None,
        score: float,
        scored_map: npt.NDArray[np.float32],
    ) -> Prediction:
        """Decide on an image.

        Args:
            sample: the image, decoded.
            class_name: its class; None where that is not known.
            score: its anomaly score.
            scored_map: float32 (H, W), as of `Prediction`.
        """
        is_unknown = class_name is None and self.recognises
        return Prediction(
            path=sample.path,
            class_name=class_name,
            size=sample.size,
            has_more=sample.has_more,
            score=score,
            scored_map=scored_map,
            p_value=None if is_unknown else self.calibration.p_value(class_name, score),
            threshold=None if is_unknown else self.thresholds.score_of(class_name),
            uncertain_above=None if is_unknown else self.uncertain.score_of(class_name),
            is_unknown=is_unknown,
            pixel_threshold=None if is_unknown else self.pixel_thresholds.score_of(class_name),
            interest=self.interest.of(class_name),
        )
