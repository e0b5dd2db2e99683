"""What a data set is made of, whatever its layout: samples, in classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crad.data.images import MaskResize, open_mask
from crad.errors import ImageError, MaskError

GOOD = "good"
"""The `defect` of a normal image."""


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes:
        path: the image file.
        class_name: the product it shows.
        defect: the kind of defect, ``"good"`` for a normal image.
        mask: the ground-truth mask file; None for a normal image, or where there is none.
    """

    path: Path
    class_name: str
    defect: str
    mask: Path | None = None

    @property
    def is_anomaly(self) -> bool:
        """True if the image has a defect."""
        return self.defect != GOOD

    def truth(self, size: int, resize: MaskResize = "nearest") -> npt.NDArray[np.bool_] | None:
        """Read which pixels are defective: bool (size, size); None where that is not known.

        Args:
            size: side of the square in pixels.
            resize: how the mask comes to it, as for `crad.data.images.open_mask`.

        Raises:
            MaskError: the mask cannot be read.
        """
        if self.mask is not None:
            try:
                return open_mask(self.mask, size, resize)
            except ImageError as error:
                raise MaskError(f"mask of '{self.path}': {error}") from error
        return None if self.is_anomaly else np.zeros((size, size), dtype=np.bool_)


@dataclass(frozen=True)
class ClassSamples:
    """The images of one class.

    Attributes:
        train: normal images to learn from.
        test: images to test on; may be empty.
    """

    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


@dataclass(frozen=True)
class Dataset:
    """The images of one or more classes.

    Attributes:
        root: the folder.
        classes: class names in natural order.
        train: normal images to learn from, grouped by class.
        test: images to test on, grouped by class; may be empty.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
