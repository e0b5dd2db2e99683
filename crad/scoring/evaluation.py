"""Measuring a model's anomaly maps of test images, by any protocol."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crad.data.bad_images import BadImages
from crad.data.decoding import DEFAULT_DECODING, Decoding
from crad.data.frames import ImageSize, frame_of
from crad.data.masks import MaskResize
from crad.data.samples import Sample
from crad.scoring.calibration import Decisions, Thresholds, measure_decisions
from crad.scoring.maps import Maps, choose
from crad.scoring.metrics import Metrics, measure_class, summarise
from crad.scoring.prediction import Prediction
from crad.scoring.protocols import Protocol, decision_scores


class _Packed(NamedTuple):
    """A mask, eight pixels in a byte."""

    shape: tuple[int, ...]
    bits: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, mask: npt.NDArray[np.bool_]) -> "_Packed":
        """Pack a mask."""
        return cls(mask.shape, np.packbits(mask))

    def mask(self) -> npt.NDArray[np.bool_]:
        """Unpack it."""
        count = math.prod(self.shape)
        return np.unpackbits(self.bits, count=count).view(np.bool_).reshape(self.shape)


class Truths:
    """Where the defects of test images are; a mask is read once for each size and rule, and kept.

    Args:
        image_size: size or frame of the images that the backbone gets.
        bad: what to do with a mask that cannot be used; the truth is then not known.
        decoding: how images are read; its largest size holds for masks too.
    """

    def __init__(
        self, image_size: ImageSize, bad: BadImages, decoding: Decoding = DEFAULT_DECODING
    ) -> None:
        self.frame = frame_of(image_size)
        self.decoding = decoding
        self._bad = bad
        # Eight pixels in a byte: of tiled images, masks have millions.
        self._read: dict[tuple[Path, ImageSize, MaskResize], _Packed | None] = {}

    def __call__(self, sample: Sample, protocol: Protocol) -> npt.NDArray[np.bool_] | None:
        """Give the truth of an image as a protocol needs it, bool (H, W); None if not known.

        Raises:
            ImageError: its mask cannot be used, and none may be left out.
        """
        size, resize = protocol.map_size(self.frame), protocol.mask_resize
        if sample.mask is None:
            return sample.read_truth(size, decoding=self.decoding)
        key = (sample.mask, size, resize)
        if key not in self._read:
            self._read[key] = None
            with self._bad.reading():
                truth = sample.read_truth(size, resize, self.decoding)
                self._read[key] = None if truth is None else _Packed.of(truth)
        packed = self._read[key]
        return None if packed is None else packed.mask()

    def read(self, samples: Iterable[Sample], protocol: Protocol) -> None:
        """Read all masks now, so that a bad one is found before hours of work."""
        for sample in samples:
            if sample.mask:
                self(sample, protocol)

    def vanished(self, samples: Iterable[Sample], protocol: Protocol) -> str | None:
        """Say how many masks have no defective pixel left at the size of a protocol.

        Returns:
            A sentence; None if there is none.
        """
        truths = [self(sample, protocol) for sample in samples if sample.mask and sample.is_anomaly]
        remain = [bool(truth.any()) for truth in truths if truth is not None]
        lost, size = remain.count(False), frame_of(protocol.map_size(self.frame))
        pixels = "the size of maps" if size.tiling else f"{size.width} x {size.height} pixels"
        if not lost:
            return None
        vanish = "vanishes" if lost == 1 else "vanish"
        return (
            f"protocol {protocol.name}: {lost} of {len(remain)} masks {vanish} at "
            f"{pixels} (its rule: {protocol.mask_resize}); their "
            "defects count as normal pixels"
        )


class Evaluation:
    """Measure models on test images, by any protocol.

    Args:
        samples: the test images.
        n_train: all classes, in order, with their numbers of training images.
        truths: where the defects are.
    """

    def __init__(
        self, samples: Sequence[Sample], n_train: Mapping[str, int], truths: Truths
    ) -> None:
        self.samples = samples
        self.decoding = truths.decoding
        self._truths = truths
        self._n_train = n_train
        self._by_class: dict[str, list[int]] = {name: [] for name in n_train}
        for index, sample in enumerate(samples):
            self._by_class[str(sample.class_name)].append(index)

    def measure(self, anomaly_maps: Maps, protocol: Protocol) -> Metrics:
        """Measure each class, and the mean over classes.

        Args:
            anomaly_maps: of the test images in order.
            protocol: how they are scored.

        Raises:
            ImageError: a mask cannot be read.
            ValueError: a map is not finite.
        """
        classes = {}
        for name, images in self.predictions(anomaly_maps, protocol):
            n_test = len(self._by_class[name])
            classes[name] = measure_class(images, n_train=self._n_train[name], n_test=n_test)
        return summarise(classes)

    def notes(self, protocols: Iterable[Protocol]) -> list[str]:
        """Say what the masks lose by the rules of protocols."""
        found = (self._truths.vanished(self.samples, protocol) for protocol in protocols)
        return [note for note in found if note]

    def decide(
        self,
        anomaly_maps: Maps,
        thresholds: Thresholds,
        false_alarm_rate: float,
        protocol: Protocol,
    ) -> Decisions | None:
        """Count what the thresholds of a model, taken for a rate of false alarms, lead to.

        Args:
            anomaly_maps: as for `measure`.
            thresholds: of the model; without any, the result is None.
            false_alarm_rate: among normal images, in (0, 1).
            protocol: of the scores that the thresholds are taken from.
        """
        if not thresholds:
            return None
        scores = decision_scores(anomaly_maps, self.samples, self._truths.frame, protocol)
        return {
            "protocol": protocol.name,
            "false_alarm_rate": false_alarm_rate,
            "classes": measure_decisions(self.samples, scores, thresholds, self._n_train),
        }

    def predictions(
        self, anomaly_maps: Maps, protocol: Protocol
    ) -> Iterator[tuple[str, Iterator[Prediction]]]:
        """Score the test images of each class without deciding; arguments as for `measure`.

        The maps that a protocol measures are larger by far than those of the model, so they are
        made as they are needed.
        """
        for name, members in self._by_class.items():
            yield name, self.score(members, anomaly_maps, protocol)

    def numbers(self, class_name: str) -> Sequence[int]:
        """Where the test images of a class are among all, in the order of `predictions`."""
        return self._by_class[class_name]

    def score(
        self, members: Sequence[int], anomaly_maps: Maps, protocol: Protocol
    ) -> Iterator[Prediction]:
        """Score some test images without deciding.

        Args:
            members: their places among all.
            anomaly_maps: as for `measure`, of all.
            protocol: how they are scored.
        """
        samples = [self.samples[index] for index in members]
        sizes = [sample.size for sample in samples]
        maps = choose(anomaly_maps, members)
        scored = protocol.score_in_turn(maps, self._truths.frame, sizes)
        for sample, (scored_map, score) in zip(samples, scored, strict=True):
            truth = self._truths(sample, protocol)
            yield Prediction(**vars(sample), score=score, scored_map=scored_map, truth=truth)
