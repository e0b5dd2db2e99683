"""Memories of normal features, which recall a normal feature for a given one.

The grid is the continuous memory of CRAD (Lee et al., ECCV 2024, section 3.1); vector quantisation
and attention are the discrete ones that it is compared with there (table 1).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crad.errors import MissingPackageError, UsageError
from crad_kernels import GridMemory

AddressName = Literal["feature", "hidden"]
InterpolationName = Literal["linear", "simplex"]


class Recalled(NamedTuple):
    """What a memory returns for features ``(..., C)``.

    Attributes:
        entries: ``(..., V)``, of the memory.
        loss: the term that the look-up adds to the training loss, 0-d.
    """

    entries: Tensor
    loss: Tensor


@dataclass(frozen=True)
class MemoryOptions:
    """Options of the memories; each memory reads those that it has.

    Attributes:
        jitter_std: of a grid, as in `crad.CRAD`.
        jitter_prob: of a grid, as in `crad.CRAD`.
        mode: of the interpolation of a grid, as in `crad_kernels.GridMemory`.
        padding_mode: as ``mode``.
        align_corners: as ``mode``.
        backend: as ``mode``.
        address: of a discrete memory, as in `crad.CRAD`.
        shrinkage: of attention: weights up to this one become 0, and the others sum to 1 again.
            MemAE's hard shrinkage, 0.0025 there (Gong et al., ICCV 2019, equations 6 and 7).
        dead_below: of vector quantisation: an entry is replaced once fewer features than this
            choose it in a batch, in the running mean.
    """

    jitter_std: float = 0.0
    jitter_prob: float = 0.0
    mode: str = "linear"
    padding_mode: str = "zeros"
    align_corners: bool = False
    backend: str | None = None
    address: AddressName = "feature"
    shrinkage: float = 0.0
    dead_below: float = 0.0


class ContinuousMemory(nn.Module):
    """A grid of entries, interpolated at coordinates that a network computes from the feature.

    ``(..., C)`` in, ``(..., V)`` out (equations 2 and 3). For the arguments see `create_memory`.
    """

    def __init__(
        self, channels: int, entry_size: int, resolution: Sequence[int], options: MemoryOptions
    ) -> None:
        super().__init__()
        self.jitter_prob = options.jitter_prob
        self.coordinates = nn.Sequential(
            nn.Linear(channels, channels),
            nn.Tanh(),
            nn.Linear(channels, len(resolution)),
            nn.Tanh(),
        )
        self.memory = GridMemory(
            entry_size,
            resolution,
            jitter_std=options.jitter_std,
            mode=options.mode,
            padding_mode=options.padding_mode,
            align_corners=options.align_corners,
            backend=options.backend,
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
        yield self.memory.weight


class QuantizedMemory(nn.Module):
    """The entry nearest to the feature: vector quantisation (van den Oord et al., NeurIPS 2017).

    ``(..., C)`` in, ``(..., V)`` out. Features are compared with keys of C numbers, one key for
    each entry. A key is the running mean of the features that chose it (decay 0.99), starting from
    k-means of the first batch; a key that hardly any feature chooses is replaced by a feature. Keys
    are buffers, not trained. If V is C, the key itself is returned, with a straight-through
    gradient; otherwise each entry has V trained numbers as well. The commitment loss, weight 0.25,
    has a gradient with respect to the address only, so it is a constant for the address
    ``"feature"``. For the arguments see `create_memory`.
    """

    def __init__(
        self, channels: int, entry_size: int, resolution: Sequence[int], options: MemoryOptions
    ) -> None:
        super().__init__()
        self.address = _address_network(channels, options.address)
        self.codebook = vector_quantize_class()(
            channels,
            math.prod(resolution),
            decay=0.99,
            commitment_weight=0.25,
            kmeans_init=True,
            threshold_ema_dead_code=options.dead_below,
            rotation_trick=False,
        )
        self.values = None if entry_size == channels else _new_entries(resolution, entry_size)

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
    """All entries, weighted by their similarity to the feature: scaled dot-product attention.

    ``(..., C)`` in, ``(..., V)`` out. The feature is the query; each entry has a key of C numbers
    and a value of V numbers, which is the key itself if V is C. For the arguments see
    `create_memory`.
    """

    def __init__(
        self, channels: int, entry_size: int, resolution: Sequence[int], options: MemoryOptions
    ) -> None:
        super().__init__()
        self.shrinkage = options.shrinkage
        self.address = _address_network(channels, options.address)
        self.keys = _new_entries(resolution, channels)
        self.values = None if entry_size == channels else _new_entries(resolution, entry_size)

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

MEMORIES: Mapping[str, type[Memory]] = MappingProxyType(
    {"grid": ContinuousMemory, "vq": QuantizedMemory, "attention": AttentionMemory}
)
"""The memories by name."""

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
    """Make the memory of a name; None for ``"none"``.

    Args:
        name: of the memory.
        channels: channels C of a feature.
        entry_size: numbers V in an entry.
        resolution: entries per axis. A grid has one coordinate for each axis; a discrete memory has
            as many entries as the product.
        options: of the memory.

    Raises:
        MissingPackageError: ``"vq"`` needs a package that is not installed.
        UsageError: there is no such memory or address.
    """
    for what, chosen, choices in (
        ("name", name, (*MEMORIES, "none")),
        ("address", options.address, get_args(AddressName)),
    ):
        if chosen not in choices:
            raise UsageError(
                f"memory: expected {what} to be one of {', '.join(choices)}, but got {chosen!r}"
            )
    return None if name == "none" else MEMORIES[name](channels, entry_size, resolution, options)


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


def _new_entries(resolution: Sequence[int], size: int) -> nn.Parameter:
    """Entries ``(n, size)``, drawn as those of a grid of this resolution are."""
    drawn = nn.init.xavier_normal_(torch.empty(1, size, math.prod(resolution)))
    return nn.Parameter(drawn[0].T.contiguous())


def _shrink(weights: Tensor, least: float) -> Tensor:
    """Clear weights ``(..., n)`` up to ``least`` and let the others sum to 1, if there are any."""
    excess = weights - least
    kept = F.relu(excess) * weights / (excess.abs() + 1e-12)
    return F.normalize(kept, p=1.0, dim=-1)
