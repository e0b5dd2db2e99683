"""The prediction command: table, CSV, JSON and heat maps."""

import csv
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import crad
import crad.predict
from crad.command_line import run_command
from crad.data.images import open_image
from crad.predict import find_inputs, main

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
    *lines, note = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines]
    assert table[0] == ["score", "decision", "image"]
    assert [path for _, _, path in table[1:]] == [str(path) for path in paths]
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
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    arguments = ["--checkpoint", str(trained.output), str(tmp_path), "--output", str(tmp_path)]
    before = (tmp_path / "x.png").read_bytes()
    assert command(main, *arguments) == 0
    assert (tmp_path / "x.png").read_bytes() == before
    (tmp_path / "x_heatmap.png").rename(tmp_path / "y.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "x_heatmap.png")
    assert command(main, *arguments) == 1
    assert "is one of the images to score" in capsys.readouterr().err


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
    assert "skipped: cannot read image" in captured.err


def failing(error: BaseException) -> Callable[..., Image.Image]:
    """A `heat_map` that works once."""
    calls = 0

    def heat_map(image: Image.Image, *_: object) -> Image.Image:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise error
        return image

    return heat_map


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "free some space and run it again\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (None, 1, "leave it out with --skip-bad\n"),
    ],
)
def test_what_was_scored_is_written_whatever_stops_it(
    trained,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException | None,
    code: int,
    message: str,
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (64, 64)).save(images / name)
    if error:
        monkeypatch.setattr(crad.predict, "heat_map", failing(error))
    else:
        (images / "3.png").write_bytes(b"no image")
    arguments = ["--checkpoint", str(trained.output), "--output", str(output), str(images)]
    assert command(main, *arguments) == code
    captured = capsys.readouterr()
    assert captured.err.endswith(message)
    assert captured.out.endswith("stopped after 2 of 3 images\n")
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


def test_a_reader_that_has_seen_enough_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as exit_:
            run_command(lambda: print("a table"))
        monkeypatch.undo()
    assert exit_.value.code == 141
    assert capsys.readouterr().err == ""


def test_folders_are_searched_as_those_of_a_data_set(tmp_path: Path) -> None:
    for name in ("10.png", "9.PNG", "b/1.jpg", "b/c/1.png", ".hidden/1.png", "b/.1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "b" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "none.png").symlink_to(tmp_path / "missing")
    found = find_inputs([tmp_path])
    relative = ["9.PNG", "10.png", "none.png", "b/1.jpg", "b/c/1.png"]
    assert found == {tmp_path / each: Path(each) for each in relative}
    assert list(found) == [tmp_path / each for each in relative]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.png"], 1, "no file or folder 'missing.png'"),
        (["EMPTY"], 1, "no images in"),
        ([], 2, "no images given"),
        (["--output", __file__, __file__], 1, f"output: '{__file__}' is a file"),
        (["--output", f"{__file__}/a/b", __file__], 1, f"output: '{__file__}' is a file"),
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
    assert f"writing into '{tmp_path}' is not permitted" in capsys.readouterr().err
