"""What a fitted detector costs: images a second from pixels to maps, and memory."""

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.detectors import clock
from benchmarks.detectors.inputs import SetInputs, select
from benchmarks.detectors.methods import Detector, ImageDetector

BATCHES = (1, 32)
"""Images at once that the speed is measured at."""

LEAST_SECONDS = 1.0
"""Of a measurement, unless so many repetitions take longer."""
LEAST_REPEATS = 3


@torch.inference_mode()
def images_per_second(
    detector: Detector | ImageDetector, inputs: SetInputs, device: torch.device
) -> dict[str, float]:
    """Images a second from decoded pixels to maps, with the backbone, by the size of the batch.

    Args:
        detector: fitted.
        inputs: of the set; its test images are taken, some more than once if there are few.
        device: that the detector computes on.
    """
    return {str(size): _speed(detector, inputs, device, size) for size in BATCHES}


def _speed(
    detector: Detector | ImageDetector, inputs: SetInputs, device: torch.device, size: int
) -> float:
    """Images a second in batches of a size."""
    chosen = select(inputs.test, [row % len(inputs.test) for row in range(size)])
    images = inputs.pixels.images(chosen.samples)
    backbone = inputs.backbone.folded(*images.shape[2:])

    def map_images() -> Tensor:
        if isinstance(detector, ImageDetector):
            return detector.predict(images)[0].cpu()
        values = backbone(images.to(device)).permute(0, 2, 3, 1).cpu()
        return detector.maps(replace(chosen, values=values)).cpu()

    return size / seconds_of(map_images)


def seconds_of(call: Callable[[], object]) -> float:
    """The median time of a call, after one that is not timed."""
    call()
    times: list[float] = []
    while len(times) < LEAST_REPEATS or sum(times) < LEAST_SECONDS:
        started = clock.now()
        call()
        times.append(clock.now() - started)
    return median(times)


class PeakMemory:
    """The largest memory of this process above what it held before, on Linux.

    What was freed and is kept for later is given back first, where the C library can.
    """

    def __init__(self) -> None:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._before = _resident("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is then the present
        except OSError:
            self._before = None

    def n_bytes(self) -> int | None:
        """So far; None where the system does not tell."""
        peak = _resident("VmHWM")
        if peak is None or self._before is None:
            return None
        return max(0, peak - self._before)


def _resident(field: str) -> int | None:
    with suppress(OSError):
        if found := re.search(
            rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M
        ):
            return 1024 * int(found[1])
    return None
