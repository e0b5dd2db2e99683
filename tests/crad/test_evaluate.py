"""The evaluation command agrees with what training measured."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score

import crad
import crad.data.demo
from crad.data import find_dataset
from crad.evaluate import main
from crad.scoring.protocols import PROTOCOLS
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint

Command = Callable[..., int]


def test_it_measures_what_training_measured(trained, command: Command, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path / "out")]
    assert command(main, *arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for name, expected in trained.results["classes"].items():
        assert results["classes"][name] == pytest.approx(expected, abs=1e-6)
    assert (results["seed"], results["epoch"]) == (0, 3)
    assert (tmp_path / "out" / "sheets" / "brick.png").exists()


def test_every_protocol_from_the_same_maps(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path), "--overwrite"]
    assert command(main, *arguments, "--protocol", "all") == 0
    lines = capsys.readouterr().out.splitlines()
    every = json.loads((tmp_path / "results.json").read_text())
    assert every["protocol"] == "crad"
    assert list(every["other_protocols"]) == [
        "paper",
        "uniad",
        "ader",
        "dinomaly",
        "inside",
        "peak",
    ]
    for name in PROTOCOLS:
        assert sum(line.startswith(f"protocol {name} ") for line in lines) == 1
    for name, metrics in every["other_protocols"].items():
        assert command(main, *arguments, "--protocol", name) == 0
        alone = json.loads((tmp_path / "results.json").read_text())
        assert alone["protocol"] == name
        assert {"classes": alone["classes"], "mean": alone["mean"]} == metrics
        assert "other_protocols" not in alone
        assert None not in metrics["mean"].values()
    # That of another size has other pixels.
    assert every["other_protocols"]["ader"]["mean"] != every["mean"]


def test_sheets_show_what_decides_whatever_is_measured(
    trained, command: Command, tmp_path: Path
) -> None:
    def sheets(*more: str) -> list[bytes]:
        arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path), "--overwrite"]
        assert command(main, *arguments, *more) == 0
        return [path.read_bytes() for path in sorted((tmp_path / "sheets").iterdir())]

    assert sheets("--protocol", "inside") == sheets("--protocol", "ader", "crad")


def test_a_protocol_by_its_definition(trained, command: Command, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path)]
    assert command(main, *arguments, "--protocol", "ader", "paper") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["other_protocols"]) == ["paper"]
    detector = crad.load(trained.output)
    scores, labels, pixels, truths = [], [], [], []
    for sample in find_dataset(trained.data / "gauge").test:
        ((_, anomaly_map),) = detector.map_images(sample.path)
        resized = F.interpolate(anomaly_map[None], (256, 256), mode="bilinear", align_corners=True)
        scores.append(resized.max().item())
        labels.append(sample.is_anomaly)
        pixels.append(resized.numpy().ravel())
        truths.append(sample.read_truth(256, "bilinear").ravel())
    measured = results["classes"]["gauge"]
    assert measured["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    expected = average_precision_score(np.concatenate(truths), np.concatenate(pixels))
    assert measured["pixel_ap"] == pytest.approx(expected, abs=1e-4)  # computed in another batch


def test_a_protocol_that_is_none(
    trained, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(main, "--checkpoint", str(trained.output), "--protocol", "nonsense") == 2
    captured = capsys.readouterr()
    assert "uniad" in captured.err + captured.out


def test_other_data(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(trained.data / "gauge", tmp_path / "other")
    shutil.rmtree(data / "train")
    assert command(main, "--checkpoint", str(trained.output), "--data", str(data)) == 0
    out = capsys.readouterr().out
    metrics, decisions = [line for line in out.splitlines() if line.startswith("other")]
    assert metrics.split()[1:3] == ["0", "6"]  # never trained on, 6 test images
    highest = max(each.score for each in read_checkpoint(trained.output).thresholds.values())
    assert decisions.split()[1:3] == ["0", f"{highest:.4g}"]
    assert "a class without good images uses the highest threshold" in out


def test_bad_images(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(trained.data, tmp_path / "data")
    (data / "brick" / "test" / "good" / "000.png").write_bytes(b"no image")
    arguments = ["--checkpoint", str(trained.output), "--data", str(data)]
    assert command(main, *arguments) == 1
    assert "brick/test/good/000.png" in capsys.readouterr().err
    assert command(main, *arguments, "--skip-bad") == 0
    assert "1 image " in capsys.readouterr().out
    for image in (data / "brick" / "test").rglob("*.png"):
        image.write_bytes(b"no image")
    assert command(main, *arguments, "--skip-bad", "--classes", "brick") == 1
    assert f"none of the images in '{data}'" in capsys.readouterr().err


def test_errors_are_one_line(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(main, "--checkpoint", str(tmp_path)) == 1
    assert f"'{tmp_path / CHECKPOINT_NAME}'" in capsys.readouterr().err
    arguments = ["--checkpoint", str(trained.output), "--data", str(tmp_path / "missing")]
    assert command(main, *arguments) == 1
    assert f"'{tmp_path / 'missing'}'" in capsys.readouterr().err
    arguments = ["--checkpoint", str(trained.output), "--output", __file__]
    assert command(main, *arguments) == 1
    assert f"output: '{__file__}'" in capsys.readouterr().err


def test_a_bad_mask_leaves_the_truth_unknown_not_the_image(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(trained.data, tmp_path / "data")
    next((data / "gauge" / "ground_truth").rglob("*_mask.png")).write_bytes(b"no image")
    arguments = ["--checkpoint", str(trained.output), "--data", str(data)]
    assert command(main, *arguments) == 1
    assert "mask" in capsys.readouterr().err
    assert command(main, *arguments, "--skip-bad", "--output", str(tmp_path / "out")) == 0
    assert "1 mask " in capsys.readouterr().out
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
    assert "--overwrite" in capsys.readouterr().err
    shutil.copy(output / "sheets" / "brick.png", output / "sheets" / "kept.png")
    assert command(main, *arguments, "--overwrite", "--classes", "brick") == 0
    assert {path.name for path in (output / "sheets").iterdir()} == {"brick.png", "kept.png"}
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
    data = shutil.copytree(trained.data, tmp_path / f"demo-hard-v{crad.data.demo._VERSION}")
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
