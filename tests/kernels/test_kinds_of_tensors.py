"""Tensors of every kind: each works, or is refused with a sentence that names it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crad_kernels import grid_sample, sample

VALUES, COORDS = torch.randn(4, 3, 2), torch.rand(5, 2) * 2 - 1
PARTS = [torch.rand(3, 2), torch.rand(5, 2)]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantiz.*deprecated"),
]

REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "nested": (lambda: torch.nested.nested_tensor(PARTS), r"nested one; .*\.unbind\(\)"),
    "jagged": (
        lambda: torch.nested.nested_tensor(PARTS, layout=torch.jagged),
        r"nested one; .*\.unbind\(\)",
    ),
    "as nested": (lambda: torch.nested.as_nested_tensor(PARTS), r"nested one; .*\.unbind\(\)"),
    "sparse": (lambda: COORDS.to_sparse(), r"torch\.sparse_coo; .*\.to_dense\(\)"),
    "csr": (lambda: COORDS.to_sparse_csr(), r"torch\.sparse_csr; .*\.to_dense\(\)"),
    "mkldnn": (lambda: COORDS.to_mkldnn(), r"torch\._mkldnn; .*\.to_dense\(\)"),
    "complex": (lambda: torch.complex(COORDS, COORDS), r"torch\.complex64"),
    "conjugate": (lambda: torch.complex(COORDS, COORDS).conj(), r"torch\.complex64"),
    "bool": (lambda: COORDS > 0, r"torch\.bool"),
    "int": (lambda: COORDS.int(), r"torch\.int32"),
    "float8": (lambda: COORDS.to(torch.float8_e4m3fn), r"torch\.float8_e4m3fn"),
    "quantized": (lambda: torch.quantize_per_tensor(COORDS, 0.1, 0, torch.qint8), r"torch\.qint8"),
    "meta": (lambda: COORDS.to("meta"), "meta"),
}
ROLES: dict[str, Callable[[Tensor, str], Tensor]] = {
    "values": lambda tensor, backend: sample(tensor, COORDS[:, :1], backend=backend),
    "coords": lambda tensor, backend: sample(VALUES, tensor, backend=backend),
    "jitter_std": lambda tensor, backend: sample(
        VALUES, COORDS, jitter_std=tensor, backend=backend
    ),
    "seed": lambda tensor, backend: sample(
        VALUES, COORDS, jitter_std=0.1, seed=tensor, backend=backend
    ),
    "input": lambda tensor, backend: grid_sample(tensor, COORDS[None, None], backend=backend),
    "grid": lambda tensor, backend: grid_sample(torch.randn(1, 2, 4, 3), tensor, backend=backend),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_by_name(backend: str, kind: str, role: str) -> None:
    make, words = REFUSED[kind]
    if role in ("input", "grid"):
        words = "input|grid|values"
    elif role == "jitter_std" and kind in ("int", "float8", "meta"):
        words = "shape"  # the rest would do, or is not looked at
    elif kind == "meta":
        words = "on"
    with pytest.raises((TypeError, ValueError), match=words) as refused:
        ROLES[role](make(), backend)
    message = str(refused.value)
    assert "sample(): expected " in message
    assert role in message


def leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


WORKING: dict[str, Callable[[], Tensor]] = {
    "negative view": lambda: torch._neg_view(COORDS),
    "imaginary part of a conjugate": lambda: torch.complex(COORDS, COORDS).conj().imag,
    "zero tensor": lambda: torch._efficientzerotensor((5, 2)),
    "parameter": lambda: nn.Parameter(COORDS),
    "buffer": lambda: nn.Buffer(COORDS),
    "expanded": lambda: COORDS[:1].expand(5, 2),
    "flipped": lambda: COORDS.flip(0),
    "with gaps": lambda: torch.cat((COORDS, COORDS), 1)[:, ::2],
    "leaf": lambda: leaf(COORDS),
}


@pytest.mark.parametrize("kind", WORKING)
def test_works(backend: str, kind: str) -> None:
    tensor = WORKING[kind]()
    plain = torch.empty(5, 2).copy_(tensor.detach())
    for role in ("values", "coords"):
        assert torch.equal(ROLES[role](tensor, backend), ROLES[role](plain, backend))
    expected: Any = sample(VALUES, COORDS, jitter_std=plain[0], seed=3, backend=backend)
    assert torch.equal(
        sample(VALUES, COORDS, jitter_std=tensor[0], seed=3, backend=backend), expected
    )


def test_inference_tensors_work(backend: str) -> None:
    with torch.inference_mode():
        values, coords = VALUES.clone(), COORDS.clone()
    assert torch.equal(
        sample(values, coords, backend=backend), sample(VALUES, COORDS, backend=backend)
    )
