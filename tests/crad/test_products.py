"""Which product an image shows: recognised alike for paths and arrays, unknown where it is none."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import crad
import crad.predict
from crad.errors import CheckpointError
from crad.model.products import UNKNOWN, Products
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint

Command = Callable[..., int]


def clouds(count: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled features of three classes with a common, skewed covariance."""
    random = np.random.default_rng(seed)
    centres = np.array([[0, 0, 0, 0], [2, 0, 0, 0], [-2, 0, 8, 0]])
    mixing = np.array([[5, 5, 0, 0], [0, 0.2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]])
    classes = np.repeat(np.arange(3), count)
    pooled = centres[classes] + random.normal(size=(3 * count, 4)) @ mixing
    return torch.from_numpy(pooled).float(), torch.from_numpy(classes)


def as_features(pooled: torch.Tensor) -> torch.Tensor:
    """Features whose mean over positions is given."""
    noise = torch.randn(*pooled.shape, 3, 5)
    return pooled[:, :, None, None] + noise - noise.mean(dim=(2, 3), keepdim=True)


def test_a_class_is_told_where_the_covariance_hides_it_from_the_euclidean_distance() -> None:
    pooled, classes = clouds(60)
    new, truth = clouds(200, seed=1)
    products = Products.fit(pooled, classes)
    found = products(as_features(new))
    assert (found == truth).float().mean() > 0.99
    means = torch.stack([pooled[classes == index].mean(dim=0) for index in range(3)])
    nearest = torch.cdist(new, means).argmin(dim=1)
    assert (nearest == truth).float().mean() < 0.9


@pytest.mark.parametrize("count", [3, 10, 100])
def test_normal_images_are_known_and_strange_ones_are_not(count: int) -> None:
    known = []
    for seed in range(20):
        products = Products.fit(*clouds(count, seed=seed))
        known.append(products(as_features(clouds(100, seed=100 + seed)[0])) != UNKNOWN)
        far = torch.tensor([[0.0, 0, -40, 0], [0, 60, 0, 0], [0, 0, 0, 80]])
        assert count < 10 or (products(as_features(far)) == UNKNOWN).all()
    assert torch.cat(known).float().mean() > 0.995


def test_the_limit_is_of_images_that_were_left_out() -> None:
    """In closed form, for any shrinkage: with and without the image, the rest is the same."""
    pooled, classes = clouds(5)
    products = Products.fit(pooled, classes)
    distance = []
    for left_out in range(5):  # of the first class
        rest = torch.arange(15) != left_out
        again = Products.fit(pooled[rest], classes[rest])
        distance.append(float(((pooled[left_out] - again.means[0]) @ again.whitening).norm()))
    by_hand = 2.5 * (1 + 3 / 8**0.5) * float(torch.tensor(distance).quantile(0.95))
    assert float(products.limits[0]) == pytest.approx(by_hand, rel=0.25)  # but for the shrinkage


@pytest.mark.parametrize("kind", ["constant", "one image", "more channels than images"])
def test_images_that_hardly_tell_a_covariance(kind: str) -> None:
    classes = torch.arange(3).repeat_interleave(1 if kind == "one image" else 4)
    channels = 50 if kind == "more channels than images" else 4
    pooled = classes[:, None].float().expand(-1, channels)
    if kind != "constant":
        pooled = pooled + 0.01 * torch.randn(pooled.shape, generator=torch.manual_seed(0))
    products = Products.fit(pooled, classes)
    assert all(buffer.isfinite().all() for buffer in products.buffers())
    assert products(as_features(pooled)).tolist() == classes.tolist() or kind == "constant"


def test_paths_and_arrays_are_decided_alike(trained) -> None:
    detector = crad.load(trained.output, device="cpu")
    paths = sorted(path for path in trained.data.glob("*/test/*/*.png"))
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    by_path, by_array = detector.predict(paths), detector.predict(arrays)
    for path, one, other in zip(paths, by_path, by_array, strict=True):
        assert one.class_name in (path.parts[-4], None)
        assert (one.class_name, one.decision, one.p_value, one.threshold) == (
            other.class_name, other.decision, other.p_value, other.threshold,
        )  # fmt: skip
    assert all(one.class_name for one in by_path if one.path and "good" in one.path.parts)


def test_the_name_of_a_folder_is_checked_and_a_contradiction_is_said(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "gauge"
    shutil.copytree(trained.data / "brick" / "test" / "good", wrong)
    right = trained.data / "gauge" / "test" / "good"
    arguments = ["--checkpoint", str(trained.output), "--json", str(tmp_path / "s.json")]
    assert command(crad.predict.main, *arguments, str(wrong), str(right)) == 0
    entries = json.loads((tmp_path / "s.json").read_text())
    assert [entry["class_name"] for entry in entries] == ["brick"] * 3 + ["gauge"] * 3
    told = [line for line in capsys.readouterr().out.splitlines() if "another class" in line]
    assert told == [told[0]]
    for part in ("3 of 6", "3 in gauge as brick", "--class NAME"):
        assert part in told[0]
    assert command(crad.predict.main, *arguments, str(wrong), "--class", "gauge") == 0
    entries = json.loads((tmp_path / "s.json").read_text())
    assert {entry["class_name"] for entry in entries} == {"gauge"}
    assert "another class" not in capsys.readouterr().out


def test_an_unknown_product_has_no_decision_and_is_counted(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = read_checkpoint(trained.output)
    limits = torch.zeros_like(checkpoint.products["limits"])  # every image is too far away
    strict = replace(checkpoint, products=checkpoint.products | {"limits": limits})
    strict.write(tmp_path / CHECKPOINT_NAME)
    image = next((trained.data / "brick" / "test" / "good").iterdir())
    (found,) = crad.load(tmp_path).predict(image)
    assert (found.is_unknown, found.decision, found.is_defective) == (True, "unknown", None)
    assert (found.class_name, found.threshold, found.p_value) == (None, None, None)
    (named,) = crad.load(tmp_path).predict(image, class_name="brick")
    assert named.decision in ("good", "defect")
    arguments = ["--checkpoint", str(tmp_path), "--json", str(tmp_path / "s.json"), str(image)]
    assert command(crad.predict.main, *arguments) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[1:3] == ["-", "unknown"]
    assert "1 of 1 images: unknown product" in out
    assert "1 in brick as unknown" in out
    (entry,) = json.loads((tmp_path / "s.json").read_text())
    assert (entry["decision"], entry["threshold"], entry["p_value"]) == ("unknown", None, None)


def test_a_model_of_one_class_recognises_nothing(trained, train_command, tmp_path: Path) -> None:
    assert train_command(trained.data, tmp_path, "--classes", "brick", "--epochs", "1") == 0
    assert read_checkpoint(tmp_path).products == {}
    detector = crad.load(tmp_path)
    assert detector.products is None
    path = next((trained.data / "gauge" / "test" / "good").iterdir())
    for image in (path, np.asarray(Image.open(path))):
        (prediction,) = detector.predict(image)
        assert not prediction.is_unknown
        assert prediction.class_name == "brick"
        assert prediction.threshold == detector.thresholds["brick"].score


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("means", torch.zeros(3, 16), "means"),
        ("whitening", torch.zeros(2, 2), "whitening"),
        ("limits", torch.full((2,), torch.nan), "finite"),
    ],
)
def test_classes_of_another_model(
    trained, tmp_path: Path, name: str, value: torch.Tensor, told: str
) -> None:
    checkpoint = read_checkpoint(trained.output)
    other = replace(checkpoint, products=checkpoint.products | {name: value})
    other.write(tmp_path / CHECKPOINT_NAME)
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT_NAME}.*{told}"):
        crad.load(tmp_path)
