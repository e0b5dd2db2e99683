"""The prediction command: table, CSV, JSON and heat maps."""

import csv
import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

import crad
import crad.predict
from crad.command_line import run_command
from crad.data.images import open_image
from crad.data.inputs import find_inputs
from crad.model.crad import CRAD
from crad.predict import main
from crad.report.scores import Csv
from tests.fixtures import before_call, ctrl_c

Command = Callable[..., int]


def test_scores_as_table_csv_and_json(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = trained.data / "brick" / "test" / "good"
    one = trained.data / "gauge" / "test" / "good" / "000.png"
    files = ["--csv", str(tmp_path / "s.csv"), "--json", str(tmp_path / "s.json")]
    assert command(main, "--checkpoint", str(trained.output), str(good), str(one), *files) == 0
    paths = [*sorted(good.iterdir()), one]
    scores = [prediction.score for prediction in crad.load(trained.output).predict(paths)]
    expected = [
        (str(path), pytest.approx(score)) for path, score in zip(paths, scores, strict=True)
    ]
    *lines, _, note = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines]
    assert table[0] == ["score", "p-value", "decision", "image"]
    assert [path for _, _, _, path in table[1:]] == [str(path) for path in paths]
    assert f"brick {len(paths) - 1}, gauge 1; --class NAME" in note
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], float(row["score"])) for row in rows] == expected
    entries = json.loads((tmp_path / "s.json").read_text())
    assert [(entry["image"], entry["score"]) for entry in entries] == expected


def test_heat_maps_have_the_size_of_their_image_and_names_of_their_own(
    trained, command: Command, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for name, size in {"a/x.png": (50, 30), "b/x.png": (70, 40), "b/x.jpg": (20, 90)}.items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "gray").save(images / name)
    output = tmp_path / "out"
    named = str(images / "a" / "x.png"), str(images / "b" / "x.png")
    arguments = ["--checkpoint", str(trained.output), "--output", str(output)]
    assert command(main, *arguments, *named, str(images)) == 0
    sizes = sorted(open_image(path).size for path in output.rglob("*_heatmap*.png"))
    assert sizes == [(20, 90), (50, 30), (70, 40)]
    assert (output / "scores.csv").exists()
    assert (output / "scores.json").exists()


def test_an_input_is_never_overwritten(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("x.png", "x_heatmap.png")
    for name in names:
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    before = [(tmp_path / name).read_bytes() for name in names]
    images = [str(tmp_path / name) for name in names]
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path)]
    assert command(main, *arguments, *images) == 1
    assert "heat maps would lie among images" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x_heatmap.png").hardlink_to(tmp_path / "x.png")
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path / "out")]
    assert command(main, *arguments, *images) == 1
    assert "x_heatmap.png' is an input" in capsys.readouterr().err
    assert [(tmp_path / name).read_bytes() for name in names] == before


def test_bad_images(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    arguments = ["--checkpoint", str(trained.output), str(tmp_path)]
    assert command(main, *arguments) == 1
    assert "bad.png" in capsys.readouterr().err
    assert command(main, *arguments, "--skip-bad") == 0
    captured = capsys.readouterr()
    assert "good.png" in captured.out
    assert "bad.png" in captured.err
    (tmp_path / "good.png").unlink()
    scores = tmp_path / "scores.csv"
    scores.write_bytes(Csv().begin + b"of a former run\n")
    assert command(main, *arguments, "--skip-bad", "--csv", str(scores)) == 1
    assert "none of 1 image can" in capsys.readouterr().err
    assert scores.read_bytes() == Csv().begin + b"of a former run\n"


@pytest.mark.parametrize(
    ("cause", "code", "told"),
    [
        ("full disk", 1, ("2_heatmap.png", "free some space")),
        ("Ctrl-C", 130, ("interrupted",)),
        ("bad image", 1, ("3.png", "--skip-bad")),
    ],
)
def test_what_was_scored_is_written_whatever_stops_it(
    trained,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cause: str,
    code: int,
    told: tuple[str, ...],
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    output.mkdir()
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (64, 64)).save(images / name)
    if cause == "full disk":
        (output / f".2_heatmap.png.{os.getpid()}.tmp").symlink_to("/dev/full")
    elif cause == "bad image":
        (images / "3.png").write_bytes(b"no image")

    def stop(image: int, model: CRAD) -> None:
        if cause == "Ctrl-C" and image == 2:
            ctrl_c()

    arguments = ["--checkpoint", str(trained.output), "--output", str(output), str(images)]
    with before_call(CRAD, stop):
        assert command(main, *arguments, "--batch-size", "1") == code
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    for each in told:
        assert each in last
    assert captured.out.splitlines()[-1] == "stopped after 2 of 3 images"
    entries = json.loads((output / "scores.json").read_text())
    assert [Path(entry["image"]).name for entry in entries] == ["1.png", "2.png"]
    with (output / "scores.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_scores_of_a_former_run_survive_one_that_scores_nothing(
    trained, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    scores = tmp_path / "scores.csv"
    scores.write_text("former")
    arguments = ["--checkpoint", str(trained.output), "--csv", str(scores)]
    assert command(main, *arguments, str(tmp_path / "bad.png")) == 1
    assert scores.read_text() == "former"


def test_a_reader_that_has_seen_enough_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with (
        os.fdopen(writer, "w") as stdout,
        redirect_stdout(stdout),
        pytest.raises(SystemExit) as exit_,
    ):
        run_command(lambda: print("a table"))
    assert exit_.value.code == 141
    assert capsys.readouterr().err == ""


def test_folders_are_searched_as_those_of_a_data_set(tmp_path: Path) -> None:
    for name in ("10.png", "9.PNG", "b/1.jpg", "b/c/1.png", ".hidden/1.png", "b/.1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "b" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "none.png").symlink_to(tmp_path / "missing")
    found, n_masks = find_inputs([tmp_path])
    assert n_masks == 0
    relative = ["9.PNG", "10.png", "none.png", "b/1.jpg", "b/c/1.png"]
    assert found == {tmp_path / each: Path(each) for each in relative}
    assert list(found) == [tmp_path / each for each in relative]


def test_masks_of_a_data_set_are_left_out_and_counted(
    trained, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = [*trained.data.glob("*/ground_truth/*/*.png")]
    images = {*trained.data.rglob("*.png")} - {*masks}
    for given, share in ((trained.data, 1), (trained.data.parent, 1), (trained.data / "brick", 2)):
        found, n_masks = find_inputs([given])
        assert n_masks == len(masks) / share
        assert {*found} == {path for path in images if path.is_relative_to(given)}
    found, n_masks = find_inputs([masks[0], masks[1].parent])
    assert ({*found} <= {*masks}, n_masks) == (True, 0)
    assert command(main, "--checkpoint", str(trained.output), str(trained.data / "gauge")) == 0
    assert f"{len(masks) // 2} masks of a data set left out" in capsys.readouterr().out
    names = ("candle/Data/Images/Anomaly/0.JPG", "candle/Data/Masks/Anomaly/0.png")
    for name in (*names, "ground_truth/0.png", "Data/Masks/0.png"):  # these two are of no class
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, n_masks = find_inputs([tmp_path])
    assert (len(found), n_masks) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.png"], 1, "'missing.png'"),
        (["EMPTY"], 1, ".png"),
        ([], 2, "no images"),
        (["--output", __file__, __file__], 1, f"output: '{__file__}'"),
        (["--output", f"{__file__}/a/b", __file__], 1, f"output: '{__file__}'"),
        (["--devise", "cpu"], 2, "--devise"),
    ],
)
def test_errors(
    trained,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    given = [str(tmp_path) if each == "EMPTY" else each for each in arguments]
    assert command(main, "--checkpoint", str(trained.output), *given) == code
    assert message in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_into(
    trained,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    arguments = ["--checkpoint", str(trained.output), "--output", str(tmp_path / "a" / "b")]
    assert command(main, *arguments, __file__) == 1
    error = capsys.readouterr().err
    for told in (f"'{tmp_path}'", "permitted", "--output"):
        assert told in error
