from pathlib import Path

import numpy as np
import pytest

from crad.data import Sample
from crad.metrics import ScoredImage, auroc, summarise


def by_counting(labels, scores):
    """The definition: how often an anomaly scores above a normal one, ties counting half."""
    labels, scores = np.asarray(labels, bool), np.asarray(scores)
    above = scores[labels][:, None] - scores[~labels][None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def scored(class_name, defect, score, anomaly_map=None, truth=None, name="0.png"):
    if anomaly_map is None:
        anomaly_map = np.zeros((4, 4), np.float32)
    return ScoredImage(
        Sample(Path(class_name, name), class_name, defect), score, anomaly_map, truth
    )


def test_auroc_is_exact():
    random = np.random.default_rng(0)
    labels = random.random(300) < 0.3
    scores = (random.integers(0, 40, 300) + 5 * labels).astype(np.float32)
    assert auroc(labels, scores) == pytest.approx(by_counting(labels, scores), abs=1e-12)
    # Scores that differ in the last bit only are still told apart.
    assert auroc([0, 1], np.array([1.0, np.nextafter(1.0, 2.0)])) == 1.0


def test_auroc_of_easy_cases():
    assert auroc([0, 0, 1, 1], [1, 2, 3, 4]) == 1.0
    assert auroc([0, 0, 1, 1], [1, 1, 1, 1]) == 0.5
    assert auroc([[0, 1], [0, 1]], [[0.5, 1], [2, 3]]) == 0.75


def test_an_auroc_below_one_half_is_not_flipped():
    assert auroc([0, 0, 1, 1], [4, 3, 2, 1]) == 0.0


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1], [1]])
def test_auroc_of_one_class_or_nothing_is_none(labels):
    assert auroc(labels, np.arange(len(labels))) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_auroc_refuses_scores_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        auroc([0, 1], [0.0, bad])
    with pytest.raises(ValueError, match="2 labels, but 3 scores"):
        auroc([0, 1], [0.0, 1.0, 2.0])


def test_classes_are_measured_apart_and_the_mean_is_over_them():
    images = [
        # Perfect within each class; pooled over both, it would not be.
        scored("low", "good", 1),
        scored("low", "crack", 2),
        scored("high", "good", 10),
        scored("high", "crack", 11),
        scored("high", "stain", 9),
    ]
    metrics = summarise(images, {"low": 40, "high": 7})
    assert list(metrics["classes"]) == ["low", "high"]
    assert metrics["classes"]["low"] == {
        "image_auroc": 1.0,
        "pixel_auroc": None,
        "n_train": 40,
        "n_test": 2,
    }
    assert metrics["classes"]["high"]["image_auroc"] == 0.5
    assert metrics["mean"] == {"image_auroc": 0.75, "pixel_auroc": None}


def test_pixels_are_those_whose_truth_is_known():
    random = np.random.default_rng(0)
    maps = random.random((3, 4, 4)).astype(np.float32)
    truth = random.random((4, 4)) < 0.4
    nothing = np.zeros((4, 4), bool)
    metrics = summarise(
        [
            scored("a", "good", 0, maps[0], nothing),
            scored("a", "crack", 1, maps[1], truth),
            scored("a", "crack", 1, 100 * maps[2], None),
        ],
        {"a": 1},
    )
    expected = by_counting([*nothing.flat, *truth.flat], [*maps[0].flat, *maps[1].flat])
    assert metrics["classes"]["a"]["pixel_auroc"] == pytest.approx(expected, abs=1e-12)
    assert metrics["classes"]["a"]["n_test"] == 3


def test_what_cannot_be_measured_is_none_and_not_in_the_mean():
    nothing = np.zeros((4, 4), bool)
    images = [
        scored("both", "good", 0),
        scored("both", "crack", 1),
        scored("only normal", "good", 0, truth=nothing),
        scored("only defects", "crack", 0),
    ]
    classes = {"both": 1, "only normal": 1, "only defects": 1, "no test images": 1}
    metrics = summarise(images, classes)
    for name in list(classes)[1:]:
        assert metrics["classes"][name]["image_auroc"] is None
        assert metrics["classes"][name]["pixel_auroc"] is None
    assert metrics["classes"]["no test images"]["n_test"] == 0
    assert metrics["mean"] == {"image_auroc": 1.0, "pixel_auroc": None}
    assert summarise([], {"a": 3})["mean"] == {"image_auroc": None, "pixel_auroc": None}


def test_the_image_at_fault_is_named():
    spoilt = np.zeros((4, 4), np.float32)
    spoilt[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"score of 'a/7\.png' is nan"):
        summarise([scored("a", "good", float("nan"), name="7.png")], {"a": 1})
    with pytest.raises(ValueError, match=r"map of 'a/8\.png' holds NaN"):
        summarise([scored("a", "good", 0, spoilt, name="8.png")], {"a": 1})
    with pytest.raises(ValueError, match=r"'a/9\.png' has shape \(4, 4\), but its truth \(5, 5\)"):
        summarise([scored("a", "good", 0, truth=np.zeros((5, 5), bool), name="9.png")], {"a": 1})
    with pytest.raises(KeyError):
        summarise([scored("a", "good", 0)], {"b": 1})
