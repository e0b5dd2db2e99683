"""Times one peer on a GPU, for gpu_check: ``python -m benchmarks.gpu_timings PEER OUTPUT``.

Forward (without a graph for gradients) and forward plus backward of a jittered look-up, in
milliseconds between events on the device, and as a multiple of the time in which the GPU copies
the fewest bytes that the call has to move.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, JITTER_STD, Case
from benchmarks.gpu_report import write_json
from benchmarks.peers import Peer, Trial, check, peers

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
    ours = next(iter(peers("cuda").values()))
    check(
        Trial(peer, case, case.tensors("cuda")),
        Trial(ours, case, case.tensors("cuda")).results(backward=True),
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


def main(name: str, output: Path) -> None:
    """Time a peer on every case, writing what there is after each."""
    bandwidth = copy_bandwidth()
    peer = peers("cuda")[name]
    found: list[dict[str, Any]] = []
    for case in CASES:
        if case.long:
            continue
        about = {"case": str(case), "peer": name}
        reason = peer.why_not(case)
        try:
            if reason:
                found.append({**about, "skipped": reason})
            else:
                torch.compiler.reset()
                for result in measure(peer, case, bandwidth):
                    found.append({**about, **result})
        except torch.OutOfMemoryError:
            found.append({**about, "skipped": "out of memory"})
        except Exception as error:
            found.append({**about, "error": f"{type(error).__name__}: {error}"[:500]})
        torch.cuda.empty_cache()
        write_json(output, {"copy_bytes_per_second": bandwidth, "times": found})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
