"""A transformer that reconstructs feature tokens and sees no position's own neighbourhood."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Sizes of the transformer of UniAD.

    Attributes:
        channels: of the transformer.
        hidden: channels inside of its feed-forward parts.
        heads: of its attention.
        layers: of the encoder, and as many of the decoder.
        neighbourhood: side of the window around a position that its attention leaves out.
        dropout: in training.
    """

    channels: int = 256
    hidden: int = 1024
    heads: int = 8
    layers: int = 4
    neighbourhood: int = 7
    dropout: float = 0.1


def neighbour_mask(size: tuple[int, int], neighbourhood: int) -> Tensor:
    """Which positions attention may see ``(P, P)``: those outside of a window around each.

    On a map so small that the window would cover all of it, the window is smaller.
    """
    radius = min(neighbourhood // 2, min(size) // 2 - 1)
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    apart = (places[:, None] - places).abs().amax(dim=2)
    return apart > radius


class Transformer(nn.Module):
    """Reconstructs tokens ``(B, P, C)``.

    Args:
        sizes: of its parts.
        channels: of the tokens.
        size: height and width of the map that they are of.
    """

    mask: Tensor

    def __init__(self, sizes: Sizes, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mask", neighbour_mask(size, sizes.neighbourhood), persistent=False)
        self.into = nn.Linear(channels, sizes.channels)
        self.out = nn.Linear(sizes.channels, channels)
        self.places = nn.Parameter(0.02 * torch.randn(size[0] * size[1], sizes.channels))
        self.encoder = nn.ModuleList(_EncoderLayer(sizes) for _ in range(sizes.layers))
        self.decoder = nn.ModuleList(
            _DecoderLayer(sizes, size[0] * size[1]) for _ in range(sizes.layers)
        )

    def encode(self, tokens: Tensor) -> list[Tensor]:
        """What each layer of the encoder gives, in order."""
        encoded = [self.into(tokens)]
        for layer in self.encoder:
            encoded.append(layer(encoded[-1], self.places, self.mask))
        return encoded[1:]

    def decode(self, memories: Sequence[Tensor]) -> Tensor:
        """Tokens, given what each layer of the decoder looks at, in order."""
        decoded = memories[0]
        for layer, memory in zip(self.decoder, memories, strict=True):
            decoded = layer(decoded, memory, self.places, self.mask)
        result: Tensor = self.out(decoded)
        return result

    def forward(self, tokens: Tensor) -> Tensor:
        """What the tokens would be in a normal image."""
        return self.decode([self.encode(tokens)[-1]] * len(self.decoder))

    def loss(self, noisy: Tensor, tokens: Tensor, classes: Sequence[str | None]) -> Tensor:
        """What training brings down.

        Args:
            noisy: tokens with noise.
            tokens: what they are without it.
            classes: of the images, for a network that has parts of their own for them.
        """
        return F.mse_loss(self(noisy), tokens)

    def scores(self, tokens: Tensor) -> Tensor:
        """How far each token is from normal ``(B, P)``: from its reconstruction."""
        apart: Tensor = (self(tokens) - tokens).norm(dim=2)
        return apart


class _Attention(nn.Module):
    """Attention to the positions that a mask allows, added to the query and normalised."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            sizes.channels, sizes.heads, sizes.dropout, batch_first=True
        )
        self.dropout = nn.Dropout(sizes.dropout)
        self.norm = nn.LayerNorm(sizes.channels)

    def forward(self, query: Tensor, memory: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        found, _ = self.attention(
            query + places, memory + places, memory, attn_mask=~mask, need_weights=False
        )
        result: Tensor = self.norm(query + self.dropout(found))
        return result


class _FeedForward(nn.Module):
    """Two linear layers, added to their input and normalised."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(sizes.channels, sizes.hidden),
            nn.ReLU(),
            nn.Dropout(sizes.dropout),
            nn.Linear(sizes.hidden, sizes.channels),
            nn.Dropout(sizes.dropout),
        )
        self.norm = nn.LayerNorm(sizes.channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x + self.body(x))
        return result


class _EncoderLayer(nn.Module):
    """Attention of the tokens to each other."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention, self.feed_forward = _Attention(sizes), _FeedForward(sizes)

    def forward(self, x: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.feed_forward(self.attention(x, x, places, mask))
        return result


class _DecoderLayer(nn.Module):
    """A query of its own looks at what was encoded, then at what was decoded before."""

    def __init__(self, sizes: Sizes, n_tokens: int) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(n_tokens, sizes.channels))
        self.to_encoded, self.to_decoded = _Attention(sizes), _Attention(sizes)
        self.feed_forward = _FeedForward(sizes)

    def forward(self, decoded: Tensor, encoded: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        query = self.query.expand(len(encoded), -1, -1)
        query = self.to_encoded(query, encoded, places, mask)
        result: Tensor = self.feed_forward(self.to_decoded(query, decoded, places, mask))
        return result
