"""Which backends there are, which one is taken, and what is said of one that cannot be used."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from crad_kernels import _backends, backends, grid_sample, sample
from crad_kernels._backends import _TABLE, Backend, choose, cuda, default, library, triton
from crad_kernels._backends.library import load
from tests.cases import JUDGE

VALUES, COORDS = torch.zeros(4, 3, 2), torch.zeros(5, 2)


def test_every_backend_says_whether_it_is_usable_and_why_not() -> None:
    for name, record in backends().items():
        assert record.name == name
        assert isinstance(record.devices, tuple)
        assert record.usable == (record.reason == "")
    assert backends()[JUDGE].usable


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        backends()["other"] = backends()[JUDGE]  # type: ignore[index]


def test_the_first_that_takes_the_tensors_is_the_default() -> None:
    usable = [
        record
        for record in backends().values()
        if record.takes(COORDS.device, 2) and not record.by_name_only
    ]
    assert choose(None, COORDS.device, 2) == usable[0]
    assert choose(None, torch.device("meta"), 2).name == JUDGE
    assert choose(None, COORDS.device, 9).name == JUDGE


def test_on_a_gpu_triton_stands_in_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for name in ("cuda", "triton"):
        monkeypatch.setitem(_TABLE, name, Backend(name, ("cuda",), ""))
    assert default(gpu, 2).name == "cuda"
    monkeypatch.setitem(_TABLE, "cuda", Backend("cuda", ("cuda",), "no toolkit"))
    assert default(gpu, 2).name == "triton"
    assert default(gpu, 9).name == JUDGE


def test_one_that_is_taken_by_name_only_is_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(iter(_TABLE))
    only_by_name = replace(_TABLE[first], by_name_only=True)
    monkeypatch.setitem(_TABLE, first, only_by_name)
    assert choose(None, COORDS.device, 2).name != first
    assert choose(first, COORDS.device, 2).name == first


def test_can_be_used_here(any_backend: str) -> None:
    """Or is skipped with the reason: the other tests of such a backend are not collected."""
    values, coords = torch.zeros(4, 3, 2), torch.zeros(5, 2)
    assert torch.equal(sample(values, coords, backend=any_backend), torch.zeros(5, 2))


def test_a_name_takes_that_backend(backend: str) -> None:
    assert choose(backend, torch.get_default_device(), 2).name == backend


@pytest.fixture
def unusable() -> Iterator[str]:
    """A backend that would be the first choice, if it could be used."""
    table = dict(_TABLE)
    _TABLE.clear()
    _TABLE.update({"missing": Backend("missing", ("cpu",), "no compiler; install one")})
    _TABLE.update(table)
    yield "missing"
    del _TABLE["missing"]


def test_an_unusable_backend_names_its_reason(unusable: str) -> None:
    assert not backends()[unusable].usable
    with pytest.raises(ValueError, match="'missing' is not usable here: no compiler; install one"):
        sample(VALUES, COORDS, backend=unusable)


def test_an_unusable_backend_is_not_chosen(unusable: str) -> None:
    assert choose(None, COORDS.device, 2).name != unusable
    assert sample(VALUES, COORDS).shape == (5, 2)


@pytest.mark.parametrize("function", [sample, grid_sample])
def test_the_warning_of_slowness_names_the_call(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., torch.Tensor]
) -> None:
    monkeypatch.setattr(_backends, "_warned", False)
    monkeypatch.setitem(_TABLE, "cpu", replace(_TABLE["cpu"], missing="no compiler"))
    device = torch.device("cpu")
    tensors = torch.zeros(1, 2, 4, 3, device=device), torch.zeros(1, 5, 5, 2, device=device)
    with pytest.warns(UserWarning, match="slow reference backend: no compiler") as warned:
        function(*tensors)
    assert warned[0].filename == __file__


def test_a_library_that_was_not_built_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "path_of", lambda name: None)
    assert "install a compiler" in load("_cpu", "a compiler")
    assert "pip install" in load("_cpu", "a compiler")


def test_a_library_that_does_not_load_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(library, "path_of", lambda name: str(broken))
    assert str(broken) in load("_cpu", "a compiler")
    assert "pip install" in load("_cpu", "a compiler")


@pytest.mark.slow
def test_importing_the_package_does_not_import_triton() -> None:
    """Beyond what torch imports of it."""
    code = """
import sys, torch
before = "triton" in sys.modules
import crad_kernels
sys.exit("triton" in sys.modules and not before)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_triton_its_backend_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'triton>=" in triton._missing()


def test_too_old_a_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.5.1")
    assert "Triton 3.5.1 is too old" in triton._missing()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.6.0+a.vendor")
    assert triton._missing() == ""


def test_without_a_gpu_what_needs_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    record = Backend("gpu", ("cuda",), "")
    assert not record.usable
    assert "no GPU" in record.reason
    assert record.takes(torch.device("cuda"), 2)  # whoever has such a tensor has a GPU


def test_on_amd_the_cuda_backend_names_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "AMD" in cuda._missing()
    assert "'triton'" in cuda._missing()


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_other_devices_have_the_reference(kind: str) -> None:
    assert default(torch.device(kind), 2).name == "reference"


def test_a_gpu_that_is_too_old_for_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    record = backends()["cuda"]
    if record.missing or record.by_name_only:
        pytest.skip(record.missing or "the kernels are compiled for the processor")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (3, 5))
    assert "A GPU has 3.5; run `TORCH_CUDA_ARCH_LIST=3.5+PTX pip install" in record.reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (99, 0))
    assert record.usable
