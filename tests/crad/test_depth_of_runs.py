"""Runs on 16-bit images: their bit depth is recognised, said, stored and applied."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crad
import crad.evaluate
import crad.predict
from crad.data.decoding import Decoding
from crad.data.images import open_image
from crad.report.heat_maps import heat_map
from crad.training.checkpoint import read_checkpoint
from tests.crad.test_decoding import write_png

Command = Callable[..., int]
LINE = "bit depth 12: the largest value of {} is 4095; --bit-depth overrides"


@pytest.fixture(scope="module")
def deep_root(tmp_path_factory: pytest.TempPathFactory, demo_root: Path) -> Path:
    """The small demo set, of 12 bits in 16-bit files; not to be changed."""
    root = shutil.copytree(demo_root, tmp_path_factory.mktemp("deep") / "data")
    for path in root.rglob("*.png"):
        if "ground_truth" not in path.parts:
            deepen(path)
    write_png(root / "brick" / "test" / "good" / "top.png", np.full((64, 64), 4095, np.uint16))
    return root


def deepen(path: Path) -> None:
    with Image.open(path) as image:
        levels = np.asarray(image.convert("L")).astype(np.uint16)
    write_png(path, (levels * 4095 + 127) // 255)


@pytest.fixture(scope="module")
def deep_run(
    tmp_path_factory: pytest.TempPathFactory, deep_root: Path, train_command: Command
) -> Path:
    output = tmp_path_factory.mktemp("deep") / "run"
    assert train_command(deep_root, output, "--epochs", "1") == 0
    return output


def test_a_run_recognises_says_and_stores_it(
    deep_root: Path, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert train_command(deep_root, output, "--epochs", "1") == 0
    assert LINE.format("25 16-bit images") in capsys.readouterr().out.splitlines()
    assert read_checkpoint(output).config.model.bit_depth == 12
    assert train_command(deep_root, output, "--epochs", "1", "--resume") == 0
    assert "bit depth" not in capsys.readouterr().out
    assert train_command(deep_root, output, "--epochs", "1", "--resume", "--bit-depth", "14") == 2
    assert "--bit-depth: the run" in capsys.readouterr().err


def test_images_of_8_bits_need_no_line(
    trained, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command(trained.data, tmp_path, "--epochs", "1") == 0
    assert "bit depth" not in capsys.readouterr().out
    assert read_checkpoint(tmp_path).config.model.bit_depth == 16


def test_separate_runs_have_that_of_all_classes(
    deep_root: Path, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, lines in (([], 1), (["--resume"], 0)):
        assert train_command(deep_root, tmp_path, "--separate", "--epochs", "1", *more) == 0
        assert capsys.readouterr().out.count("bit depth 12") == lines
    depths = [
        read_checkpoint(tmp_path / name).config.model.bit_depth for name in ("brick", "gauge")
    ]
    assert depths == [12, 12]


def test_an_option_overrides_it(
    deep_root: Path, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for depth, code in (("14", 0), ("10", 1), ("17", 2), ("7", 2)):
        output = tmp_path / depth
        assert train_command(deep_root, output, "--epochs", "1", "--bit-depth", depth) == code
    out, err = capsys.readouterr()
    assert read_checkpoint(tmp_path / "14").config.model.bit_depth == 14
    assert "the largest value of" not in out
    assert "beyond the 1023 of bit depth 10" in err
    assert "--bit-depth: expected 8 to 16, but got 17" in err


def test_predictions_have_the_stored_depth(
    deep_root: Path,
    deep_run: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = deep_root / "brick" / "test" / "good" / "top.png"
    detector = crad.load(deep_run, "cpu")
    assert detector.decoding.bit_depth == 12
    expected = detector.predict(np.full((64, 64), 255, np.uint8))[0].score
    assert detector.predict(path)[0].score == expected
    assert detector.predict(np.full((64, 64), 4095, np.uint16))[0].score == expected

    arguments = ["--checkpoint", str(deep_run), str(path), "--output", str(tmp_path), "--json"]
    scores = {}
    for more in ([], ["--bit-depth", "12"], ["--bit-depth", "16"]):
        file = tmp_path / "scores-of-it.json"
        assert command(crad.predict.main, *arguments, str(file), *more) == 0
        key = more[-1] if more else None
        scores[key] = json.loads(file.read_text())[0]["score"]
        decoding = Decoding(bit_depth=int(key or 12))
        (scored,) = crad.load(deep_run, "cpu", bit_depth=decoding.bit_depth).predict(path)
        shown = heat_map(open_image(path, decoding), scored.anomaly_map, *detector.colour_scale)
        assert np.array_equal(open_image(tmp_path / "top_heatmap.png"), shown)
    assert scores[None] == scores["12"] != scores["16"]
    write_png(tmp_path / "beyond.png", np.full((8, 8), 5000, np.uint16))
    assert command(crad.predict.main, *arguments[:2], str(tmp_path / "beyond.png")) == 1
    assert "5000, beyond the 4095 of bit depth 12" in capsys.readouterr().err


def test_an_evaluation_has_the_stored_depth(
    deep_run: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(deep_run), "--output", str(tmp_path), "--overwrite"]
    means = []
    for more in ([], ["--bit-depth", "16"]):
        assert command(crad.evaluate.main, *arguments, *more) == 0
        means.append(json.loads((tmp_path / "results.json").read_text())["mean"])
    trained = json.loads((deep_run / "results.json").read_text())["mean"]
    assert means[0] == pytest.approx(trained, abs=1e-6)
    assert means[1] != means[0]
    assert command(crad.evaluate.main, *arguments, "--bit-depth", "8") == 1
    assert "of bit depth 8" in capsys.readouterr().err
