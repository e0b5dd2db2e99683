"""The record of an image once it is scored."""

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from crad.data.samples import Sample

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
            no calibration scores, or the product is unknown.
        scored_map: float32 (H, W), the smoothed anomaly map that the score is taken from, at the
            resolution the detector works at. It covers the image, without padding.
        threshold: the score above which an image of its class is defective; for a class that is
            not known or has none, the highest of all classes. None if the model has none, or the
            product is unknown.
        uncertain_above: the score above which an image that is no defect is uncertain; None if no
            such band was asked for.
        is_unknown: whether it shows none of the products that the model knows.
        truth: bool (H, W), True on a defect, of a test image; None where that is not known.
    """

    score: float
    scored_map: npt.NDArray[np.float32]
    p_value: float | None = None
    threshold: float | None = None
    uncertain_above: float | None = None
    is_unknown: bool = False
    truth: npt.NDArray[np.bool_] | None = None

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
        scored = torch.from_numpy(self.scored_map)[None, None]
        shrinks = any(map(operator.lt, self.size, self.scored_map.shape))
        resized = F.interpolate(scored, self.size, mode="bilinear", antialias=shrinks)[0, 0].numpy()
        return np.asarray(resized, dtype=np.float32)
