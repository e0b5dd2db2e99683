"""The Triton backend: says whether it can be used, and loads its kernels when first called.

With TRITON_INTERPRET=1 set before Python starts, Triton interprets the kernels, for tests: the
backend then takes tensors on the CPU, slowly.
"""

import importlib
import importlib.metadata
import importlib.util
import os
from typing import Any

from crad_kernels._schema import library

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cpu",) if INTERPRETED else ("cuda",)

_OLDEST = (3, 6)


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


def _implement(operator: str) -> None:
    def implementation(*arguments: Any) -> Any:
        launch = importlib.import_module("crad_kernels._backends.triton.launch")
        return getattr(launch, operator)(*arguments)

    key = "CPU" if INTERPRETED else "CUDA"
    library.impl(f"{operator}.triton", implementation, key)


MISSING = _missing()
for _operator in ("sample", "sample_backward", "philox", "normals"):
    _implement(_operator)
