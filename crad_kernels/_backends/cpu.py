"""The CPU backend: C++ in `csrc/cpu`."""

import ctypes

from crad_kernels._backends.library import load, path_of

MISSING = load("_cpu", "a C++17 compiler (g++ or clang++)")


def release_memory() -> None:
    """Return the memory of freed results to the system, as `torch.cuda.empty_cache` does a GPU's.

    The CPU backend keeps up to 256 MiB of results of 8 MiB and more that are no longer used, for
    the next ones. Other backends keep nothing; where the CPU backend's library is missing, this
    does nothing.
    """
    if not MISSING:
        ctypes.CDLL(path_of("_cpu")).crad_kernels_release_memory()
