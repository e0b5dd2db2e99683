"""The records of images and data sets."""

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
    """An image; None stands for what is not known.

    Attributes:
        path: the image file; None for an image in memory.
        class_name: the class (product) of the image.
        defect: the kind of defect, ``"good"`` for a normal image.
        mask: the ground-truth mask file.
        size: height and width in pixels, once the image has been decoded.
        digest: of the bytes of the file, where it was asked for.
    """

    path: Path | None = None
    class_name: str | None = None
    defect: str | None = None
    mask: Path | None = None
    size: tuple[int, int] | None = None
    digest: bytes | None = None

    @property
    def is_anomaly(self) -> bool:
        """Whether the image is known to have a defect."""
        return self.defect not in (GOOD, None)

    def read_truth(self, size: int, resize: MaskResize = "nearest") -> npt.NDArray[np.bool_] | None:
        """Read the ground truth: bool (size, size), True for defective pixels; None if not known.

        Args:
            size: side of the square in pixels.
            resize: how the mask is resized, as for `crad.data.images.open_mask`.

        Raises:
            MaskError: the mask cannot be read.
        """
        if self.mask is not None:
            try:
                return open_mask(self.mask, size, resize)
            except ImageError as error:
                raise MaskError(f"mask of '{self.path}': {error}") from error
        return np.zeros((size, size), dtype=np.bool_) if self.defect == GOOD else None


@dataclass(frozen=True)
class Dataset:
    """The images of one or more classes.

    Attributes:
        root: the folder.
        classes: class names in natural order.
        train: normal training images, grouped by class.
        test: test images, grouped by class; may be empty.
        left_out: what else is in the folder, a line for each kind.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    left_out: tuple[str, ...] = ()


Split = tuple[list[Sample], list[Sample]]
"""The training and the test images of a class."""
