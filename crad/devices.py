"""Which device to compute on."""

import torch


class DeviceError(ValueError):
    """A device that this machine does not have."""


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
