"""UniAD, written from the paper, on the features of crad.

You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.detectors import budget
from benchmarks.detectors.budget import Epochs
from benchmarks.detectors.inputs import SetInputs
from benchmarks.detectors.order import batches
from benchmarks.detectors.transformer import Sizes, Transformer
from crad.config import Config
from crad.data.sources import BATCH_SIZE
from crad.training.features import Features

_POOL = 2  # from stride 8 to stride 16, at which the paper reconstructs


@dataclass(frozen=True)
class UniAD(Sizes):
    """A transformer that reconstructs noisy features, and sees no position's own neighbourhood.

    All settings are the paper's. Its features are of four stages, brought to stride 16; here they
    are those of the comparison, brought there by means over 2 x 2 positions.

    Attributes:
        jitter: scale of the noise on the features in training.
        epochs: of training, the last fifth of them at a tenth of the learning rate.
        batch_size: of training.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    jitter: float = 20.0
    epochs: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4

    title: ClassVar[str] = "UniAD (ours)"
    takes_images: ClassVar[bool] = False

    def settings(self, config: Config) -> dict[str, Any]:
        """The attributes, and the time that training may take."""
        return {**asdict(self), "minutes": config.training.minutes}

    def network(self, features: Features) -> Transformer:
        """The untrained network for the features of training images."""
        return Transformer(self, features.values.shape[3], map_size(features))

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
        self.network = method.network(features).to(device)
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
        rows = next(self._rows)
        tokens = tokens_of(self._features.batch(rows, self._device))
        classes = [self._features.samples[row].class_name for row in rows.tolist()]
        loss = self.network.loss(jittered(tokens, self._method.jitter), tokens, classes)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def map_size(features: Features) -> tuple[int, int]:
    """Height and width of the map that the tokens of features are of."""
    height, width = features.values.shape[1:3]
    return (height // _POOL, width // _POOL) if min(height, width) >= _POOL else (height, width)


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


@dataclass(frozen=True)
class Reconstruction:
    """A trained `UniAD`, or a method that is made from it."""

    network: Transformer
    device: torch.device
    epochs: Epochs

    @property
    def n_bytes(self) -> int:
        """Size of the transformer."""
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())

    @torch.no_grad()
    def maps(self, features: Features) -> Tensor:
        """How far each feature is from normal."""
        maps = []
        for rows in torch.arange(len(features)).split(BATCH_SIZE):
            tokens = tokens_of(features.batch(rows, self.device))
            maps.append(self.network.scores(tokens).unflatten(1, self.network.size))
        return torch.cat(maps)
