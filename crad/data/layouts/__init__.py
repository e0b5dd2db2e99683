"""The layouts of data sets on disk: one module for each, and the table of them.

A module has ``DESCRIPTION``, what the layout looks like; ``matches(root)``, whether a folder has
it; and ``find_classes(root)``, which gives by class a function that finds its images. Its argument
is the `need_train` of `crad.data.find_dataset`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from crad.data.layouts import mvtec, visa
from crad.data.samples import Split


class Layout(Protocol):
    """What a module of a layout has."""

    DESCRIPTION: str

    def matches(self, root: Path) -> bool:
        """Tell whether a folder has this layout."""
        ...

    def find_classes(self, root: Path) -> dict[str, Callable[[bool], Split]]:
        """Find the classes in a folder, and what finds the images of each."""
        ...


LAYOUTS: Mapping[str, Layout] = MappingProxyType({"VisA": visa, "MVTec AD": mvtec})
"""By name, in the order in which they are tried; the last one says what it lacks."""
