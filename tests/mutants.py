"""Whether the kernel tests find faults: each mutant is the library with one character wrong.

`python -m tests.mutants` builds a copy of the repository with each mutant in turn, for the best
instruction set of this processor and not optimised, and runs the quick kernel tests on the CPU and
reference backends until one fails: some 10 minutes; `--only` picks mutants.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("csrc", "crad_kernels", "crad", "tests", "benchmarks", "setup.py", "pyproject.toml")
ISAS = {"avx512": "avx512dq", "avx2": "avx2", "baseline": ""}  # flags in /proc/cpuinfo
LIMIT = 1200  # seconds that tests may take: a loop may have no end

# Of each file: what is right, once in it, and what becomes of it; before them the test file that is
# run first, for to collect all takes longer. No fault changes only how long a call takes, nor is
# any in code of one instruction set.
FAULTS = {
    "crad_kernels/functional.py": {
        "no jitter along a component": ("jitter", "0 <= std <= most", "0 < std <= most"),
        "seed beyond 63 bits": ("jitter", "number - 2**64", "number - 2**63"),
    },
    "crad_kernels/reference.py": {
        "reference: taps inside": ("sample", "inside & tap_inside", "inside | tap_inside"),
        "reference: outer taps": ("sample", "+ 8 * _A) * x", "+ 9 * _A) * x"),
    },
    "crad_kernels/_derivatives.py": {
        "sum of terms": ("derivatives", "sum(given[1:],", "sum(given[2:],"),
        "wanted gradient": ("derivatives", "for_coords or for_std)", "for_coords and for_std)"),
    },
    "crad_kernels/_vmap.py": {
        "axis of slices": ("derivatives", "out.ndim - 2", "out.ndim - 1"),
        "slices as channels": ("derivatives", "movedim(0, -2)", "movedim(0, -1)"),
    },
    "crad_kernels/_schema.py": {
        "compiler's strides": ("layout", "values.ndim - 1 - coords", "values.ndim - 0 - coords"),
    },
    "crad_kernels/_backends/__init__.py": {
        "most dimensions": ("sample", "ndim > self.max_ndim", "ndim >= self.max_ndim"),
    },
    "csrc/core/jitter.h": {
        "logarithm of 0": ("jitter", "+ 1.0f) * unit", "+ 0.0f) * unit"),
        "rounds of Philox": ("jitter", "rounds = 10", "rounds = 9"),
        "sign of the cosine": ("jitter", "(quadrant + 1) & 2", "(quadrant + 0) & 2"),
    },
    "csrc/core/numbers.h": {
        "ties of bfloat16": ("sample", "0x7FFF + ((bits", "0x7FFE + ((bits"),
        "ties of float16": ("sample", "0xFFF + ((bits", "0xFFE + ((bits"),
    },
    "csrc/core/simplex.h": {
        "leaving the grid": ("simplex", "| second_inside", "& second_inside"),
    },
    "csrc/cpu/walk.h": {
        "equal fractions": ("simplex", "key[k][i] > key[j][i]", "key[k][i] < key[j][i]"),
        "slope of a step": ("simplex", "dot[k + 1][i] - dot", "dot[k + 0][i] - dot"),
    },
    "csrc/core/problem.h": {
        "order along an axis": ("derivatives", "(4 * axis)", "(3 * axis)"),
    },
    "csrc/core/axis.h": {
        "slope on the border": ("sample", "inside ? index.slope : c", "!inside ? index.slope : c"),
        "slope of a mirror image": ("sample", "slope : -index.slope}", "slope : +index.slope}"),
        "near the grid": ("sample", "low = constant<X>(-2)", "low = constant<X>(-0)"),
        "third derivative": ("derivatives", ": 6 * a);", ": 7 * a);"),
        "end of a long axis": ("edge_cases", "rounded_up ? size - 1", "rounded_up ? size - 0"),
        "far away": ("edge_cases", "0x1p31) || span", "0x1p30) || span"),
        "behind a period": ("sample", "above > last ? above -", "above > last ? above +"),
    },
    "csrc/cpu/locate.h": {
        "words of the jitter": ("jitter", "d / 4, 2, a, b", "d / 4, 1, a, b"),
        "point that is no place": ("edge_cases", "batch.finite[i] &=", "batch.finite[i] |="),
        "across the seam": ("determinism", "highest - entry >=", "highest - entry <"),
    },
    "csrc/cpu/few_channels.h": {
        "corners outside": ("edge_cases", "lanes != kAllLanes", "lanes == kAllLanes"),
    },
    "csrc/cpu/tap_rows.h": {
        "beyond the last point": ("sample", "i < points ? lanes_of", "i <= points ? lanes_of"),
        "taps of a row": ("sample", "tap * rows.count", "tap + rows.count"),
    },
    "csrc/cpu/lane_corners.h": {
        "last tap in bounds": ("images", ": size) - tap_count", ": size) + 1 - tap_count"),
        "points behind the last": ("images", "lanes[k] & points", "lanes[k] | points"),
        "rows of a thread": ("images", "rows.first = rows.begin", "rows.first = 0"),
    },
    "csrc/cpu/lane_forward.h": {
        "planes of other grids": ("layout", "(problem.channels - 1) *", "(problem.channels - 0) *"),
    },
    "csrc/cpu/lane_bounds.h": {
        "noise of the jitter": ("images", "std::fabs(jitter_std", "0 * std::fabs(jitter_std"),
    },
    "csrc/cpu/strips.h": {
        "strips that overlap": ("images", "a.last[axis] < b.first", "a.last[axis] >= b.first"),
    },
    "csrc/cpu/sort.h": {
        "pieces of the points": ("sample", "pieces * piece_points", "pieces / piece_points"),
    },
    "csrc/cpu/many_channels.h": {
        "number of corners": ("sample", "(count == some &&", "(count >= some &&"),
        "last corner": ("sample", "k + N <= count", "k + N < count"),
    },
    "csrc/cpu/isa/table.h": {
        "first part of a sum": ("sample", "part = 1; part <", "part = 2; part <"),
    },
    "csrc/cpu/sample.cpp": {
        "last band": ("sample", "runs + 1 - odd", "runs + 0 - odd"),
    },
}  # fmt: skip


class Mutant(NamedTuple):
    name: str
    file: str
    tests: str
    right: str
    wrong: str


MUTANTS = [
    Mutant(name, file, *texts) for file, faults in FAULTS.items() for name, texts in faults.items()
]


def mutated(mutant: Mutant, text: str) -> str:
    """The text with the fault; ends the program where the table no longer fits the code."""
    if (times := text.count(mutant.right)) != 1:
        sys.exit(
            f"{mutant.name}: {mutant.right!r} occurs {times} times in {mutant.file}, and should "
            "once: choose another text in tests/mutants.py"
        )
    return text.replace(mutant.right, mutant.wrong)


@contextmanager
def applied(mutant: Mutant, folder: Path) -> Iterator[None]:
    path = folder / mutant.file
    text = path.read_text()
    path.write_text(mutated(mutant, text))
    yield
    path.write_text(text)


def copy_to(folder: Path) -> str:
    """Copy what the tests need, with CPU kernels of one instruction set, whose name is returned."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            built = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=built)
        else:
            shutil.copy(ROOT / name, folder / name)
    flags = Path("/proc/cpuinfo").read_text()
    best = next(isa for isa, flag in ISAS.items() if flag in flags)
    for isa in set(ISAS) - {best}:
        for file, table in (
            (isa, "Kernels kernels"),
            (f"{isa}_levels", "LevelKernels level_kernels"),
        ):
            empty = f'#include "../kernels.h"\nnamespace crad {{\nconst {table}_{isa}{{}};\n}}\n'
            (folder / f"csrc/cpu/isa/{file}.cpp").write_text(empty)
    return best


def build(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, "CRAD_KERNELS_BUILD": "cpu", "CRAD_KERNELS_OPTIMIZATION": "-O0"},
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        sys.exit(f"does not compile:\n{result.stdout}{result.stderr}")


def found_by(folder: Path, isa: str, first: str) -> str:
    """What finds a fault, the first failing test; empty if nothing does."""
    file = f"tests/kernels/test_{first}.py"
    # Without optimisation, the largest tensors take minutes.
    others = ["tests/kernels", f"--ignore={file}", "--ignore=tests/kernels/test_large.py"]
    options = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow")
    for paths in ([file], others):
        try:
            result = subprocess.run(
                [sys.executable, "-m", "pytest", *options, *paths],
                cwd=folder,
                env={**os.environ, "CRAD_KERNELS_CPU_ISA": isa},
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return f"{paths[0]}, which takes more than {LIMIT} s"
        if result.returncode != 0:
            failed = re.search(r"^(?:FAILED|ERROR) tests/kernels/(.+?)( - |$)", result.stdout, re.M)
            crashed = re.search(r"in (test_\w+)$", result.stderr, re.M)  # what faulthandler prints
            if failed or crashed:
                return failed[1] if failed else f"a crash in {crashed[1]}"
            return f"{paths[0]}, with status {result.returncode}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the mutants, and do nothing")
    names = [mutant.name for mutant in MUTANTS]
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=names, help="may be repeated"
    )
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if mutant.name in (arguments.only or names)]
    for mutant in chosen:
        mutated(mutant, (ROOT / mutant.file).read_text())
        if arguments.list:
            print(f"{mutant.name}: {mutant.file}: {mutant.right} -> {mutant.wrong}")
    if arguments.list:
        return
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        isa = copy_to(folder)
        build(folder)
        if by := found_by(folder, isa, "sample"):
            sys.exit(f"fails without a mutant, too: {by}")
        for mutant in chosen:  # those of Python, which need no build, come first
            with applied(mutant, folder):
                if mutant.file.startswith("csrc"):
                    build(folder)
                start = time.monotonic()
                by = found_by(folder, isa, mutant.tests)
            verdict = f"found in {time.monotonic() - start:.0f} s by {by}" if by else "SURVIVED"
            print(f"{mutant.name}: {verdict}", flush=True)
            survivors += [] if by else [mutant.name]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} were found")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
