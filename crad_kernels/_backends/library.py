"""Loads a compiled library."""

from importlib.machinery import PathFinder
from pathlib import Path

import torch

PACKAGE = Path(__file__).parents[1]


def path_of(name: str) -> str | None:
    """Where a library of this package lies; None if it was not built.

    Beside these modules, and nowhere else: the finder of an editable install may know another one.
    """
    spec = PathFinder.find_spec(f"crad_kernels.{name}", [str(PACKAGE)])
    return None if spec is None else spec.origin


def load(name: str, needs: str) -> str:
    """Load a library of this package; return why it could not be, or an empty string.

    Args:
        name: of the library, ``"_cpu"``.
        needs: what must be installed for it to be built.
    """
    path = path_of(name)
    if path is None:
        reason = _note(name) or f"install {needs}, then run `pip install -e .` again"
        return f"its library was not built: {reason}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        why = error.__cause__ or error  # torch's own message does not say
        return f"its library {path} does not load: {why}; run `pip install -e .` again"
    return ""


def _note(name: str) -> str:
    """Why setup.py did not build a library; empty if it left no note."""
    try:
        return (PACKAGE / f"{name}.missing.txt").read_text().strip()
    except OSError:
        return ""
