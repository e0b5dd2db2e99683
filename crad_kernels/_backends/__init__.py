"""The backends of the operation: which there are, what each can do, and which one to take."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from crad_kernels._backends import cpu, cuda, triton

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Backend:
    """One implementation of the operation.

    It is usable if it can run on this machine: one for GPUs, on at least one of them. Whether it
    can on a certain device, and with a certain number of components, says `takes`.

    Attributes:
        name: what ``backend=`` takes.
        devices: the types of device whose tensors it takes; empty if it takes any.
        missing: what keeps it from being used in this installation; empty if nothing does.
        max_ndim: the most coordinate components it takes; None if there is no limit.
        by_name_only: whether it is never taken by default: kernels for a GPU, run on the CPU.
        unfit_gpu: says why the GPU of an index cannot run it; empty if it can. None if all can.
    """

    name: str
    devices: tuple[str, ...]
    missing: str
    max_ndim: int | None = 8
    by_name_only: bool = False
    unfit_gpu: Callable[[int], str] | None = None

    @property
    def reason(self) -> str:
        """Why it is not usable on this machine and how to get it; empty if it is usable."""
        if self.missing or self.devices != ("cuda",):
            return self.missing
        if not torch.cuda.is_available():
            return "there is no GPU here that PyTorch can use"
        if self.unfit_gpu is None:
            return ""
        reasons = [self.unfit_gpu(index) for index in range(torch.cuda.device_count())]
        return "" if "" in reasons else "; ".join(dict.fromkeys(reasons))

    @property
    def usable(self) -> bool:
        """Whether it can run on this machine, in this installation."""
        return not self.reason

    def takes(self, device: torch.device, ndim: int) -> bool:
        """Whether it can sample on this device, with this many components."""
        if self.missing or (self.max_ndim is not None and ndim > self.max_ndim):
            return False
        # To ask a device for its type takes 0.2 us.
        kind = "cpu" if device == _CPU else device.type
        if self.devices and kind not in self.devices:
            return False
        return kind != "cuda" or not self.unfit(device)

    def unfit(self, device: torch.device) -> str:
        """Why a GPU cannot run it; empty if it can, or if it is no backend for GPUs."""
        if self.unfit_gpu is None or device.type != "cuda":
            return ""
        return _unfit(self.name, device.index)


# What `Backend.unfit_gpu` has said, by name and index: no GPU changes.
_UNFIT: dict[tuple[str, int], str] = {}


def _unfit(name: str, index: int | None) -> str:
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.device_count() else 0
    key = name, index
    if key not in _UNFIT:
        if index >= torch.cuda.device_count():
            return ""  # fake tensors may be on the GPU of another machine
        says = _TABLE[name].unfit_gpu
        _UNFIT[key] = says(index) if says else ""
    return _UNFIT[key]


# What `torch.compiler.assume_constant_result` does, which takes a second to import.
_unfit._dynamo_marked_constant = True  # type: ignore[attr-defined]


# In order of preference: see `default`.
_TABLE = {
    backend.name: backend
    for backend in (
        Backend("cpu", ("cpu",), cpu.MISSING),
        Backend(
            "cuda",
            cuda.DEVICES,
            cuda.MISSING,
            by_name_only=cuda.EMULATED,
            unfit_gpu=cuda.unfit_gpu,
        ),
        Backend(
            "triton",
            triton.DEVICES,
            triton.MISSING,
            by_name_only=triton.INTERPRETED,
            unfit_gpu=triton.unfit_gpu,
        ),
        Backend("reference", (), "", max_ndim=None),
    )
}


def backends() -> Mapping[str, Backend]:
    """Every backend by name, best first, with what it takes and why it may not be usable."""
    return MappingProxyType(_TABLE)


def find(name: str | None) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: if there is none.
    """
    for backend in _TABLE.values():
        if backend.name == name:
            return backend
    raise ValueError(
        f"sample(): expected backend to be one of {', '.join(_TABLE)}, but got {name!r}"
    )


def default(device: torch.device, ndim: int) -> Backend:
    """The backend of tensors for which none is named: the first of the table that takes them.

    On a GPU that is cuda, and triton where cuda's library is missing or has no code for this GPU,
    whatever the shapes and the dtypes. This rests on no measurement: no GPU has run either yet.
    Where triton is found to be faster, this is the place to say so, for those shapes and dtypes.
    """
    for backend in _TABLE.values():
        if backend.takes(device, ndim) and not backend.by_name_only:
            if backend.name == "reference":
                _warn_of_slowness(device, ndim)
            return backend
    raise AssertionError("the last backend of the table takes everything")


_warned = False


def _warn_of_slowness(device: torch.device, ndim: int) -> None:
    """Say once that the CPU backend would be faster, and what keeps it from being used."""
    global _warned
    cpu_backend = _TABLE["cpu"]
    if _warned or device.type != "cpu" or torch.compiler.is_compiling():
        return
    if cpu_backend.missing and replace(cpu_backend, missing="").takes(device, ndim):
        _warned = True
        warnings.warn(
            f"sample() runs on the slow reference backend: {cpu_backend.missing}", stacklevel=5
        )


def choose(name: str | None, device: torch.device, ndim: int) -> Backend:
    """The backend of that name, or the `default` one, for tensors on ``device`` with ``ndim`` axes.

    Raises:
        ValueError: if there is no such backend, or it cannot take the tensors.
    """
    if name is None:
        return default(device, ndim)
    backend = find(name)
    if backend.missing:
        raise ValueError(f"sample(): the backend {name!r} is not usable here: {backend.missing}")
    if unfit := backend.unfit(device):
        raise ValueError(f"sample(): the backend {name!r} cannot run on {device}: {unfit}")
    if backend.max_ndim is not None and ndim > backend.max_ndim:
        raise ValueError(
            f"sample(): the backend {name!r} takes at most {backend.max_ndim} dimensions, but got "
            f"{ndim}; leave backend=None to have one chosen"
        )
    if not backend.takes(device, ndim):
        raise ValueError(
            f"sample(): the backend {name!r} takes tensors on {' or '.join(backend.devices)}, but "
            f"got one on {device.type}; leave backend=None to have one chosen"
        )
    return backend
