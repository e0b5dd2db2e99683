"""All that is checked on a GPU: calls, times, tests, compute-sanitizer, registers, training.

``python -m benchmarks.gpu_check`` takes nine minutes, writes ``benchmarks/results/DATE-GPU.json``
and prints a table. What tells most comes first. Every step is a process of its own with a limit on
its time, so that one that crashes or hangs hides no other; what is written is complete after each.
Run again on the same day, machine and commit, it goes on with what has not passed yet: what there
was no time for, and what failed.

Exit status: 0 if every step passed or was skipped, 1 if one did not, 2 without a GPU.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.report import Report, machine, open_report, write_json
from benchmarks.gpu.steps import SHORTEST, End, Step, run, run_steps
from benchmarks.peers import peers
from crad_kernels import backends

# Seconds that a step of a kind may take.
LIMITS = {
    "calls": 90.0,
    "timings": 80.0,
    "tests": 90.0,
    "sanitizers": 80.0,
    "training": 120.0,
    "variants": 120.0,
}
KINDS = tuple(LIMITS)
# Which need the GPU, or most of its memory, for themselves.
ALONE = tuple(f"tests/kernels/test_{name}.py" for name in ("cuda", "tuning", "large"))
# The others are cut into so many parts, each with every kind of test.
PARTS = 4
# What compiles the kernels of a backend for several architectures.
COMPILED = {"cuda": "benchmarks.ptxas", "triton": "benchmarks.triton_variants"}
# In what order peers are timed, after ours: that which the targets are multiples of is the first.
FIRST_PEER = "F.grid_sample, flat"


# ---- tests ----


def junit_counts(path: Path) -> Report:
    """How many tests passed, failed and were skipped, and the first that failed, with messages."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return {}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures, skips = [], set()
    for test in root.iter("testcase"):
        problem = test.find("failure")
        problem = test.find("error") if problem is None else problem
        skip = test.find("skipped")
        if problem is not None:
            counts["failed"] += 1
            name = f"{test.get('classname')}::{test.get('name')}"
            failures.append(f"{name}: {problem.get('message', '')[:300]}")
        elif skip is not None:
            counts["skipped"] += 1
            skips.add(skip.get("message", ""))
        else:
            counts["passed"] += 1
    summary = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    return {**counts, "summary": summary, "failures": failures[:20], "skips": sorted(skips)[:20]}


def run_tests(backend: str, part: int | None, seconds: float, earlier: Report) -> Report:
    """A part of the kernel tests of a backend on the GPU; None is those that run alone."""
    alone = part is None
    paths = list(ALONE) if alone else ["tests/kernels", *(f"--ignore={path}" for path in ALONE)]
    parallel = not alone and importlib.util.find_spec("xdist") is not None
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", *paths, "-m", "cuda", "--backend", backend]
        # A file that cannot be imported, for want of what it is compared with, hides no other.
        command += ["--continue-on-collection-errors"]
        command += ["-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={results}"]
        if not alone:
            command += [f"--part={part}/{PARTS}"]
        if parallel:
            command += ["-n", str(min(16, os.cpu_count() or 1))]
        end = run(command, seconds)
        if end.code == pytest.ExitCode.NO_TESTS_COLLECTED:
            return skip("there are none", seconds, earlier)
        return {**end.report(end.code == 0), **junit_counts(results)}


# ---- calls ----


def calls_report(end: End) -> Report:
    """Whether all calls agree with the reference, and how many there were."""
    calls = re.findall(r"^\d+ calls, .+$", end.output, re.MULTILINE)
    return {**end.report(end.code == 0 and bool(calls)), "summary": "; ".join(calls)}


def run_calls(backend: str, seconds: float, earlier: Report) -> Report:
    """The small calls that take every kernel of a backend, which compiles them, too."""
    processes = str(min(16, os.cpu_count() or 1))
    command = [sys.executable, "-m", "benchmarks.sanitizer_cases", backend, "cuda", processes]
    return calls_report(run(command, seconds))


# ---- compute-sanitizer ----


def find_sanitizer() -> str | None:
    """Where compute-sanitizer is."""
    toolkits = os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"
    folders = [os.environ.get("PATH", os.defpath)]
    folders += [str(Path(toolkit) / "bin") for toolkit in toolkits if toolkit]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def sanitizer_report(end: End) -> Report:
    """What it found. A GPU that it does not take is no finding."""
    if "Device not supported" in end.output:
        return {"status": "skipped", "reason": "compute-sanitizer: Device not supported"}
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.+)", end.output)
    calls = re.findall(r"^\d+ calls, .+$", end.output, re.MULTILINE)
    passed = end.code == 0 and bool(summary) and bool(calls)
    return {**end.report(passed), "summary": "; ".join(calls + summary)}


def run_sanitizer(tool: str, backend: str, seconds: float, earlier: Report) -> Report:
    """One of its tools over the small calls of a backend."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        return skip("compute-sanitizer was not found", seconds, earlier)
    command = [sanitizer, "--tool", tool, "--error-exitcode", "1"]
    command += [sys.executable, "-m", "benchmarks.sanitizer_cases", backend]
    # Every tensor an allocation of its own: what is beyond its end is nobody's.
    return sanitizer_report(run(command, seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))


# ---- times ----


def run_timings(peer: str, seconds: float, earlier: Report) -> Report:
    """The times of a peer on every case, or on those that there was time for.

    Those of an earlier run are kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "times.json"
        found = {key: earlier[key] for key in ("copy_bytes_per_second", "times") if key in earlier}
        write_json(output, {"times": [], **found})
        command = [sys.executable, "-m", "benchmarks.gpu.timings", peer, str(output)]
        end = run([*command, str(seconds - SHORTEST / 2)], seconds)
        found = json.loads(output.read_text())
    errors = [t["error"] for t in found["times"] if "error" in t]
    report = end.report(end.code == 0 and not errors)
    if report["status"] == "passed" and not found.get("finished"):
        report = {"status": "unfinished"}
    return {**report, **({"reason": errors[0]} if errors else {}), **found}


# ---- training ----


def run_training(seconds: float, earlier: Report) -> Report:
    """The demo set: trained, measured, drawn."""
    if importlib.util.find_spec("tyro") is None:
        return skip("tyro is not installed", seconds, earlier)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "crad.train", "--device", "cuda", "--output", folder]
        end = run([*command, "--overwrite"], seconds)
        results = Path(folder) / "results.json"
        found = json.loads(results.read_text()) if results.exists() else None
    return {**end.report(end.code == 0 and found is not None), "results": found}


# ---- registers ----


def variants_report(end: End) -> Report:
    """How many variants were compiled, and how many spill."""
    counts = re.findall(r"^\d+ (?:variants\b[^:\n]*|spill more)", end.output, re.MULTILINE)
    return {**end.report(end.code == 0 and bool(counts)), "summary": "; ".join(counts)}


def run_variants(backend: str, seconds: float, earlier: Report) -> Report:
    """The registers of the kernels of a backend, compiled for several architectures."""
    if backend == "cuda" and shutil.which("nvcc") is None:
        return skip("nvcc was not found", seconds, earlier)
    return variants_report(run([sys.executable, "-m", COMPILED[backend]], seconds))


# ---- all ----


def skip(reason: str, seconds: float, earlier: Report) -> Report:
    """Of what cannot be run here."""
    return {"status": "skipped", "reason": reason}


def missing(reason: str, seconds: float, earlier: Report) -> Report:
    """Of a backend that a GPU is there for, and that cannot be used."""
    return {"status": "missing", "reason": reason}


def steps(kinds: Sequence[str], chosen: Sequence[str] | None) -> list[Step]:
    """What there is to run, what tells most first.

    Of the chosen backends, or of all that take tensors on a GPU.
    """
    of_gpu = {
        name: record
        for name, record in backends().items()
        if (not chosen or name in chosen) and (not record.devices or "cuda" in record.devices)
    }
    usable = [name for name, record in of_gpu.items() if record.usable]
    # The reference has no kernels of its own.
    kernels = [name for name in usable if of_gpu[name].devices]
    ours = [f"crad_kernels {name}" for name in kernels]
    others = [
        name
        for name in peers("cuda")
        if name not in ours and name.removeprefix("crad_kernels ") in {name, *usable}
    ]
    others.sort(key=lambda name: name != FIRST_PEER)

    def tests(name: str, part: int | None) -> Step:
        title = "alone" if part is None else f"part {part} of {PARTS}"
        return Step("tests", f"tests, {name}, {title}", partial(run_tests, name, part))

    def timings(peer: str) -> Step:
        return Step("timings", f"times, {peer}", partial(run_timings, peer))

    parts = [[tests(name, part) for name in kernels] for part in range(1, PARTS + 1)]
    found = [
        *(
            Step("calls", f"calls, {name}", partial(missing, record.reason))
            for name, record in of_gpu.items()
            if name not in usable
        ),
        *(Step("calls", f"calls, {name}", partial(run_calls, name)) for name in kernels),
        *map(timings, [*ours, *others[:1]]),
        *(tests(name, None) for name in kernels),
        *parts[0],
        *(
            Step("sanitizers", f"{tool}, {name}", partial(run_sanitizer, tool, name))
            for name in kernels
            for tool in ("memcheck", "racecheck")
        ),
        Step("training", "training, demo", run_training),
        *itertools.chain(*parts[1:]),
        *map(timings, others[1:]),
        *(
            tests(name, part)
            for name in usable
            if name not in kernels
            for part in (None, *range(1, PARTS + 1))
        ),
        *(
            Step("variants", f"registers, {name}", partial(run_variants, name))
            for name in kernels
            if name in COMPILED
        ),
    ]
    return [step for step in found if step.kind in kinds]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="that all may take together")
    parser.add_argument("--again", action="store_true", help="run what has passed before, too")
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--backends", help="some backends, such as cuda,triton")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--commit", help="of the code, where it is not in a repository")
    options = parser.parse_args(arguments)
    kinds = options.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        sys.stderr.write("gpu_check: PyTorch sees no GPU here, so there is nothing to check\n")
        return 2

    path, report = open_report(options.results, machine(options.commit))
    todo = steps(kinds, options.backends.split(",") if options.backends else None)
    return run_steps(todo, LIMITS, path, report, 60 * options.minutes, again=options.again)


if __name__ == "__main__":
    sys.exit(main())
