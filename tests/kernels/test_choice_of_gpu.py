"""Which backend is taken on each of several GPUs, none of which is here."""

import ctypes
from collections.abc import Callable, Sequence

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crad_kernels import _backends, backends, sample
from crad_kernels._backends import _TABLE, Backend, choose, cuda, default, triton
from tests.cases import JUDGE

# What `TORCH_CUDA_ARCH_LIST` was when the library of these tests was built.
OLDEST = (8, 0)


def library(index: int) -> str:
    """As `cuda.unfit_gpu`, without a library."""
    ctypes.CDLL(None)  # which it asks, and the compiler cannot
    has = torch.cuda.get_device_capability(index)
    return "" if has >= OLDEST else f"{torch.cuda.get_device_name(index)} has {has}"


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these compute capabilities those of the GPUs of this machine."""

    def install(*capabilities: tuple[int, int], missing: Sequence[str] = ()) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
        monkeypatch.setattr(_backends, "_UNFIT", {})
        for name, says in (("cuda", library), ("triton", triton.unfit_gpu)):
            lacks = "not built" if name in missing else ""
            monkeypatch.setitem(_TABLE, name, Backend(name, ("cuda",), lacks, unfit_gpu=says))

    return install


def gpu(index: int | None = None) -> torch.device:
    return torch.device("cuda") if index is None else torch.device("cuda", index)


def test_a_gpu_has_the_first_backend_that_can_run_on_it(with_gpus: Callable[..., None]) -> None:
    with_gpus((9, 0), (7, 5), (5, 2))
    assert [default(gpu(index), 2).name for index in range(3)] == ["cuda", "triton", JUDGE]
    assert default(gpu(), 2).name == "cuda"  # the current one
    assert default(gpu(0), 9).name == JUDGE
    assert default(torch.device("cpu"), 2).name not in ("cuda", "triton")


def test_the_default_is_usable(with_gpus: Callable[..., None]) -> None:
    """Of a machine of one old GPU: as `backends` says."""
    with_gpus((7, 5))
    assert not backends()["cuda"].usable
    assert backends()["cuda"].reason == "GPU 0 has (7, 5)"
    assert backends()["triton"].usable
    assert default(gpu(0), 2).name == "triton"


def test_one_gpu_is_enough_to_be_usable(with_gpus: Callable[..., None]) -> None:
    with_gpus((7, 5), (9, 0))
    assert backends()["cuda"].usable
    assert not backends()["cuda"].takes(gpu(0), 2)
    assert backends()["cuda"].takes(gpu(1), 2)
    assert [default(gpu(index), 2).name for index in range(2)] == ["triton", "cuda"]


def test_every_gpu_that_cannot_run_it_is_named(with_gpus: Callable[..., None]) -> None:
    with_gpus((7, 5), (7, 0))
    assert backends()["cuda"].reason == "GPU 0 has (7, 5); GPU 1 has (7, 0)"


def test_a_missing_library_is_the_same_on_all(with_gpus: Callable[..., None]) -> None:
    with_gpus((9, 0), (7, 5), missing=["cuda"])
    assert [default(gpu(index), 2).name for index in range(2)] == ["triton", "triton"]
    assert backends()["cuda"].reason == "not built"


def test_a_named_backend_says_why_it_cannot_run_on_this_gpu(
    with_gpus: Callable[..., None],
) -> None:
    with_gpus((9, 0), (5, 2))
    assert choose("cuda", gpu(0), 2).name == "cuda"
    assert choose("triton", gpu(0), 2).name == "triton"
    with pytest.raises(ValueError, match=r"'cuda' cannot run on cuda:1: GPU 1 has \(5, 2\)"):
        choose("cuda", gpu(1), 2)
    with pytest.raises(
        ValueError,
        match=r"'triton' cannot run on cuda:1: .*7\.0 and later, but GPU 1 has 5\.2; use backend=",
    ):
        choose("triton", gpu(1), 2)
    with pytest.raises(ValueError, match=r"takes tensors on cuda, but got one on cpu"):
        choose("cuda", torch.device("cpu"), 2)


def test_a_gpu_is_asked_once(
    with_gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus((9, 0), (7, 5))
    asked = []
    monkeypatch.setitem(
        _TABLE,
        "cuda",
        Backend("cuda", ("cuda",), "", unfit_gpu=lambda index: asked.append(index) or ""),
    )
    for index in (0, 1, 0, 1, 0):
        default(gpu(index), 2)
    assert asked == [0, 1]


def test_a_gpu_that_is_not_here_is_not_asked(with_gpus: Callable[..., None]) -> None:
    """Programs for a GPU are exported on machines without one, from fake tensors."""
    with_gpus()
    assert default(gpu(0), 2).name == "cuda"
    assert default(gpu(), 2).name == "cuda"
    assert choose("triton", gpu(3), 2).name == "triton"
    with FakeTensorMode():
        values = torch.empty(4, 3, 2, device="cuda:1")
        assert sample(values, torch.empty(5, 2, device="cuda:1")).shape == (5, 2)


def test_no_gpu_is_asked_for_tensors_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(_backends, "_unfit", None)
    values, coords = torch.zeros(4, 3, 2, device="cpu"), torch.zeros(5, 2, device="cpu")
    assert sample(values, coords).shape == (5, 2)
    if "cpu" in backends()[backend].devices:
        assert sample(values, coords, backend=backend).shape == (5, 2)


def test_the_compiler_takes_what_a_gpu_says_for_a_constant(
    with_gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were marked by `torch.compiler.assume_constant_result`."""
    with_gpus((9, 0), (7, 5))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the compiler asks, too

    def function(x: torch.Tensor) -> torch.Tensor:
        names = [default(gpu(index), 2).name for index in range(2)]
        return x + 1 if names == ["cuda", "triton"] else x - 1

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(())) == 1


def test_the_library_is_compared_with_the_gpu_of_that_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if backends()["cuda"].missing or cuda.EMULATED:
        pytest.skip("the library is not here")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((99, 0), (3, 5))[index])
    assert cuda.unfit_gpu(0) == ""
    assert "GPU 1 has 3.5" in cuda.unfit_gpu(1)
