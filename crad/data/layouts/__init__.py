"""The layouts of data sets on disk: one module for each, listed here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from crad.data.folders import Folder
from crad.data.layouts import mvtec, visa
from crad.data.samples import Split


class Layout(Protocol):
    """What the module of a layout has.

    Attributes:
        DESCRIPTION: what the layout looks like, for messages.
        RULE: which images are read, for messages.
        TABLES: what is read beside images, as paths below the root.
    """

    DESCRIPTION: str
    RULE: str
    TABLES: tuple[str, ...]

    def matches(self, root: Folder) -> bool:
        """Whether a folder has this layout."""

    def find_classes(self, root: Folder) -> dict[str, Callable[[bool], Split]]:
        """Find the classes, each with a function of `need_train` that finds its images.

        Raises:
            DataError: there is none, or the layout is broken.
        """

    def holds_masks(self, folder: Path) -> bool:
        """Whether a folder has this layout's place for the masks of a class."""


LAYOUTS: Mapping[str, Layout] = MappingProxyType({"VisA": visa, "MVTec AD": mvtec})
"""By name, in the order of detection; the last one reports a folder without classes."""
