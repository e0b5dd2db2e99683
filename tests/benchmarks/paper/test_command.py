"""The command: its options, runs that are trained, resumed and reused, and the files it writes."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.paper.__main__ import main
from benchmarks.paper.options import parse_options
from benchmarks.paper.variants import CRAD, GLOBAL, LOCAL, NO_JITTER, NO_REFINEMENT
from crad.config import Config
from crad.training.checkpoint import CHECKPOINT_NAME
from crad.training.loop import Training

pytestmark = pytest.mark.thorough

Command = Callable[..., int]
Small = tuple[str, ...]


@pytest.fixture(scope="module")
def table5(
    made: Path, demo_root: Path, small: Small, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output folder of table 5, made of runs of the figures and of two more."""
    output = tmp_path_factory.mktemp("tables") / "table5"
    shutil.copytree(made, output)
    main(["table5", "--data", str(demo_root), "--output", str(output), *small])
    return output


@pytest.fixture
def mvtec(two_classes: Path, tmp_path: Path) -> Path:
    """Two classes named and laid out as those of MVTec AD."""
    root = tmp_path / "mvtec"
    shutil.copytree(two_classes / "gauge", root / "bottle")
    shutil.copytree(two_classes / "brick", root / "metal_nut")
    return root


@pytest.fixture
def visa(two_classes: Path, tmp_path: Path) -> Path:
    """Two classes named and laid out as those of VisA."""
    root = tmp_path / "VisA"
    lines = ["object,split,label,image,mask"]
    for old, new in (("gauge", "candle"), ("brick", "pipe_fryum")):
        for path in sorted((two_classes / old).glob("t*/*/*.png")):
            split, defect = path.parts[-3:-1]
            label = "normal" if defect == "good" else "anomaly"
            stem = f"{split}{defect}{path.stem}"
            image = f"{new}/Data/Images/{label.title()}/{stem}.JPG"
            mask = f"{new}/Data/Masks/Anomaly/{stem}.png" if label == "anomaly" else ""
            for name in filter(None, (image, mask)):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).save(root / image)
            if mask:
                truth = two_classes / old / "ground_truth" / defect / f"{path.stem}_mask.png"
                Image.open(truth).point(lambda value: min(value, 3)).save(root / mask)
            lines.append(f"{new},{split},{label},{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def trained_epochs(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The epochs as they are trained; a None interrupts the second epoch after it."""
    epochs: list[int | None] = []
    run_epoch = Training.run_epoch

    def counted(self: Training, *arguments: object) -> float:
        if len(epochs) > 1 and epochs[-2] is None:
            raise KeyboardInterrupt
        epochs.append(self.epoch)
        return run_epoch(self, *arguments)

    monkeypatch.setattr(Training, "run_epoch", counted)
    return epochs


# ---- options ----


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "table1"),
        (("table1", "--seed", "3"), 2, "--seed: .*3.*--seeds"),
        (("table1", "--local.memory", "vq"), 2, "--local.memory: .*vq"),
        (("table1", "--seeds", "1", "1"), 2, "--seeds: "),
        (("table1", "--epochs", "0"), 2, "--epochs: .*1"),
        (("table1", "--data", "nowhere"), 1, "nowhere"),
        (("table1", "--report", "."), 1, "'.'"),
        (("table9",), 2, "table9"),
        (("cost", "--batch-size", "0"), 2, "--batch-size: .*0"),
    ],
)
def test_what_is_refused_before_training(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: Any = arguments if "cost" in arguments else (*arguments, "--output", tmp_path / "made")
    assert command(main, *map(str, given)) == code
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "made").exists()


def test_the_help_names_all_targets_and_the_cost(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in ("python -m benchmarks.paper", "table1", "figure2b", "dims", "cost --help"):
        assert name in text


def test_the_demo_set_has_settings_of_its_own(tmp_path: Path) -> None:
    def config(*arguments: str) -> Config:
        return parse_options(["table1", *arguments]).config

    for name in ("demo", "demo-hard"):
        demo = config("--data", name)
        assert demo.model.preset == "tiny"
        assert (demo.training.epochs, demo.training.learning_rate) == (40, 0.003)
    assert demo.decisions.calibration_share == 0
    given = config("--epochs", "7", "--learning-rate", "0.5").training
    assert (given.epochs, given.learning_rate) == (7, 0.5)
    for published in (config("--data", str(tmp_path)), config("--preset", "crad")):
        assert (published.training.epochs, published.training.learning_rate) == (50, 1e-3)


# ---- runs ----


def test_finished_runs_are_reused(
    demo_root: Path,
    made: Path,
    table5: Path,
    small: Small,
    command: Command,
    trained_epochs: list[int | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in made.glob(f"*/{CHECKPOINT_NAME}"):  # those that table 5 shares with the figures
        assert (table5 / path.relative_to(made)).read_bytes() == path.read_bytes()
    timings = [
        json.loads((table5 / f"{each.name}-seed0" / "results.json").read_text())["timing"]
        for each in (NO_REFINEMENT, NO_JITTER)
    ]
    assert timings[0]["features"] > 0 == timings[1]["features"]  # of the same images

    page = table5 / "page.md"
    given = ("--data", str(demo_root), "--output", str(table5), "--report", str(page), *small)
    numbers = (table5 / "table5.json").read_bytes()
    assert command(main, "table5", *given) == 0
    assert trained_epochs == []
    assert "run 5 of 5: crad, seed 0 (finished)" in capsys.readouterr().out
    assert (table5 / "table5.json").read_bytes() == numbers
    files = {path.name for path in table5.glob("table5*")}
    assert files == {
        "table5.md", "table5.csv", "table5.json", "table5-orderings.csv", "table5-orderings.json",
        "table5-classes.csv", "table5-classes.json",
    }  # fmt: skip
    assert len(json.loads((table5 / "table5-classes.json").read_text())) == 5 * 2 * 2
    assert {path.name for path in page.with_suffix("").iterdir()} == files - {"table5.md"}
    assert "<!-- table5: written by python -m benchmarks.paper -->\n## Table 5" in page.read_text()

    assert command(main, "table5", *given, "--depth", "2") == 2
    assert "--depth" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_run_is_resumed(
    demo_root: Path,
    runs_made: Path,
    table5: Path,
    small: Small,
    command: Command,
    trained_epochs: list[int | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("table5", "--data", str(demo_root), "--output", str(runs_made), *small)
    trained_epochs[:] = [None]  # interrupts the second epoch
    assert command(main, *given) == 130
    assert "2 of 5 runs are finished" in capsys.readouterr().err
    trained_epochs.clear()
    assert command(main, *given) == 0
    assert trained_epochs == [1, 0, 1]  # the rest of the third run, and the fourth
    assert (runs_made / "table5.json").read_bytes() == (table5 / "table5.json").read_bytes()


@pytest.mark.slow
def test_tables_2_and_3_on_the_layout_of_mvtec(
    mvtec: Path,
    tmp_path: Path,
    small: Small,
    command: Command,
    trained_epochs: list[int | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--data", str(mvtec), "--output", str(tmp_path / "made"), *small)
    assert command(main, "table2", "table3", *given) == 0
    assert trained_epochs == [0, 1] * 3  # one model for all classes, and one for each of two
    out = capsys.readouterr().out
    assert "| Metal Nut |" in out
    assert "Table 3: localization, MVTec AD" in out
    record = json.loads((tmp_path / "made" / "table2.json").read_text())[0]
    assert record["difference"] == pytest.approx(record["ours_mean"] - 100)
    assert command(main, "table4", *given) == 1
    assert re.search("table4: .*VisA", capsys.readouterr().err)


@pytest.mark.slow
def test_table_4_on_the_layout_of_visa(
    visa: Path, tmp_path: Path, small: Small, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--data", str(visa), "--output", str(tmp_path / "made"), *small)
    assert command(main, "table4", *given) == 0
    assert capsys.readouterr().out.count("| Pipe fryum |") == 2
    assert (tmp_path / "made" / f"{CRAD.name}-seed0").is_dir()
    assert command(main, "table1", *given) == 1
    assert re.search("table1: .*VisA.*table4", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.thorough
def test_table_1_and_the_dimensions(
    demo_root: Path, runs_made: Path, small: Small, command: Command, trained_epochs: list[int]
) -> None:
    given = ("--data", str(demo_root), "--output", str(runs_made), *small)
    assert command(main, "table1", "dims", *given) == 0
    assert len(trained_epochs) == 2 * (6 + 7)  # the figures have four of table 1
    assert "| Global | Attention | 64 |" in (runs_made / "table1.md").read_text()
    with (runs_made / "table1-read.csv").open(newline="") as file:
        read = {row["detector"]: float(row["mean"]) for row in csv.DictReader(file)}
    assert read.keys() == {LOCAL.name, GLOBAL.name}
    assert 4 <= read[LOCAL.name] <= 64
    with (runs_made / "dims.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 3  # detection, localization, entries read
    assert {row["dimensions"] for row in rows} == {"1", "2", "3", "4", "6"}
    assert "| 256 | 4 | 4 x 4 x 4 x 4 |" in (runs_made / "dims.md").read_text()
    assert b"</svg>" in (runs_made / "dims.svg").read_bytes()


@pytest.mark.slow
@pytest.mark.thorough
def test_simplices_beside_the_dimensions(
    demo_root: Path, runs_made: Path, small: Small, command: Command, trained_epochs: list[int]
) -> None:
    given = ("--data", str(demo_root), "--output", str(runs_made), *small)
    assert command(main, "dims", *given) == 0
    del trained_epochs[:]
    assert command(main, "simplex", *given) == 0
    assert len(trained_epochs) == 2 * 4  # the linear ones are those of dims
    text = (runs_made / "simplex.md").read_text()
    assert "| 4 x 4 x 4 | linear | 8 |" in text
    assert "| 4 x 4 x 4 | simplex | 4 |" in text
    with (runs_made / "simplex.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4 * 2 * 2
