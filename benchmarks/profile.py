"""Where the time of a case goes: ``python -m benchmarks.profile "CRAD local" forward``.

Linux's ``perf`` samples a process that runs the case over and over on one thread, and this prints
the functions of this package's library with their shares of the samples in it.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.cases import CASES, JITTER_STD, Case
from benchmarks.machine import machine
from benchmarks.peers import Trial, peers

_SECONDS = 5.0


def main() -> None:
    """Profile the case that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("case", choices=sorted({case.name for case in CASES}))
    parser.add_argument("direction", choices=["forward", "forward+backward"])
    parser.add_argument("--layout", help="of cases that name one")
    parser.add_argument("--jitter", action="store_true")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    (case,) = (
        case for case in CASES if case.name == options.case and case.layout == options.layout
    )
    jitter_std = JITTER_STD if options.jitter else 0.0
    if options.run:
        run(case, options.direction != "forward", jitter_std)
        return
    if shutil.which("perf") is None:
        sys.exit("profile: there is no perf here; install linux-perf")
    about = machine()
    print(f"{case}; {options.direction}, {'jitter' if options.jitter else 'no jitter'}; one thread")
    print(f"{about['cpu']}, torch {about['torch']}, commit {about['commit']}")
    print(profile(sys.argv[1:]))


def run(case: Case, backward: bool, jitter_std: float) -> None:
    """Do it for some seconds."""
    torch.set_num_threads(1)
    trial = Trial(peers("cpu")["crad_kernels cpu"], case, case.tensors())
    step = trial.forward_backward if backward else trial.forward
    until = time.perf_counter() + _SECONDS
    with torch.set_grad_enabled(backward):
        while time.perf_counter() < until:
            step(jitter_std)


def profile(arguments: list[str]) -> str:
    """The lines of ``perf report`` of a run with these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        samples = str(Path(folder) / "samples")
        command = [sys.executable, "-m", "benchmarks.profile", *arguments, "--run"]
        subprocess.run(["perf", "record", "--quiet", "--output", samples, *command], check=True)
        report = ["perf", "report", "--stdio", "--input", samples, "--percent-limit", "1"]
        filters = ["--dsos", "_cpu.abi3.so", "--percentage", "relative", "--sort", "symbol"]
        text = subprocess.run(
            [*report, *filters], check=True, capture_output=True, text=True
        ).stdout
    lines = [line.rstrip() for line in text.splitlines() if line and not line.startswith("#")]
    return "\n".join(line.replace("crad::(anonymous namespace)::", "") for line in lines)


if __name__ == "__main__":
    main()
