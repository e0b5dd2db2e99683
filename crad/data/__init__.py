"""Finding a data set on disk; ``python -m crad.data get`` downloads one."""

import os
from collections.abc import Sequence
from pathlib import Path

from crad.data.images import natural_key
from crad.data.layouts import mvtec, visa
from crad.data.samples import Dataset, Sample
from crad.errors import DataError

__all__ = ["Dataset", "Sample", "find_dataset"]

_LAYOUTS = f"{mvtec.LAYOUT}; or of VisA as its archive has it"


def find_dataset(
    root: str | os.PathLike[str], *, classes: Sequence[str] = (), need_train: bool = True
) -> Dataset:
    """Find the classes and images of a data set; no image is opened, and nothing is copied.

    The layout is recognised by looking: that of VisA (`crad.data.layouts.visa`), or else that of
    MVTec AD (`crad.data.layouts.mvtec`), where `root` may itself be one class.

    Args:
        root: the folder.
        classes: the names of those wanted; none given takes all. The others are not looked into.
        need_train: False accepts classes without normal images to learn from, as evaluation does.

    Raises:
        DataError: no such folder, no class in it or not one that is wanted, a class without images,
            or images or masks that lie where they would silently be left out.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        problem = "it is a file" if root.exists() else "no such folder"
        raise DataError(f"data: cannot use '{root}': {problem}; give a folder of {_LAYOUTS}")
    found = visa.find_classes(root) if visa.is_visa(root) else mvtec.find_classes(root)
    if unknown := [name for name in classes if name not in found]:
        raise DataError(f"classes: no '{unknown[0]}' in '{root}'; it has {', '.join(found)}")
    names = sorted(set(classes) or found, key=natural_key)
    samples = [found[name](need_train) for name in names]
    return Dataset(
        root,
        tuple(names),
        tuple(sample for each in samples for sample in each.train),
        tuple(sample for each in samples for sample in each.test),
    )
