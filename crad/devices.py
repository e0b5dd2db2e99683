"""Which device to compute on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SMALL_STEP = 1e9  # multiply-adds


class DeviceError(ValueError):
    """A device that this machine does not have."""


@contextmanager
def threads_for(multiply_adds: float) -> Iterator[None]:
    """Use one CPU thread in the block if its steps are so small that more would not pay.

    Threads meet after every operation. On a machine that others use too, waiting for the slowest
    then makes a small step many times slower, where two threads would save it a third.

    Args:
        multiply_adds: of a step.
    """
    threads = torch.get_num_threads()
    if multiply_adds < _SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def select_device(name: str | torch.device | None = None) -> torch.device:
    """Turn the name of a device into a device that is there.

    Args:
        name: such as ``"cpu"`` or ``"cuda:1"``; None or ``"auto"`` takes CUDA if there is a GPU.

    Raises:
        DeviceError: there is no such device on this machine, or PyTorch knows none by this name.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device: '{name}' is none; expected auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device: '{name}' asked for, but PyTorch {torch.__version__} finds no usable CUDA "
            "GPU; leave --device out, or install a driver and a PyTorch built for CUDA"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device: '{name}' asked for, but there are {torch.cuda.device_count()}")
    return device
