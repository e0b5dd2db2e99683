"""What every variant of the CUDA kernels takes of the hardware: `python -m benchmarks.ptxas`.

Needs nvcc and no GPU. Exits with 1 if a variant spills registers. Shared memory is not in the
table: its amount is decided at run time, by `csrc/cuda/plan_*.h`.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = sorted(Path("csrc/cuda").glob("*.cu"))
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-Xptxas=-v",
    "-cubin",
    "-o",
    "/dev/null",
    "-isystem=csrc/third_party",
)

_VARIANT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Variant:
    """A kernel for one architecture: its registers, and the bytes that it spills."""

    name: str
    architecture: int
    registers: int
    stack: int
    spilt: int


def variants(report: str) -> list[Variant]:
    """Those in what nvcc prints with ``-Xptxas=-v``."""
    return [
        Variant(
            match["name"],
            int(match["architecture"]),
            int(match["registers"]),
            int(match["stack"]),
            int(match["stores"]) + int(match["loads"]),
        )
        for match in _VARIANT.finditer(report)
    ]


def compiled(source: Path, architecture: int) -> list[Variant]:
    """The variants of a source file."""
    command = ["nvcc", *FLAGS, f"-arch=sm_{architecture}", str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    return variants(result.stderr)


def readable(names: list[str]) -> list[str]:
    """Demangled, without namespaces and arguments."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    full = [name.replace("crad::", "").removeprefix("void ") for name in text.stdout.splitlines()]
    return [name.split("(")[0] for name in full]


def main() -> None:
    """Print a line for every variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", default=[80, 90, 100])
    architectures = parser.parse_args().architectures
    jobs = [(s, a) for a in architectures for s in SOURCES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [v for each in pool.map(lambda job: compiled(*job), jobs) for v in each]
    for name, variant in zip(readable([v.name for v in found]), found, strict=True):
        sys.stdout.write(
            f"sm_{variant.architecture:<4} {name:60} {variant.registers:4} registers"
            f" {variant.stack:4} bytes of stack {variant.spilt:4} bytes spilt\n"
        )
    spilling = sum(variant.spilt > 0 for variant in found)
    sys.stdout.write(f"{len(found)} variants, {spilling} of them spill registers\n")
    sys.exit(spilling > 0)


if __name__ == "__main__":
    main()
