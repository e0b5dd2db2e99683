"""Times every plan of the CUDA kernels against each other: ``python -m benchmarks.gpu.sweep``.

Nothing is compiled: `CRAD_KERNELS_PLAN` forces each choice that csrc/cuda/plan_*.h make, one at a
time. The profiler gives the time of every kernel. Cases come in the order of what they tell, and
the JSON file is complete after each. `--device cpu` goes through all of it with the kernels that
tests compile for the processor; its times mean nothing.

Exit status: 0 if every case was measured, 1 if there was no time for one, 2 without a GPU.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import JITTER_STD, Case
from benchmarks.gpu.report import machine, open_report, write_json
from benchmarks.peers import Trial, peers

VARIABLE = "CRAD_KERNELS_PLAN"

CASES = (
    Case("CRAD local", (8, 8), 216),
    Case("CRAD global", (4, 4), 216 * 28 * 28, (64, 1)),
    Case("few channels", (8, 8), 1),
    Case("3-D", (4, 4, 4), 216),
    Case("2-D, few channels", (256, 256), 16),
    Case("volume", (256, 256, 256), 4, (1_000_000,)),
    Case("image warp, many channels", (256, 256), 64, (1, 256, 256), "channels last"),
    Case("few points", (64, 64), 64, (100,)),
)

PLANS = (
    "",
    *(f"family={family}" for family in ("chip", "cell", "memory", "planes")),
    *(f"{choice}={number}" for choice, numbers in {
        "chunks": (66, 132, 264, 528),
        "tile": (32, 64, 128),
        "batch": (32, 64, 128, 256),
        "threads": (64, 128, 256),
        "groups": (1, 2, 4, 8),
        "columns": (1, 8, 32),
        "vector": (1,),
    }.items() for number in numbers),
)  # fmt: skip
"""Values of `CRAD_KERNELS_PLAN`, the plan's own choices first."""

ROUNDS = 12


@contextmanager
def forced(plan: str) -> Iterator[None]:
    """Within it, calls are cut that way."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = plan
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def kernel_times(step: Callable[[], object], device: str) -> dict[str, float]:
    """Microseconds of each kernel of a step, by name, the median of some rounds.

    On the CPU, those of the whole step.
    """
    step()
    if device == "cpu":
        begin = time.perf_counter()
        step()
        return {"all": (time.perf_counter() - begin) * 1e6}
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(ROUNDS):
            step()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {}
    for event in profiler.events() or ():
        if str(event.device_type).endswith("CUDA"):
            times.setdefault(event.name, []).append(event.device_time)
    # Of a kernel that a step launches more than once, all its launches.
    return {
        name: statistics.median(each) * len(each) / ROUNDS
        for name, each in sorted(times.items(), key=lambda item: -sum(item[1]))
    }


def measure(case: Case, plan: str, device: str) -> dict[str, Any]:
    """The kernels' times of a case, cut in one way; or why it cannot be."""
    trial = Trial(peers(device)["crad_kernels cuda"], case, case.tensors(device))

    def forward() -> object:
        with torch.no_grad():
            return trial.forward(JITTER_STD)

    row: dict[str, Any] = {"plan": plan}
    for direction, step in (
        ("forward", forward),
        ("forward + backward", partial(trial.forward_backward, JITTER_STD)),
    ):
        try:
            with forced(plan):
                row[direction] = kernel_times(step, device)
        except RuntimeError as error:
            if VARIABLE not in str(error):
                raise
            row[direction] = {}
    return row


def show(case: str, rows: list[dict[str, Any]]) -> None:
    """Print the fastest plans of a case beside that which the plan chose."""
    for direction in ("forward", "forward + backward"):
        totals = {row["plan"]: sum(row[direction].values()) for row in rows if row[direction]}
        if "" not in totals:
            continue
        best = sorted(totals, key=totals.__getitem__)[:3]
        text = ", ".join(f"{plan or 'as it is'} {totals[plan]:.1f} us" for plan in best)
        sys.stdout.write(f"{case}, {direction}: as it is {totals['']:.1f} us; fastest: {text}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sweep", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="that all may take together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--commit", help="of the code, where it is not in a repository")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("sweep: PyTorch sees no GPU here, so there is nothing to time\n")
        return 2
    about = {"gpu": "none"} if options.device == "cpu" else machine(options.commit)
    path, report = open_report(options.results, about, "plans")
    done = report.setdefault("cases", {})
    for case in CASES:
        if str(case) in done:
            continue
        rows = []
        for plan in PLANS:
            if time.monotonic() > end:
                sys.stderr.write(f"sweep: the time is up; {path} holds {len(done)} cases\n")
                return 1
            rows.append(measure(case, plan, options.device))
        done[str(case)] = rows
        write_json(path, report)
        show(str(case), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
