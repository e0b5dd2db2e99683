"""The steps of a check on a GPU: processes with a limit on their time, one after the other."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.report import Report, show, write_json

FINE = ("passed", "skipped")
# A process of fewer seconds would not get beyond its imports.
SHORTEST = 20.0


@dataclass(frozen=True)
class Step:
    """One process, and how its end is read.

    Attributes:
        kind: what its limit goes by.
        name: of the step, in the report.
        run: from seconds, and what an earlier run reported of the step, to what is reported: a
            status, and more.
    """

    kind: str
    name: str
    run: Callable[[float, Report], Report]


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
            cwd=Path(__file__).parents[2],
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


def run_steps(
    todo: Sequence[Step],
    limits: Mapping[str, float],
    path: Path,
    report: Report,
    seconds: float,
    *,
    again: bool,
) -> int:
    """Run steps that have not passed yet, write what there is after each, and print it all.

    Args:
        todo: the steps, what tells most first.
        limits: seconds that a step of a kind may take.
        path: of the report.
        report: what it holds so far.
        seconds: that all may take together.
        again: whether to run what has passed, too.

    Returns:
        An exit status: 0 if every step passed or was skipped, else 1.
    """
    end = time.monotonic() + seconds
    for step in todo:
        started = time.monotonic()
        earlier = {} if again else report["steps"].get(step.name, {})
        if earlier.get("status") == "passed":
            continue
        limit = min(limits[step.kind], end - started)
        if limit < SHORTEST:
            report["steps"].setdefault(step.name, {"seconds": 0.0, "status": "no time"})
            continue
        sys.stdout.write(f"{step.name}: at most {limit:.0f} s\n")
        sys.stdout.flush()
        try:
            result = step.run(limit, earlier)
        except Exception as error:
            result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        took = round(time.monotonic() - started, 1)
        report["steps"][step.name] = {"seconds": took, "limit": round(limit, 1), **result}
        write_json(path, report)
    write_json(path, report)
    show(report)
    sys.stdout.write(f"{path}\n")
    return 1 if any(report["steps"][step.name]["status"] not in FINE for step in todo) else 0
