"""Ways to sample a shared grid with jittered coordinates: ours, and what others offer.

A call takes values, coords and the standard deviation of the jitter. It takes and gives the shapes
of `crad_kernels.sample`: values ``(*size, C)``, coords ``(*points, D)``, result ``(*points, C)``;
or those of `torch.nn.functional.grid_sample`: values ``(1, C, *size)``, coords ``(B, *places, D)``,
result ``(B, C, *places)``.
"""

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

import crad_kernels
from benchmarks.cases import Case

Call = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Peer:
    """A way to sample.

    Attributes:
        name: of the peer.
        call: as the module says.
        why_not: why it is left out of a case; empty if it is not.
        images: into how many images of `torch.nn.functional.grid_sample` the points of a case are
            cut; 0 if the call takes the shapes of `crad_kernels.sample`.
        half: whether it takes half values with float32 coordinates. What does not is given float32,
            and its result is rounded.
    """

    name: str
    call: Call
    why_not: Callable[[Case], str]
    images: Callable[[Case], int] = lambda case: 0
    half: bool = False


# ---- the calls ----


def _jittered(coords: Tensor, jitter_std: float) -> Tensor:
    return coords + jitter_std * torch.randn_like(coords) if jitter_std else coords


def sample_by(backend: str, values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """One call of this package, in the shapes of either function."""
    if values.ndim == coords.ndim == coords.shape[-1] + 2:
        return crad_kernels.grid_sample(values, coords, jitter_std=jitter_std, backend=backend)
    return crad_kernels.sample(values, coords, jitter_std=jitter_std, backend=backend)


def grid_sample(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """`F.grid_sample` of as many images as there are grids."""
    return F.grid_sample(values, _jittered(coords, jitter_std), align_corners=False)


def grid_sample_expanded(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """The grid a view for every image: torch's threads share the images among them."""
    return grid_sample(values.expand(len(coords), *values.shape[1:]), coords, jitter_std)


def grid_sample_repeated(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """The grid copied for every image."""
    return grid_sample(values.repeat(len(coords), *(1,) * (values.ndim - 1)), coords, jitter_std)


@cache
def _compiled() -> Call:
    return torch.compile(grid_sample, dynamic=False)


def grid_sample_compiled(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """Noise and sampling in what `torch.compile` makes of them."""
    return _compiled()(values, coords, jitter_std)


@cache
def _corners(size: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Size, strides in entries, and the steps from the lowest corner to all; copied there once."""
    strides = [prod(size[axis + 1 :]) for axis in range(len(size))]
    steps = list(itertools.product((0, 1), repeat=len(size)))
    length, stride, step = (torch.tensor(n, device=device) for n in (size, strides, steps))
    return length, stride, step


def _taps(values: Tensor, coords: Tensor, jitter_std: float) -> tuple[Tensor, Tensor]:
    """Entry and weight of every corner of every point: ``(N, 2^D)``."""
    length, strides, steps = _corners(tuple(values.shape[:-1]), values.device)
    points = _jittered(coords, jitter_std).reshape(-1, coords.shape[-1]).flip(-1)
    index = ((points + 1) * length - 1) / 2
    low = index.detach().floor()
    fraction = index - low
    corner = low.to(torch.int64)[:, None] + steps
    inside = ((corner >= 0) & (corner < length)).all(-1)
    entry = (corner.clamp(min=0).minimum(length - 1) * strides).sum(-1)
    along = torch.where(steps.bool(), fraction[:, None], 1 - fraction[:, None])
    return entry, along.prod(-1) * inside


def embedding_bag(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """`F.embedding_bag` over the corners, torch's fused gather and weighted sum."""
    entry, weight = _taps(values, coords, jitter_std)
    out = F.embedding_bag(
        entry, values.reshape(-1, values.shape[-1]), per_sample_weights=weight, mode="sum"
    )
    return out.reshape(*coords.shape[:-1], -1)


def gathers(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """What is written by hand: one corner after the other gathered, weighted and added.

    The ``reference`` backend does the same, but masks what it gathers, so that entries that are not
    finite stay where they are, and computes its own noise.
    """
    entry, weight = _taps(values, coords, jitter_std)
    entries = values.reshape(-1, values.shape[-1])
    out = sum(
        weight[:, corner, None] * entries[entry[:, corner]] for corner in range(entry.shape[-1])
    )
    assert isinstance(out, Tensor)
    return out.reshape(*coords.shape[:-1], -1)


def torch_interpol(values: Tensor, coords: Tensor, jitter_std: float) -> Tensor:
    """`interpol.grid_pull`, whose coordinates count entries, those of the first axis first."""
    import interpol

    length = _corners(tuple(values.shape[2:]), values.device)[0]
    index = ((_jittered(coords, jitter_std).flip(-1) + 1) * length - 1) / 2
    out: Tensor = interpol.grid_pull(
        values, index, interpolation="linear", bound="zero", extrapolate=True
    )
    return out


# ---- what they can do ----


def _kept(case: Case) -> str:
    """Of what keeps every corner of every point."""
    corners = 2 ** len(case.size) * prod(case.points)
    if corners * case.channels > 2**28:
        return "it would need many gigabytes"
    return "it would take many seconds" if corners > 2**22 else ""


def _nothing(case: Case) -> str:
    return ""


def _grid_sample(case: Case) -> str:
    return "" if len(case.size) in (2, 3) else "F.grid_sample takes 2 or 3 dimensions"


def _many(case: Case) -> str:
    if prod(case.points) < torch.get_num_threads():
        return "there are fewer points than threads"
    return _grid_sample(case)


def _as_crad(case: Case) -> str:
    if len(case.points) == 1 or case.points[0] == 1:
        return "the points are not those of several images"
    return _grid_sample(case)


def _interpol(case: Case) -> str:
    if importlib.util.find_spec("interpol") is None:
        return "torch-interpol is not installed"
    if len(case.size) > 3:
        return "beyond 3 dimensions its gradient of coords has the wrong sign"
    return _kept(case)


def _compiles(case: Case) -> str:
    return _grid_sample(case) if case.dtype == torch.float32 else "it is tried in float32 alone"


def _threads(case: Case) -> int:
    threads = torch.get_num_threads()
    return next(n for n in range(threads, 0, -1) if prod(case.points) % n == 0)


def peers(device: str) -> dict[str, Peer]:
    """All by name that run on this type of device."""
    found = []
    for name, backend in crad_kernels.backends().items():
        if backend.takes(torch.device(device), 2):
            found.append(
                Peer(
                    f"crad_kernels {name}",
                    partial(sample_by, name),
                    _kept if name == "reference" else _nothing,
                    # In a layout that is given, as a drop-in for F.grid_sample.
                    lambda case: int(case.layout is not None),
                    half=True,
                )
            )
    found.append(Peer("F.grid_sample, flat", grid_sample, _grid_sample, lambda case: 1))
    if device == "cpu":
        found.append(Peer("F.grid_sample, over threads", grid_sample_expanded, _many, _threads))
    found += [
        Peer(
            "F.grid_sample, as CRAD calls it",
            grid_sample_repeated,
            _as_crad,
            lambda case: case.points[0],
        ),
        Peer("F.grid_sample, compiled", grid_sample_compiled, _compiles, lambda case: 1),
        Peer("F.embedding_bag", embedding_bag, _nothing),
        Peer("composed gathers", gathers, _kept),
        Peer("torch-interpol", torch_interpol, _interpol, lambda case: 1),
    ]
    return {peer.name: peer for peer in found}


# ---- a call on its tensors ----


class Trial:
    """A peer on the tensors of a case, in its own shapes and layout.

    Args:
        peer: what is called.
        case: what it is called on.
        tensors: of the case.
    """

    def __init__(self, peer: Peer, case: Case, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
        values, coords, grad_output = (tensor.detach() for tensor in tensors)
        self.peer = peer
        self.case = case
        self.images = images = peer.images(case)
        # What has to be done around the call is timed with it.
        self.converts = case.layout is not None or (not peer.half and case.dtype != torch.float32)
        first = bool(images) if case.layout is None else case.layout == "channels first"
        if first:
            values, grad_output = (
                tensor.movedim(-1, 0).contiguous().movedim(0, -1)
                for tensor in (values, grad_output)
            )
        if images:
            values = values.movedim(-1, 0)[None]
            places = (images, *(1,) * (len(case.size) - 1), -1)
            if case.layout is not None and images == 1:
                places = case.points  # an image stays one
            coords = coords.reshape(*places, len(case.size))
            grad_output = grad_output.reshape(*places, case.channels).movedim(-1, 1)
            if case.layout is None:
                grad_output = grad_output.contiguous()
        self.values = values.requires_grad_()
        self.coords = coords.requires_grad_()
        self.grad_output = grad_output

    def forward(self, jitter_std: float) -> Tensor:
        """The result, in the layout and dtype of the case."""
        if not self.converts:
            return self.peer.call(self.values, self.coords, jitter_std)
        values = self.values if self.peer.half else self.values.float()
        return self._laid_out(self.peer.call(values, self.coords, jitter_std))

    def forward_backward(self, jitter_std: float) -> tuple[Tensor, Tensor, Tensor]:
        """The result, and the gradients of values and coords."""
        out = self.forward(jitter_std)
        grad_values, grad_coords = torch.autograd.grad(
            out, (self.values, self.coords), self.grad_output
        )
        if self.converts:
            grad_values = self._laid_out(grad_values)
        return out.detach(), grad_values, grad_coords

    def _laid_out(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.case.dtype)
        if self.case.layout is None:
            return tensor
        channels = 0 if self.case.layout == "channels first" else -1
        here = 1 if self.images else -1
        return tensor.movedim(here, channels).contiguous().movedim(channels, here)

    def results(self, backward: bool) -> tuple[Tensor, ...]:
        """Result and, if asked, gradients without jitter; shaped as by `crad_kernels.sample`."""
        if backward:
            out, grad_values, grad_coords = self.forward_backward(0.0)
        else:
            with torch.no_grad():
                out = self.forward(0.0)
        if self.images:
            out = out.movedim(1, -1)
        out = out.reshape(*self.case.points, self.case.channels)
        if not backward:
            return (out,)
        if self.images:
            grad_values = grad_values[0].movedim(0, -1)
        return out, grad_values, grad_coords.reshape(*self.case.points, len(self.case.size))


def check(trial: Trial, ours: tuple[Tensor, ...]) -> None:
    """Raise unless a peer gives the results that ours gives, which may be the first alone."""
    for got, wanted in zip(trial.results(len(ours) > 1), ours, strict=True):
        rtol = 2**-7 if wanted.dtype == torch.bfloat16 else 1e-3
        torch.testing.assert_close(got, wanted, rtol=rtol, atol=1e-3 * float(wanted.std()))
