"""Where a defect is: regions of a map above a threshold, in pixels of the original image."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crad
import crad.evaluate
import crad.predict
from crad.png import is_own_png
from crad.scoring.calibration import Threshold, Thresholds
from crad.scoring.prediction import Prediction
from crad.scoring.regions import find_regions
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint

Command = Callable[..., int]


def prediction(
    scored_map: np.ndarray, size: tuple[int, int], threshold: float | None
) -> Prediction:
    return Prediction(
        score=1.0, scored_map=scored_map.astype(np.float32), size=size, pixel_threshold=threshold
    )


def test_regions_by_their_definition() -> None:
    values = np.zeros((20, 30), np.float32)
    values[2:5, 4:9] = 3
    values[3, 6] = 5  # the peak of the first
    values[10, 20] = values[11, 21] = 7  # connected at a corner
    values[11, 21] = 9
    second, first = find_regions(values, values > 2)
    assert (first.box, first.area) == ((4, 2, 9, 5), 15)
    assert (first.peak, first.peak_score, first.centroid) == ((6, 3), 5.0, (6.0, 3.0))
    assert (second.box, second.area) == ((20, 10, 22, 12), 2)
    assert (second.peak, second.peak_score, second.centroid) == ((21, 11), 9.0, (20.5, 10.5))
    assert find_regions(values, values > 9) == ()


def test_a_peak_lies_in_its_own_region() -> None:
    """The box of one may hold pixels of another."""
    values = np.zeros((9, 9), np.float32)
    values[0, :] = values[:, 0] = values[:, 8] = 1
    values[4, 4] = 2
    inner, outer = find_regions(values, values > 0)
    assert (inner.peak, inner.area) == ((4, 4), 1)
    assert outer.box == (0, 0, 9, 9)
    assert values[outer.peak[1], outer.peak[0]] == outer.peak_score == 1


@pytest.mark.parametrize("size", [(64, 64), (200, 100), (1024, 640), (32, 48)])
def test_places_are_those_of_the_original_image(size: tuple[int, int]) -> None:
    """A mark at known shares of height and width."""
    scored = np.zeros((64, 64))
    scored[16:24, 40:56] = 1
    found = prediction(scored, size, 0.5)
    assert found.anomaly_mask is not None
    assert found.anomaly_mask.shape == size
    assert found.regions is not None
    (region,) = found.regions
    expected = np.array(
        [40 / 64 * size[1], 16 / 64 * size[0], 56 / 64 * size[1], 24 / 64 * size[0]]
    )
    cell = max(1.0, *(side / 64 for side in size))
    assert np.abs(np.array(region.box) - expected).max() <= cell
    assert region.area == found.anomaly_mask.sum()
    assert region.area == pytest.approx(
        (expected[2] - expected[0]) * (expected[3] - expected[1]), rel=0.3
    )
    left, top, right, bottom = region.box
    assert left <= region.peak[0] < right
    assert top <= region.peak[1] < bottom
    assert region.peak_score == found.anomaly_map.max()
    middle = (expected[:2] + expected[2:]) / 2
    assert np.abs(np.array(region.centroid) + 0.5 - middle).max() <= cell


def test_without_a_threshold_nothing_is_known_and_below_it_nothing_is_marked() -> None:
    scored = np.ones((8, 8))
    assert prediction(scored, (8, 8), None).regions is None
    assert prediction(scored, (8, 8), None).anomaly_mask is None
    below = prediction(scored, (80, 80), 1.0)
    assert below.regions == ()
    assert below.anomaly_mask is not None
    assert below.anomaly_mask.shape == (80, 80)
    assert not below.anomaly_mask.any()


def test_the_threshold_is_that_of_normal_images(trained) -> None:
    """At most the stated share of them has any pixel above it."""
    stored = read_checkpoint(trained.output)
    assert {*stored.pixel_thresholds} == {"brick", "gauge"}
    detector = crad.load(trained.output, "cpu")
    for name, threshold in stored.pixel_thresholds.items():
        assert threshold.n_images == stored.thresholds[name].n_images
        normal = sorted((trained.data / name / "train" / "good").iterdir())
        peaks = [float(each.scored_map.max()) for each in detector.predict(normal)]
        assert min(abs(threshold.score - peak) for peak in peaks) < 1e-5 * threshold.score
    found = detector.predict(normal[0])[0]
    assert found.pixel_threshold == stored.pixel_thresholds["gauge"].score


def test_another_rate_gives_another_threshold() -> None:
    peaks = [float(each) for each in range(1, 100)]
    assert Threshold.from_scores(peaks, 0.1).score == 90
    assert Threshold.from_scores(peaks, 0.5).score == 50


def test_a_prediction_writes_regions_and_masks(trained, command: Command, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "out"
    stored = read_checkpoint(trained.output)
    low = Thresholds({name: Threshold(0.0, 2) for name in stored.pixel_thresholds})
    replace(stored, pixel_thresholds=low).save(run)
    image = trained.data / "brick" / "test" / "good" / "000.png"
    large = tmp_path / "brick" / "large.png"
    large.parent.mkdir()
    with Image.open(image) as opened:
        opened.resize((300, 200)).save(large)
    for _ in range(2):  # the second one replaces the first
        arguments = ["--checkpoint", str(run), "--output", str(output), str(large)]
        assert command(crad.predict.main, *arguments) == 0
    (row,) = json.loads((output / "scores.json").read_text())
    (region,) = row["regions"]  # the whole image
    assert region["box"] == [0, 0, 300, 200]
    assert region["area"] == 300 * 200
    assert {*region} == {"box", "area", "peak", "peak_score", "centroid"}
    with (output / "scores.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["regions"] == "0 0 300 200"
    with Image.open(output / "large_mask.png") as mask:
        assert (mask.size, np.asarray(mask).all()) == ((300, 200), True)
    assert is_own_png(output / "large_mask.png")
    Image.new("1", (8, 8)).save(output / "large_mask.png")
    assert command(crad.predict.main, *arguments) == 1


def test_a_checkpoint_without_pixel_thresholds_says_so(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = Path(__file__).parent / "checkpoints" / "version-3.safetensors"
    shutil.copy(older, tmp_path / CHECKPOINT_NAME)
    image = trained.data / "brick" / "test" / "good" / "000.png"
    output = tmp_path / "out"
    arguments = ["--checkpoint", str(tmp_path), "--output", str(output), str(image)]
    assert command(crad.predict.main, *arguments) == 0
    assert "no pixel thresholds" in capsys.readouterr().out
    assert json.loads((output / "scores.json").read_text())[0]["regions"] is None
    assert not [*output.glob("*_mask*")]
    assert crad.load(tmp_path, "cpu").predict(image)[0].regions is None


def test_an_evaluation_lists_regions(trained, command: Command, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path)]
    assert command(crad.evaluate.main, *arguments) == 0
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    detector = crad.load(trained.output, "cpu")
    for row in rows[:6]:
        (found,) = detector.predict(row["image"], batch_size=1)
        assert found.regions is not None
        boxes = [[*map(int, box.split())] for box in row["regions"].split("; ") if box]
        assert len(boxes) == len(found.regions)
        for box, region in zip(boxes, found.regions, strict=True):
            assert np.abs(np.array(box) - region.box).max() <= 1  # computed in another batch


def test_a_prediction_command_keeps_no_maps(trained, tmp_path: Path) -> None:
    """Of large images, they would fill the memory."""
    images = (trained.data / "brick" / "test",)
    options = crad.predict.PredictOptions(trained.output, images, output=tmp_path / "out")
    for found in crad.predict.predict(options):
        arrays = [each for each in vars(found).values() if isinstance(each, np.ndarray)]
        assert sum(each.size for each in arrays) == 0
