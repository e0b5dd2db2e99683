"""HVQ-Trans, written from the paper, on the features of crad.

Lu et al., "Hierarchical Vector Quantized Transformer for Multi-class Unsupervised Anomaly
Detection", NeurIPS 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.detectors.transformer import Transformer
from benchmarks.detectors.uniad import UniAD, map_size
from crad.training.features import Features

_SMALLEST = 1e-6  # deviation that features are divided by


@dataclass(frozen=True)
class HVQTrans(UniAD):
    """UniAD whose decoder only sees prototypes of normal tokens, of the class of the image.

    Each layer of the encoder has a quantiser of its own, which also gets what the one before it
    gave. Optimal transport between the tokens of an image and the prototypes keeps all prototypes
    in use, and its cost weights the score. The settings below are our choice; the others are those
    of `UniAD`.

    Attributes:
        prototypes: of each quantiser, for each class.
        commitment: weight of the distance of tokens from their prototypes in the loss.
        entropy: of the transport, relative to its cost.
        iterations: of Sinkhorn that find the transport.
    """

    prototypes: int = 512
    commitment: float = 0.25
    entropy: float = 0.1
    iterations: int = 10

    title: ClassVar[str] = "HVQ-Trans (ours)"

    def network(self, features: Features) -> "QuantisedTransformer":
        """The untrained network for the features of training images."""
        return QuantisedTransformer(self, features)


def nearest(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """The prototype ``(K, C)`` that is nearest to each token ``(B, P, C)``."""
    with torch.no_grad():
        numbers = torch.cdist(tokens.flatten(0, 1), prototypes).argmin(dim=1)
    return prototypes[numbers].view_as(tokens)


def straight_through(tokens: Tensor, chosen: Tensor) -> Tensor:
    """What was chosen, with gradients that pass to the tokens as if they were it."""
    return tokens + (chosen - tokens).detach()


def transport(costs: Tensor, entropy: float, iterations: int) -> Tensor:
    """The plan that moves equal masses of tokens to equal masses of prototypes, by Sinkhorn.

    Args:
        costs: ``(B, P, K)`` of moving each token to each prototype, at most 2.
        entropy: of the plan, relative to its cost; the larger, the less sharp it is.
        iterations: of Sinkhorn, at least 1.

    Returns:
        ``(B, P, K)``; all of an image is 1, and every token has the same part of it.
    """
    kernel = torch.exp(-costs / entropy)
    n_tokens, n_prototypes = costs.shape[1:]
    to_prototypes = kernel.new_full((len(costs), n_prototypes, 1), 1 / n_prototypes)
    for _ in range(iterations):
        of_tokens = 1 / (n_tokens * (kernel @ to_prototypes))
        to_prototypes = 1 / (n_prototypes * (kernel.mT @ of_tokens))
    of_tokens = 1 / (n_tokens * (kernel @ to_prototypes))
    return of_tokens * kernel * to_prototypes.mT


class Quantised(NamedTuple):
    """What quantisers make of images.

    Attributes:
        tokens: ``(B, P, C)``, of all layers ``(B, L, P, C)``.
        loss: ``(B,)`` that training brings down.
        cost: ``(B, P)`` of transport to the prototypes, in [0, 2].
    """

    tokens: Tensor
    loss: Tensor
    cost: Tensor


class Quantiser(nn.Module):
    """The prototypes of one class behind one layer, and the expert network before them."""

    def __init__(self, method: HVQTrans) -> None:
        super().__init__()
        self._method, channels = method, method.channels
        self.expert = nn.Sequential(nn.Linear(2 * channels, channels), nn.LayerNorm(channels))
        self.prototypes = nn.Parameter(torch.randn(method.prototypes, channels))

    def forward(self, encoded: Tensor, before: Tensor) -> Quantised:
        """Quantise what a layer encoded, given what the quantiser before gave."""
        method = self._method
        tokens = self.expert(torch.cat([encoded, before], dim=2))
        chosen = nearest(tokens, self.prototypes)
        costs = 1 - F.normalize(tokens, dim=2) @ F.normalize(self.prototypes, dim=1).T
        plan = transport(costs.detach(), method.entropy, method.iterations)
        cost = plan.shape[1] * (plan * costs).sum(dim=2)
        learning = (chosen - tokens.detach()).square().mean(dim=(1, 2))
        committing = (tokens - chosen.detach()).square().mean(dim=(1, 2))
        loss = learning + method.commitment * committing + cost.mean(dim=1)
        return Quantised(straight_through(tokens, chosen), loss, cost)


class Codebooks(nn.Module):
    """The quantisers of one class, in the order of the layers of the encoder."""

    def __init__(self, method: HVQTrans) -> None:
        super().__init__()
        self.quantisers = nn.ModuleList(Quantiser(method) for _ in range(method.layers))

    def forward(self, encoded: Tensor) -> Quantised:
        """Quantise ``(B, L, P, C)`` of all layers, to tokens of that shape."""
        before, found = torch.zeros_like(encoded[:, 0]), []
        for layer, quantiser in enumerate(self.quantisers):
            found.append(quantiser(encoded[:, layer], before))
            before = found[-1].tokens
        tokens, losses, costs = (torch.stack(each, dim=1) for each in zip(*found, strict=True))
        return Quantised(tokens, losses.sum(dim=1), costs.mean(dim=1))


class Classifier(nn.Module):
    """Tells the class of an image by the nearest mean, in deviations within classes.

    Args:
        pooled: ``(N, C)``, the mean feature of each training image.
        numbers: ``(N,)``, its class.
    """

    means: Tensor
    deviations: Tensor

    def __init__(self, pooled: Tensor, numbers: Tensor) -> None:
        super().__init__()
        means = torch.stack([pooled[numbers == number].mean(dim=0) for number in numbers.unique()])
        within = (pooled - means[numbers]).square().mean(dim=0).sqrt()
        self.register_buffer("means", means)
        self.register_buffer("deviations", within.clamp_min(_SMALLEST))

    def forward(self, tokens: Tensor) -> Tensor:
        """The numbers of the classes ``(B,)`` of images with tokens ``(B, P, C)``."""
        apart = (tokens.mean(dim=1)[:, None] - self.means) / self.deviations
        numbers: Tensor = apart.norm(dim=2).argmin(dim=1)
        return numbers


class QuantisedTransformer(Transformer):
    """Reconstructs tokens from the prototypes of the class of their image.

    Args:
        method: its settings.
        features: of the training images, with their classes.
    """

    def __init__(self, method: HVQTrans, features: Features) -> None:
        super().__init__(method, features.values.shape[3], map_size(features))
        self._classes = sorted({sample.class_name or "" for sample in features.samples})
        numbers = self._numbers([sample.class_name for sample in features.samples])
        self.classifier = Classifier(features.pooled(), numbers)
        self.codebooks = nn.ModuleList(Codebooks(method) for _ in self._classes)

    def _numbers(self, classes: Sequence[str | None]) -> Tensor:
        return torch.tensor([self._classes.index(name or "") for name in classes])

    def quantised(self, tokens: Tensor, numbers: Tensor) -> Quantised:
        """Encode tokens, and quantise each image with the codebooks of its class."""
        encoded = torch.stack(self.encode(tokens), dim=1)
        order, found = [], []
        for number in numbers.unique().tolist():
            rows = (numbers == number).nonzero()[:, 0]
            order.append(rows)
            found.append(self.codebooks[number](encoded[rows]))
        back = torch.cat(order).argsort()
        return Quantised(*(torch.cat(parts)[back] for parts in zip(*found, strict=True)))

    def reconstructed(self, quantised: Quantised) -> Tensor:
        """Tokens ``(B, P, C)`` by the decoder, whose first layer sees the last quantiser's."""
        return self.decode(quantised.tokens.flip(1).unbind(dim=1))

    def forward(self, tokens: Tensor) -> Tensor:
        """What the tokens would be in a normal image."""
        return self.reconstructed(self.quantised(tokens, self.classifier(tokens)))

    def loss(self, noisy: Tensor, tokens: Tensor, classes: Sequence[str | None]) -> Tensor:
        """The error of the reconstruction, and the losses of all quantisers."""
        quantised = self.quantised(noisy, self._numbers(classes).to(tokens.device))
        return F.mse_loss(self.reconstructed(quantised), tokens) + quantised.loss.mean()

    def scores(self, tokens: Tensor) -> Tensor:
        """Distance from the reconstruction, times the cost of transport to the prototypes."""
        quantised = self.quantised(tokens, self.classifier(tokens))
        apart: Tensor = (self.reconstructed(quantised) - tokens).norm(dim=2)
        return apart * quantised.cost
