"""The Triton backend: says whether it can be used, and loads its kernels when first called.

With TRITON_INTERPRET=1 set before Python starts, Triton interprets the kernels, for tests: the
backend then takes tensors on the CPU, slowly.
"""

import importlib
import importlib.metadata
import importlib.util
import os
from typing import Any

import torch

from crad_kernels._schema import library

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cpu",) if INTERPRETED else ("cuda",)

_OLDEST = (3, 6)

# Compute capability: what PyTorch's own compiler asks of a GPU for Triton.
_OLDEST_GPU = (7, 0)


def _missing() -> str:
    """What is missing and how to get it; empty if nothing is."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run `pip install 'triton>=3.6'`"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # under the name of a vendor's build
        version = ""
    if version and tuple(map(int, version.split(".")[:2])) < _OLDEST:
        return f"Triton {version} is too old; upgrade torch, or run `pip install 'triton>=3.6'`"
    return ""


def unfit_gpu(index: int) -> str:
    """Why Triton has no code for a GPU; empty if it has."""
    capability = torch.cuda.get_device_capability(index)
    if capability >= _OLDEST_GPU:
        return ""
    oldest, has = (".".join(map(str, each)) for each in (_OLDEST_GPU, capability))
    return (
        f"Triton is for compute capability {oldest} and later, but "
        f"{torch.cuda.get_device_name(index)} has {has}; use backend='reference'"
    )


def _implement(operator: str, module: str) -> None:
    def implementation(*arguments: Any) -> Any:
        loaded = importlib.import_module(f"crad_kernels._backends.triton.{module}")
        return getattr(loaded, operator)(*arguments)

    key = "CPU" if INTERPRETED else "CUDA"
    library.impl(f"{operator}.triton", implementation, key)


MISSING = _missing()
for _operator in ("sample", "sample_backward", "normals"):
    _implement(_operator, "launch")
for _operator in ("sample_levels", "sample_levels_backward"):
    _implement(_operator, "levels")
