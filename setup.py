"""Builds the native libraries; everything else is in pyproject.toml."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

# The oldest torch whose stable ABI the libraries are written for: they load in it and in any later.
TORCH_TARGET_VERSION = "0x020b000000000000"

# For CI: a header of another toolkit may warn, and must not keep anyone from installing, nor may an
# assembler that spills registers.
STRICT = bool(os.environ.get("CRAD_KERNELS_WERROR"))

# For sanitizers: see .ci/sanitize.
OPTIMIZATION = os.environ.get("CRAD_KERNELS_OPTIMIZATION", "-O3")

COMMON_ARGS = ["-std=c++17", OPTIMIZATION, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
CXX_ARGS = [
    *COMMON_ARGS,
    "-g0",
    # A contracted a * b + c would round an index differently from one backend to another.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
NVCC_ARGS = [
    *COMMON_ARGS,
    "-fmad=false",  # as above
    "--threads=2",
    "-Xcompiler=-fvisibility=hidden",
    *(["-Werror=all-warnings", "-Xptxas=--warn-on-spills"] if STRICT else []),
]


def warn(message: str) -> None:
    """Say why something is not built, where pip -v and the build log show it."""
    print(f"warning: {message}", file=sys.stderr)


def has_cpp_compiler() -> bool:
    """Whether the compiler that setuptools and torch will call is there."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    return bool(compiler) and shutil.which(compiler[0]) is not None


def cuda_toolkit() -> Path | None:
    """The folder of the CUDA toolkit, if there is one that can build the kernels.

    It is what nvcc says it is: an nvcc on the PATH may be a script that calls another.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None and Path("/usr/local/cuda/bin/nvcc").exists():
        nvcc = "/usr/local/cuda/bin/nvcc"
    if nvcc is None:
        warn("no nvcc found: the CUDA kernels are not built; install a CUDA toolkit for them")
        return None
    report = subprocess.run(
        [nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True
    ).stderr
    here = re.search(r"^#\$ _HERE_=(.+)$", report, re.MULTILINE)
    if here is None or not (Path(here[1]).parent / "include").is_dir():
        last = report.strip().splitlines()[-1:]
        warn(
            f"{nvcc} does not work, or does not say where its toolkit lies: the CUDA kernels are "
            f"not built; it said: {' '.join(last)}"
        )
        return None
    return Path(here[1]).parent


def cuda_version(toolkit: Path) -> tuple[int, int]:
    """Major and minor version of a toolkit."""
    report = subprocess.check_output([toolkit / "bin" / "nvcc", "--version"], text=True)
    major, minor = re.search(r"release (\d+)\.(\d+)", report).groups()  # type: ignore[union-attr]
    return int(major), int(minor)


def architectures(toolkit: Path) -> list[str]:
    """What to compile for, unless TORCH_CUDA_ARCH_LIST says it: A100, H100, B200, and later."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return []  # torch heeds it
    known = [80, 90, 100] if cuda_version(toolkit) >= (12, 8) else [80, 90]
    return [
        *(f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in known),
        f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}",
    ]


def cuda_libraries(toolkit: Path) -> Path | None:
    """The folder of the static CUDA runtime."""
    for folder in ("lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib"):
        if (toolkit / folder / "libcudart_static.a").exists():
            return toolkit / folder
    warn(f"no libcudart_static.a in {toolkit}: the CUDA kernels are not built")
    return None


def main() -> None:
    """Build what can be built here: without a compiler, the install succeeds without it."""
    wanted = os.environ.get("CRAD_KERNELS_BUILD", "cpu,cuda").split(",")
    toolkit = cuda_toolkit() if has_cpp_compiler() and "cuda" in wanted else None
    if toolkit is not None:
        os.environ["CUDA_HOME"] = str(toolkit)
    from torch.utils import cpp_extension

    # A toolkit need not be of the CUDA that torch was built with: the runtime is linked statically,
    # and all that is shared is the driver.
    cpp_extension._check_cuda_version = lambda *_: None

    def library(name: str, sources: list[Path], **options: object) -> cpp_extension.CppExtension:
        headers = sorted(str(path) for path in Path("csrc").glob("*/*.[hc]*"))
        return cpp_extension.CppExtension(
            f"crad_kernels.{name}",
            sorted(map(str, sources)),
            depends=headers,
            py_limited_api=True,
            **options,
        )

    libraries = []
    if has_cpp_compiler():
        for name, sources in {
            "cpu": list(Path("csrc/cpu").glob("*.cpp")),
            "cuda_emulated": [Path("csrc/cuda/emulated.cpp")],  # for tests: see emulator.h there
        }.items():
            if name in wanted:
                libraries.append(library(f"_{name}", sources, extra_compile_args=CXX_ARGS))
    else:
        warn(
            "no C++ compiler found: nothing is compiled, and crad_kernels will run on its slow "
            "reference backend; install g++ or clang++, then install again"
        )
    runtime = cuda_libraries(toolkit) if toolkit is not None else None
    if toolkit is not None and runtime is not None:
        cuda = library(
            "_cuda",
            list(Path("csrc/cuda").glob("*.cu")),
            extra_compile_args={"cxx": CXX_ARGS, "nvcc": [*NVCC_ARGS, *architectures(toolkit)]},
            extra_link_args=[
                str(runtime / "libcudart_static.a"),
                "-Wl,--exclude-libs,ALL",
                *("-ldl", "-lrt", "-lpthread"),
            ],
        )
        cuda.optional = not STRICT
        libraries.append(cuda)

    class Build(cpp_extension.BuildExtension):
        """A toolkit that cannot compile the CUDA kernels must not keep the rest away."""

        def build_extension(self, extension: cpp_extension.CppExtension) -> None:
            try:
                super().build_extension(extension)
            except RuntimeError as error:  # of torch, which setuptools' `optional` does not know
                if not extension.optional:
                    raise
                warn(f"{extension.name} does not compile, and is left out: {error}")
                # Nor may one that was built before from other sources be taken for it.
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)

    setup(ext_modules=libraries, cmdclass={"build_ext": Build})


main()
