"""Builds the native libraries; everything else is in pyproject.toml."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

# The oldest torch whose stable ABI the libraries are written for: they load in it and in any later.
TORCH_TARGET_VERSION = "0x020b000000000000"

COMPILE_ARGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    # A contracted a * b + c would round an index differently from one backend to another.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
]


def has_cpp_compiler() -> bool:
    """Whether the compiler that setuptools and torch will call is there."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    return bool(compiler) and shutil.which(compiler[0]) is not None


def libraries() -> list[CppExtension]:
    """What can be built here: without a compiler, the install succeeds with the slow reference."""
    if not has_cpp_compiler():
        print(
            "warning: no C++ compiler found: the CPU kernels are not built, and crad_kernels will "
            "run on its slow reference backend; install g++ or clang++, then install again",
            file=sys.stderr,
        )
        return []
    cpu = CppExtension(
        "crad_kernels._cpu",
        sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp")),
        depends=sorted(str(path) for path in Path("csrc").glob("*/*.h")),
        extra_compile_args=COMPILE_ARGS,
        py_limited_api=True,
    )
    return [cpu]


setup(ext_modules=libraries(), cmdclass={"build_ext": BuildExtension})
