"""What to compute on: device, threads, precision, compiler."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import nn

from crad.errors import DeviceError, UsageError

PrecisionName = Literal["auto", "fp32", "bf16"]

_SMALL_STEP = 1e9  # multiply-adds


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Let ``torch.compile`` compile a network in place, when it is first called.

    Raises:
        DeviceError: the device is a CPU, and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX") or "g++"
    if device.type == "cpu" and not shutil.which(compiler):
        raise DeviceError(
            f"compile: there is no C++ compiler '{compiler}'; install it, name another with the "
            "environment variable CXX, or leave --compile out"
        )
    network.compile()


@contextmanager
def threads_for(multiply_adds: float) -> Iterator[None]:
    """Use one CPU thread in the block if its steps, of so many multiply-adds, are small.

    Threads meet after every operation, and on a shared machine waiting for the slowest costs a
    small step far more than a second thread would save.
    """
    threads = torch.get_num_threads()
    if multiply_adds < _SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def select_precision(
    name: PrecisionName, device: torch.device, multiply_adds: float
) -> Literal["fp32", "bf16"]:
    """Choose the precision of the fusion network.

    Args:
        name: ``"auto"`` takes bf16 where it was measured to be faster and to cost no accuracy
            (docs/performance.md): large steps on a CPU with matrix instructions for it.
        device: where to compute.
        multiply_adds: of a step.

    Raises:
        UsageError: the name is none of these.
    """
    if not isinstance(name, str) or name not in get_args(PrecisionName):
        raise UsageError(
            f"precision: expected one of {', '.join(get_args(PrecisionName))}, but got {name!r}"
        )
    if name != "auto":
        return name
    native = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bf16" if native and multiply_adds >= _SMALL_STEP else "fp32"


def select_device(name: str | torch.device | None = None) -> torch.device:
    """Turn the name of a device into a device that is there.

    Args:
        name: ``"cpu"``, ``"cuda"``, or one GPU of several as ``"cuda:1"``; None or ``"auto"`` takes
            CUDA if there is a GPU.

    Raises:
        DeviceError: there is no such device on this machine, or the name is none of these.
        TypeError: it is no name.
    """
    if not isinstance(name, str | torch.device | None):
        raise TypeError(f"device: expected auto, cpu, cuda or, say, cuda:1, but got {name!r}")
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device: '{name}' is unknown; expected auto, cpu, cuda or, say, cuda:1")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device: '{name}' asked for, but PyTorch {torch.__version__} finds no usable CUDA "
            "GPU; leave --device out, or install a driver and a PyTorch built for CUDA"
        )
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise DeviceError(
            f"device: '{name}' asked for, but the last GPU of this machine is cuda:{count - 1}"
        )
    return device
