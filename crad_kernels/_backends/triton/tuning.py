"""With which of a few configurations a kernel is launched: the fastest, timed at the first call.

A result has the same bits whichever is taken, so that `deterministic` has nothing to turn off.
What is tuned is a sample, summed by one thread in the order of its taps; a product of matrices, for
a sample or the gradient of a small grid, where blocks and warps say which thread sums an element,
and not in which order; and the atomic gradient of a large grid, whose order is open anyhow. Not
tuned are the gradient of the coordinates and the sorted one: threads share their sums, in an order
that blocks and warps make. Nor is whether a sample is gathered or a product.

The first call of a kind waits for the device, and no other does. Nothing is timed where tensors are
on another device than a GPU, such as under the interpreter, while a CUDA graph is captured, or
with CRAD_KERNELS_TUNE=0: then the first configuration is taken, unless the kind is known by now.
"""

import os
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from triton.runtime.errors import OutOfResources

from crad_kernels._backends.triton.plan import Configuration

_RUNS = 5

# About a millisecond, in which the host queues the runs: what it takes to launch is not timed.
_AHEAD = 2_000_000

_known: dict[Hashable, Configuration] = {}


def _time(launch: Callable[[], None]) -> float:
    """Of some runs, after one in which the kernel is compiled; without end if it cannot run."""
    try:
        launch()
    except OutOfResources:
        return float("inf")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_AHEAD)
    begin.record()
    for _ in range(_RUNS):
        launch()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds


def fastest(
    kind: Hashable,
    device: torch.device,
    configurations: Sequence[Configuration],
    launch: Callable[[Configuration], None],
) -> Configuration:
    """The configuration for calls of a kind; `launch` may be called with each, some times."""
    key = kind, device
    if key in _known:
        return _known[key]
    if device.type != "cuda" or os.environ.get("CRAD_KERNELS_TUNE") == "0":
        return configurations[0]
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return configurations[0]
        times = [_time(partial(launch, configuration)) for configuration in configurations]
    _known[key] = configurations[times.index(min(times))]
    return _known[key]
