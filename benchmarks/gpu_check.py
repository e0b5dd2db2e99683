"""All that is checked on a GPU: tests, compute-sanitizer, times, registers of compiled kernels.

``python -m benchmarks.gpu_check --minutes 9`` writes ``benchmarks/results/DATE-GPU.json`` and
prints a table. Every step is a process of its own with a share of the time, so that one that
crashes or hangs hides no other; what is written is complete after each. A second run on the same
day, machine and commit, such as of other steps, is added to the first.

Exit status: 0 if every step passed or was skipped, 1 if one did not, 2 without a GPU.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_report import Report, machine, open_report, show, write_json
from benchmarks.peers import peers
from crad_kernels import backends

KINDS = ("tests", "sanitizers", "timings", "variants")
# Shares of the time, of all steps of a kind together.
WEIGHTS = {"tests": 5.0, "sanitizers": 2.0, "timings": 2.0, "variants": 1.0}
FINE = ("passed", "skipped")
# Which need the GPU, or most of its memory, for themselves.
ALONE = tuple(f"tests/kernels/test_{name}.py" for name in ("cuda", "large", "tuning"))
# What compiles the kernels of a backend for several architectures.
COMPILED = {"cuda": "benchmarks.ptxas", "triton": "benchmarks.triton_variants"}


@dataclass(frozen=True)
class Step:
    """One process, and how its end is read.

    Attributes:
        kind: one of `KINDS`.
        name: of the step, in the report.
        run: from seconds to what is reported: a status, and more.
    """

    kind: str
    name: str
    run: Callable[[float], Report]


@dataclass(frozen=True)
class End:
    """How a process ended: its exit status, None if its time was up, and what it printed."""

    code: int | None
    output: str

    def report(self, passed: bool) -> Report:
        """Its status; and the end of its output, unless it passed."""
        if passed:
            return {"status": "passed"}
        status = "timed out" if self.code is None else "failed"
        return {"status": status, "code": self.code, "output": self.output[-6000:]}


def run(command: Sequence[str], seconds: float, variables: Mapping[str, str] | None = None) -> End:
    """Run a command; when its time is up interrupt it, and then kill all that it started."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **(variables or {})},
            start_new_session=True,
            # In the background of a shell, interrupts are ignored, and so by what is started there.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        code: int | None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            process.send_signal(signal.SIGINT)  # pytest then still writes its results
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return End(code, output.read())


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


def run_tests(backend: str, alone: bool, seconds: float) -> Report:
    """The kernel tests of a backend on the GPU."""
    paths = list(ALONE) if alone else ["tests/kernels", *(f"--ignore={path}" for path in ALONE)]
    parallel = not alone and importlib.util.find_spec("xdist") is not None
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", *paths, "-m", "cuda", "--backend", backend]
        command += ["-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={results}"]
        if parallel:
            command += ["-n", str(min(8, os.cpu_count() or 1))]
        end = run(command, seconds)
        if end.code == pytest.ExitCode.NO_TESTS_COLLECTED:
            return skip("there are none", seconds)
        return {**end.report(end.code == 0), **junit_counts(results)}


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


def run_sanitizer(tool: str, backend: str, seconds: float) -> Report:
    """One of its tools over the small calls of a backend."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        return skip("compute-sanitizer was not found", seconds)
    command = [sanitizer, "--tool", tool, "--error-exitcode", "1"]
    command += [sys.executable, "-m", "benchmarks.sanitizer_cases", backend]
    # Every tensor an allocation of its own: what is beyond its end is nobody's.
    return sanitizer_report(run(command, seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))


# ---- times ----


def run_timings(peer: str, seconds: float) -> Report:
    """The times of a peer on every case, or on those that there was time for."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "times.json"
        end = run([sys.executable, "-m", "benchmarks.gpu_timings", peer, str(output)], seconds)
        found: Report = json.loads(output.read_text()) if output.exists() else {"times": []}
    errors = [t["error"] for t in found["times"] if "error" in t]
    report = end.report(end.code == 0 and not errors)
    return {**report, **({"reason": errors[0]} if errors else {}), **found}


# ---- registers ----


def variants_report(end: End) -> Report:
    """How many variants were compiled, and how many spill."""
    counts = re.findall(r"^\d+ (?:variants\b[^:\n]*|spill more)", end.output, re.MULTILINE)
    return {**end.report(end.code == 0 and bool(counts)), "summary": "; ".join(counts)}


def run_variants(backend: str, seconds: float) -> Report:
    """The registers of the kernels of a backend, compiled for several architectures."""
    if backend == "cuda" and shutil.which("nvcc") is None:
        return skip("nvcc was not found", seconds)
    return variants_report(run([sys.executable, "-m", COMPILED[backend]], seconds))


# ---- all ----


def skip(reason: str, seconds: float) -> Report:
    """Of what cannot be run here."""
    return {"status": "skipped", "reason": reason}


def steps(kinds: Sequence[str], chosen: Sequence[str] | None) -> list[Step]:
    """What there is to run, for the chosen backends or for all that take tensors on a GPU."""
    found = []
    for name, record in backends().items():
        if (chosen and name not in chosen) or (record.devices and "cuda" not in record.devices):
            continue
        if not record.usable:
            found.append(Step("tests", f"tests, {name}", partial(skip, record.reason)))
            continue
        for alone in (False, True):
            title = f"tests, {name}" + (", alone" if alone else "")
            found.append(Step("tests", title, partial(run_tests, name, alone)))
        if record.devices:  # the reference has no kernels of its own
            for tool in ("memcheck", "racecheck"):
                action = partial(run_sanitizer, tool, name)
                found.append(Step("sanitizers", f"{tool}, {name}", action))
        if name in COMPILED:
            found.append(Step("variants", f"registers, {name}", partial(run_variants, name)))
    for peer in peers("cuda"):
        ours = peer.removeprefix("crad_kernels ")
        if not chosen or ours == peer or ours in chosen:
            found.append(Step("timings", f"times, {peer}", partial(run_timings, peer)))
    return [step for kind in KINDS for step in found if step.kind == kind and kind in kinds]


def share(step: Step, rest: Sequence[Step], seconds: float) -> float:
    """The part of the seconds left that a step gets; `rest` is what is left to run, with it."""
    weights = {kind: WEIGHTS[kind] for kind in {other.kind for other in rest}}
    of_kind = sum(other.kind == step.kind for other in rest)
    return max(seconds, 0.0) * weights[step.kind] / sum(weights.values()) / of_kind


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="that all may take together")
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

    end = time.monotonic() + 60 * options.minutes
    path, report = open_report(options.results, machine(options.commit))
    todo = steps(kinds, options.backends.split(",") if options.backends else None)
    for i, step in enumerate(todo):
        started = time.monotonic()
        limit = share(step, todo[i:], end - started)
        sys.stdout.write(f"{step.name}: at most {limit:.0f} s\n")
        sys.stdout.flush()
        try:
            result = step.run(limit)
        except Exception as error:
            result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        seconds = round(time.monotonic() - started, 1)
        report["steps"][step.name] = {"seconds": seconds, "limit": round(limit, 1), **result}
        write_json(path, report)
    show(report)
    sys.stdout.write(f"{path}\n")
    return 1 if any(report["steps"][step.name]["status"] not in FINE for step in todo) else 0


if __name__ == "__main__":
    sys.exit(main())
