"""The records of images and data sets."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crad.data.decoding import DEFAULT_DECODING, Decoding, displayed_size
from crad.data.frames import ImageSize, frame_of
from crad.data.masks import MaskResize, open_mask, resize_mask
from crad.errors import ImageError, MaskError
from crad.words import count, enumerate_some

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
        has_more: whether the file has further pages or frames, which are not used; once the image
            has been decoded.
    """

    path: Path | None = None
    class_name: str | None = None
    defect: str | None = None
    mask: Path | None = None
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    has_more: bool = False

    @property
    def is_anomaly(self) -> bool:
        """Whether the image is known to have a defect."""
        return self.defect not in (GOOD, None)

    def read_truth(
        self,
        size: ImageSize,
        resize: MaskResize = "nearest",
        decoding: Decoding = DEFAULT_DECODING,
    ) -> npt.NDArray[np.bool_] | None:
        """Read the ground truth: bool (H, W), True for defective pixels; None if not known.

        Args:
            size: that of the images, as for `crad.data.masks.resize_mask`; H and W are those of the
                part of a frame that the image takes.
            resize: how the mask is resized, as for `crad.data.masks.resize_mask`.
            decoding: its largest size holds for masks too.

        Raises:
            MaskError: the mask cannot be read, or does not fit the image.
        """
        if self.mask is not None:
            try:
                mask = open_mask(self.mask, decoding=decoding)
                self._check_mask(mask, decoding)
            except ImageError as error:
                raise MaskError(f"mask of '{self.path}': {error}") from error
            return resize_mask(mask, size, resize)
        if self.defect != GOOD:
            return None
        frame = frame_of(size)
        known = self._displayed_size(decoding) if frame.stride else None
        return np.zeros(frame.content(known), dtype=np.bool_)

    def _displayed_size(self, decoding: Decoding) -> tuple[int, int] | None:
        """Height and width, from the header of the file if it has not been decoded."""
        if self.size is None and self.path is not None:
            return displayed_size(self.path, decoding)
        return self.size

    def _check_mask(self, mask: npt.NDArray[np.bool_], decoding: Decoding) -> None:
        """Refuse a mask that contradicts the image."""
        if self.is_anomaly and not mask.any():
            raise MaskError(f"'{self.mask}' is empty, though the image has a defect")
        if self.defect == GOOD and mask.any():
            raise MaskError(f"'{self.mask}' marks a defect, though the image is a normal one")
        size = None
        with suppress(ImageError):  # of the image, which is told when it is decoded
            size = self._displayed_size(decoding)
        if size is None or mask.shape == size:
            return
        turned = mask.shape == size[::-1]
        raise MaskError(
            f"'{self.mask}' is {mask.shape[1]} x {mask.shape[0]} pixels, the image is displayed at "
            f"{size[1]} x {size[0]}"
            + (", as if the mask lay on pixels before their EXIF orientation" if turned else "")
        )


def has_more_note(samples: Iterable[Sample], place: Callable[[Path], Path]) -> str | None:
    """Say which files have further pages or frames, naming three; None if none has.

    Args:
        samples: images that have been decoded.
        place: what to call a file.
    """
    names = [
        repr(place(sample.path).as_posix()) for sample in samples if sample.path and sample.has_more
    ]
    if not names:
        return None
    has = "has" if len(names) == 1 else "have"
    return (
        f"{count(len(names), 'file')} {has} further pages or frames, of which only the first is "
        f"used: {enumerate_some(names)}"
    )


@dataclass(frozen=True)
class Dataset:
    """The images of one or more classes.

    Attributes:
        root: the folder.
        classes: class names in natural order.
        train: normal training images, grouped by class.
        test: test images, grouped by class; may be empty.
        left_out: what else is in the folder, a line for each kind.
        roots: the folders of classes that lie in a data set of their own, as in
            `crad.data.several`; the others lie in ``root``.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    left_out: tuple[str, ...] = ()
    roots: Mapping[str, Path] = field(default_factory=dict)

    def place(self, sample: Sample) -> str:
        """The path of an image below the data set of its class."""
        assert sample.path  # it comes from a file
        root = self.roots.get(str(sample.class_name), self.root)
        return sample.path.relative_to(root).as_posix()


Split = tuple[list[Sample], list[Sample]]
"""The training and the test images of a class."""
