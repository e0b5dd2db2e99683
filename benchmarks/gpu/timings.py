"""Times one peer on a GPU: ``python -m benchmarks.gpu.timings PEER OUTPUT [SECONDS]``.

Forward (without a graph for gradients) and forward plus backward of a jittered look-up, in
milliseconds between events on the device, and as a multiple of the time in which the GPU copies
the fewest bytes that the call has to move. Cases that OUTPUT has times of are not run again, and
none is begun when the seconds are over. What Triton compiles is compiled before, by many processes.
"""

import contextlib
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, JITTER_STD, Case
from benchmarks.gpu.report import write_json
from benchmarks.peers import Peer, Trial, check, peers
from crad_kernels import backends

# A kernel of about a millisecond ahead of every step: the host queues the step behind it, so that
# no gap between two launches is timed.
AHEAD = 2_000_000


def times(step: Callable[[int], object], sets: int, seconds: float = 0.3) -> list[float]:
    """Milliseconds of every run of a step, on one set of tensors after the other.

    The last result on every set is kept: the next is written elsewhere, and not to the L2 cache.
    """
    kept = [step(i) for i in range(sets)]
    torch.cuda.synchronize()
    start = time.perf_counter()
    kept[0] = step(0)
    torch.cuda.synchronize()
    rounds = min(max(int(seconds / (time.perf_counter() - start)), 10), 200)
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(rounds)
    ]
    for i, (begin, end) in enumerate(events):
        torch.cuda._sleep(AHEAD)
        begin.record()
        kept[i % sets] = step(i % sets)
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def copy_bandwidth() -> float:
    """Bytes a second, read plus written, of a large copy on the device."""
    source = torch.rand(2**28, device="cuda")
    target = torch.empty_like(source)
    ms = statistics.median(times(lambda _: target.copy_(source), 1))
    return 2 * source.nbytes / ms * 1e3


def measure(peer: Peer, case: Case, bandwidth: float) -> Iterator[dict[str, Any]]:
    """The times of forward, and of forward and backward."""
    l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sets = min(2 + math.ceil(2 * l2_bytes / case.fewest_bytes(backward=False)), 32)
    judge = peers("cuda")[f"crad_kernels {list(backends())[-1]}"]
    check(
        Trial(peer, case, case.tensors("cuda")),
        Trial(judge, case, case.tensors("cuda")).results(backward=True),
    )
    trials = [Trial(peer, case, case.tensors("cuda", seed)) for seed in range(sets)]

    def forward(i: int) -> object:
        with torch.no_grad():
            return trials[i].forward(JITTER_STD)

    def both(i: int) -> object:
        return trials[i].forward_backward(JITTER_STD)

    for direction, step in (("forward", forward), ("forward + backward", both)):
        ms = sorted(times(step, sets))
        size = case.fewest_bytes(backward=step is both)
        floor_ms = size / bandwidth * 1e3
        yield {
            "direction": direction,
            "ms": statistics.median(ms),
            "ms_quartiles": [ms[len(ms) // 4], ms[3 * len(ms) // 4]],
            "rounds": len(ms),
            "sets": sets,
            "bytes": size,
            "floor_ms": floor_ms,
            "times_floor": statistics.median(ms) / floor_ms,
        }


def warm(name: str, case: Case) -> None:
    """Run a peer on a case with and without jitter, which leaves what it compiles in a cache."""
    trial = Trial(peers("cuda")[name], case, case.tensors("cuda"))
    for jitter_std in (0.0, JITTER_STD):
        trial.forward_backward(jitter_std)
    torch.cuda.synchronize()


def warm_all(name: str, cases: Sequence[Case]) -> None:
    """Every case in one of many processes; what goes wrong there will when it is timed, too."""
    processes = min(16, os.cpu_count() or 1)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for job in [pool.apply_async(warm, (name, case)) for case in cases]:
            with contextlib.suppress(Exception):
                job.get()


def main(name: str, output: Path, seconds: float = math.inf) -> None:
    """Time a peer on every case, writing what there is after each."""
    end = time.monotonic() + seconds
    report = json.loads(output.read_text()) if output.exists() else {}
    found = [t for t in report.get("times", []) if "error" not in t]
    done = {t["case"] for t in found}
    todo = [case for case in CASES if not case.long and str(case) not in done]
    if name == "crad_kernels triton":
        warm_all(name, todo)
    bandwidth = copy_bandwidth()
    peer = peers("cuda")[name]
    for number, case in enumerate(todo, 1):
        if time.monotonic() > end:
            break
        about = {"case": str(case), "peer": name}
        reason = peer.why_not(case)
        try:
            if reason:
                found.append({**about, "skipped": reason})
            else:
                torch.compiler.reset()
                found += [{**about, **result} for result in measure(peer, case, bandwidth)]
        except torch.OutOfMemoryError:
            found.append({**about, "skipped": "out of memory"})
        except Exception as error:
            found.append({**about, "error": f"{type(error).__name__}: {error}"[:500]})
        torch.cuda.empty_cache()
        finished = number == len(todo)
        write_json(
            output, {"copy_bytes_per_second": bandwidth, "times": found, "finished": finished}
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(float, sys.argv[3:]))
