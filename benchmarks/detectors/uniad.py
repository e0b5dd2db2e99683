"""UniAD, written from the paper, on the features of crad.

You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.detectors import budget
from benchmarks.detectors.budget import Epochs
from benchmarks.detectors.inputs import SetInputs
from benchmarks.detectors.order import batches
from crad.config import Config
from crad.data.sources import BATCH_SIZE
from crad.training.features import Features

_POOL = 2  # from stride 8 to stride 16, at which the paper reconstructs


@dataclass(frozen=True)
class UniAD:
    """A transformer that reconstructs noisy features, and sees no position's own neighbourhood.

    All settings are the paper's. Its features are of four stages, brought to stride 16; here they
    are those of the comparison, brought there by means over 2 x 2 positions.

    Attributes:
        channels: of the transformer.
        hidden: channels inside of its feed-forward parts.
        heads: of its attention.
        layers: of the encoder, and as many of the decoder.
        neighbourhood: side of the window around a position that its attention leaves out.
        jitter: scale of the noise on the features in training.
        dropout: in training.
        epochs: of training, the last fifth of them at a tenth of the learning rate.
        batch_size: of training.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    channels: int = 256
    hidden: int = 1024
    heads: int = 8
    layers: int = 4
    neighbourhood: int = 7
    jitter: float = 20.0
    dropout: float = 0.1
    epochs: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4

    title: ClassVar[str] = "UniAD (ours)"
    takes_images: ClassVar[bool] = False

    def settings(self, config: Config) -> dict[str, Any]:
        """The attributes, and the time that training may take."""
        return {**asdict(self), "minutes": config.training.minutes}

    def fit(self, inputs: SetInputs, config: Config, device: torch.device) -> "Reconstruction":
        """Train; the seed sets the weights, the noise and the order of the images."""
        n_steps = -(-len(inputs.train) // self.batch_size)

        def training() -> _Training:
            return _Training(self, inputs.train, config.training.seed, device)

        # Dropout takes the numbers of the process, which are given back.
        with torch.random.fork_rng():
            epochs = budget.choose(
                self.epochs,
                config.training.minutes,
                lambda: n_steps * budget.pace(training().step),
            )
            trained = training()
            for epoch in range(epochs.run):
                trained.set_rate(0.1 if epoch >= round(0.8 * epochs.run) else 1.0)
                for _ in range(n_steps):
                    trained.step()
        return Reconstruction(trained.network.eval(), device, epochs)


class _Training:
    """The training of a transformer."""

    def __init__(self, method: UniAD, features: Features, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        height, width, channels = features.values.shape[1:]
        size = max(1, height // _POOL), max(1, width // _POOL)
        self.network = Transformer(method, channels, size).to(device)
        self._method, self._features, self._device = method, features, device
        self._rows = batches(len(features), method.batch_size, seed)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=method.learning_rate, weight_decay=method.weight_decay
        )

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = factor * self._method.learning_rate

    def step(self) -> None:
        """Train on the next batch."""
        tokens = tokens_of(self._features.batch(next(self._rows), self._device))
        loss = F.mse_loss(self.network(jittered(tokens, self._method.jitter)), tokens)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def tokens_of(features: Tensor) -> Tensor:
    """Features ``(B, C, H, W)`` at half the resolution, as tokens ``(B, P, C)``."""
    if min(features.shape[2:]) >= _POOL:
        features = F.avg_pool2d(features, _POOL)
    return features.flatten(2).transpose(1, 2)


def jittered(tokens: Tensor, scale: float) -> Tensor:
    """Add Gaussian noise whose deviation is the length of a token, times scale over channels."""
    deviation = tokens.norm(dim=2, keepdim=True) * scale / tokens.shape[2]
    noise: Tensor = deviation * torch.randn_like(tokens)
    return tokens + noise


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
        method: its settings.
        channels: of the tokens.
        size: height and width of the map that they are of.
    """

    mask: Tensor

    def __init__(self, method: UniAD, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mask", neighbour_mask(size, method.neighbourhood), persistent=False)
        self.into = nn.Linear(channels, method.channels)
        self.out = nn.Linear(method.channels, channels)
        self.places = nn.Parameter(0.02 * torch.randn(size[0] * size[1], method.channels))
        self.encoder = nn.ModuleList(_EncoderLayer(method) for _ in range(method.layers))
        self.decoder = nn.ModuleList(
            _DecoderLayer(method, size[0] * size[1]) for _ in range(method.layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """What the tokens would be in a normal image."""
        encoded = self.into(tokens)
        for layer in self.encoder:
            encoded = layer(encoded, self.places, self.mask)
        decoded = encoded
        for layer in self.decoder:
            decoded = layer(decoded, encoded, self.places, self.mask)
        result: Tensor = self.out(decoded)
        return result


class _Attention(nn.Module):
    """Attention to the positions that a mask allows, added to the query and normalised."""

    def __init__(self, method: UniAD) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            method.channels, method.heads, method.dropout, batch_first=True
        )
        self.dropout = nn.Dropout(method.dropout)
        self.norm = nn.LayerNorm(method.channels)

    def forward(self, query: Tensor, memory: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        found, _ = self.attention(
            query + places, memory + places, memory, attn_mask=~mask, need_weights=False
        )
        result: Tensor = self.norm(query + self.dropout(found))
        return result


class _FeedForward(nn.Module):
    """Two linear layers, added to their input and normalised."""

    def __init__(self, method: UniAD) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(method.channels, method.hidden),
            nn.ReLU(),
            nn.Dropout(method.dropout),
            nn.Linear(method.hidden, method.channels),
            nn.Dropout(method.dropout),
        )
        self.norm = nn.LayerNorm(method.channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x + self.body(x))
        return result


class _EncoderLayer(nn.Module):
    """Attention of the tokens to each other."""

    def __init__(self, method: UniAD) -> None:
        super().__init__()
        self.attention, self.feed_forward = _Attention(method), _FeedForward(method)

    def forward(self, x: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.feed_forward(self.attention(x, x, places, mask))
        return result


class _DecoderLayer(nn.Module):
    """A query of its own looks at what was encoded, then at what was decoded before."""

    def __init__(self, method: UniAD, n_tokens: int) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(n_tokens, method.channels))
        self.to_encoded, self.to_decoded = _Attention(method), _Attention(method)
        self.feed_forward = _FeedForward(method)

    def forward(self, decoded: Tensor, encoded: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        query = self.query.expand(len(encoded), -1, -1)
        query = self.to_encoded(query, encoded, places, mask)
        result: Tensor = self.feed_forward(self.to_decoded(query, decoded, places, mask))
        return result


@dataclass(frozen=True)
class Reconstruction:
    """A trained `UniAD`."""

    network: Transformer
    device: torch.device
    epochs: Epochs

    @property
    def n_bytes(self) -> int:
        """Size of the transformer."""
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())

    @torch.no_grad()
    def maps(self, features: Features) -> Tensor:
        """Euclidean distance of each feature from its reconstruction."""
        maps = []
        for rows in torch.arange(len(features)).split(BATCH_SIZE):
            tokens = tokens_of(features.batch(rows, self.device))
            apart = (self.network(tokens) - tokens).norm(dim=2)
            maps.append(apart.unflatten(1, self.network.size))
        return torch.cat(maps)
