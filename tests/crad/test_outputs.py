"""No output of any command replaces what crad did not write, and two commands share no folder."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import crad.checkpoint
import crad.evaluate
import crad.predict
import crad.train
from crad.errors import OutputError
from crad.files import cut_name
from crad.outputs import Output, check_outputs, locked
from crad.png import is_own_png, write_png
from crad.report.scores import COLUMNS, Csv, Json, ScoreFile
from crad.training.checkpoint import CHECKPOINT_NAME, is_checkpoint
from tests.fixtures import before_step, ctrl_c, files_of, largest_file

Train = Callable[..., int]
Command = Callable[..., int]

ROWS = [
    dict.fromkeys(COLUMNS) | {"image": name, "score": 1.5, "class_name": "a"}
    for name in ("a.png", 'näh,\n"b".png', os.fsdecode(b"caf\xe9.png"))
]


@pytest.mark.parametrize("form", [Csv(), Json()], ids=["csv", "json"])
def test_a_table_is_complete_after_every_row(tmp_path: Path, form: Csv | Json) -> None:
    path = tmp_path / "scores"
    path.write_text("former")
    table = ScoreFile("--csv", path, form)
    assert path.read_text() == "former"
    for number, row in enumerate(ROWS, 1):
        table.add(row)
        with path.open(encoding="utf-8", newline="") as file:
            rows = [*csv.DictReader(file)] if isinstance(form, Csv) else json.load(file)
        assert [each["image"][:3] for each in rows] == [r["image"][:3] for r in ROWS[:number]]
        assert form.is_own(path)
    table.close()
    assert [each.name for each in tmp_path.iterdir()] == ["scores"]


@pytest.mark.parametrize("form", [Csv(), Json()], ids=["csv", "json"])
def test_a_table_on_a_full_disk_keeps_its_rows(tmp_path: Path, form: Csv | Json) -> None:
    path = tmp_path / "scores"
    table = ScoreFile("--csv", path, form)
    table.add(ROWS[0])
    before = path.read_bytes()
    with largest_file(len(before) + 10), pytest.raises(OSError, match="scores"):
        table.add(ROWS[1])
    assert path.read_bytes() == before
    table.add(ROWS[1])
    table.close()
    assert path.stat().st_size > len(before)


def test_a_table_of_an_earlier_version_is_known(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    former = ("image", "score", "decision", "threshold", "class_name")
    path.write_text(json.dumps([{name: ROWS[0][name] for name in former}], indent=2))
    assert Json().is_own(path)
    table = tmp_path / "scores.csv"
    table.write_text(",".join(former) + "\r\na,1,,,b\r\n", newline="")
    assert Csv().is_own(table)
    table.write_text(",".join(former[:4]) + "\r\na,1,,,b\r\n", newline="")
    assert not Csv().is_own(table)
    others = (
        '[{"image": "a", "label": "cat"}]',
        "[]",
        '{"image": 1}',
        '[{"name": 1}]',
        "[" * 9999,
        "",
    )
    for other in others:
        path.write_text(other)
        assert not Json().is_own(path)


def test_a_picture_of_crad_is_known(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    write_png(tmp_path / "own.png", picture)
    picture.save(tmp_path / "other.png")
    assert is_own_png(tmp_path / "own.png")
    assert not is_own_png(tmp_path / "other.png")
    assert not is_own_png(tmp_path / "missing.png")
    (tmp_path / "empty.png").touch()
    assert not is_own_png(tmp_path / "empty.png")


def test_a_checkpoint_is_known_even_if_it_is_cut_short(trained, tmp_path: Path) -> None:
    data = (trained.output / CHECKPOINT_NAME).read_bytes()
    file = tmp_path / "file"
    for content, own in ((data[:-10], True), (data[:50], False), (b"", False), (b"x" * 99, False)):
        file.write_bytes(content)
        assert is_checkpoint(file) == own


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (("image",), "'image' is an input"),
        (("link",), "'link' is an input"),
        (("hard",), "'hard' is an input"),
        (("folder/../image",), "is an input"),
        (("notes",), "'notes' exists and was not written by crad"),
        (("broken",), "'broken' exists and was not written by crad"),
        (("pipe",), "'pipe' is a FIFO"),
        (("/dev/null",), "'/dev/null' is a device"),
        (("folder",), "'folder' is a folder"),
        (("notes/a",), "'.*notes' is a file"),
        (("new", "./new"), "'new' is written by --csv too"),
        (("empty",), "'empty' exists and was not written by crad"),
        (("own", "new"), None),
        (("elsewhere/new",), None),
    ],
)
def test_outputs_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: tuple[str, ...], message: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("image", "notes", "own"):
        Path(name).write_text(name)
    Path("empty").touch()
    Path("folder").mkdir()
    Path("link").symlink_to("image")
    Path("hard").hardlink_to("image")
    Path("broken").symlink_to("missing")
    os.mkfifo("pipe")
    wanted = [Output("--csv", Path(each), lambda path: path.name == "own") for each in outputs]
    if message is None:
        check_outputs(wanted, [Path("image")])
    else:
        with pytest.raises(OutputError, match=message):
            check_outputs(wanted, [Path("image")])


def test_long_names_are_cut_at_a_character() -> None:
    assert cut_name("name", 10) == "name"
    assert cut_name("aé" * 10, 7) == "aéaéa"


NAMES = ("results.json", "run.json", CHECKPOINT_NAME, "sheets/brick.png")
SEPARATE = ["--separate", "--overwrite"]  # leaves no sheets above those of the classes


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in NAMES for how in ([], ["--resume"], ["--overwrite"])]
    + [(name, SEPARATE) for name in NAMES[:3]],
)
def test_training_replaces_no_file_of_the_user(
    demo_root: Path,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    name: str,
    how: list[str],
) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    if how == ["--resume"] and name == CHECKPOINT_NAME:
        message = "not a checkpoint"  # settings are read before folders are looked at
    else:
        message = f"{name}' exists and was not written by crad"
    with before_step(0, ctrl_c):
        assert train_command(demo_root, tmp_path / "run", *how) == 1
    assert message in capsys.readouterr().err
    assert files_of(tmp_path / "run") == {Path(name): b"mine"}


def test_files_beside_those_of_a_run_stay(
    trained, tmp_path: Path, train_command: Train, command: Command
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    mine = [
        output / name for name in ("notes.txt", "sheets/notes.txt", "sheets/a.png", "sheets/a/b")
    ]
    mine[3].parent.mkdir()
    for file in mine:
        file.write_text("mine")
    checkpoint = ["--checkpoint", str(output)]
    assert train_command(trained.data, output, "--overwrite", "--epochs", "1") == 0
    assert command(crad.evaluate.main, *checkpoint, "--output", str(output), "--overwrite") == 0
    assert train_command(trained.data, output, "--resume", "--epochs", "1") == 0
    assert [file.read_text() for file in mine] == ["mine"] * 4


def test_pictures_of_an_older_version_are_replaced(
    trained, tmp_path: Path, train_command: Train, command: Command
) -> None:
    """They have no mark."""
    output = shutil.copytree(trained.output, tmp_path / "run")
    image, maps = tmp_path / "a.png", tmp_path / "out"
    Image.new("RGB", (64, 64)).save(image)
    predict = ["--checkpoint", str(output), str(image), "--output", str(maps)]
    assert command(crad.predict.main, *predict) == 0
    for file in (output / "sheets" / "brick.png", maps / "a_heatmap.png"):
        Image.new("RGB", (8, 8)).save(file)
    assert command(crad.predict.main, *predict) == 0
    evaluate = ["--checkpoint", str(output), "--output", str(output), "--overwrite"]
    assert command(crad.evaluate.main, *evaluate) == 0
    assert train_command(trained.data, output, "--resume") == 0
    assert is_own_png(output / "sheets" / "brick.png")
    assert is_own_png(maps / "a_heatmap.png")


def test_a_class_whose_name_is_a_pattern(
    demo_root: Path, tmp_path: Path, train_command: Train
) -> None:
    data = tmp_path / "data"
    shutil.copytree(demo_root / "brick", data / "*")
    for _ in range(2):
        assert train_command(data, tmp_path / "run", "--overwrite", "--epochs", "1") == 0


@pytest.mark.parametrize("name", ["../../mine", "/mine", "sub/mine"])
def test_a_class_in_results_names_no_file_elsewhere(
    trained, tmp_path: Path, train_command: Train, name: str
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "a" / "run")
    mine = output / "sheets" / f"{name.removeprefix('/')}.png"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    results = {**trained.results, "classes": {name: {}, **trained.results["classes"]}}
    (output / "results.json").write_text(json.dumps(results))
    assert train_command(trained.data, output, "--overwrite", "--epochs", "1") == 0
    assert mine.read_text() == "mine"


def test_the_former_run_stays_until_the_first_checkpoint(
    trained, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    with before_step(2, ctrl_c):  # an epoch has three steps
        assert train_command(trained.data, output, "--overwrite") == 130
    assert "start again" in capsys.readouterr().err
    assert files_of(output) == files_of(trained.output)
    with before_step(3, ctrl_c):
        assert train_command(trained.data, output, "--overwrite") == 130
    left = {CHECKPOINT_NAME, "exemplars.safetensors", "run.json"}
    assert {str(path) for path in files_of(output)} == left


def test_a_class_of_any_name(demo_root: Path, tmp_path: Path, train_command: Train) -> None:
    data = tmp_path / "data"
    shutil.copytree(demo_root / "brick", data / "sheets")
    shutil.copytree(demo_root / "gauge", data / "results.json")
    before = files_of(data)
    assert train_command(data, data) == 1
    assert train_command(data, data / "sheets") == 1
    assert train_command(data, data / "sheets" / "train" / "out") == 1
    assert train_command(data, data, "--separate") == 1
    assert files_of(data) == before
    assert train_command(data, data / "runs" / "a", "--epochs", "1") == 0
    names = {path.name for path in (data / "runs" / "a" / "sheets").iterdir()}
    assert names == {"sheets.png", "results.json.png"}
    assert {path: each for path, each in files_of(data).items() if path in before} == before


def test_an_evaluation_writes_beside_no_image(
    trained, demo_root: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(demo_root, tmp_path / "data")
    before = files_of(data)
    arguments = ["--checkpoint", str(trained.output), "--data", str(data), "--output"]
    for output in (data, data / "brick", data / "brick" / "new"):
        assert command(crad.evaluate.main, *arguments, str(output)) == 1
        assert "lies among the images" in capsys.readouterr().err
    assert files_of(data) == before


def test_a_prediction_replaces_no_input(
    trained, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained.output, tmp_path / "run")
    image, notes = tmp_path / "images" / "a.png", tmp_path / "notes"
    image.parent.mkdir()
    Image.new("RGB", (64, 64)).save(image)
    notes.write_text("mine")
    before = files_of(tmp_path)
    for option in ("--csv", "--json"):
        for target in (image, notes, run / CHECKPOINT_NAME, run / "results.json", tmp_path):
            arguments = ["--checkpoint", str(run), str(image), option, str(target)]
            assert command(crad.predict.main, *arguments) == 1
            assert f"{option}: '{target}'" in capsys.readouterr().err
    same = ["--csv", str(tmp_path / "s"), "--json", str(tmp_path / "s")]
    assert command(crad.predict.main, "--checkpoint", str(run), str(image), *same) == 1
    assert "too" in capsys.readouterr().err
    for output in (image.parent, image.parent / "new"):
        arguments = ["--checkpoint", str(run), str(image.parent), "--output", str(output)]
        assert command(crad.predict.main, *arguments) == 1
        assert "searched for images" in capsys.readouterr().err
    assert files_of(tmp_path) == before
    data = shutil.copytree(trained.data, tmp_path / "data")
    before = files_of(data)
    for output in (data / "brick", data / "brick" / "test" / "good", data / "gauge" / "new"):
        arguments = ["--checkpoint", str(run), str(image), "--output", str(output)]
        assert command(crad.predict.main, *arguments) == 1
        assert "lies among the images" in capsys.readouterr().err
    assert files_of(data) == before


def test_a_prediction_replaces_an_earlier_one(trained, tmp_path: Path, command: Command) -> None:
    image, output = tmp_path / "a.png", tmp_path / "out"
    Image.new("RGB", (64, 64)).save(image)
    arguments = ["--checkpoint", str(trained.output), str(image), "--output", str(output)]
    arguments += ["--csv", str(tmp_path / "s.csv"), "--json", str(tmp_path / "s.json")]
    for _ in range(2):
        assert command(crad.predict.main, *arguments) == 0
    names = {path.name for path in output.iterdir()}
    assert names == {"a_heatmap.png", "a_mask.png", "scores.csv", "scores.json"}
    arguments = ["--checkpoint", str(trained.output), str(trained.data)]
    for _ in range(2):  # the folders of the heat maps are named as those of a class
        assert command(crad.predict.main, *arguments, "--output", str(tmp_path / "all")) == 0
    assert (tmp_path / "all" / "brick" / "train" / "good" / "000_heatmap.png").exists()


def test_a_long_name_has_a_heat_map(trained, tmp_path: Path, command: Command) -> None:
    names = ["a" * 251, "ä" * 125, "b" * 250, "b" * 251]
    for name in names:
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    output = tmp_path / "out"
    images = [str(tmp_path / f"{name}.png") for name in names]
    arguments = ["--checkpoint", str(trained.output), "--output", str(output), *images]
    assert command(crad.predict.main, *arguments) == 0
    assert len(list(output.glob("*_heatmap*.png"))) == len(names)


def test_a_stripped_checkpoint_replaces_checkpoints_only(
    trained, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.safetensors"
    target.write_text("mine")
    arguments = ["strip", str(trained.output), str(target)]
    for more in ([], ["--overwrite"]):
        assert command(crad.checkpoint.main, *arguments, *more) == 1
        assert "was not written by crad" in capsys.readouterr().err
    assert target.read_text() == "mine"
    target.unlink()
    assert command(crad.checkpoint.main, *arguments) == 0
    assert command(crad.checkpoint.main, *arguments) == 1
    assert command(crad.checkpoint.main, *arguments, "--overwrite") == 0


def test_a_folder_is_locked_and_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with locked(folder):
        with pytest.raises(OutputError, match=rf"process {os.getpid()}.*'{folder}'.*another"):
            locked(folder).__enter__()
        with locked(tmp_path / "a" / "c"):
            pass
    assert not list(tmp_path.iterdir())
    with locked(folder):
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_table_that_another_command_writes_is_refused(
    trained, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    image, path = tmp_path / "a.png", tmp_path / "s.csv"
    Image.new("RGB", (64, 64)).save(image)
    table = ScoreFile("--csv", path, Csv())
    table.add(ROWS[0])
    arguments = ["--checkpoint", str(trained.output), str(image), "--csv", str(path)]
    assert command(crad.predict.main, *arguments) == 1
    assert "another command is writing" in capsys.readouterr().err
    table.add(ROWS[1])
    table.close()
    assert command(crad.predict.main, *arguments) == 0


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / ".crad.lock")
    with pytest.raises(OutputError, match=r"'.*\.crad\.lock' is a .*another folder"):
        locked(tmp_path).__enter__()


def test_a_lock_of_another_origin_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".crad.lock").write_text("mine")
    with pytest.raises(OutputError, match="not written by crad"):
        locked(tmp_path).__enter__()
    assert (tmp_path / ".crad.lock").read_text() == "mine"


HOLDING = """
import sys, time
from pathlib import Path
from crad.outputs import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDING, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(OutputError, match=f"process {holder.pid}"):
            locked(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_second_run_in_a_folder_is_refused(
    trained, tmp_path: Path, train_command: Train, command: Command
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    arguments = ["--checkpoint", str(output), "--output", str(output)]
    with locked(output):
        for how in ([], ["--resume"], ["--overwrite"]):
            assert train_command(trained.data, output, *how) == 1
        assert command(crad.evaluate.main, *arguments, "--overwrite") == 1
        image = str(trained.data / "brick" / "test" / "good" / "000.png")
        assert command(crad.predict.main, *arguments, image) == 1
        assert command(crad.evaluate.main, "--checkpoint", str(output)) == 0
    assert files_of(output) == files_of(trained.output)


@pytest.mark.slow
def test_a_killed_prediction_leaves_its_rows(trained, tmp_path: Path) -> None:
    images, table = tmp_path / "images", tmp_path / "s.json"
    images.mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for number in range(1000):
        (images / f"{number}.png").hardlink_to(tmp_path / "a.png")
    command = [sys.executable, "-m", "crad", "predict", "--checkpoint", trained.output, images]
    with subprocess.Popen(
        [*command, "--json", table, "--batch-size", "1"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(5)][1:]
        process.send_signal(signal.SIGKILL)
        process.wait()
    rows = json.loads(table.read_text())
    assert len(printed) <= len(rows) < 1000
