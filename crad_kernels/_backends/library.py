"""Loads a compiled library."""

import importlib.util

import torch


def load(name: str, needs: str) -> str:
    """Load a library of this package; return why it could not be, or an empty string.

    Args:
        name: of the library, ``"_cpu"``.
        needs: what must be installed for it to be built.
    """
    spec = importlib.util.find_spec(f"crad_kernels.{name}")
    if spec is None or spec.origin is None:
        return (
            f"its library was not built; install {needs}, then run `pip install -e .` again and "
            "read the build's warnings"
        )
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        why = error.__cause__ or error  # torch's own message does not say
        return f"its library {spec.origin} does not load: {why}; run `pip install -e .` again"
    return ""
