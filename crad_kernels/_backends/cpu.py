"""The CPU backend: C++ in `csrc/cpu`."""

import ctypes
import importlib.util

from crad_kernels._backends.library import load

MISSING = load("_cpu", "a C++17 compiler (g++ or clang++)")


def release_memory() -> None:
    """Return the memory of freed results to the system, as `torch.cuda.empty_cache` does a GPU's.

    The CPU backend keeps up to 256 MiB of results of 8 MiB and more that are no longer used, for
    the next ones. Other backends keep nothing; where the CPU backend's library is missing, this
    does nothing.
    """
    if MISSING:
        return
    spec = importlib.util.find_spec("crad_kernels._cpu")
    assert spec is not None
    assert spec.origin is not None  # it has been loaded
    ctypes.CDLL(spec.origin).crad_kernels_release_memory()
