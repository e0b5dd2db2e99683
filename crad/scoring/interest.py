"""The part of images that counts: regions of interest, and what is to be ignored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crad.data.decoding import Decoding
from crad.data.folders import IMAGE_SUFFIXES
from crad.data.frames import Frame
from crad.data.masks import open_mask, resize_mask
from crad.data.samples import Sample
from crad.errors import DataError
from crad.words import enumerate_some

if TYPE_CHECKING:  # an exported detector has masks, but no PyTorch
    from torch import Tensor

    from crad.scoring.maps import Maps


@dataclass(frozen=True, eq=False)
class Interest:
    """What part of the images of each class counts; of a class without a mask, all of it.

    Attributes:
        masks: bool (H, W) by class, of `Frame.mask_size`; they cover the whole image.
        frame: what images are brought to.
    """

    masks: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    frame: Frame = field(default_factory=lambda: Frame(1, 1))

    def of(self, class_name: str | None) -> npt.NDArray[np.bool_] | None:
        """The mask of a class; None if there is none."""
        return self.masks.get(str(class_name))

    def apply(
        self, anomaly_maps: "Maps", samples: Sequence[Sample], class_names: Sequence[str | None]
    ) -> "Maps":
        """Give what does not count the median of what does: it adds nothing to any score.

        A cell of the map that counts in part keeps that part of its difference from the median.

        Args:
            anomaly_maps: of N images; left as they are.
            samples: the images, decoded.
            class_names: their classes.
        """
        if not self.masks:
            return anomaly_maps
        import torch
        import torch.nn.functional as F

        from crad.scoring.maps import copy

        maps = copy(anomaly_maps)
        for index, (sample, name) in enumerate(zip(samples, class_names, strict=True)):
            mask = self.of(name)
            if mask is None:
                continue
            content = self.frame.crop(maps[index], self.frame.content(sample.size))
            whole = torch.from_numpy(mask).to(content)[None, None]
            rows, columns = content.shape
            weights = F.adaptive_avg_pool2d(whole, (rows, columns))[0, 0]
            level = content[weights > 0].median()
            content.copy_(level + weights * (content - level))
        return maps

    def state(self, classes: Sequence[str]) -> "dict[str, Tensor]":
        """What a checkpoint stores, for its classes in order; nothing without masks."""
        if not self.masks:
            return {}
        import torch

        whole = np.ones(self.frame.mask_size, np.bool_)
        masks = np.stack([self.masks.get(name, whole) for name in classes])
        return {"masks": torch.from_numpy(masks.astype(np.uint8))}

    @classmethod
    def from_state(
        cls, state: "Mapping[str, Tensor]", classes: Sequence[str], frame: Frame
    ) -> "Interest":
        """Undo `state`.

        Raises:
            ValueError: it does not fit the classes and the frame.
        """
        if not state:
            return cls()
        masks = state["masks"].numpy() > 0
        if masks.shape != (len(classes), *frame.mask_size):
            raise ValueError(f"the masks of interest are of shape {masks.shape}")
        parts = zip(classes, masks, strict=True)
        return cls({name: mask for name, mask in parts if not mask.all()}, frame)

    def note(self) -> str | None:
        """Say what share of the images of each class counts; None without masks."""
        shares = [f"{name} {mask.mean():.0%}" for name, mask in self.masks.items()]
        return f"of the images counts: {', '.join(shares)}" if shares else None


def read_interest(
    roi: Path | None,
    ignored: Path | None,
    classes: Sequence[str],
    frame: Frame,
    decoding: Decoding,
) -> Interest:
    """Read masks of what counts and of what does not.

    Args:
        roi: an image for all classes, or a folder with one for some, named like the class; only
            where it is not black does an image count.
        ignored: the same, but there it does not count.
        classes: of the model.
        frame: what images are brought to, as the masks are.
        decoding: its largest size holds for masks too.

    Raises:
        DataError: as for `mask_files`, or nothing of a class counts.
        ImageError: a mask cannot be read.
    """
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    size = frame.mask_size
    for option, path, inside in (("--roi", roi, True), ("--ignore", ignored, False)):
        if path is None:
            continue
        for name, file in mask_files(option, path, classes).items():
            mask = open_mask(file, decoding=decoding)
            resized = resize_mask(mask, size, "nearest" if inside else "any")
            masks[name] = masks.get(name, np.ones(size, np.bool_)) & (resized == inside)
            if not masks[name].any():
                raise DataError(
                    f"{option}: '{file}' leaves nothing of the images of class '{name}'; draw what "
                    f"is {'of interest' if inside else 'to be ignored'} in white on black"
                )
    return Interest({name: masks[name] for name in classes if name in masks}, frame)


def mask_files(option: str, path: Path, classes: Sequence[str]) -> dict[str, Path]:
    """Find the mask of each class that has one.

    Args:
        option: that asks for it.
        path: an image for all classes, or a folder with one for some, named like the class.
        classes: of the model.

    Raises:
        DataError: there is no such file, no mask for any class in the folder, or two for one.
    """
    if not path.is_dir():
        if not path.exists():
            raise DataError(
                f"{option}: there is no file or folder '{path}'; give an image for all classes, or "
                "a folder with CLASS.png for each"
            )
        return dict.fromkeys(classes, path)
    found: dict[str, Path] = {}
    for each in sorted(path.iterdir()):
        if each.suffix.lower() not in IMAGE_SUFFIXES or each.stem not in classes:
            continue
        if each.stem in found:
            raise DataError(
                f"{option}: '{found[each.stem]}' and '{each}' are both for class '{each.stem}'; "
                "keep one of them"
            )
        found[each.stem] = each
    if not found:
        raise DataError(
            f"{option}: no image in '{path}' is named like a class ({enumerate_some(classes)}); "
            f"name it such as {classes[0]}.png"
        )
    return found
