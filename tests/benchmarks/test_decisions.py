"""False alarms and misses against what thresholds promise: what is measured, and its tables."""

from pathlib import Path

import pytest

from benchmarks.comparison import read_records
from benchmarks.decisions.__main__ import COMMAND, main
from benchmarks.decisions.measured import CONTAMINATION, RATES, WAYS, divide
from benchmarks.decisions.tables import BEGIN, END, tables
from crad.data import find_dataset
from crad.errors import UsageError
from tests.fixtures import demo_root, one_thread

__all__ = ["demo_root", "one_thread"]


def test_images_are_divided_so_that_no_training_sees_what_is_tried(demo_root: Path) -> None:
    found = find_dataset(demo_root)
    samples, n_train = [*found.train, *found.test], len(found.train)
    n_images = 6
    for contaminated in (False, True):
        images = divide(samples, n_train, found.classes, n_images, 0, contaminated)
        for name in found.classes:
            parts = images.normal[name], images.fresh[name], images.defective[name]
            rows = [row for part in parts for row in part]
            assert len({*rows}) == len(rows)
            assert {samples[row].class_name for row in rows} == {name}
            wrong = [row for row in images.normal[name] if samples[row].is_anomaly]
            assert len(wrong) == (1 if contaminated else 0)
            assert all(row < n_train or row in wrong for row in images.normal[name])
            assert not any(samples[row].is_anomaly for row in images.fresh[name])
            assert min(images.fresh[name]) >= n_train  # the same thing may be on images of a part
            assert all(samples[row].is_anomaly for row in images.defective[name])
    assert divide(samples, n_train, found.classes, n_images, 0, False) == divide(
        samples, n_train, found.classes, n_images, 0, False
    )
    assert divide(samples, n_train, found.classes, n_images, 0, False) != divide(
        samples, n_train, found.classes, n_images, 1, False
    )
    with pytest.raises(UsageError, match="--images: class"):
        divide(samples, n_train, found.classes, 10_000, 0, False)


def test_the_command_and_its_tables(
    demo_root: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "decisions.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    records = tmp_path / "records"
    given = ["--data", str(demo_root), "--images", "6", "--seeds", "0", "--minutes", "0.001"]
    given += [
        "--ways",
        "third",
        "folds",
        "--backbone",
        "scattering",
        "--image-size",
        "64",
        "--output",
        str(records),
    ]
    main([*given, "--report", str(page)])
    found = read_records(records, COMMAND)
    assert sorted((each["way"], each["contamination"]) for each in found) == [
        ("folds", 0.0),
        ("third", 0.0),
        ("third", 1 / 6),
    ]
    for each in found:
        for of_class in each["classes"].values():
            n_calibration = {"third": 2, "folds": 6}[each["way"]]
            assert of_class["n_calibration"] == n_calibration
            assert len(of_class["decisions"]) == 2 * len(RATES)
            for decided in of_class["decisions"]:
                assert 0 <= decided["false_alarms"] <= of_class["n_good"]
                assert 0 <= decided["misses"] <= of_class["n_defective"]
        assert each["suspects"]["n_normal"] == 6 * len(each["classes"])
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert text.count("held back |") == 2  # clean, and with defects
    assert "| 5 folds | 6 | 14.3 % |" in text
    capsys.readouterr()
    main(given)  # nothing is measured twice
    assert "written to" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*given, "--images", "5"])
    assert "was measured with another n_images" in capsys.readouterr().err


def test_tables_are_of_means_over_classes_and_seeds() -> None:
    def record(seed: int, alarms: int, misses: int, contamination: float = 0.0) -> dict:
        def of_class(share: int) -> dict:
            decisions = [
                {
                    "false_alarm_rate": rate,
                    "stated_contamination": stated,
                    "false_alarms": share * alarms,
                    "misses": misses,
                }
                for rate in RATES
                for stated in (0.0, CONTAMINATION)
            ]
            counts = {"n_calibration": 10, "n_good": 100, "n_defective": 10, "image_auroc": 0.9}
            return {**counts, "decisions": decisions}

        return {
            "data": "screws",
            "backbone": "eyes",
            "image_size": 8,
            "n_images": 100,
            "minutes": 1.0,
            "way": "tenth",
            "seed": seed,
            "contamination": contamination,
            "classes": {"a": of_class(1), "b": of_class(3)},
            "suspects": {"n_normal": 20, "n_defective": 2, "listed": 3, "listed_defective": 1},
        }

    assert "Nothing is measured yet." in tables([])
    clean = [record(0, 1, 1), record(1, 2, 2)]
    assert [*tables(clean)][-1] == (
        "| screws | a tenth held back | 10 | 9.1 % | 3.0 % (2.0 to 4.0) | 3.0 % (2.0 to 4.0) "
        "| 3.0 % (2.0 to 4.0) | 15.0 % (10.0 to 20.0) | 15.0 % (10.0 to 20.0) | 2 |"
    )
    last = [*tables([*clean, record(1, 1, 5, CONTAMINATION)])][-1]
    assert last == (  # of the seed that both have
        "| screws | a tenth held back | 0.900 -> 0.900 | 20.0 % | 50.0 % | 50.0 % | 4.0 % | 2.0 % "
        "| 4.0 % | 1 of 2, 2 of 18 |"
    )
    other = {**record(0, 1, 1), "backbone": "ears"}
    rows = [line for line in tables([*clean, other]) if "held back" in line]
    assert [line.split(" | ")[0] for line in rows] == [
        "| screws, eyes, 8, 100, 1.0",
        "| screws, ears, 8, 100, 1.0",
    ]


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    for wrong in (
        ([], "--data"),
        (["--data", "demo", "--ways", "half"], "--ways"),
        (["--data", "demo", "--images", "1"], "--images"),
        (["--data", "demo", "--minutes", "0"], "--minutes"),
        (["--data", "demo", "--seeds"], "--seeds"),
        (["--data", "demo", "--ways", "third", "third"], "--ways"),
        (["--data", "demo", "--backbone", "auto"], "--backbone"),
        (["--data", "demo", "./demo"], "--data"),
        (["--report", str(tmp_path / "none.md")], "report"),
    ):
        with pytest.raises(SystemExit):
            main(wrong[0])
        assert wrong[1] in capsys.readouterr().err
    assert {*WAYS} == {"tenth", "third", "folds"}
