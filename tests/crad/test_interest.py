"""Regions of interest: what lies outside counts for no score, threshold or region."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

import crad
import crad.evaluate
import crad.predict
from crad.data.decoding import DEFAULT_DECODING
from crad.data.frames import Frame
from crad.data.samples import Sample
from crad.errors import DataError
from crad.scoring.interest import Interest, read_interest
from crad.scoring.prediction import Prediction
from crad.scoring.protocols import PROTOCOLS
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint

Command = Callable[..., int]


def left_half(path: Path, size: tuple[int, int] = (40, 40)) -> Path:
    """A mask that is white on the left."""
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def test_what_lies_outside_adds_nothing_to_a_score() -> None:
    frame = Frame(64, 64)
    mask = np.zeros((64, 64), np.bool_)
    mask[:, :32] = True
    interest = Interest({"a": mask}, frame)
    maps = torch.rand(3, 8, 8)
    marked = maps.clone()
    marked[:, 2:4, 5:7] += 9  # outside
    samples, names = [Sample(size=(64, 64))] * 3, ["a", "b", None]
    before, after = (interest.apply(each, samples, names) for each in (maps, marked))
    protocol = PROTOCOLS["inside"]
    scores = [protocol.score(each, frame)[1] for each in (before, after)]
    assert scores[0][0] == scores[1][0]
    assert (scores[1] > scores[0] + 0.1).tolist() == [False, True, True]
    inside = maps.clone()
    inside[:, 2:4, 1:3] += 9
    assert protocol.score(interest.apply(inside, samples, names), frame)[1][0] > scores[0][0] + 0.1
    torch.testing.assert_close(before[0, :, :4], maps[0, :, :4])
    torch.testing.assert_close(before[0, :, 4:], maps[0, :, :4].median().expand(8, 4))
    assert maps is not before
    assert Interest().apply(maps, samples, names) is maps


def test_a_cell_that_counts_in_part_keeps_that_part() -> None:
    mask = np.ones((16, 16), np.bool_)
    mask[:8, :2] = False  # a quarter of the first cell
    found = Interest({"a": mask}, Frame(16, 16)).apply(
        torch.tensor([[[5.0, 1.0], [1.0, 1.0]]]), [Sample(size=(16, 16))], ["a"]
    )
    assert found[0, 0, 0] == pytest.approx(1 + 0.75 * 4)


def test_a_mask_covers_the_image_and_not_the_padding() -> None:
    frame = Frame(64, 64, 8)
    mask = np.zeros((64, 64), np.bool_)
    mask[:, 32:] = True
    maps = torch.arange(64.0).reshape(1, 8, 8)
    found = Interest({"a": mask}, frame).apply(maps, [Sample(size=(32, 64))], ["a"])
    changed = found[0] != maps[0]
    assert changed[:4, :4].sum() >= 15  # one may be the median
    assert not changed[:4, 4:].any()
    assert not changed[4:].any()  # padding


def test_nothing_outside_is_marked() -> None:
    found = Prediction(
        score=1.0,
        scored_map=np.ones((8, 8), np.float32),
        size=(100, 200),
        pixel_threshold=0.5,
        interest=np.arange(16)[None].repeat(16, 0) < 8,
    )
    assert found.anomaly_mask is not None
    assert found.regions is not None
    assert [region.box for region in found.regions] == [(0, 0, 100, 100)]


def test_masks_of_both_kinds(tmp_path: Path) -> None:
    roi = left_half(tmp_path / "roi" / "a.png").parent
    everywhere = np.zeros((40, 40), np.uint8)
    everywhere[:20] = 255
    Image.fromarray(everywhere).save(tmp_path / "ignore.png")
    frame = Frame(32, 32)
    found = read_interest(roi, tmp_path / "ignore.png", ("a", "b"), frame, DEFAULT_DECODING)
    expected = np.zeros((32, 32), np.bool_)
    expected[16:, :16] = True
    np.testing.assert_array_equal(found.of("a"), expected)
    np.testing.assert_array_equal(found.of("b"), np.arange(32)[:, None].repeat(32, 1) >= 16)
    assert found.note() == "of the images counts: a 25%, b 50%"
    again = Interest.from_state(found.state(["a", "b"]), ["a", "b"], frame)
    np.testing.assert_array_equal(again.of("a"), expected)
    only = read_interest(roi, None, ("a", "b"), frame, DEFAULT_DECODING)
    again = Interest.from_state(only.state(["a", "b"]), ["a", "b"], frame)
    assert only.note() == again.note() == "of the images counts: a 50%"
    with pytest.raises(ValueError, match="shape"):
        Interest.from_state(found.state(["a", "b"]), ["a"], frame)


def test_masks_that_are_refused(tmp_path: Path) -> None:
    frame = Frame(32, 32)
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    (tmp_path / "empty").mkdir()
    for suffix in ("png", "bmp"):
        left_half(tmp_path / "two" / f"a.{suffix}")
    for roi, ignored, message in (
        (tmp_path / "none.png", None, r"--roi: there is no file or folder '.*none\.png'"),
        (None, tmp_path / "empty", r"--ignore: no image in '.*empty' is named like.*a\.png"),
        (tmp_path, None, r"--roi: no image in '.*' is named like a class \(a\).*a\.png"),
        (tmp_path / "two", None, r"--roi: '.*a\.bmp' and '.*a\.png' are both for class 'a'"),
        (tmp_path / "black.png", None, r"--roi: '.*black\.png' leaves nothing.*class 'a'"),
    ):
        with pytest.raises(DataError, match=message):
            read_interest(roi, ignored, ("a",), frame, DEFAULT_DECODING)


@pytest.mark.slow
def test_classes_trained_apart_take_the_masks_of_their_names(
    trained, train_command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roi = left_half(tmp_path / "roi" / "gauge.png").parent
    arguments = ["--separate", "--epochs", "1", "--roi"]
    assert train_command(trained.data, tmp_path / "run", *arguments, str(roi)) == 0
    assert capsys.readouterr().out.count("of the images counts: gauge 50%") == 1
    for name, share in (("brick", None), ("gauge", 0.5)):
        mask = crad.load(tmp_path / "run" / name, "cpu").interest.of(name)
        assert (None if mask is None else mask.mean()) == share
    other = left_half(tmp_path / "other" / "gauges.png").parent
    assert train_command(trained.data, tmp_path / "new", *arguments, str(other)) == 1
    assert "is named like a class (brick, gauge)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_run_keeps_its_region_of_interest(
    trained, command: Command, train_command: Command, tmp_path: Path, capsys
) -> None:
    roi = left_half(tmp_path / "roi" / "gauge.png").parent
    run = tmp_path / "run"
    arguments = ["--roi", str(roi), "--epochs", "1"]
    assert train_command(trained.data, run, *arguments) == 0
    assert "of the images counts: gauge 50%" in capsys.readouterr().out
    stored = read_checkpoint(run)
    assert stored.config.model.masked
    assert stored.interest["masks"].float().mean(dim=(1, 2)).tolist() == [1.0, 0.5]
    with safetensors.safe_open(run / CHECKPOINT_NAME, "pt") as opened:
        assert "roi" not in opened.metadata()["run"]

    # A mark outside changes nothing, in prediction by path and by array, and nothing is marked.
    path = trained.data / "gauge" / "test" / "good" / "000.png"
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    pixels[20:40, 52:62] = [255, 0, 255]
    detector = crad.load(run, "cpu")
    plain = detector.predict_one(path)
    marked = detector.predict_one(pixels, class_name="gauge")
    whole = crad.load(run, "cpu")
    whole.interest = Interest()
    change = whole.predict_one(pixels, class_name="gauge").score - whole.predict_one(path).score
    assert abs(marked.score - plain.score) < 0.2 * change
    assert marked.anomaly_mask is not None
    assert not marked.anomaly_mask[:, 33:].any()

    # An evaluation scores as the prediction does.
    assert (
        command(crad.evaluate.main, "--checkpoint", str(run), "--output", str(run), "--overwrite")
        == 0
    )
    rows = (run / "scores.csv").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith(str(path))]
    assert float(row.split(",")[4]) == pytest.approx(plain.score, rel=1e-4)

    # It is resumed with these masks only.
    assert train_command(trained.data, run, "--resume", *arguments) == 0
    other = left_half(tmp_path / "other" / "brick.png").parent
    arguments = ["--roi", str(other), "--epochs", "1"]
    assert train_command(trained.data, run, "--resume", *arguments) == 2
    assert "other masks" in capsys.readouterr().err


def test_a_prediction_takes_other_masks(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = left_half(tmp_path / "mask.png")
    path = str(trained.data / "gauge" / "test" / "good" / "000.png")
    scores = []
    for option in ([], ["--roi", str(mask)], ["--ignore", str(mask)]):
        table = tmp_path / f"s{len(scores)}.json"
        arguments = ["--checkpoint", str(trained.output), "--json", str(table), path, *option]
        assert command(crad.predict.main, *arguments) == 0
        scores.append(json.loads(table.read_text())[0]["score"])
    assert "of the images counts: brick 50%, gauge 50%" in capsys.readouterr().out
    assert len({*scores}) == 3 or max(scores[1:]) == scores[0]
    assert scores[0] >= max(scores[1:]) - 1e-6 * scores[0]


def test_a_checkpoint_without_masks_is_for_an_older_crad_too(trained, tmp_path: Path) -> None:
    with safetensors.safe_open(trained.output / CHECKPOINT_NAME, "pt") as opened:
        run = json.loads(opened.metadata()["run"])
    assert "masked" not in run["settings"]["model"]
    assert not read_checkpoint(trained.output).config.model.masked
    shutil.copy(trained.output / CHECKPOINT_NAME, tmp_path)
    assert crad.load(tmp_path, "cpu").interest.masks == {}
