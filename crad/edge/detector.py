"""An exported detector: images in, predictions out, as of the detector it was made of."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from crad.data.decoding import MAX_MEGAPIXELS
from crad.data.images import ChannelOrder, to_frame
from crad.data.samples import Sample
from crad.data.sources import Source, call_ahead, decode_source, split_images
from crad.edge.description import Description
from crad.edge.runtimes import Runtime, open_runtime
from crad.errors import CheckpointError, ImageError, UsageError
from crad.predictor import Predictor, Reading
from crad.scoring.calibration import Thresholds, class_of, thresholds_at
from crad.scoring.prediction import Prediction


class ExportedDetector(Predictor):
    """A file that `crad export` wrote, loaded into its runtime; `load_exported` makes one.

    Args:
        runtime: with the file.
        description: of the file.
        thresholds: of its classes.
        false_alarm_rate: that they are for.
        uncertain: scores above which an image that is no defect is uncertain.
    """

    def __init__(
        self,
        runtime: Runtime,
        description: Description,
        thresholds: Thresholds,
        false_alarm_rate: float,
        uncertain: Thresholds,
    ) -> None:
        super().__init__(
            image_size=description.frame,
            colour_scale=description.colour_scale,
            thresholds=thresholds,
            false_alarm_rate=false_alarm_rate,
            uncertain=uncertain,
            pixel_thresholds=description.pixel_thresholds,
            interest=description.interest,
            calibration=description.calibration,
            classes=description.classes,
            decoding=description.decoding,
        )
        self.description = description
        self._runtime = runtime

    @property
    def recognises(self) -> bool:
        """Whether it names the class of an image by what the image shows."""
        return self.description.recognises

    def compile(self) -> None:
        """Refuse, as an exported file is compiled already."""
        raise UsageError("--compile: an exported file is compiled already; leave it out")

    def _score(self, reading: Reading, class_name: str | None) -> Iterator[Prediction]:
        if class_name is not None and self.interest.masks and len(self.classes) > 1:
            raise UsageError(
                "class: an exported model with regions of interest takes those of the class that "
                "it recognises; name no class, or use the checkpoint"
            )
        return self._score_each(reading, class_name)

    def _score_each(self, reading: Reading, class_name: str | None) -> Iterator[Prediction]:
        read = partial(_read, description=self.description, channel_order=reading.channel_order)
        ready: list[tuple[npt.NDArray[np.uint8], Sample]] = []
        full = 1  # grows, so that the first result comes at once
        numbered = enumerate(split_images(reading.images))
        for future in call_ahead(read, numbered, ahead=2 * reading.batch_size):
            error = future.exception()
            if isinstance(error, ImageError):
                yield from self._predict(ready, class_name)
                if reading.skip is None:
                    raise error
                reading.skip(error)
                continue
            pixels, sample = future.result()
            if ready and ready[0][0].shape != pixels.shape:  # where the file resizes
                yield from self._predict(ready, class_name)
            ready.append((pixels, sample))
            if len(ready) == full:
                yield from self._predict(ready, class_name)
                full = min(2 * full, reading.batch_size)
        yield from self._predict(ready, class_name)

    def _predict(
        self, ready: list[tuple[npt.NDArray[np.uint8], Sample]], class_name: str | None
    ) -> Iterator[Prediction]:
        """The predictions of some images, which are taken from the list."""
        if not ready:
            return
        pixels, samples = zip(*ready, strict=True)
        ready.clear()
        batch: npt.NDArray[Any] = np.stack(pixels)
        if self.description.float_input:
            batch = batch.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        try:
            found = self._runtime.run(np.ascontiguousarray(batch))
        except Exception as error:  # runtimes raise nearly anything
            problem = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"exported: the file cannot compute images of {batch.shape} ({problem}); export "
                "the checkpoint again, or use the checkpoint"
            ) from error
        if not (np.isfinite(found.score).all() and np.isfinite(found.map).all()):
            raise CheckpointError(
                "exported: scores or maps are not finite; export the checkpoint again, in float32"
            )
        for sample, score, scored_map, at in zip(
            samples, found.score.tolist(), found.map, found.class_.tolist(), strict=True
        ):
            name = class_name
            if name is None and at >= 0:
                name = self.classes[at]
            elif name is None and not self.recognises and sample.path:
                name = class_of(sample.path, self.classes)
            yield self.decide(sample, name, score, scored_map.astype(np.float32))


def _read(
    numbered: tuple[int, Source], description: Description, channel_order: ChannelOrder
) -> tuple[npt.NDArray[np.uint8], Sample]:
    """The pixels (H, W, 3) that the file takes of an image, and its record."""
    frame = description.frame
    image, sample = decode_source(
        numbered,
        frame=frame,
        digests=False,
        decoding=description.decoding,
        channel_order=channel_order,
    )
    if frame.content(sample.size) != (frame.height, frame.width):
        assert sample.size
        height, width = sample.size
        raise ImageError(
            f"'{sample.path or numbered[0]}' has {height} x {width} pixels; an exported model of "
            f"training with --fit takes images of the aspect ratio of {frame.height} x "
            f"{frame.width} only; crop it, or use the checkpoint"
        )
    return (_pixels(image) if description.resizes else to_frame(image, frame)), sample


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.array(image)


def load_exported(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    bit_depth: int | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    false_alarm_rate: float | None = None,
    uncertain_rate: float | None = None,
) -> ExportedDetector:
    """Load a detector that ``crad export`` wrote; PyTorch is not needed for it.

    Args:
        path: an ``.onnx`` file, which needs onnxruntime; an ``.xml`` file, with its ``.bin`` file
            beside it, which needs openvino; or a ``.pt2`` file, which needs torch.
        threads: of ONNX Runtime or OpenVINO, 1 to 1024; None leaves it to them. PyTorch has
            `torch.set_num_threads`.
        bit_depth: of 16-bit images; None takes that of training.
        max_megapixels: images of more million pixels are refused.
        false_alarm_rate: share of normal images that may be taken for defective, in (0, 1); None
            takes that of the file. A class without calibration scores keeps its threshold.
        uncertain_rate: images are uncertain whose p-value is above the false alarm rate, but at
            most this; None takes what the file has, which must be above the false alarm rate too.

    Raises:
        CheckpointError: there is no such file, it is damaged, or another version wrote it.
        MissingPackageError: the runtime of the file is not installed.
        UsageError: an argument is out of range.
    """
    runtime = open_runtime(Path(path), threads)
    if not runtime.description:
        raise CheckpointError(
            f"exported: '{path}' has no description, so crad export did not write it; export a "
            "checkpoint"
        )
    try:
        description = Description.from_json(runtime.description, max_megapixels, bit_depth)
    except CheckpointError as error:
        raise CheckpointError(f"exported: '{path}': {error}") from error
    if (false_alarm_rate, uncertain_rate) != (None, None) and not description.calibration:
        raise CheckpointError(
            f"exported: '{path}' has no calibration scores, so it cannot decide for another rate; "
            "give the checkpoint some with crad calibrate --good FOLDER, and export it again"
        )
    rate = description.false_alarm_rate
    if uncertain_rate is None and false_alarm_rate is not None:
        uncertain_rate = description.uncertain_rate  # which then has to be above the other one
    thresholds, uncertain = thresholds_at(
        description.thresholds, description.calibration, rate, false_alarm_rate, uncertain_rate
    )
    return ExportedDetector(
        runtime,
        description,
        thresholds,
        rate if false_alarm_rate is None else false_alarm_rate,
        description.uncertain if uncertain is None else uncertain,
    )
