"""The record of an image once it is scored."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from crad.data.masks import resize_mask
from crad.data.samples import Sample
from crad.scoring.regions import Region, find_regions

Decision = Literal["good", "uncertain", "defect", "unknown"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction(Sample):
    """An image with what a detector says of it.

    ``class_name`` is None where the class is not known.

    Attributes:
        score: its anomaly score; higher is more anomalous. It has no unit, and means another thing
            for each class and checkpoint; ``p_value`` does not.
        p_value: the share of normal images of its class that are at least as anomalous, as
            `crad.scoring.calibration.Calibration.p_value` estimates it; None if the checkpoint has
            no calibration scores of the class, or the product is unknown.
        scored_map: float32 (H, W), the smoothed anomaly map that the score is taken from, at the
            resolution the detector works at. It covers the image, without padding.
        threshold: the score above which an image of its class is defective; for a class that is
            not known or has none, the highest of all classes. None if the model has none, or the
            product is unknown.
        uncertain_above: the score above which an image that is no defect is uncertain; None if no
            such band was asked for.
        is_unknown: whether it shows none of the products that the model knows.
        pixel_threshold: the value of the map above which a pixel is anomalous, as for
            ``threshold``; None if the model has none.
        interest: bool (H, W), the part of the image that counts, whatever its size; None is all.
        truth: bool (H, W), True on a defect, of a test image; None where that is not known.
    """

    score: float
    scored_map: npt.NDArray[np.float32]
    p_value: float | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    interest: npt.NDArray[np.bool_] | None = None
    uncertain_above: float | None = None
    is_unknown: bool = False
    truth: npt.NDArray[np.bool_] | None = None

    def without_maps(self) -> "Prediction":
        """The same without its maps, of which thousands would fill the memory."""
        return replace(self, scored_map=np.zeros((0, 0), np.float32))

    @property
    def decision(self) -> Decision | None:
        """What to do with the product; None without a threshold."""
        if self.is_unknown:
            return "unknown"
        if self.threshold is None:
            return None
        if self.score > self.threshold:
            return "defect"
        is_uncertain = self.uncertain_above is not None and self.score > self.uncertain_above
        return "uncertain" if is_uncertain else "good"

    @property
    def is_defective(self) -> bool | None:
        """Whether the decision is ``"defect"`` or ``"good"``; None if it is neither."""
        return {"defect": True, "good": False}.get(str(self.decision))

    @cached_property
    def anomaly_map(self) -> npt.NDArray[np.float32]:
        """The map at the size of the image, float32, antialiased where that is smaller."""
        assert self.size is not None  # it has been decoded
        height, width = self.size
        scored = Image.fromarray(self.scored_map)
        return np.array(scored.resize((width, height), Image.Resampling.BILINEAR))

    @cached_property
    def anomaly_mask(self) -> npt.NDArray[np.bool_] | None:
        """The anomalous pixels, bool, at the size of the image; None without a pixel threshold.

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
