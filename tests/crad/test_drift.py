"""Calibrating again with new good images, and whether the scores have drifted."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu

import crad
import crad.calibrate
from crad.scoring.calibration import Calibration
from crad.scoring.drift import Drift
from crad.training.checkpoint import ALL_PARTS, CHECKPOINT_NAME, read_checkpoint

Command = Callable[..., int]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n_former", "n_new"), [(1, 1), (7, 12), (40, 200)])
def test_the_statistic_is_that_of_mann_and_whitney(n_former: int, n_new: int, ties: bool) -> None:
    random = np.random.default_rng(n_new)
    former, new = random.normal(size=n_former), random.normal(0.5, size=n_new)
    if ties:
        former, new = former.round(), new.round()
    expected = mannwhitneyu(new, former, method="asymptotic")
    drift = Drift.measure(former.tolist(), new.tolist())
    assert drift.higher == pytest.approx(expected.statistic / (n_former * n_new))
    if np.unique([*former, *new]).size > 1:
        assert drift.p_value == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(
    ("n_former", "n_new", "shift", "verdict"),
    [
        (60, 60, 0.0, "no drift seen"),
        (60, 60, 3.0, "drifted: new images score far higher"),
        (60, 60, 1.0, "drifted: new images score higher"),
        (500, 500, -0.3, "drifted: new images score slightly lower"),
        (1, 50, 9.0, "too few images to tell"),
    ],
)
def test_the_verdict(n_former: int, n_new: int, shift: float, verdict: str) -> None:
    random = np.random.default_rng(0)
    new = (random.normal(size=n_new) + shift).tolist()
    assert Drift.measure(random.normal(size=n_former).tolist(), new).verdict == verdict


def test_scores_without_any_difference() -> None:
    drift = Drift.measure([1.0] * 9, [1.0] * 9)
    assert (drift.higher, drift.p_value, drift.verdict) == (0.5, 1.0, "too few images to tell")


@pytest.fixture
def good(trained, tmp_path: Path) -> Path:
    """The normal test images, and some of them once more, brighter."""
    folder = tmp_path / "good"
    for name in ("brick", "gauge"):
        shutil.copytree(trained.data / name / "test" / "good", folder / "line" / name)
    return folder


def calibrate(command: Command, trained, good: Path, *more: object) -> int:
    arguments = ["--checkpoint", trained.output, "--good", good, *more]
    return command(crad.calibrate.main, *map(str, arguments))


def test_new_thresholds_are_those_of_the_new_images(
    trained, good: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.safetensors"
    before = (trained.output / CHECKPOINT_NAME).read_bytes()
    options = ("--output", new, "--false-alarm-rate", "0.5")
    assert calibrate(command, trained, good, *options) == 0
    out = capsys.readouterr().out
    found, former = read_checkpoint(new, ALL_PARTS), read_checkpoint(trained.output, ALL_PARTS)
    for name in ("brick", "gauge"):
        images = sorted((good / "line" / name).iterdir())
        scores = sorted(each.score for each in crad.load(new, "cpu").predict(images))
        assert found.calibration[name] == pytest.approx(scores)
        assert found.thresholds[name].score == pytest.approx(scores[1])
        above = sum(score > former.thresholds[name].score for score in scores)
        assert f"{above} of 3" in out
    assert found.config.decisions.false_alarm_rate == 0.5
    assert "too few images to tell" in out
    assert "3 normal images a class: at most 0.5" in out
    same = replace(
        found, thresholds=former.thresholds, calibration=former.calibration, config=former.config
    )
    for part in ALL_PARTS:
        assert [*getattr(same, part)] == [*getattr(former, part)]
    assert (trained.output / CHECKPOINT_NAME).read_bytes() == before


def test_what_a_stated_contamination_costs_is_said(
    trained, good: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(command, trained, good, "--contamination", "0.2") == 0
    out = capsys.readouterr().out
    assert "the highest 2 scores set no threshold (--contamination)" in out  # one of each class
    assert calibrate(command, trained, good) == 0
    assert "--contamination" not in capsys.readouterr().out


def test_nothing_is_written_unless_asked(
    trained, good: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained.output, tmp_path / "run")
    file = run / CHECKPOINT_NAME
    before = file.read_bytes()
    arguments = ["--checkpoint", str(run), "--good", str(good)]
    assert command(crad.calibrate.main, *arguments) == 0
    assert "nothing written" in capsys.readouterr().out
    for output in (file, next(good.rglob("*.png"))):
        assert command(crad.calibrate.main, *arguments, "--output", str(output)) == 1
    assert command(crad.calibrate.main, *arguments, "--output", str(good), "--overwrite") == 1
    assert file.read_bytes() == before
    assert command(crad.calibrate.main, *arguments, "--output", str(file), "--overwrite") == 0
    assert [*map(len, read_checkpoint(file).calibration.values())] == [3, 3]


def test_a_class_without_new_images_keeps_its_threshold_and_drift_is_said(
    trained, good: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = read_checkpoint(trained.output, ALL_PARTS)
    low = Calibration({name: tuple(0.01 * np.arange(1, 21)) for name in stored.calibration})
    replace(stored, calibration=low, thresholds=low.thresholds(0.01)).write(tmp_path / "c")
    shutil.rmtree(good / "line" / "gauge")
    for number in range(3):  # nine images of different bytes
        for path in sorted((good / "line" / "brick").glob("00?.png")):
            Image.open(path).rotate(90 * (1 + number)).save(path.with_name(f"{number}{path.name}"))
    arguments = ["--checkpoint", str(tmp_path / "c"), "--good", str(good)]
    assert command(crad.calibrate.main, *arguments, "--output", str(tmp_path / "new")) == 0
    found = read_checkpoint(tmp_path / "new")
    assert found.thresholds["gauge"] == low.thresholds(0.01)["gauge"]
    assert found.thresholds["brick"].n_images == 12
    out = capsys.readouterr().out
    assert "drifted: new images score far higher (in 100% of pairs" in out
    assert "12 of 12" in out
    assert "brick have changed since training" in out


def test_an_older_checkpoint_is_given_scores(trained, command: Command, tmp_path: Path) -> None:
    old = Path(__file__).parent / "checkpoints" / "version-3.safetensors"
    new = tmp_path / "new.safetensors"
    arguments = ["--checkpoint", str(old), "--output", str(new), "--good"]
    good = trained.data / "brick" / "test" / "good"
    assert command(crad.calibrate.main, *arguments, str(good)) == 0
    assert crad.load(new, "cpu", false_alarm_rate=0.4).thresholds["brick"].n_images == 3
    (prediction,) = crad.load(new, "cpu").predict(next(good.iterdir()))
    assert prediction.p_value is not None


@pytest.mark.parametrize(
    ("case", "code", "told"),
    [
        ("missing", 1, ("is not there", "folder")),
        ("file", 1, ("is a file",)),
        ("empty", 1, ("no images", ".png")),
        ("masks", 1, ("holds masks",)),
        ("class", 2, ("'nut'", "brick, gauge")),
        ("rate", 2, ("--false-alarm-rate",)),
        ("contamination", 2, ("--contamination", "0.5")),
        ("unknown", 1, ("no image", "--class")),
    ],
)  # fmt: skip
def test_errors(
    trained,
    good: Path,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    code: int,
    told: tuple[str, ...],
) -> None:
    stored = read_checkpoint(trained.output)
    if case == "unknown":
        stored.products["limits"].zero_()
    stored.write(tmp_path / "c")
    (tmp_path / "empty").mkdir()
    folder = {
        "missing": tmp_path / "none",
        "file": tmp_path / "c",
        "empty": tmp_path / "empty",
        "masks": trained.data,
    }.get(case, good)
    more = {
        "class": ["--class", "nut"],
        "rate": ["--false-alarm-rate", "0"],
        "contamination": ["--contamination", "0.5"],
    }.get(case, [])
    arguments = ["--checkpoint", str(tmp_path / "c"), "--good", str(folder), *more]
    assert command(crad.calibrate.main, *arguments) == code
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    for part in told:
        assert part in error
