"""Rivals that reconstruct features by a transformer: UniAD and HVQ-Trans."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.detectors.budget import Epochs
from benchmarks.detectors.hvq_trans import (
    Classifier,
    HVQTrans,
    QuantisedTransformer,
    Quantiser,
    nearest,
    straight_through,
    transport,
)
from benchmarks.detectors.inputs import SetInputs
from benchmarks.detectors.transformer import Transformer, neighbour_mask
from benchmarks.detectors.uniad import UniAD, jittered, tokens_of
from crad.config import Config
from crad.data.samples import Sample
from crad.training.features import Features
from tests.benchmarks.rivals import CPU
from tests.fixtures import one_thread

__all__ = ["one_thread"]

# ---- UniAD ----


def test_attention_leaves_out_the_neighbourhood() -> None:
    mask = neighbour_mask((14, 12), 7).view(14, 12, 14, 12)
    assert not mask[5, 5, 2:9, 2:9].any()
    assert mask[5, 5].sum() == 14 * 12 - 49
    for size in ((1, 1), (2, 2), (3, 3), (4, 4), (5, 9)):
        assert neighbour_mask(size, 7).any(dim=1).all()  # attention to nothing has no value


def test_no_output_of_a_layer_depends_on_the_neighbourhood_of_its_place() -> None:
    torch.manual_seed(0)
    network = Transformer(UniAD(channels=16, hidden=16, heads=2, layers=1), 6, (9, 9)).eval()
    tokens = torch.randn(1, 81, 6, requires_grad=True)
    decoded = network.decoder[0].to_encoded(
        torch.zeros(1, 81, 16), network.into(tokens), network.places, network.mask
    )
    (slope,) = torch.autograd.grad(decoded[0, 40].sum() + decoded[0, 40, 0], tokens)
    seen = slope[0].abs().sum(dim=1).view(9, 9) > 0
    assert not seen[1:8, 1:8].any()
    assert seen.sum() == 81 - 49


def test_the_noise_has_the_deviation_of_the_paper() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 400, 32)
    noise = jittered(tokens, 20.0) - tokens
    deviation = tokens.norm(dim=2) * 20 / 32
    assert float((noise / deviation[..., None]).std()) == pytest.approx(1, rel=0.02)


def features_of(*classes: str) -> Features:
    """Eight noisy maps in all, as many of each class."""
    generator = torch.Generator().manual_seed(1)
    each = 8 // len(classes)
    base = torch.randn(len(classes), 8, 8, 6, generator=generator).repeat_interleave(each, dim=0)
    values = base + 0.1 * torch.randn(8, 8, 8, 6, generator=generator)
    names = [name for name in classes for _ in range(each)]
    samples = [Sample(Path(str(row)), name) for row, name in enumerate(names)]
    return Features(values, samples)


SMALL: dict[str, Any] = {
    "channels": 32, "hidden": 32, "heads": 2, "layers": 1, "batch_size": 4, "learning_rate": 1e-3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("small", "classes"),
    [
        (UniAD(**SMALL), ("nut",)),
        (HVQTrans(**SMALL, prototypes=24), ("nut",)),
        (HVQTrans(**SMALL, prototypes=24), ("nut", "bolt")),
    ],
)
def test_a_transformer_learns_normal_features_and_a_seed_sets_all(
    small: UniAD, classes: tuple[str, ...]
) -> None:
    features = features_of(*classes)
    inputs = object.__new__(SetInputs)
    object.__setattr__(inputs, "train", features)
    short, longer, again = (
        replace(small, epochs=epochs).fit(inputs, Config(), CPU) for epochs in (1, 60, 60)
    )
    assert longer.epochs == Epochs(60, 60)
    maps = longer.maps(features)
    assert maps.shape == (len(features), 4, 4)
    assert maps.mean() < 0.6 * short.maps(features).mean()
    assert torch.equal(maps, again.maps(features))
    other = Features(features.values.flip(1), features.samples)
    assert longer.maps(other).mean() > 1.5 * maps.mean()


# ---- HVQ-Trans ----


def test_a_token_becomes_its_nearest_prototype_and_gradients_pass_through() -> None:
    torch.manual_seed(0)
    prototypes = torch.randn(5, 3, requires_grad=True)
    tokens = torch.randn(2, 4, 3, requires_grad=True)
    chosen = nearest(tokens, prototypes)
    for token, found in zip(tokens.flatten(0, 1), chosen.flatten(0, 1), strict=True):
        assert torch.equal(found, prototypes[(prototypes - token).norm(dim=1).argmin()])
    quantised = straight_through(tokens, chosen)
    torch.testing.assert_close(quantised, chosen)
    weights = torch.randn(2, 4, 3)
    by_tokens, by_prototypes = torch.autograd.grad(
        (weights * quantised).sum(), (tokens, prototypes), allow_unused=True
    )
    assert torch.equal(by_tokens, weights)
    assert by_prototypes is None or not by_prototypes.any()


def test_transport_uses_all_prototypes_and_costs_more_from_afar() -> None:
    torch.manual_seed(0)
    costs = 2 * torch.rand(2, 9, 4)
    costs[:, 0] = 2
    plan = transport(costs, 0.1, 200)
    torch.testing.assert_close(plan.sum(dim=2), torch.full((2, 9), 1 / 9))
    torch.testing.assert_close(plan.sum(dim=1), torch.full((2, 4), 1 / 4), rtol=1e-3, atol=0)
    cost = 9 * (plan * costs).sum(dim=2)
    assert (cost[:, 0] > cost[:, 1:].amax(dim=1)).all()


def test_a_quantiser_learns_where_tokens_are() -> None:
    torch.manual_seed(0)
    quantiser = Quantiser(HVQTrans(channels=8, prototypes=6))
    encoded, before = torch.randn(3, 10, 8), torch.zeros(3, 10, 8)
    optimizer = torch.optim.Adam(quantiser.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        found = quantiser(encoded, before)
        losses.append(float(found.loss.detach().mean()))
        optimizer.zero_grad()
        found.loss.mean().backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    assert found.tokens.shape == (3, 10, 8)
    assert found.cost.shape == (3, 10)
    assert not torch.equal(quantiser(encoded, before + 1).tokens, found.tokens)


def test_the_classifier_tells_classes_apart() -> None:
    pooled = torch.tensor([[0.0, 0], [0, 100], [1, 0], [1, 100]])
    classifier = Classifier(pooled, torch.tensor([0, 0, 1, 1]))
    images = torch.tensor([[0.1, 300], [0.9, -300]])
    assert classifier(images[:, None].repeat(1, 4, 1)).tolist() == [0, 1]
    alone = Classifier(pooled[:1], torch.tensor([0]))
    assert alone(images[:, None]).tolist() == [0, 0]


def test_no_class_uses_the_codes_of_another() -> None:
    torch.manual_seed(0)
    features = features_of("nut", "bolt")
    method = HVQTrans(channels=16, hidden=16, heads=2, layers=2, prototypes=8)
    network = QuantisedTransformer(method, features).eval()
    tokens = tokens_of(features.channels_first())
    assert network.classifier(tokens).tolist() == [1] * 4 + [0] * 4  # in the order of names
    network.loss(tokens[2:4], tokens[2:4], ["nut", "nut"]).backward()
    bolts, nuts = network.codebooks
    assert all(each.grad is None for each in bolts.parameters())
    assert all(each.grad is not None and each.grad.any() for each in nuts.parameters())
    with torch.no_grad():
        before = network.scores(tokens)
        mixed = network.scores(tokens[[5, 0, 7, 2]])
        torch.testing.assert_close(mixed, before[[5, 0, 7, 2]])
        for each in bolts.parameters():
            each.add_(torch.randn_like(each))
        after = network.scores(tokens)
    assert torch.equal(after[:4], before[:4])
    assert not torch.isclose(after[4:], before[4:]).all()


def test_the_decoder_sees_prototypes_only() -> None:
    torch.manual_seed(0)
    features = features_of("nut")
    method = HVQTrans(channels=16, hidden=16, heads=2, layers=2, prototypes=8)
    network = QuantisedTransformer(method, features).eval()
    with torch.no_grad():
        one, other = network(torch.randn(2, 16, 6)).unbind()
        assert not torch.allclose(one, other)
        for quantiser in network.codebooks[0].quantisers:
            quantiser.prototypes.copy_(quantiser.prototypes[:1].expand(8, -1))
        one, other = network(torch.randn(2, 16, 6)).unbind()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
