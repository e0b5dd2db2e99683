"""What every variant of the CUDA kernels takes of the hardware: `python -m benchmarks.ptxas`.

Needs nvcc and no GPU; runs as many compilers at once as MAX_JOBS says. Exits with 1 if a variant
spills registers. Shared memory is not in the table: its amount is decided at run time, by
`csrc/cuda/plan_*.h`. With `--report docs/performance.md` and one architecture, writes the table of
that page.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from crad.files import write_atomically

from . import markdown

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

BEGIN = "<!-- registers: written by python -m benchmarks.ptxas --architectures 90 --report -->"
END = "<!-- end of registers -->"
# As the kernels are compiled for them: C++ type, and the name of the dtype.
DTYPES = {"float": "float32", "bfloat16": "bfloat16", "float16": "float16", "double": "float64"}

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


def table(found: list[tuple[str, int]]) -> Iterator[str]:
    """Lines of Markdown, of the readable names of variants and their registers."""
    rows: dict[str, dict[str, list[int]]] = {}
    for name, registers in found:
        kernel, _, rest = name.partition("<")
        first, *others = rest.rstrip(">").split(", ")
        wide = kernel != "sum_parts" and others[:1] == ["double"]
        row = rows.setdefault(f"`{kernel}`{', float64 coordinates' if wide else ''}", {})
        # Those whose first argument is a number are of float32 alone.
        dtypes = ["float"] if first.isdigit() else [first] if first else [*DTYPES]
        for dtype in dtypes:
            row.setdefault(dtype, []).append(registers)
    lines = ([k, *(_range(row.get(d, [])) for d in DTYPES)] for k, row in sorted(rows.items()))
    yield from markdown.table(["kernel", *DTYPES.values()], lines)


def _range(numbers: list[int]) -> str:
    """From the least to the largest."""
    ends = sorted({min(numbers, default=0), max(numbers, default=0)} - {0})
    return " to ".join(map(str, ends))


def main() -> None:
    """Print a line for every variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--report", type=Path, help="the page to write the table of registers into")
    options = parser.parse_args()
    if options.report and len(options.architectures) > 1:
        parser.error("--report: expected one of --architectures")
    if options.report:
        before, after = markdown.around(options.report.read_text(), BEGIN, END)
    jobs = [(s, a) for a in options.architectures for s in SOURCES]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        found = [v for each in pool.map(lambda job: compiled(*job), jobs) for v in each]
    names = readable([v.name for v in found])
    for name, variant in zip(names, found, strict=True):
        sys.stdout.write(
            f"sm_{variant.architecture:<4} {name:60} {variant.registers:4} registers"
            f" {variant.stack:4} bytes of stack {variant.spilt:4} bytes spilt\n"
        )
    spilling = sum(variant.spilt > 0 for variant in found)
    summary = f"{len(found)} variants, {spilling} of them spill registers"
    sys.stdout.write(f"{summary}\n")
    if options.report:
        lines = "\n".join(table([(n, v.registers) for n, v in zip(names, found, strict=True)]))
        about = f"sm_{options.architectures[0]}: {summary}."
        text = f"{before}{BEGIN}\n\n{about}\n\n{lines}\n{END}{after}"
        write_atomically(options.report, lambda file: file.write(text.encode()))
    sys.exit(spilling > 0)


if __name__ == "__main__":
    main()
