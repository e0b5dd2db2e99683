"""The conversion command: what it leaves, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import crad
import crad.evaluate
from benchmarks.released_model import ReleasedCRAD
from crad.convert import main
from crad.data.images import open_image
from crad.data.tensors import to_tensor
from crad.scoring.protocols import DECISION_PROTOCOL, PROTOCOLS
from crad.training.checkpoint import read_checkpoint

Command = Callable[..., int]
SIZE = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small backbone, whose features are 384x8x8."""
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(5)
    torch.save(timm.create_model("resnet18").state_dict(), file)
    return file


@pytest.fixture(scope="module")
def released() -> ReleasedCRAD:
    torch.manual_seed(0)
    model = ReleasedCRAD(384, 8, 8, depth=1, expansion=16)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def file(released: ReleasedCRAD, tmp_path: Path) -> Path:
    """A checkpoint as training scripts write them."""
    state = {f"module.{name}": tensor for name, tensor in released.state_dict().items()}
    file = tmp_path / "released.pth.tar"
    torch.save({"epoch": 50, "best_metric": np.float64(0.99), "state_dict": state}, file)
    return file


@pytest.fixture
def arguments(file: Path, weights: Path, tmp_path: Path) -> list[str]:
    size = ["--image-size", str(SIZE)]
    backbone = ["--backbone", "resnet18", "--weights", str(weights)]
    return [str(file), str(tmp_path / "out"), *size, *backbone]


def test_the_detector_computes_what_the_released_model_does(
    released: ReleasedCRAD, arguments: list[str], tmp_path: Path, demo_root: Path, command: Command
) -> None:
    assert command(main, *arguments) == 0
    detector = crad.load(tmp_path / "out", device="cpu")
    path = next(demo_root.rglob("test/*/*.png"))
    (prediction,) = detector.predict(path)
    with torch.inference_mode():
        feature = detector.backbone(to_tensor(open_image(path), SIZE)[None])
        maps, scores = PROTOCOLS[DECISION_PROTOCOL].score(released.anomaly_map(feature), SIZE)
    assert prediction.score == pytest.approx(scores.item(), rel=1e-4)
    np.testing.assert_allclose(prediction.scored_map, maps[0].numpy(), rtol=1e-3)
    low, high = detector.colour_scale
    assert low == 0
    assert high == pytest.approx(0.3 * (10 * 384) ** 0.5)


def test_evaluation_takes_the_data_named_and_refuses_to_guess_them(
    arguments: list[str],
    tmp_path: Path,
    demo_root: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    evaluate = ["--checkpoint", str(out), "--output", str(tmp_path / "results")]
    assert command(main, *arguments) == 0
    assert command(crad.evaluate.main, *evaluate) == 1
    assert "--data" in capsys.readouterr().err
    assert command(main, *arguments, "--overwrite", "--data", str(demo_root)) == 0
    checkpoint = read_checkpoint(out)
    low, high = checkpoint.colour_scale
    assert 0 < low < high
    assert (checkpoint.thresholds, checkpoint.config.decisions.calibration_share) == ({}, 0)
    assert command(crad.evaluate.main, *evaluate) == 0
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["data"] == str(demo_root)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "results.json"])
def test_it_replaces_nothing_by_accident(
    arguments: list[str],
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    for more in ([], ["--overwrite"]):
        assert command(main, *arguments, *more) == 1
        assert f"{name}' exists and was not written by crad" in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_bytes() == b"mine"
    (tmp_path / "out" / name).unlink()
    assert command(main, *arguments) == 0
    assert command(main, *arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert command(main, *arguments, "--overwrite") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint.safetensors"]


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 / 0",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"no checkpoint", "tensors and numbers: it is damaged, of another kind, or holds other"),
        (b"", "tensors and numbers: it is damaged, of another kind, or holds other"),
        (
            Runs(),
            "tensors and numbers: it holds builtins.eval too, which is not loaded: that could",
        ),
        (
            {"metric": np.float64(1.0), "path": Path("x"), "a": torch.zeros(2)},
            "it holds pathlib.PosixPath too, which is not loaded",
        ),
        ({"epoch": 3}, "holds no weights"),
        ({}, "holds no weights"),
        ({3: torch.zeros(2)}, "holds no weights"),
        ({"net.conv1.weight": torch.zeros(3)}, r"net.conv1.weight' are none of the model's parts"),
        ({"recover.weight": torch.zeros(4, 8, 1, 1)}, "nothing in the memories"),
        (
            ReleasedCRAD(4, 2, 2, depth=1, expansion=8).state_dict()
            | {"layer.0.change.1.running_var": torch.zeros(3)},
            "not those of a CRAD",
        ),
    ],
)
def test_what_is_no_released_checkpoint_is_one_line(
    arguments: list[str],
    file: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    content: object,
    message: str,
) -> None:
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    assert command(main, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert str(file) in line
    assert "weights_only" not in line  # torch's advice is to run what is in the file
    assert not (tmp_path / "out").exists()


def test_features_of_another_size_are_refused(
    arguments: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(main, *arguments, "--image-size", "96") == 1
    error = capsys.readouterr().err
    for told in ("(384, 12, 12)", "(384, 8, 8)"):
        assert told in error


def test_a_size_out_of_range_is_refused(
    arguments: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(main, *arguments, "--image-size", "8") == 2
    assert "--image-size" in capsys.readouterr().err
