"""Memories of normal features: a feature in, what a memory has in its place out.

The grid is the continuous memory of CRAD (Lee et al., ECCV 2024, section 3.1); vector quantisation
and attention are the discrete ones that it is compared with there (table 1).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad.errors import MissingPackageError
from crad_kernels import GridMemory

AddressName = Literal["feature", "hidden"]


class Recalled(NamedTuple):
    """What a memory gives for features ``(..., C)``.

    Attributes:
        entries: ``(..., V)``, of the memory.
        loss: what the look-up adds to the loss in training, 0-d.
    """

    entries: Tensor
    loss: Tensor


class ContinuousMemory(nn.Module):
    """A grid of entries, interpolated at coordinates that a network makes of the feature.

    ``(..., C)`` in, ``(..., V)`` out (equations 2 and 3).

    Args:
        channels: channels C of a feature.
        entry_size: numbers V in an entry.
        resolution: entries per axis; as many axes as there are coordinates.
        jitter_std: standard deviation of the noise on the coordinates in training, in [-1, 1]
            units (section 3.3).
        jitter_prob: probability that a training batch is jittered.
        mode: of the interpolation, as in `crad_kernels.GridMemory`, and so are the next three.
        padding_mode: see ``mode``.
        align_corners: see ``mode``.
        backend: see ``mode``.
    """

    def __init__(
        self,
        channels: int,
        entry_size: int,
        resolution: Sequence[int],
        *,
        jitter_std: float = 0.0,
        jitter_prob: float = 0.0,
        mode: str = "linear",
        padding_mode: str = "zeros",
        align_corners: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.jitter_prob = jitter_prob
        self.coordinates = nn.Sequential(
            nn.Linear(channels, channels),
            nn.Tanh(),
            nn.Linear(channels, len(resolution)),
            nn.Tanh(),
        )
        self.memory = GridMemory(
            entry_size,
            resolution,
            jitter_std=jitter_std,
            mode=mode,
            padding_mode=padding_mode,
            align_corners=align_corners,
            backend=backend,
        )

    def forward(self, feature: Tensor) -> Recalled:
        """Look up features."""
        jittered = self.training and self.jitter_prob > 0
        jittered = jittered and float(torch.rand(())) < self.jitter_prob
        coords = self.coordinates(feature)
        entries = self.memory(coords, jitter_std=self.memory.jitter_std if jittered else 0.0)
        return Recalled(entries, feature.new_zeros(()))

    def entries(self) -> Iterator[nn.Parameter]:
        """What is stored."""
        yield self.memory.values


class QuantizedMemory(nn.Module):
    """The entry nearest to the feature: vector quantisation (van den Oord et al., NeurIPS 2017).

    ``(..., C)`` in, ``(..., V)`` out. The C numbers of an entry that features are compared with are
    running means of the features that chose it, decay 0.99, from k-means of the first batch on; an
    entry that hardly any feature chooses is replaced by a feature. They are buffers, not trained.
    Where V is C, they are what is given, with a straight-through gradient; else each entry has V
    trained numbers beside them. The commitment loss, weight 0.25, moves the address only: where
    that is the feature itself, which is not trained, it is a constant.

    Args:
        channels: channels C of a feature.
        entry_size: numbers V in an entry.
        n_entries: number of entries.
        address: what is compared, as in `crad.CRAD`.
        dead_below: an entry is replaced once fewer features than this choose it in a batch, in the
            running mean.

    Raises:
        MissingPackageError: if vector-quantize-pytorch is not installed.
    """

    def __init__(
        self,
        channels: int,
        entry_size: int,
        n_entries: int,
        *,
        address: AddressName,
        dead_below: float,
    ) -> None:
        super().__init__()
        self.address = _address_network(channels, address)
        self.codebook = vector_quantize_class()(
            channels,
            n_entries,
            decay=0.99,
            commitment_weight=0.25,
            kmeans_init=True,
            threshold_ema_dead_code=dead_below,
            rotation_trick=False,
        )
        self.values = None if entry_size == channels else _new_entries(n_entries, entry_size)

    def forward(self, feature: Tensor) -> Recalled:
        """Look up features."""
        address = self.address(feature)
        nearest, indices, loss = self.codebook(address.reshape(1, -1, address.shape[-1]))
        if self.values is None:
            return Recalled(nearest.view(address.shape), loss)
        return Recalled(F.embedding(indices.view(feature.shape[:-1]), self.values), loss)

    def entries(self) -> Iterator[nn.Parameter]:
        """What is stored and trained."""
        if self.values is not None:
            yield self.values


class AttentionMemory(nn.Module):
    """All entries, weighted by their similarity to the feature: attention.

    ``(..., C)`` in, ``(..., V)`` out: scaled dot products of the feature with C numbers of each
    entry, their softmax, and the entries weighted by it. An entry has V numbers besides, unless V
    is C: then it is key and value at once.

    Args:
        channels: channels C of a feature.
        entry_size: numbers V in an entry.
        n_entries: number of entries.
        address: what is compared, as in `crad.CRAD`.
        shrinkage: weights up to this one become 0, and the others sum to 1 again: MemAE's hard
            shrinkage, 0.0025 there (Gong et al., ICCV 2019, equations 6 and 7); 0 for none.
    """

    def __init__(
        self,
        channels: int,
        entry_size: int,
        n_entries: int,
        *,
        address: AddressName,
        shrinkage: float = 0.0,
    ) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.address = _address_network(channels, address)
        self.keys = _new_entries(n_entries, channels)
        self.values = None if entry_size == channels else _new_entries(n_entries, entry_size)

    def forward(self, feature: Tensor) -> Recalled:
        """Look up features."""
        address = self.address(feature)
        values = self.keys if self.values is None else self.values
        if self.shrinkage:
            scores = F.linear(address, self.keys) / math.sqrt(address.shape[-1])
            found = _shrink(scores.softmax(dim=-1), self.shrinkage) @ values
        else:
            query = address.reshape(1, 1, -1, address.shape[-1])
            found = F.scaled_dot_product_attention(query, self.keys[None, None], values[None, None])
            found = found.reshape(*address.shape[:-1], values.shape[-1])
        return Recalled(found, feature.new_zeros(()))

    def entries(self) -> Iterator[nn.Parameter]:
        """What is stored."""
        yield self.keys
        if self.values is not None:
            yield self.values


Memory = ContinuousMemory | QuantizedMemory | AttentionMemory


@dataclass(frozen=True)
class MemoryOptions:
    """What some of the memories can be told; each takes what it knows.

    Attributes:
        jitter_std: as for `ContinuousMemory`.
        jitter_prob: as for `ContinuousMemory`.
        address: as for `crad.CRAD`.
        shrinkage: as for `AttentionMemory`.
        dead_below: as for `QuantizedMemory`.
    """

    jitter_std: float = 0.0
    jitter_prob: float = 0.0
    address: AddressName = "feature"
    shrinkage: float = 0.0
    dead_below: float = 0.0


def _grid(channels: int, entry_size: int, size: Sequence[int], options: MemoryOptions) -> Memory:
    return ContinuousMemory(
        channels,
        entry_size,
        size,
        jitter_std=options.jitter_std,
        jitter_prob=options.jitter_prob,
    )


def _quantized(
    channels: int, entry_size: int, size: Sequence[int], options: MemoryOptions
) -> Memory:
    return QuantizedMemory(
        channels,
        entry_size,
        math.prod(size),
        address=options.address,
        dead_below=options.dead_below,
    )


def _attention(
    channels: int, entry_size: int, size: Sequence[int], options: MemoryOptions
) -> Memory:
    return AttentionMemory(
        channels,
        entry_size,
        math.prod(size),
        address=options.address,
        shrinkage=options.shrinkage,
    )


MEMORIES: Mapping[str, Callable[[int, int, Sequence[int], MemoryOptions], Memory]] = (
    MappingProxyType({"grid": _grid, "vq": _quantized, "attention": _attention})
)
"""What makes each memory, by name. A discrete memory has as many entries as a grid of its size."""

if TYPE_CHECKING:
    MemoryName = str
else:
    MemoryName = Literal[(*MEMORIES, "none")]


def create_memory(
    name: MemoryName,
    channels: int,
    entry_size: int,
    resolution: Sequence[int],
    options: MemoryOptions,
) -> Memory | None:
    """Make a memory by its name in `MEMORIES`; None for ``"none"``.

    Args:
        name: of the memory.
        channels: channels C of a feature.
        entry_size: numbers V in an entry.
        resolution: entries per axis.
        options: of the memory.

    Raises:
        MissingPackageError: the memory needs a package that is not installed.
    """
    if name == "none":
        return None
    return MEMORIES[name](channels, entry_size, resolution, options)


def vector_quantize_class() -> Any:
    """``VectorQuantize`` of vector-quantize-pytorch.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError as error:
        raise MissingPackageError(
            "memory: vq needs vector-quantize-pytorch, which is not installed; install it with "
            "pip install 'crad[vq]', or choose grid or attention"
        ) from error
    return VectorQuantize


def _address_network(channels: int, address: AddressName) -> nn.Module:
    if address == "feature":
        return nn.Identity()
    return nn.Sequential(nn.Linear(channels, channels), nn.Tanh())


def _new_entries(n_entries: int, size: int) -> nn.Parameter:
    """``(n_entries, size)``, drawn as those of a grid are."""
    drawn = nn.init.xavier_normal_(torch.empty(1, size, n_entries))
    return nn.Parameter(drawn[0].T.contiguous())


def _shrink(weights: Tensor, least: float) -> Tensor:
    """Clear weights ``(..., n)`` up to ``least`` and let the others sum to 1, if there are any."""
    excess = weights - least
    kept = F.relu(excess) * weights / (excess.abs() + 1e-12)
    return F.normalize(kept, p=1.0, dim=-1)
