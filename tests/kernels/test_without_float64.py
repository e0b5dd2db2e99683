"""The reference on a device that has no float64, as Apple's GPUs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crad_kernels import sample
from crad_kernels.reference import normals
from tests.cases import JUDGE, MODES, PADDING_MODES, SIZES, Case


class WithoutFloat64(TorchDispatchMode):
    """Refuses float64 in the words of PyTorch for such a device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dtype in (torch.float64, torch.complex128):
                raise TypeError("Cannot convert to float64: the framework doesn't support it")
        return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_the_reference_needs_none(mode: str, padding_mode: str) -> None:
    case = Case(SIZES[2], dtype=torch.float32, coords_dtype=torch.float32)
    values, coords, grad_output = (tensor.requires_grad_() for tensor in case.tensors())
    options = {"mode": mode, "padding_mode": padding_mode, "seed": 3, "backend": JUDGE}
    for std in (0.1, (0.1, 0.2), torch.tensor(0.1, requires_grad=True)):
        with WithoutFloat64():
            out = sample(values, coords, jitter_std=std, **options)
            out.backward(grad_output.detach())
    assert coords.grad.isfinite().all()


def test_its_normals_are_exact_to_rounding() -> None:
    """Of every angle that there is, and against the formula in float64 elsewhere."""
    from crad_kernels.reference import _on_circle

    turn = torch.arange(2**24)[::7].to(torch.float32) * 2.0**-24
    angle = turn.double() * (2 * torch.pi)
    exact = torch.stack((angle.cos(), angle.sin()), -1)
    assert (_on_circle(turn).double() - exact).abs().max() <= 1.5 * 2.0**-24
    with WithoutFloat64():
        assert normals(torch.tensor(3), 100, 8).dtype == torch.float32
