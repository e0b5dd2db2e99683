"""What to compute on: the device."""

import pytest
import torch

from crad.devices import select_device
from crad.errors import DeviceError


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with so many GPUs; none of them is used."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)


@pytest.mark.parametrize(
    ("gpus", "name", "device"),
    [
        (0, None, "cpu"),
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, None, "cuda"),
        (2, "auto", "cuda"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
        (2, torch.device("cuda:0"), "cuda:0"),
    ],
    indirect=["gpus"],
)
def test_devices(gpus: None, name: str | torch.device | None, device: str) -> None:
    assert select_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "name", "message"),
    [
        (0, "cuda", "'cuda' .* no usable CUDA"),
        (0, "cuda:1", "'cuda:1' .* no usable CUDA"),
        (2, "cuda:2", "'cuda:2' .* cuda:1"),
        (2, "gpu", "'gpu' .* auto, cpu, cuda"),
        (2, "cuda:x", "'cuda:x' .* auto, cpu, cuda"),
        (2, "mps", "'mps' .* auto, cpu, cuda"),
        (2, "", "'' .* auto, cpu, cuda"),
    ],
    indirect=["gpus"],
)
def test_devices_that_are_not_there(gpus: None, name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        select_device(name)
