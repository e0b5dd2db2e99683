"""Loads the C++ library of the CPU backend."""

import importlib.util

import torch


def _load() -> str:
    """Load the library; return why it could not be, or an empty string."""
    spec = importlib.util.find_spec("crad_kernels._cpu")
    if spec is None or spec.origin is None:
        return (
            "its library was not built; install a C++17 compiler (g++ or clang++), then run "
            "`pip install -e .` again and read the build's warnings"
        )
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        return f"its library {spec.origin} does not load: {error}; run `pip install -e .` again"
    return ""


REASON = _load()
