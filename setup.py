"""Builds the native libraries; everything else is in pyproject.toml.

A library that cannot be built here is left out, and a note beside the package's modules says why:
`crad_kernels.backends()` shows it. Objects are kept in build/objects, under names that hold a
digest of all that they are made of, so an install compiles only what has changed.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# PyTorch's stable ABI, in headers of the oldest version that the libraries load in.
HEADERS = Path("csrc/third_party")
TORCH_TARGET_VERSION = "0x020b000000000000"

# For CI: what does not compile, or warns, or spills registers, fails there. It must not keep anyone
# from installing.
STRICT = bool(os.environ.get("CRAD_KERNELS_WERROR"))

# For sanitizers: see .ci/sanitize.
OPTIMIZATION = os.environ.get("CRAD_KERNELS_OPTIMIZATION", "-O3")

COMMON_ARGS = [
    "-std=c++17",
    OPTIMIZATION,
    "-DNDEBUG",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
    *("-isystem", str(HEADERS)),
]
CXX_ARGS = [
    *COMMON_ARGS,
    "-fPIC",
    "-fwrapv",
    # A contracted a * b + c would round an index differently from one backend to another.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    *(["-Werror"] if STRICT else []),
]
NVCC_ARGS = [
    *COMMON_ARGS,
    "-fmad=false",  # as above
    "--threads=2",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    *(["-Werror=all-warnings", "-Xptxas=--warn-on-spills"] if STRICT else []),
]
OBJECTS = Path("build/objects")
KEPT_OBJECTS = 4  # of a source, the last used ones: a few compilers, sanitizers


LAUNCHERS = ("ccache", "distcc", "sccache")  # of compilers, which nvcc does not take
COMPILERS = "g++ (11 or later) or clang++ (14 or later)"


class MissingError(Exception):
    """Why a library cannot be built here, and the way out."""


@dataclass(frozen=True)
class Recipe:
    """How a library is built.

    Attributes:
        sources: its translation units.
        compile: the command that compiles one of them.
        link: what the linker takes after the objects.
        tools: what the compilers say of themselves.
        advice: the way out if a source does not compile.
    """

    sources: list[Path]
    compile: list[str]
    link: list[str]
    tools: str
    advice: str


def flags(*names: str) -> list[str]:
    """Those that the user gives in environment variables."""
    return [flag for name in names for flag in shlex.split(os.environ.get(name, ""))]


def run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        MissingError: with the lines that tell why it failed.
    """
    try:
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise MissingError(f"{command[0]} does not run: {error}") from error
    if result.returncode:
        print(shlex.join(command), result.stdout, sep="\n", file=sys.stderr)
        lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower()][:2] or lines[-2:]
        raise MissingError(
            f"`{command[0]}` failed with exit status {result.returncode}: "
            + (" | ".join(told)[:600] or "it said nothing")
        )
    return result.stdout


def cxx() -> list[str]:
    """The command of the C++ compiler."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        if shutil.which(command[0]):
            return command
        raise MissingError(f"there is no {command[0]}, which CXX names; set it to a C++ compiler")
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise MissingError(f"there is no C++ compiler; install {COMPILERS}")


def cuda_toolkit() -> Path:
    """The folder of the CUDA toolkit.

    It is what nvcc says it is: an nvcc on the PATH may be a script that calls another.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None and Path("/usr/local/cuda/bin/nvcc").exists():
        nvcc = "/usr/local/cuda/bin/nvcc"
    if nvcc is None:
        raise MissingError("there is no nvcc; install a CUDA toolkit")
    report = run([nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"])
    here = re.search(r"^#\$ _HERE_=(.+)$", report, re.MULTILINE)
    if here is None or not (Path(here[1]).parent / "include").is_dir():
        raise MissingError(f"{nvcc} does not say where its toolkit lies; set CUDA_HOME")
    return Path(here[1]).parent


def architectures() -> list[str]:
    """What nvcc is to compile for: TORCH_CUDA_ARCH_LIST, or else the GPUs that are here."""
    named = re.split(r"[\s;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; ,"))
    if named == [""]:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        try:
            here = set(run(query).split()) if shutil.which(query[0]) else set()
        except MissingError:  # a driver without a GPU
            here = set()
        named = sorted(here, key=float)
        if not named:
            raise MissingError(
                "there was no GPU to compile for; name some by `TORCH_CUDA_ARCH_LIST="
                "'8.0 9.0 10.0+PTX' pip install -e .`, which takes minutes; without it, GPUs are "
                "served by Triton"
            )
        named[-1] += "+PTX"
    generate = []
    for name in named:
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
        if match is None:
            raise MissingError(
                f"TORCH_CUDA_ARCH_LIST: expected compute capabilities such as '8.0 9.0+PTX', but "
                f"got {name!r}"
            )
        number = match[1] + match[2]
        generate.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[3]:
            generate.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return generate


def cpp_recipe(*sources: str) -> Recipe:
    """Of a library in C++."""
    command = cxx()
    return Recipe(
        sorted(path for pattern in sources for path in Path().glob(pattern)),
        [*command, *CXX_ARGS, *flags("CPPFLAGS", "CFLAGS", "CXXFLAGS")],
        [],
        run([*command, "--version"]),
        f"choose another compiler by CXX: {COMPILERS}",
    )


def cuda_recipe() -> Recipe:
    """Of the CUDA library, into which the runtime is linked: all that is shared is the driver."""
    toolkit, host = cuda_toolkit(), cxx()
    chosen = architectures()
    folders = ("lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib")
    runtimes = [toolkit / folder / "libcudart_static.a" for folder in folders]
    runtime = next((path for path in runtimes if path.exists()), None)
    if runtime is None:
        raise MissingError(f"there is no libcudart_static.a in {toolkit}; install it")
    nvcc = str(toolkit / "bin" / "nvcc")
    compiler = next(word for word in host if Path(word).name not in LAUNCHERS)
    return Recipe(
        sorted(Path("csrc/cuda").glob("*.cu")),
        [nvcc, *NVCC_ARGS, f"-ccbin={shutil.which(compiler)}", *chosen],
        [str(runtime), "-Wl,--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread"],
        run([nvcc, "--version"]) + run([*host, "--version"]),
        "choose what this toolkit compiles for by TORCH_CUDA_ARCH_LIST, or its compiler by CXX",
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "cpu": lambda: cpp_recipe("csrc/cpu/*.cpp", "csrc/cpu/isa/*.cpp"),
    "cuda": cuda_recipe,
    "cuda_emulated": lambda: cpp_recipe("tests/emulator/emulated.cpp"),  # for tests
}


def digest(source: Path, recipe: Recipe) -> str:
    """Of all that an object is made of: source, headers, flags, compilers."""
    files, todo = set(HEADERS.rglob("*.h")), [source]
    while todo:
        path = todo.pop()
        if path not in files and path.is_file():
            files.add(path)
            for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
                todo.append(Path(os.path.normpath(path.parent / name)))
    heeded = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "CPATH", "CPLUS_INCLUDE_PATH")
    environment = [os.environ.get(name) for name in heeded]
    hashed = hashlib.sha256(repr((recipe.compile, recipe.tools, environment)).encode())
    for path in sorted(files):
        hashed.update(f"\0{path}\0".encode() + path.read_bytes())
    return hashed.hexdigest()[:20]


def compiled(source: Path, recipe: Recipe) -> Path:
    """The object of a source: the one that is kept, if it was made of the same."""
    name = f"{source.parent.name}-{source.stem}"
    target = OBJECTS / f"{name}-{digest(source, recipe)}.o"
    if target.exists():
        target.touch()
    else:
        part = target.with_suffix(f".{os.getpid()}")
        try:
            print(run([*recipe.compile, "-c", str(source), "-o", str(part)]), end="")
            part.replace(target)
        except MissingError as error:
            raise MissingError(f"{source} does not compile: {error}; {recipe.advice}") from error
        finally:
            part.unlink(missing_ok=True)
    others = sorted(OBJECTS.glob(f"{name}-*.o"), key=lambda path: path.stat().st_mtime)
    for path in others[:-KEPT_OBJECTS]:
        path.unlink(missing_ok=True)
    return target


def linked(recipe: Recipe, objects: list[Path], target: Path) -> None:
    """Link a library.

    Python has loaded torch's before, so all that is needed of it is its name.
    """
    with TemporaryDirectory() as folder:
        torch = str(Path(folder) / "libtorch_cpu.so")
        name = "-Wl,-soname,libtorch_cpu.so"
        run([*cxx(), "-shared", "-nostdlib", name, "-x", "c", "/dev/null", "-o", torch])
        part = target.with_suffix(f".{os.getpid()}")
        arguments = [*map(str, objects), "-Wl,--no-as-needed", torch, *recipe.link]
        try:
            run([*cxx(), "-shared", *flags("LDFLAGS"), *arguments, "-o", str(part)])
            part.replace(target)  # as a whole: a process may have the former one loaded
        finally:
            part.unlink(missing_ok=True)


class Build(build_ext):
    """Makes the package's libraries those that are asked for, with notes for those that are not."""

    def run(self) -> None:
        """Compile what is asked for, link it, and leave nothing of former builds."""
        wanted = [n for n in os.environ.get("CRAD_KERNELS_BUILD", "cpu,cuda").split(",") if n]
        if unknown := sorted(set(wanted) - set(RECIPES)):
            raise SystemExit(
                f"CRAD_KERNELS_BUILD: expected some of {', '.join(RECIPES)}, but got "
                f"{', '.join(unknown)}"
            )
        missing = dict.fromkeys(
            RECIPES,
            f"CRAD_KERNELS_BUILD={','.join(wanted)} left it out; install from source without that",
        )
        begun = {}
        OBJECTS.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            for name in wanted:
                try:
                    recipe = RECIPES[name]()
                except MissingError as error:
                    missing[name] = str(error)
                else:
                    begun[name] = recipe, [pool.submit(compiled, s, recipe) for s in recipe.sources]

        package = (Path() if self.inplace else Path(self.build_lib)) / "crad_kernels"
        package.mkdir(parents=True, exist_ok=True)
        suffix = self.get_ext_filename("crad_kernels._cpu").partition("_cpu")[2]
        for name in RECIPES:
            library, note = package / f"_{name}{suffix}", package / f"_{name}.missing.txt"
            note.unlink(missing_ok=True)
            if name in begun:
                recipe, objects = begun[name]
                try:
                    linked(recipe, [done.result() for done in objects], library)
                    continue
                except MissingError as error:
                    if STRICT:
                        raise SystemExit(f"{library}: {error}") from error
                    missing[name] = str(error)
            library.unlink(missing_ok=True)  # one that is there may be of other sources
            if name in wanted:
                print(f"warning: {library} is left out: {missing[name]}", file=sys.stderr)
            if name in wanted or name != "cuda_emulated":
                note.write_text(missing[name] + "\n")

    def get_output_mapping(self) -> dict[str, str]:
        """What an editable install links to."""
        return {
            built: source
            for built, source in super().get_output_mapping().items()
            if Path(source).exists()
        }


# A free-threaded Python has no limited API.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")

if __name__ == "__main__":  # and not a test, which imports this
    setup(
        ext_modules=[
            Extension(f"crad_kernels._{name}", [], py_limited_api=LIMITED, optional=True)
            for name in ("cpu", "cuda")
        ],
        cmdclass={"build_ext": Build},
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
    )
