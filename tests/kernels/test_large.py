"""Tensors of more than 2^31 elements; on the CPU, most of it memory that was never touched."""

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from crad_kernels import sample

MANY = 2**31


def need(on_cpu: int, on_gpu: int) -> None:
    """Skip a test where the device has less free memory, in GiB: on a GPU, zeros take some too."""
    if torch.get_default_device().type == "cpu":
        gigabytes, free = on_cpu, psutil.virtual_memory().available / 2**30
    else:
        torch.cuda.empty_cache()
        gigabytes, free = on_gpu, torch.cuda.mem_get_info()[0] / 2**30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GiB of free memory, and there are {free:.0f}")


def untouched(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros that take no memory of the CPU until they are written to."""
    if torch.get_default_device().type != "cpu":
        return torch.zeros(shape, dtype=dtype)
    kind = {torch.float32: np.float32, torch.bfloat16: np.int16}[dtype]
    return torch.from_numpy(np.zeros(shape, kind)).view(dtype)


def test_values_and_output(compiled_backend: str) -> None:
    """And the gradient of the coordinates, through channels at the far end."""
    need(on_cpu=6, on_gpu=20)
    channels, last = MANY // 2 + 8, slice(-40, None)
    values = untouched(2, channels, dtype=torch.bfloat16)
    values[:, last] = torch.randn(2, 40)
    coords = torch.tensor([[-0.3], [0.4]]).requires_grad_()
    out = sample(values, coords, backend=compiled_backend)
    assert values.numel() > MANY
    assert out.numel() > MANY
    expected = sample(values[:, last], coords, backend=compiled_backend)
    assert torch.equal(out[:, last], expected)
    grad_output = untouched(2, channels, dtype=torch.bfloat16)
    grad_output[:, last] = torch.randn(2, 40)
    (actual,) = torch.autograd.grad(out, coords, grad_output)
    del out
    (wanted,) = torch.autograd.grad(expected, coords, grad_output[:, last])
    torch.testing.assert_close(actual, wanted)


def test_gradient_of_the_values(compiled_backend: str) -> None:
    """At entries at the far end."""
    need(on_cpu=12, on_gpu=36)
    entries, channels = MANY // 8 + 1, 8
    values = untouched(entries, channels).requires_grad_()
    index = torch.tensor([0.0, 5.25, entries - 1.75, entries - 1.0], dtype=torch.float64)
    coords = ((2 * index + 1) / entries - 1)[:, None]
    out = sample(values, coords, backend=compiled_backend)
    grad_output = torch.arange(1.0, 33.0).view(4, 8)
    (grad_values,) = torch.autograd.grad(out, values, grad_output)
    assert grad_values.numel() > MANY
    torch.testing.assert_close(grad_values[0], grad_output[0])
    torch.testing.assert_close(grad_values[5], 0.75 * grad_output[1])
    torch.testing.assert_close(grad_values[-2], 0.75 * grad_output[2])
    torch.testing.assert_close(grad_values[-1], 0.25 * grad_output[2] + grad_output[3])


def test_coords(compiled_backend: str) -> None:
    need(on_cpu=6, on_gpu=20)
    points = MANY // 8 + 5
    coords = untouched(points, 8)
    coords[-100:] = torch.rand(100, 8) * 2 - 1
    values = torch.randn(*(1,) * 7, 3, 1, dtype=torch.bfloat16)
    options = {"mode": "nearest", "padding_mode": "border", "backend": compiled_backend}
    out = sample(values, coords, **options)
    assert coords.numel() > MANY
    assert torch.equal(out[-100:], sample(values, coords[-100:], **options))
    assert bool((out[:-100] == values[..., 1, :].flatten()).all())
