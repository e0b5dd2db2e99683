"""The prediction command: table, CSV, JSON and heat maps."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import crad
from crad.images import open_image
from crad.predict import main

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
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["score", "image"]
    assert [path for _, path in table[1:]] == [str(path) for path in paths]
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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.png"], 1, "no file or folder 'missing.png'"),
        (["EMPTY"], 1, "no images in"),
        ([], 2, "no images given"),
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
