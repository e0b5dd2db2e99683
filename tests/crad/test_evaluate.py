"""The evaluation command agrees with what training measured."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import crad.demo
from crad.evaluate import main

Command = Callable[..., int]


def test_it_measures_what_training_measured(trained, command: Command, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path / "out")]
    assert command(main, *arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for name, expected in trained.results["classes"].items():
        assert results["classes"][name] == pytest.approx(expected, abs=1e-6)
    assert (results["seed"], results["epoch"]) == (0, 3)
    assert (tmp_path / "out" / "sheets" / "brick.png").exists()


def test_other_data(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(trained.data / "gauge", tmp_path / "other")
    shutil.rmtree(data / "train")
    assert command(main, "--checkpoint", str(trained.output), "--data", str(data)) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("other")]
    assert line.split()[1:3] == ["0", "6"]  # never trained on, 6 test images


def test_bad_images(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(trained.data, tmp_path / "data")
    (data / "brick" / "test" / "good" / "000.png").write_bytes(b"no image")
    arguments = ["--checkpoint", str(trained.output), "--data", str(data)]
    assert command(main, *arguments) == 1
    assert "brick/test/good/000.png" in capsys.readouterr().err
    assert command(main, *arguments, "--skip-bad") == 0
    assert "1 image could not be read" in capsys.readouterr().out


def test_errors_are_one_line(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(main, "--checkpoint", str(tmp_path)) == 1
    assert capsys.readouterr().err.startswith("error: checkpoint: there is no file")
    arguments = ["--checkpoint", str(trained.output), "--data", str(tmp_path / "missing")]
    assert command(main, *arguments) == 1
    assert "no such folder" in capsys.readouterr().err
    arguments = ["--checkpoint", str(trained.output), "--output", __file__]
    assert command(main, *arguments) == 1
    assert f"output: '{__file__}' is a file" in capsys.readouterr().err


def test_a_bad_mask_leaves_the_truth_unknown_not_the_image(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(trained.data, tmp_path / "data")
    next((data / "gauge" / "ground_truth").rglob("*_mask.png")).write_bytes(b"no image")
    arguments = ["--checkpoint", str(trained.output), "--data", str(data)]
    assert command(main, *arguments) == 1
    assert "error: mask of '" in capsys.readouterr().err
    assert command(main, *arguments, "--skip-bad", "--output", str(tmp_path / "out")) == 0
    assert "1 mask could not be read" in capsys.readouterr().out
    measured = json.loads((tmp_path / "out" / "results.json").read_text())["classes"]["gauge"]
    assert measured["n_test"] == 6
    assert measured["image_auroc"] == pytest.approx(
        trained.results["classes"]["gauge"]["image_auroc"], abs=1e-6
    )


def test_results_are_replaced_when_asked_and_as_a_whole(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    arguments = ["--checkpoint", str(output), "--output", str(output)]
    assert command(main, *arguments) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    (output / "sheets" / "old.png").touch()
    assert command(main, *arguments, "--overwrite") == 0
    assert {path.name for path in (output / "sheets").iterdir()} == {"brick.png", "gauge.png"}
    assert (output / "checkpoint.safetensors").exists()


def test_a_failure_leaves_no_folder(trained, command: Command, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(trained.output), "--data", str(tmp_path / "missing")]
    assert command(main, *arguments, "--output", str(tmp_path / "out")) == 1
    assert not (tmp_path / "out").exists()


def test_the_demo_set_is_a_stand_in_under_its_path_too(
    trained,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CRAD_CACHE", str(tmp_path))
    data = shutil.copytree(trained.data, tmp_path / f"demo-hard-v{crad.demo._VERSION}")
    for folder, count in ((data, 1), (data / "brick", 1), (trained.data, 0)):
        assert command(main, "--checkpoint", str(trained.output), "--data", str(folder)) == 0
        assert capsys.readouterr().out.count("a stand-in, not a benchmark") == count


def test_some_of_the_classes(trained, command: Command, tmp_path: Path, train_command) -> None:
    def classes(checkpoint: Path, *arguments: str) -> list[str]:
        output = ["--output", str(tmp_path / "out"), "--overwrite"]
        assert command(main, "--checkpoint", str(checkpoint), *output, *arguments) == 0
        return [*json.loads((tmp_path / "out" / "results.json").read_text())["classes"]]

    assert classes(trained.output, "--classes", "gauge") == ["gauge"]
    assert train_command(trained.data, tmp_path / "run", "--classes", "gauge") == 0
    assert classes(tmp_path / "run") == ["gauge"]  # those trained on
    assert classes(tmp_path / "run", "--data", str(trained.data)) == ["brick", "gauge"]
