"""Loads a compiled library."""

import importlib.util
from pathlib import Path

import torch

PACKAGE = Path(__file__).parents[1]


def load(name: str, needs: str) -> str:
    """Load a library of this package; return why it could not be, or an empty string.

    Args:
        name: of the library, ``"_cpu"``.
        needs: what must be installed for it to be built.
    """
    spec = importlib.util.find_spec(f"crad_kernels.{name}")
    if spec is None or spec.origin is None:
        reason = _note(name) or f"install {needs}, then run `pip install -e .` again"
        return f"its library was not built: {reason}"
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        why = error.__cause__ or error  # torch's own message does not say
        return f"its library {spec.origin} does not load: {why}; run `pip install -e .` again"
    return ""


def _note(name: str) -> str:
    """Why setup.py did not build a library; empty if it left no note."""
    try:
        return (PACKAGE / f"{name}.missing.txt").read_text().strip()
    except OSError:
        return ""
