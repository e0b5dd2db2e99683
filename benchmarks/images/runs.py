"""A run, on one instruction set and number of threads, and the JSON file that it leaves."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.comparison import Record, check_same, read_record
from benchmarks.images.cases import FORWARD, Case
from benchmarks.images.clock import fastest
from benchmarks.images.options import COMMAND, ImageOptions
from benchmarks.images.others import others
from benchmarks.images.steps import Tensors, check, ours, step, torchs
from benchmarks.machine import machine
from crad.files import write_json
from crad.words import count


def path_of(output: Path, isa: str, threads: int) -> Path:
    """The JSON file of a run."""
    return output / f"{isa}-{count(threads, 'thread').replace(' ', '-')}.json"


def measure_all(options: ImageOptions) -> None:
    """Measure what is missing; the file is written after each case.

    Raises:
        KeyboardInterrupt: the user stopped it; the message says how to go on.
        OutputError: the file is of another machine, or not of this command.
    """
    assert options.isa is not None
    os.environ["CRAD_KERNELS_CPU_ISA"] = options.isa  # read at the first call
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    path = path_of(options.output, options.isa, threads)
    record = _begun(path, options, threads)
    done = record["cases"]
    missing = [case for case in options.cases if str(case) not in done]
    groups = {record_["group"] for record_ in done.values()}
    for number, case in enumerate(missing, 1):
        try:
            # torch against itself, in one case of each group, says how much is noise.
            done[str(case)] = measure(case, options.seconds, noise=case.group not in groups)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(
                f"{len(done)} cases are measured; the same command, without --overwrite, measures "
                "the others"
            ) from interrupt
        groups.add(case.group)
        write_json(path, record)
        print(f"{number} of {len(missing)}: {case}: {_in_short(done[str(case)])}", flush=True)


def _begun(path: Path, options: ImageOptions, threads: int) -> Record:
    """The record to add to.

    Raises:
        OutputError: the file cannot be added to.
    """
    where = machine()
    identity = {"made_by": COMMAND, "isa": options.isa, "threads": threads, "machine": where}
    stored = read_record(path, COMMAND)
    if stored is None or options.overwrite:
        stored = {
            **identity,
            "date": time.strftime("%Y-%m-%d"),
            "load_average": round(os.getloadavg()[0], 1),
            "notes": [],
            "cases": {},
        }
    else:
        check_same(path, stored["machine"], where)
    stored["notes"] = [*dict.fromkeys([*stored["notes"], *options.notes])]
    return stored


def measure(case: Case, seconds: float, *, noise: bool) -> Record:
    """Check a case, and time its steps.

    Args:
        case: what to measure.
        seconds: for the rounds of each step.
        noise: whether torch is timed against itself, too.

    Raises:
        AssertionError: our results are not torch's.
    """
    tensors = case.tensors()
    check(case, tensors)
    steps: dict[str, dict[str, float]] = {}
    for what in case.steps:
        contenders: dict[str, Callable[[], object]] = {}
        contenders["ours"] = step(tensors, ours(case), what)
        contenders["torch"] = step(tensors, torchs(case), what)
        if noise:
            contenders["torch again"] = step(tensors, torchs(case), what)
        if what == FORWARD:
            contenders |= {other.name: other.call for other in others(case)}
        times = fastest([*contenders.values()], seconds)
        # Four digits are more than the noise leaves.
        steps[what] = {
            name: float(f"{time_:.4g}") for name, time_ in zip(contenders, times, strict=True)
        }
    record: Record = {"group": case.group, "seconds": steps}
    if differ := _others_differ(case, tensors):
        record["others_differ"] = differ
    return record


def _others_differ(case: Case, tensors: Tensors) -> dict[str, float]:
    """For each of others, the share of its results that are half a grey level from torch's."""
    wanted = step(tensors, torchs(case), FORWARD)()[0][0]
    found = {}
    for other in others(case):
        apart = (other.result(other.call()) - wanted).abs()
        found[other.name] = float(f"{float((apart > 0.5 / 255).float().mean()):.2g}")
    return found


def _in_short(record: Record) -> str:
    return ", ".join(
        f"{what} {times['torch'] / times['ours']:.2f}" for what, times in record["seconds"].items()
    )
