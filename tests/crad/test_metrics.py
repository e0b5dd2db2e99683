"""Metrics by their definitions, beside scikit-learn and anomalib, on random and awkward inputs."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from crad.scoring import metrics
from crad.scoring.metrics import (
    FPR_LIMIT,
    METRIC_NAMES,
    better,
    measure_class,
    measure_ranking,
    summarise,
)
from crad.scoring.prediction import Prediction

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Maps:
    """Anomaly maps of a class (B, S, S), and the truth of each."""

    scores: np.ndarray
    truth: np.ndarray


def blobs(random, count, size, largest):
    """Masks with a few rectangles each, which may touch, or meet at a corner; the last has none."""
    truth = np.zeros((count, size, size), bool)
    for mask in truth[:-1]:
        for _ in range(random.integers(1, 5)):
            (y, x), (h, w) = random.integers(0, size, 2), random.integers(1, largest + 1, 2)
            mask[y : y + h, x : x + w] = True
    return truth


def cases() -> dict[str, Maps]:
    random = np.random.default_rng(0)
    truth = blobs(random, 6, 24, 8)
    noise = random.random(truth.shape, np.float32)
    found = {"random": Maps(noise, truth)}
    found["good"] = Maps(noise / 2 + np.float32(0.4) * truth, truth)
    found["perfect"] = Maps(noise / 2 + np.float32(0.5) * truth, truth)
    found["inverted"] = Maps(noise / 2 + np.float32(0.5) * ~truth, truth)
    found["ties"] = Maps(np.round(4 * found["good"].scores) / 4, truth)
    found["two values"] = Maps((noise > 0.6).astype(np.float32), truth)
    found["constant"] = Maps(np.full_like(noise, 0.25), truth)
    # No threshold lies between a false positive rate of 0.1 and one of 0.6.
    found["ties across the limit"] = Maps(np.where(noise < 0.6, 0.5, noise), truth)
    found["tiny regions"] = Maps(noise, random.random(truth.shape) < 0.02)
    found["last bit"] = Maps(1 - random.integers(0, 3, truth.shape) * np.float32(2**-24), truth)
    found["zeros of both signs"] = Maps(np.where(noise < 0.5, -0.0, 0.0), truth)
    whole = truth.copy()
    whole[0] = True
    found["a mask of the whole image"] = Maps(noise, whole)
    pixel = np.ones_like(truth)
    pixel[2, 3, 4] = False
    found["one normal pixel"] = Maps(noise, pixel)
    found["one anomalous pixel"] = Maps(noise, ~pixel)
    chessboard = np.indices(truth.shape).sum(axis=0) % 2 == 0  # one region: corners connect
    found["chessboard"] = Maps(noise, chessboard)
    return {name: Maps(m.scores.astype(np.float32), m.truth) for name, m in found.items()}


CASES = cases()


def scored(class_name, defect, score, anomaly_map=None, truth=None, name="0.png"):
    if anomaly_map is None:
        anomaly_map = np.zeros((4, 4), np.float32)
    return Prediction(
        path=Path(class_name, name),
        class_name=class_name,
        defect=defect,
        score=score,
        scored_map=anomaly_map,
        truth=truth,
    )


def measure(images, n_train=1):
    images = list(images)
    return measure_class(iter(images), n_train=n_train, n_test=len(images))


def measure_pixels(maps: Maps) -> dict[str, float]:
    """The pixel metrics of a class whose images are those of a case."""
    images = (
        scored("a", "crack" if truth.any() else "good", 0, scores, truth)
        for scores, truth in zip(maps.scores, maps.truth, strict=True)
    )
    measured = measure(images)
    return {name: measured[f"pixel_{name}"] for name in ("auroc", "ap", "f1_max", "aupro")}


def regions(mask):
    """The connected parts of a mask, corners included, as lists of pixels: by flood fill."""
    left = set(zip(*np.nonzero(mask), strict=True))
    while left:
        region = [left.pop()]
        for y, x in region:  # which grows while it is gone through
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            region += around
        yield region


def by_definition(maps: Maps) -> dict[str, float]:
    """All metrics, threshold by threshold."""
    normal, anomalous = maps.scores[~maps.truth], maps.scores[maps.truth]
    parts = [
        np.array([scores[pixel] for pixel in region])
        for scores, mask in zip(maps.scores, maps.truth, strict=True)
        for region in regions(mask)
    ]
    curve = [(0.0, 0.0, 1.0, 0.0)]  # false positive rate, recall, precision, overlap
    for threshold in np.unique(maps.scores)[::-1]:
        true, false = (anomalous >= threshold).sum(), (normal >= threshold).sum()
        overlap = np.mean([(part >= threshold).mean() for part in parts])
        curve.append((false / normal.size, true / anomalous.size, true / (true + false), overlap))
    fpr, recall, precision, overlap = map(np.array, zip(*curve, strict=True))
    below = fpr < FPR_LIMIT
    # Where a curve is steep, the last of the points at a rate is the one that it goes on from.
    steps = np.nonzero(fpr >= FPR_LIMIT)[0][0]
    share = (FPR_LIMIT - fpr[steps - 1]) / (fpr[steps] - fpr[steps - 1])
    at_limit = overlap[steps - 1] + share * (overlap[steps] - overlap[steps - 1])
    return {
        "auroc": np.trapezoid(recall, fpr),
        "ap": np.sum(np.diff(recall) * precision[1:]),
        "f1_max": np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)),
        "aupro": np.trapezoid([*overlap[below], at_limit], [*fpr[below], FPR_LIMIT]) / FPR_LIMIT,
    }


@pytest.mark.parametrize("case", CASES)
def test_metrics_are_their_definitions(case: str) -> None:
    assert measure_pixels(CASES[case]) == pytest.approx(by_definition(CASES[case]), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_metrics_of_random_maps_are_their_definitions(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, size, levels = random.integers((2, 3, 1), (5, 16, 30))
    truth = blobs(random, count, size, size // 2)
    scores = random.integers(0, levels, truth.shape) + levels / 3 * truth * random.random()
    maps = Maps(scores.astype(np.float32), truth)
    assert measure_pixels(maps) == pytest.approx(by_definition(maps), abs=1e-12)


@pytest.mark.parametrize("case", ["good", "ties", "inverted"])
def test_only_the_order_of_scores_counts(case: str) -> None:
    scores, truth = CASES[case].scores, CASES[case].truth
    scores = np.round(scores * 2**20) / np.float32(2**20)  # what follows is exact
    expected = measure_pixels(Maps(scores, truth))
    for other in (scores - 1, scores * np.float32(2.0**120), scores * np.float32(2.0**-120)):
        assert measure_pixels(Maps(other, truth)) == expected


@pytest.mark.parametrize("case", CASES)
def test_metrics_agree_with_scikit_learn(case: str) -> None:
    truth, scores = CASES[case].truth.ravel(), CASES[case].scores.ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    found = measure_pixels(CASES[case])
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found["ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert found["f1_max"] == pytest.approx(f1.max(), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_metrics_agree_with_anomalib(case: str) -> None:
    # All scores are in [0, 1], as it takes others for logits in AUROC. It computes in float32.
    anomalib = pytest.importorskip("anomalib.metrics", reason="needs pip install 'crad[test]'")
    from anomalib.data import ImageBatch

    maps = CASES[case]
    batch = ImageBatch(
        image=torch.zeros(len(maps.scores), 3, 1, 1),
        anomaly_map=torch.from_numpy(maps.scores),
        gt_mask=torch.from_numpy(maps.truth),
    )
    expected = {}
    for name, metric in (
        ("auroc", anomalib.AUROC), ("ap", anomalib.AUPR), ("f1_max", anomalib.F1Max),
        ("aupro", anomalib.AUPRO),
    ):  # fmt: skip
        judge = metric(fields=["anomaly_map", "gt_mask"])
        judge.update(batch)
        expected[name] = judge.compute().item()
    found = measure_pixels(maps)
    # For AUPRO alone, anomalib takes a mask without a normal pixel for one without a defect.
    whole = maps.truth.all(axis=(1, 2), keepdims=True)
    found["aupro"] = measure_pixels(Maps(maps.scores, maps.truth & ~whole))["aupro"]
    assert found == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_pixels_looked_up_at_once_change_nothing(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    for case in ("good", "ties", "constant"):
        assert measure_pixels(CASES[case]) == pytest.approx(by_definition(CASES[case]), abs=1e-12)


def rounded(maps: Maps) -> Maps:
    """With as many bits of the scores as their bins have."""
    bits = (maps.scores + np.float32(0)).view(np.int32)
    return Maps((bits & ~0x3FF).view(np.float32), maps.truth)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("case", CASES)
def test_scores_of_very_many_pixels_are_counted_in_bins(
    case: str, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which changes nothing where all scores of a bin are equal."""
    maps = rounded(Maps(sign * CASES[case].scores, CASES[case].truth))
    expected = measure_pixels(maps)
    monkeypatch.setattr(metrics, "MOST_PIXELS", 0)
    assert measure_pixels(maps) == pytest.approx(expected, abs=1e-12)
    unrounded = measure_pixels(Maps(sign * CASES["random"].scores, CASES["random"].truth))
    monkeypatch.undo()
    exact = measure_pixels(Maps(sign * CASES["random"].scores, CASES["random"].truth))
    assert unrounded == pytest.approx(exact, abs=1e-3)


def test_counting_begins_with_the_map_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)

    def images() -> Iterator[Prediction]:
        for size in (8, 4, 24, 8):
            scores = random.random((size, size), np.float32)
            truth = random.random((size, size)) < 0.3
            yield scored("a", "crack", 0, rounded(Maps(scores, truth)).scores, truth)

    given = list(images())
    expected = measure(given)
    monkeypatch.setattr(metrics, "MOST_PIXELS", 4 * 8 * 8)
    assert measure(given) == pytest.approx(expected, abs=1e-12)


def test_memory_of_counted_pixels_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_PIXELS", 0)
    size = 512
    truth = np.zeros((size, size), bool)
    truth[:8, :8] = True
    random = np.random.default_rng(0)

    def peak(count: int) -> int:
        images = (
            scored("a", "crack", 0, random.random((size, size), np.float32), truth)
            for _ in range(count)
        )
        tracemalloc.start()
        try:
            measure_class(images, n_train=1, n_test=count)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(40) < peak(4) + 2**20


def test_easy_cases():
    def auroc(anomalous, normal):
        return measure_ranking(np.array(anomalous, float), np.array(normal, float)).auroc

    assert measure_ranking(np.array([3.0, 4]), np.array([1.0, 2])) == (1.0, 1.0, 1.0, None)
    assert auroc([1, 1], [1, 1]) == 0.5
    assert auroc([1, 3], [0.5, 2]) == 0.75
    assert auroc([1, 2], [3, 4]) == 0.0  # not flipped
    # Scores that differ in the last bit only are still told apart.
    assert auroc([np.nextafter(1.0, 2.0)], [1.0]) == 1.0


@pytest.mark.parametrize(("n_anomalous", "n_normal"), [(0, 0), (0, 2), (2, 0)])
def test_one_kind_or_nothing_is_not_measured(n_anomalous: int, n_normal: int) -> None:
    assert measure_ranking(np.arange(n_anomalous), np.arange(n_normal)) is None


def test_images_are_ranked_by_their_scores():
    random = np.random.default_rng(1)
    labels = random.random(200) < 0.3
    scores = random.integers(0, 40, 200) + 5 * labels
    measured = measure(
        scored("a", "crack" if label else "good", float(score))
        for label, score in zip(labels, scores, strict=True)
    )
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / (precision + recall)
    assert measured["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert measured["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert measured["image_f1_max"] == pytest.approx(f1.max(), abs=1e-12)
    assert measured["n_test"] == 200


def test_the_mean_is_over_classes():
    low = [scored("low", "good", 1), scored("low", "crack", 2)]
    # Perfect within the first class; pooled over both, it would not be.
    high = [scored("high", "good", 10), scored("high", "crack", 11), scored("high", "stain", 9)]
    summary = summarise({"low": measure(low, n_train=40), "high": measure(high, n_train=7)})
    assert list(summary["classes"]) == ["low", "high"]
    unknown = dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro"))
    assert summary["classes"]["low"] == {
        **dict.fromkeys(("image_auroc", "image_ap", "image_f1_max"), 1.0),
        **unknown,
        "n_train": 40,
        "n_test": 2,
    }
    assert summary["classes"]["high"]["image_auroc"] == 0.5
    assert summary["mean"] == pytest.approx(
        {"image_auroc": 0.75, "image_ap": (1 + 5 / 6) / 2, "image_f1_max": 0.9, **unknown}
    )


def test_pixels_are_those_whose_truth_is_known():
    random = np.random.default_rng(0)
    maps = random.random((3, 4, 4), np.float32)
    truth = np.stack([np.zeros((4, 4), bool), random.random((4, 4)) < 0.4])
    measured = measure(
        [
            scored("a", "good", 0, maps[0], truth[0]),
            scored("a", "crack", 1, maps[1], truth[1]),
            scored("a", "crack", 1, 100 * maps[2], None),
        ]
    )
    expected = by_definition(Maps(maps[:2], truth))
    assert {name: measured[f"pixel_{name}"] for name in expected} == pytest.approx(expected)
    assert measured["n_test"] == 3


@pytest.mark.parametrize(
    "truth",
    [None, np.zeros((4, 4), bool), np.ones((4, 4), bool)],
    ids=["no masks", "empty masks", "nothing but defects"],
)
def test_pixels_of_one_kind_are_not_measured(truth: np.ndarray | None) -> None:
    measured = measure([scored("a", "crack", 1, truth=truth), scored("a", "good", 0)])
    assert measured["image_auroc"] == 1.0
    assert all(measured[name] is None for name in METRIC_NAMES if name.startswith("pixel"))


def test_what_cannot_be_measured_is_none_and_not_in_the_mean():
    nothing = np.zeros((4, 4), bool)
    classes = {
        "both": measure([scored("both", "good", 0), scored("both", "crack", 1)]),
        "only normal": measure([scored("only normal", "good", 0, truth=nothing)]),
        "only defects": measure([scored("only defects", "crack", 0)]),
        "no test images": measure([]),
    }
    for name in list(classes)[1:]:
        assert all(classes[name][metric] is None for metric in METRIC_NAMES)
    assert classes["no test images"]["n_test"] == 0
    summary = summarise(classes)
    assert summary["mean"]["image_auroc"] == 1.0
    assert summary["mean"]["pixel_auroc"] is None
    assert set(summarise({"a": classes["no test images"]})["mean"].values()) == {None}


def test_the_image_at_fault_is_named():
    spoilt = np.zeros((4, 4), np.float32)
    spoilt[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"score of 'a/7\.png' is nan"):
        measure([scored("a", "good", float("nan"), name="7.png")])
    with pytest.raises(ValueError, match=r"map of 'a/8\.png' holds NaN"):
        measure([scored("a", "good", 0, spoilt, name="8.png")])
    with pytest.raises(ValueError, match=r"'a/9\.png' has shape \(4, 4\), but its truth \(5, 5\)"):
        measure([scored("a", "good", 0, truth=np.zeros((5, 5), bool), name="9.png")])


def test_maps_are_left_alone():
    maps = CASES["good"]
    before = maps.scores.copy()
    measure_pixels(maps)
    np.testing.assert_array_equal(maps.scores, before)


def test_memory_is_bounded_by_the_pixels(monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", 2**12)
    count, size = 100, 224
    random = np.random.default_rng(0)

    def images() -> Iterator[Prediction]:
        for index in range(count):
            truth = np.zeros((size, size), bool)
            truth[:70, :70] = index % 2  # a tenth of each second image
            anomaly_map = random.random((size, size), np.float32)
            yield scored("a", "crack" if index % 2 else "good", 0, anomaly_map, truth)

    tracemalloc.start()
    try:
        measure_class(images(), n_train=1, n_test=count)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Room for every pixel to be normal or anomalous, 4 + 4 bytes, and 8 more for anomalous ones.
    assert peak < (8 + 0.05 * 8) * count * size**2 + 3_000_000


def test_the_better_epoch():
    def epoch(number, image, pixel=None):
        return {
            "epoch": number,
            "classes": {},
            "mean": {"image_auroc": image, "pixel_auroc": pixel},
        }

    first = epoch(1, 0.8, 0.7)
    assert better(None, first) is first
    for other in (epoch(2, 0.7, 0.9), epoch(2, 0.8, 0.7), epoch(2, 0.8), epoch(2, None)):
        assert better(first, other) is first
    for other in (epoch(2, 0.9), epoch(2, 0.8, 0.71)):
        assert better(first, other) is other
