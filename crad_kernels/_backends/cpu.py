"""The CPU backend: C++ in `csrc/cpu`."""

from crad_kernels._backends.library import load

MISSING = load("_cpu", "a C++17 compiler (g++ or clang++)")
