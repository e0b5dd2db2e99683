"""Decisions: which images are held back, the threshold, and what becomes of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import crad
import crad.evaluate
import crad.predict
from crad.data import Dataset, Sample, find_dataset
from crad.errors import DataError
from crad.scoring.calibration import Threshold, Thresholds, calibrate, class_of, measure_decisions
from crad.scoring.held_back import check_share, hold_back
from crad.scoring.protocols import PROTOCOLS
from crad.training.checkpoint import ALL_PARTS, read_checkpoint

Command = Callable[..., int]


@pytest.mark.parametrize(
    ("count", "rate", "expected"),
    [
        (1, 0.01, 1),
        (20, 0.01, 20),  # too few: the largest
        (98, 0.01, 98),
        (99, 0.01, 99),  # the first number that the rate can be promised for
        (199, 0.01, 198),
        (200, 0.01, 199),
        (9, 0.1, 9),
        (19, 0.1, 18),
        (9, 0.5, 5),
        (3, 0.999, 1),
    ],
)
def test_the_threshold_is_the_conformal_quantile(count: int, rate: float, expected: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, count + 1)).tolist()
    assert Threshold.from_scores(scores, rate) == Threshold(expected, count)


@pytest.mark.parametrize(("count", "rate"), [(20, 0.1), (99, 0.01), (7, 0.01), (50, 0.25)])
def test_false_alarms_are_as_rare_as_promised(count: int, rate: float) -> None:
    """Over many samples: with the rate asked for, or 1 in n + 1 where there are too few."""
    scores = np.random.default_rng(1).lognormal(size=(20_000, count + 1))
    alarms = np.mean(
        [each[-1] > Threshold.from_scores(each[:-1].tolist(), rate).score for each in scores]
    )
    promised = max(rate, 1 / (count + 1))
    deviation = (promised / len(scores)) ** 0.5
    assert promised - 1 / (count + 1) - 4 * deviation < alarms < promised + 4 * deviation


def samples(name: str, count: int) -> tuple[Sample, ...]:
    return tuple(Sample(Path(f"{name}/{index}.png"), name, "good") for index in range(count))


@pytest.mark.parametrize(
    ("counts", "share", "held"),
    [
        ((40, 100), 0.1, (4, 10)),
        ((6, 1), 0.1, (1, 0)),  # at least one to train on, and if possible one held back
        ((2, 3), 0.9, (1, 2)),
        ((60, 60), 1 / 3, (20, 20)),
        ((40, 100), 0.0, (0, 0)),
    ],
)
def test_a_share_of_each_class_is_held_back(
    counts: tuple[int, int], share: float, held: tuple[int, int]
) -> None:
    every = samples("a", counts[0]) + samples("b", counts[1])
    dataset = Dataset(Path(), ("a", "b"), every, ())
    train, back = hold_back(dataset, share, seed=0)
    assert tuple(sum(each.class_name == name for each in back) for name in "ab") == held
    assert sorted(train + back, key=every.index) == list(every)
    assert (train, back) == (
        [each for each in every if each in train], [each for each in every if each in back],
    )  # fmt: skip
    assert (train, back) == hold_back(dataset, share, seed=0)
    if share and counts[0] > 2:
        assert back != hold_back(dataset, share, seed=1)[1]


def test_what_is_held_back_depends_on_the_class_and_the_seed_alone() -> None:
    nut, bolt, pin = samples("nut", 30), samples("bolt", 20), samples("Stift ä", 10)
    alone = hold_back(Dataset(Path(), ("nut",), nut, ()), 0.2, seed=3)[1]
    for names, every in (
        (("bolt", "nut"), bolt + nut),
        (("nut", "Stift ä", "bolt"), nut + pin + bolt),
    ):
        held = hold_back(Dataset(Path(), names, every, ()), 0.2, seed=3)[1]
        assert [each for each in held if each.class_name == "nut"] == alone
    twins = hold_back(Dataset(Path(), ("a", "b"), samples("a", 30) + samples("b", 30), ()), 0.2, 3)
    chosen = [[each.path.name for each in twins[1] if each.class_name == name] for name in "ab"]
    assert chosen[0] != chosen[1]


def test_what_former_versions_held_back() -> None:
    dataset = Dataset(Path(), ("a", "b"), samples("a", 10) + samples("b", 10), ())
    held = hold_back(dataset, 0.3, seed=0, draws="run")[1]
    assert [each.path.as_posix() for each in held] == [
        "a/1.png", "a/4.png", "a/7.png", "b/3.png", "b/4.png", "b/9.png",
    ]  # fmt: skip


def test_a_class_of_one_image_is_refused() -> None:
    dataset = Dataset(Path(), ("a", "b"), samples("a", 2) + samples("b", 1), ())
    check_share(dataset, 0.0)
    with pytest.raises(DataError, match=r"'b'.*add normal.*--classes.*--calibration-share 0"):
        check_share(dataset, 0.1)


THRESHOLDS = Thresholds({"nut": Threshold(1.0, 20), "bolt": Threshold(2.0, 10)})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/nut/test/good/1.png", "nut"),
        ("data/bolt/Data/Images/Normal/1.JPG", "bolt"),
        ("nut/bolt/1.png", "bolt"),
        ("data/nuts/1.png", None),
        ("data/nut", None),  # a file
    ],
)
def test_the_class_of_a_file_is_told_by_its_folders(path: str, expected: str | None) -> None:
    assert class_of(Path(path), THRESHOLDS) == expected
    assert class_of(Path(path), ["nut"]) == "nut"
    assert class_of(Path(path), ()) is None


def test_a_class_that_is_not_known_has_the_highest_threshold() -> None:
    assert THRESHOLDS.score_of("nut") == 1.0
    assert THRESHOLDS.score_of("screw") == THRESHOLDS.score_of(None) == 2.0
    assert Thresholds().score_of("nut") is None


def test_false_alarms_and_misses_are_counted_by_class() -> None:
    good = samples("nut", 3) + samples("bolt", 1)
    bad = tuple(Sample(each.path, each.class_name, "bent") for each in good)
    scores = [0.5, 1.0, 1.1, 1.9, 3.0, 0.9, 3.0, 1.9]
    found = measure_decisions(good + bad, scores, THRESHOLDS, ["nut", "bolt", "screw"])
    assert found["nut"] == {
        "threshold": 1.0, "n_calibration": 20,
        "n_good": 3, "false_alarms": 1, "n_defective": 3, "misses": 1,
    }  # fmt: skip
    assert (found["bolt"]["false_alarms"], found["bolt"]["misses"]) == (0, 1)
    assert (found["screw"]["threshold"], found["screw"]["n_good"]) == (2.0, 0)


def test_thresholds_are_those_of_the_class_of_each_score() -> None:
    taken = calibrate(samples("a", 2) + samples("b", 1), [0.1, 0.3, 0.2]).thresholds(0.01)
    assert taken == {"a": Threshold(0.3, 2), "b": Threshold(0.2, 1)}


def test_training_decides_by_images_it_did_not_see(trained, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained.output)
    dataset = find_dataset(trained.data)
    _, held_back = hold_back(dataset, 0.1, seed=0)
    detector = crad.load(trained.output, device="cpu")
    for sample in held_back:  # one of each class, whose score is the threshold
        (prediction,) = detector.predict(sample.path)
        threshold = checkpoint.thresholds[sample.class_name]
        assert threshold.n_images == 1
        assert prediction.score == pytest.approx(threshold.score, rel=1e-4)
        assert prediction.threshold == threshold.score
    decisions = trained.results["decisions"]
    assert (decisions["protocol"], detector.protocol.name) == ("peak", "peak")
    assert decisions["false_alarm_rate"] == 0.01
    for name, counted in decisions["classes"].items():
        test = [sample for sample in dataset.test if sample.class_name == name]
        found = detector.predict([sample.path for sample in test])
        defective = [each.is_defective for each in found]
        pairs = list(zip(test, defective, strict=True))
        assert counted["false_alarms"] == sum(said for s, said in pairs if not s.is_anomaly)
        assert counted["misses"] == sum(not said for s, said in pairs if s.is_anomaly)
        assert (counted["n_good"], counted["n_defective"]) == (3, 3)


@pytest.mark.parametrize(("precision", "difference"), [("fp32", 1e-5), ("bf16", 0.03)])
def test_thresholds_hold_for_the_network_that_predicts(
    trained, precision: str, difference: float
) -> None:
    """BatchNorm is folded there, and the precision may be another."""
    detector = crad.load(trained.output, device="cpu", precision=precision)
    _, held_back = hold_back(find_dataset(trained.data), 0.1, seed=0)
    for sample in held_back:
        (prediction,) = detector.predict(sample.path)
        threshold = detector.thresholds[sample.class_name].score
        assert prediction.score == pytest.approx(threshold, rel=difference)


def test_evaluation_reports_what_training_did(trained, command: Command, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path / "out")]
    assert command(crad.evaluate.main, *arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["decisions"] == trained.results["decisions"]


@pytest.mark.parametrize("separate", [False, True])
def test_a_resumed_run_keeps_the_protocol_of_its_decisions(
    trained, train_command: Command, tmp_path: Path, separate: bool
) -> None:
    """As those of an older crad, whose thresholds are of scores by another one."""
    folder = tmp_path / "brick" if separate else tmp_path
    classes = ("--classes", "brick") if separate else ()
    assert train_command(trained.data, folder, "--epochs", "1", *classes) == 0
    stored = read_checkpoint(folder, ALL_PARTS)
    decisions = replace(stored.config.decisions, decision_protocol="crad")
    epochs = replace(stored.config.training, epochs=2)
    config = replace(stored.config, decisions=decisions, training=epochs)
    old = replace(stored, config=config, part_of=None)
    old.save(folder)
    again = ("--epochs", "2", "--resume", *(("--separate", *classes) if separate else ()))
    assert train_command(trained.data, tmp_path, *again) == 0
    detector = crad.load(folder, device="cpu")
    assert detector.protocol is PROTOCOLS["crad"]
    dataset = find_dataset(trained.data, classes=("brick",))
    _, held_back = hold_back(dataset, 0.1, seed=0)
    (image,) = detector.predict(held_back[0].path)
    assert image.score == pytest.approx(detector.thresholds["brick"].score, rel=1e-4)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["epoch"] == 2
    assert results["decisions"]["protocol"] == "crad"


def test_normal_images_alone_are_enough(
    trained, command: Command, train_command: Command, tmp_path: Path
) -> None:
    data = shutil.copytree(trained.data, tmp_path / "data")
    for folder in ("test", "ground_truth"):
        for name in ("brick", "gauge"):
            shutil.rmtree(data / name / folder)
    assert train_command(data, tmp_path / "run", "--calibration-share", "0.5") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    entry = results["decisions"]["classes"]["gauge"]
    assert (entry["n_calibration"], entry["n_good"], entry["n_defective"]) == (3, 0, 0)
    one = next((trained.data / "gauge" / "test").rglob("*.png"))
    (prediction,) = crad.load(tmp_path / "run").predict(one)
    assert prediction.is_defective == (prediction.score > entry["threshold"])


def test_the_class_of_images_from_memory_can_be_named(trained) -> None:
    detector = crad.load(trained.output, device="cpu")
    image = np.zeros((64, 64), np.uint8)
    for name in ("brick", "gauge"):
        (prediction,) = detector.predict(image, class_name=name)
        assert prediction.threshold == detector.thresholds[name].score
        assert prediction.class_name == name
    detector.products = None  # as of a checkpoint of an older crad
    (prediction,) = detector.predict(image)
    assert prediction.class_name is None
    assert prediction.threshold == max(each.score for each in detector.thresholds.values())
    with pytest.raises(ValueError, match=r"'nut'.*brick, gauge"):
        detector.predict(image, class_name="nut")


def test_a_class_without_a_threshold_keeps_its_name(trained, tmp_path: Path) -> None:
    """As former versions stored it where a class had one image only."""
    checkpoint = read_checkpoint(trained.output)
    brick = Thresholds({"brick": checkpoint.thresholds["brick"]})
    replace(checkpoint, thresholds=brick).write(tmp_path / "checkpoint.safetensors")
    detector = crad.load(tmp_path)
    assert [*detector.thresholds] == ["brick"]
    image = next((trained.data / "gauge" / "test" / "good").iterdir())
    for prediction in (*detector.predict(image), *detector.predict(image, class_name="gauge")):
        assert prediction.class_name == "gauge"
        assert prediction.threshold == detector.thresholds["brick"].score


def test_the_prediction_command_decides(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = replace(read_checkpoint(trained.output), products={})  # as of an older crad
    thresholds = checkpoint.thresholds
    checkpoint.write(tmp_path / "old.safetensors")
    inside = trained.data / "brick" / "test" / "good" / "000.png"
    outside = shutil.copy(inside, tmp_path / "image.png")
    arguments = ["--checkpoint", str(tmp_path / "old.safetensors")]
    arguments += ["--json", str(tmp_path / "s.json")]

    def decided(*more: object) -> list[dict[str, object]]:
        assert command(crad.predict.main, *arguments, *map(str, more)) == 0
        entries = json.loads((tmp_path / "s.json").read_text())
        for entry in entries:
            above = entry["score"] > entry["threshold"]
            assert entry["decision"] == ("defect" if above else "good")
        return entries

    highest = max(each.score for each in thresholds.values())
    known, unknown = decided(inside, outside)
    assert (known["threshold"], unknown["threshold"]) == (thresholds["brick"].score, highest)
    assert (known["class_name"], unknown["class_name"]) == ("brick", None)
    out = capsys.readouterr().out
    assert "brick 1; --class NAME" in out
    assert "1 of 2 images" in out
    assert {line.split()[2] for line in out.splitlines()[1:3]} <= {"good", "defect"}
    for entry in decided(inside, outside, "--class", "gauge"):
        assert entry["threshold"] == thresholds["gauge"].score
        assert entry["class_name"] == "gauge"
    out = capsys.readouterr().out
    assert "folder" not in out.partition("decision  image")[2].replace(str(tmp_path), "")
    assert command(crad.predict.main, *arguments, str(inside), "--class", "nut") == 2
    error = capsys.readouterr().err
    for told in ("'nut'", "brick, gauge"):
        assert told in error


def test_nothing_held_back_decides_nothing_and_says_so(
    trained,
    command: Command,
    train_command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert train_command(trained.data, run, "--calibration-share", "0", "--epochs", "1") == 0
    results = json.loads((run / "results.json").read_text())
    assert results["classes"]["brick"]["n_train"] == 6
    assert "decisions" not in results
    capsys.readouterr()
    one = str(next((trained.data / "gauge" / "test").rglob("*.png")))
    files = ["--csv", str(tmp_path / "s.csv"), "--json", str(tmp_path / "s.json")]
    assert command(crad.predict.main, "--checkpoint", str(run), one, *files) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[1] == "-"
    assert "no decisions" in table[2]
    assert "--calibration-share" in table[2]
    (entry,) = json.loads((tmp_path / "s.json").read_text())
    assert (entry["decision"], entry["threshold"]) == (None, None)
    assert (tmp_path / "s.csv").read_text().splitlines()[1].endswith(",,gauge,")
