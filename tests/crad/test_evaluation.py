"""Test images under several protocols: what is read, made and kept of them."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import crad.data.samples
from crad.data import find_dataset
from crad.data.bad_images import BadImages
from crad.errors import ImageError
from crad.scoring.evaluation import Evaluation, Truths
from crad.scoring.protocols import PROTOCOLS

SIZE = 64


def test_a_mask_is_read_once_for_each_size_and_rule(demo_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(demo_root, tmp_path / "data")
    truths = Truths(SIZE, BadImages(skip=False))
    samples = find_dataset(root).test

    def check(*names: str) -> None:
        for name, sample in itertools.product(names, samples):
            truth = truths(sample, PROTOCOLS[name])
            assert truth is not None
            assert truth.shape == (PROTOCOLS[name].map_size(SIZE),) * 2
            assert truth.any() == sample.is_anomaly
            if not sample.mask or sample.mask.exists():
                size, resize = PROTOCOLS[name].map_size(SIZE), PROTOCOLS[name].mask_resize
                assert np.array_equal(truth, sample.read_truth(size, resize))

    check("crad", "ader", "dinomaly", "inside")  # 64 nearest, 256 bilinear, 256 nearest, 64 any
    for name in ("brick", "gauge"):
        shutil.rmtree(root / name / "ground_truth")
    check(*PROTOCOLS)


def test_a_bad_mask_is_an_error_or_not_known(tmp_path: Path, demo_root: Path) -> None:
    sample = next(each for each in find_dataset(demo_root).test if each.is_anomaly)
    bad = crad.data.Sample(sample.path, sample.class_name, sample.defect, tmp_path / "none.png")
    with pytest.raises(ImageError, match=r"none\.png"):
        Truths(SIZE, BadImages(skip=False))(bad, PROTOCOLS["crad"])
    skipping = BadImages(skip=True)
    truths = Truths(SIZE, skipping)
    assert [truths(bad, protocol) for protocol in PROTOCOLS.values()] == [None] * len(PROTOCOLS)
    assert (skipping.note() or "").startswith("1 mask ")


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_images_are_scored_class_by_class(demo_root: Path, protocol) -> None:
    samples = find_dataset(demo_root).test[::-1]  # in any order
    maps = torch.rand(len(samples), 8, 8)
    evaluation = Evaluation(
        samples, {"brick": 6, "gauge": 6, "new": 0}, Truths(SIZE, BadImages(skip=False))
    )
    expected_maps, expected_scores = protocol.score(maps, SIZE)
    found = {name: list(images) for name, images in evaluation.predictions(maps, protocol)}
    assert [*found] == ["brick", "gauge", "new"]
    assert found["new"] == []
    for name in ("brick", "gauge"):
        members = [index for index, sample in enumerate(samples) if sample.class_name == name]
        images = found[name]
        assert [image.path for image in images] == [samples[index].path for index in members]
        for image, index in zip(images, members, strict=True):
            np.testing.assert_allclose(image.scored_map, expected_maps[index], rtol=1e-6)
            assert image.score == pytest.approx(expected_scores[index].item(), rel=1e-6)
            assert image.truth is not None
            assert image.truth.shape == image.scored_map.shape
    metrics = evaluation.measure(maps, protocol)
    assert [entry["n_test"] for entry in metrics["classes"].values()] == [6, 6, 0]
