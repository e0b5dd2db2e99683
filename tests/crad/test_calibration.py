"""Calibration scores: p-values, other rates without training, and the uncertain band."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import crad
import crad.predict
from crad.data.samples import Sample
from crad.errors import CheckpointError, UsageError
from crad.report.scores import Csv, Json
from crad.scoring.calibration import Calibration, calibrate, promise, warn_if_few
from crad.scoring.prediction import Prediction
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint

Command = Callable[..., int]
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def samples(name: str, count: int) -> list[Sample]:
    return [Sample(Path(f"{name}/{index}.png"), name, "good") for index in range(count)]


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.1, 1 / 3, 0.5, 0.999])
@pytest.mark.parametrize("count", [1, 2, 9, 20, 99, 200])
def test_one_rule_decides_for_all(count: int, rate: float) -> None:
    """Above the threshold is a p-value of at most the rate, or the smallest there is; with ties."""
    random = np.random.default_rng(count)
    scores = random.integers(0, count, size=count).astype(float).tolist()
    calibration = Calibration({"nut": tuple(sorted(scores))})
    threshold = calibration.thresholds(rate)["nut"].score
    for score in (*scores, *(each + 0.5 for each in scores), -1.0):
        p_value = calibration.p_value("nut", score)
        assert p_value is not None
        above = sum(each >= score for each in scores)
        assert p_value == (1 + above) / (count + 1)
        assert (score > threshold) == (p_value <= max(rate, 1 / (count + 1)) + 1e-9)


@pytest.mark.parametrize("count", [7, 20, 99])
def test_p_values_of_normal_images_are_uniform_at_most(count: int) -> None:
    scores = np.random.default_rng(2).lognormal(size=(5_000, count + 1))
    found = np.array(
        [Calibration({"a": tuple(sorted(each[:-1]))}).p_value("a", each[-1]) for each in scores]
    )
    for rate in (0.05, 0.1, 0.3, 0.7):
        assert (found <= rate).mean() < rate + 4 * math.sqrt(rate / len(scores))


def test_a_class_that_is_not_known_has_the_largest_p_value() -> None:
    calibration = Calibration({"nut": (1.0, 2.0, 3.0), "bolt": (2.0, 4.0)})
    assert calibration.p_value("nut", 2.5) == 0.5
    assert calibration.p_value(None, 2.5) == 2 / 3
    assert calibration.p_value("pin", 2.5) is None  # known, but without scores
    assert Calibration().p_value("nut", 2.5) is None


@pytest.mark.parametrize(
    ("contamination", "expected"), [(0.0, 20), (0.05, 19), (0.06, 18), (0.1, 18), (0.49, 10)]
)
def test_a_stated_contamination_sets_no_threshold(contamination: float, expected: int) -> None:
    scores = list(range(20, 0, -1))
    taken = calibrate(samples("a", 20) + samples("b", 1), [*scores, 7.0], contamination)
    assert taken == {"a": tuple(range(1, expected + 1)), "b": (7.0,)}


@pytest.mark.parametrize(
    ("numbers", "rate", "told"),
    [
        ((99,), 0.01, ("99 normal images a class", "at most 0.01")),
        ((20, 24), 0.01, ("20 to 24 images", "0.0476 (1 in 21)", "takes 99", "crad calibrate")),
        ((1,), 0.5, ("1 normal image a class", "at most 0.5")),
    ],
)
def test_the_rate_that_the_images_can_promise(
    numbers: tuple[int, ...], rate: float, told: tuple[str, ...]
) -> None:
    for each in (numbers, (*numbers, 0)):
        promised = promise(each, rate)
        assert promised
        for part in told:
            assert part in promised
    assert promise((), rate) is None


def test_a_class_with_few_images_for_its_threshold_is_named() -> None:
    assert warn_if_few({"nut": 9}, {"nut": 90}, 0.01) is None
    assert warn_if_few({}, {"nut": 2}, 0.01) is None  # no thresholds are asked for
    assert warn_if_few({"nut": 0, "bolt": 9}, {"nut": 5, "bolt": 90}, 0.01) is None
    assert warn_if_few({"nut": 4}, {"nut": 40}, 0.2) is None  # which 4 images promise
    assert warn_if_few(
        {"nut": 4, "bolt": 8, "pin": 9}, {"nut": 40, "bolt": 80, "pin": 90}, 0.01
    ) == (
        "few normal images of class 'nut' (and 1 other): 4 of its 40 set the threshold, which 1 in "
        "5 good images may exceed; add images, or have all 40 set it (1 in 41) with "
        "--calibration-folds 5, in 5 times the time"
    )
    told = warn_if_few({"nut": 6}, {"nut": 6}, 0.01)
    assert told
    assert told.endswith(
        "6 of its 6 set the threshold, which 1 in 7 good images may exceed; add images"
    )


def with_scores(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint with 99 calibration scores of brick, 0.01 to 0.99, and three of gauge."""
    scores = Calibration({"brick": tuple(np.arange(1, 100) / 100), "gauge": (0.1, 0.2, 0.3)})
    stored = replace(
        read_checkpoint(checkpoint), calibration=scores, thresholds=scores.thresholds(0.01)
    )
    stored.write(folder / CHECKPOINT_NAME)
    return folder


def test_another_rate_needs_no_training(trained, tmp_path: Path) -> None:
    path = with_scores(trained.output, tmp_path)
    assert read_checkpoint(path).calibration["gauge"] == (0.1, 0.2, 0.3)
    for rate, brick, gauge in (
        (None, 0.99, 0.3),
        (0.01, 0.99, 0.3),
        (0.1, 0.9, 0.3),
        (0.5, 0.5, 0.2),
    ):
        detector = crad.load(path, "cpu", false_alarm_rate=rate)
        found = [detector.thresholds[name].score for name in ("brick", "gauge")]
        assert found == [brick, gauge]
        assert detector.false_alarm_rate == (rate or 0.01)
    for rates in ((0, None), (1, None), (math.nan, None), (None, 0.01), (0.2, 0.1), (0.1, 1)):
        with pytest.raises(UsageError, match=r"expected more than"):
            crad.load(path, "cpu", false_alarm_rate=rates[0], uncertain_rate=rates[1])


def test_the_band_between_two_rates_is_uncertain(trained, tmp_path: Path) -> None:
    detector = crad.load(with_scores(trained.output, tmp_path), "cpu", uncertain_rate=0.2)
    assert detector.thresholds["brick"].score == 0.99
    assert detector.uncertain["brick"].score == 0.8
    one = next((trained.data / "brick" / "test" / "good").iterdir())
    (prediction,) = detector.predict(one)
    for score, decision, defective in (
        (0.995, "defect", True), (0.9, "uncertain", None), (0.8, "good", False),
    ):  # fmt: skip
        found = replace(prediction, score=score)
        assert (found.decision, found.is_defective) == (decision, defective)


def test_without_thresholds_there_is_no_decision() -> None:
    found = Prediction(score=1.0, scored_map=np.zeros((1, 1), np.float32))
    assert (found.decision, found.is_defective, found.p_value) == (None, None, None)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_older_checkpoint_says_what_it_lacks(version: int) -> None:
    file = CHECKPOINTS / f"version-{version}.safetensors"
    image = np.zeros((32, 32), np.uint8)
    (prediction,) = crad.load(file, "cpu").predict(image, class_name="brick")
    assert prediction.decision in ("good", "defect")
    assert prediction.p_value is None
    with pytest.raises(CheckpointError, match=r"no calibration scores .*older.*crad calibrate"):
        crad.load(file, "cpu", false_alarm_rate=0.1)


def test_the_prediction_command_decides_for_another_rate(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_scores(trained.output, tmp_path)
    good = sorted((trained.data / "brick" / "test" / "good").iterdir())
    scores = sorted(each.score for each in crad.load(folder, "cpu").predict(good))
    stored = read_checkpoint(folder)
    brick = tuple(np.linspace(0.5 * scores[0], scores[1], 19))  # between the first and the third
    replace(stored, calibration=Calibration({"brick": brick})).write(folder / CHECKPOINT_NAME)
    arguments = ["--checkpoint", str(folder), "--json", str(tmp_path / "s.json")]
    arguments += ["--class", "brick", *map(str, good)]

    def decided(*more: str) -> list[tuple[str, float]]:
        assert command(crad.predict.main, *arguments, *more) == 0
        entries = json.loads((tmp_path / "s.json").read_text())
        entries.sort(key=lambda entry: entry["score"])
        return [(entry["decision"], entry["p_value"]) for entry in entries]

    low, middle, high = decided("--false-alarm-rate", "0.05", "--uncertain", "0.1")
    assert (middle, high) == (("uncertain", 0.1), ("defect", 0.05))
    assert low[0] == "good"
    out = capsys.readouterr().out
    assert "at most 0.05 of normal images" in out
    (line,) = [line for line in out.splitlines() if "uncertain" in line]
    assert line.split()[1:3] == ["0.100", "uncertain"]
    assert decided("--false-alarm-rate", "0.1")[1][0] == "defect"
    assert command(crad.predict.main, *arguments, "--false-alarm-rate", "2") == 2
    assert command(crad.predict.main, *arguments, "--uncertain", "0.001") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert ["false-alarm-rate" in errors[0], "uncertain" in errors[1]] == [True, True]


def test_a_class_without_scores_keeps_its_threshold(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = read_checkpoint(with_scores(trained.output, tmp_path))
    scores = Calibration({"brick": stored.calibration["brick"]})
    replace(stored, calibration=scores).write(tmp_path / CHECKPOINT_NAME)
    image = next((trained.data / "gauge" / "test" / "good").iterdir())
    detector = crad.load(tmp_path, "cpu", false_alarm_rate=0.1, uncertain_rate=0.2)
    found = detector.predict_one(image, class_name="gauge")
    assert (found.threshold, found.uncertain_above, found.p_value) == (0.3, 0.3, None)
    assert detector.predict_one(image, class_name="brick").threshold == 0.9
    arguments = ["--checkpoint", str(tmp_path), "--uncertain", "0.2", str(image)]
    assert command(crad.predict.main, *arguments) == 0
    assert "gauge: the threshold of training, whatever the rate" in capsys.readouterr().out


def test_a_band_that_holds_no_image_is_said(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_scores(trained.output, tmp_path)
    image = next((trained.data / "brick" / "test" / "good").iterdir())

    def told(rate: str) -> list[str]:
        arguments = ["--checkpoint", str(folder), "--uncertain", rate, str(image)]
        assert command(crad.predict.main, *arguments) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "can be" in line]

    (line,) = told("0.2")  # of gauge, three scores tell apart no rates below 1/4 and 2/4
    assert line.startswith("no image of gauge can be uncertain")
    assert "take --uncertain 0.5 or more" in line
    assert "crad calibrate" in line
    assert told("0.5") == []


def test_tables_of_an_older_crad_may_be_replaced(tmp_path: Path) -> None:
    table, listed = tmp_path / "s.csv", tmp_path / "s.json"
    for columns, own in (
        (("image", "score", "decision", "threshold", "class_name"), True),
        (("image", "score", "p_value", "decision", "threshold", "class_name"), True),
        (("image", "score", "p_value", "decision"), False),
    ):
        table.write_bytes(",".join(columns).encode() + b"\r\n")
        listed.write_text(json.dumps([dict.fromkeys(columns, 1)]))
        assert (Csv().is_own(table), Json().is_own(listed)) == (own, own)


@pytest.mark.parametrize(
    "scores", [{"brick": []}, {"brick": [1.0, math.inf]}, {"brick": ["1"]}, [1.0], None]
)
def test_scores_that_were_never_written(trained, tmp_path: Path, scores: object) -> None:
    replace(read_checkpoint(trained.output), calibration=scores).write(tmp_path / CHECKPOINT_NAME)
    with pytest.raises(CheckpointError, match=CHECKPOINT_NAME):
        read_checkpoint(tmp_path)


def test_what_training_stores_are_the_scores_of_the_images_held_back(trained) -> None:
    stored = read_checkpoint(trained.output)
    assert stored.thresholds == stored.calibration.thresholds(0.01)
    assert [*map(len, stored.calibration.values())] == [1, 1]
