"""The record of an image once it is scored."""

import operator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from crad.data.masks import resize_mask
from crad.data.samples import Sample
from crad.scoring.regions import Region, find_regions


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction(Sample):
    """An image with what a detector says of it.

    ``class_name`` is None where the class is not known.

    Attributes:
        score: its anomaly score; higher is more anomalous. It has no unit: compare it with the
            scores of normal images from the same checkpoint.
        scored_map: float32 (H, W), the smoothed anomaly map that the score is taken from, at the
            resolution the detector works at. It covers the image, without padding.
        threshold: the score above which an image of its class is defective; for an unknown class or
            one without a threshold, the highest of all classes. None if the model has none.
        pixel_threshold: the value of the map above which a pixel is anomalous, as for
            ``threshold``; None if the model has none.
        interest: bool (H, W), the part of the image that counts, whatever its size; None is all.
        truth: bool (H, W), True on a defect, of a test image; None where that is not known.
    """

    score: float
    scored_map: npt.NDArray[np.float32]
    threshold: float | None = None
    pixel_threshold: float | None = None
    interest: npt.NDArray[np.bool_] | None = None
    truth: npt.NDArray[np.bool_] | None = None

    @property
    def is_defective(self) -> bool | None:
        """The decision; None without a threshold."""
        return None if self.threshold is None else self.score > self.threshold

    @cached_property
    def anomaly_map(self) -> npt.NDArray[np.float32]:
        """The map at the size of the image, float32, antialiased where that is smaller."""
        assert self.size is not None  # it has been decoded
        scored = torch.from_numpy(self.scored_map)[None, None]
        shrinks = any(map(operator.lt, self.size, self.scored_map.shape))
        resized = F.interpolate(scored, self.size, mode="bilinear", antialias=shrinks)[0, 0].numpy()
        return np.asarray(resized, dtype=np.float32)

    @cached_property
    def anomaly_mask(self) -> npt.NDArray[np.bool_] | None:
        """The anomalous pixels: bool, at the size of the image; None without a pixel threshold.

        Of a normal image some may be, too: the decision is that of the whole image.
        """
        if self.pixel_threshold is None:
            return None
        assert self.size is not None  # it has been decoded
        if self.scored_map.max() <= self.pixel_threshold:  # the larger map is nowhere higher
            return np.zeros(self.size, dtype=np.bool_)
        above: npt.NDArray[np.bool_] = self.anomaly_map > self.pixel_threshold
        return above if self.interest is None else above & resize_mask(self.interest, self.size)

    @cached_property
    def regions(self) -> tuple[Region, ...] | None:
        """The connected regions of `anomaly_mask`, the highest peak first; None without one."""
        mask = self.anomaly_mask
        if mask is None or not mask.any():
            return None if mask is None else ()
        return find_regions(self.anomaly_map, mask)
