"""A separate run used as one detector: which model an image gets, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import crad
import crad.calibrate
import crad.evaluate
import crad.predict
from crad.data.demo import write_demo
from crad.errors import CheckpointError, UsageError
from crad.outputs import locked
from crad.separate_detector import SeparateDetector
from crad.train import main
from crad.training.checkpoint import ALL_PARTS, CHECKPOINT_NAME, read_checkpoint
from crad.training.separate_run import PRODUCTS_NAME
from tests.crad.conftest import Run
from tests.fixtures import before_call, ctrl_c, files_of, run

Train = Callable[..., int]
NAMES = ("brick", "gauge")


@pytest.fixture(scope="module")
def separate(
    tmp_path_factory: pytest.TempPathFactory, demo_root: Path, train_command: Train
) -> Path:
    """The output folder of a finished run on brick and gauge; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "separate"
    assert train_command(demo_root, output, "--separate", "--epochs", "2") == 0
    return output


def images_of(root: Path, name: str) -> list[Path]:
    return sorted((root / name / "test").rglob("*.png"))


def test_each_image_gets_the_model_of_its_class(separate: Path, demo_root: Path) -> None:
    detector = crad.load(separate, "cpu")
    assert isinstance(detector, SeparateDetector)
    assert detector.classes == NAMES
    brick, gauge = (images_of(demo_root, name) for name in NAMES)
    mixed = [each for pair in zip(brick, gauge, strict=True) for each in pair]
    found = detector.predict(mixed, batch_size=5)
    assert [each.class_name for each in found] == [*NAMES] * 6
    for start, name in enumerate(NAMES):
        alone = crad.load(separate / name, "cpu")
        assert detector.thresholds[name] == alone.thresholds[name]
        for one, other in zip(found[start::2], alone.predict(mixed[start::2]), strict=True):
            assert one.score == pytest.approx(other.score, rel=1e-5)
            assert (one.threshold, one.decision) == (other.threshold, other.decision)
            assert one.p_value == other.p_value
            assert one.regions == other.regions
    one = detector.predict_one(mixed[1])
    assert one.score == pytest.approx(found[1].score, rel=1e-5)
    named = detector.predict(mixed[:2], class_name="gauge")
    assert [each.class_name for each in named] == ["gauge", "gauge"]
    assert named[1].score == pytest.approx(found[1].score, rel=1e-5)
    assert named[0].score != pytest.approx(found[0].score, rel=1e-3)
    maps = torch.cat([maps for _, maps in detector.map_images(mixed)])
    assert len(maps) == 12
    with pytest.raises(UsageError, match="at least 1"):
        detector.map_images(mixed, batch_size=0)
    with pytest.raises(UsageError, match="no class 'nut'"):
        detector.predict(mixed, class_name="nut")


def test_nothing_is_computed_to_recognise_a_class_that_is_named(
    separate: Path, demo_root: Path
) -> None:
    detector = crad.load(separate, "cpu")
    image = images_of(demo_root, "gauge")[0]
    (recognised,) = detector.predict(image)
    del detector.folded_backbone  # of the features that name the class
    (named,) = detector.predict(image, class_name="gauge")
    assert named.score == pytest.approx(recognised.score, rel=1e-5)
    assert (named.threshold, named.decision) == (recognised.threshold, recognised.decision)


def test_an_unknown_product_has_a_map_and_no_decision(separate: Path, tmp_path: Path) -> None:
    write_demo(tmp_path, n_train=1, n_test=2, size=64, classes=("gravel",))
    prediction = crad.load(separate, "cpu").predict_one(images_of(tmp_path, "gravel")[0])
    assert prediction.is_unknown
    assert (prediction.decision, prediction.threshold) == ("unknown", None)
    assert prediction.score > 0


def test_rates_are_those_that_are_asked_for(separate: Path) -> None:
    detector = crad.load(separate, "cpu", false_alarm_rate=0.5, uncertain_rate=0.9)
    assert detector.false_alarm_rate == 0.5
    assert [*detector.uncertain] == [*NAMES]


def test_the_page_of_all_classes(separate: Path) -> None:
    page = (separate / "report.html").read_text()
    table = (separate / "scores.csv").read_text().splitlines()
    for name in NAMES:
        assert name in page
        own = (separate / name / "scores.csv").read_text().splitlines()[1:]
        assert len(own) == 6
        assert (separate / "sheets" / f"{name}.png").exists()
    assert len(table) == 13


def test_commands_take_the_folder(
    separate: Path, demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ("--checkpoint", str(separate))
    assert run(crad.predict.main, *checkpoint, str(demo_root / "gauge" / "test" / "good")) == 0
    assert "images per class, as recognised: gauge 3" in capsys.readouterr().out
    assert run(crad.evaluate.main, *checkpoint, "--output", str(tmp_path / "out")) == 0
    measured, trained = (
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "out", separate)
    )
    for name in NAMES:
        assert measured["classes"][name] == pytest.approx(trained["classes"][name])
    assert measured["decisions"] == trained["decisions"]
    capsys.readouterr()
    cache = ("--feature-cache", str(tmp_path / "cache"), "--classes", "gauge")
    assert run(crad.evaluate.main, *checkpoint, *cache) == 0
    assert "gauge" in capsys.readouterr().out


def test_thresholds_are_set_anew(
    separate: Path, demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(separate, tmp_path / "copy")
    good = ("--checkpoint", str(copy), "--good", str(demo_root / "brick" / "test" / "good"))
    assert run(crad.calibrate.main, *good) == 0
    assert files_of(copy) == files_of(separate)
    assert run(crad.calibrate.main, *good, "--output", str(tmp_path / "new")) == 0
    assert files_of(copy) == files_of(separate)
    old, new = (crad.load(folder, "cpu") for folder in (copy, tmp_path / "new"))
    assert new.thresholds["gauge"] == old.thresholds["gauge"]
    assert new.thresholds["brick"].n_images == 3
    assert new.classes == old.classes
    assert run(crad.calibrate.main, *good, "--output", str(tmp_path / "new")) == 1  # it is there
    assert run(crad.calibrate.main, *good, "--output", str(copy)) == 1
    assert files_of(copy) == files_of(separate)
    assert run(crad.calibrate.main, *good, "--output", str(copy), "--overwrite") == 0
    assert crad.load(copy, "cpu").thresholds == new.thresholds
    assert read_checkpoint(copy / "brick", ALL_PARTS).optimizer  # it can still be resumed


def test_thresholds_replace_no_other_run(
    separate: Path, demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("--checkpoint", str(separate), "--good", str(demo_root / "brick" / "test" / "good"))
    runs, new = tmp_path / "runs", tmp_path / "new"
    shutil.copytree(separate / "gauge", runs / "gauge")  # a run that has the name of a class
    shutil.copytree(separate / "gauge", tmp_path / "other")
    for folder, problem in ((runs, runs / "gauge"), (tmp_path / "other", tmp_path / "other")):
        before = files_of(tmp_path)
        for overwrite in ((), ("--overwrite",)):
            assert run(crad.calibrate.main, *command, "--output", str(folder), *overwrite) == 1
            error = capsys.readouterr().err
            assert f"'{problem}' already holds a run" in error
            assert "--overwrite" not in error
        assert files_of(tmp_path) == before
    for overwrite, code in (((), 0), ((), 1), (("--overwrite",), 0)):  # again, into the same folder
        assert run(crad.calibrate.main, *command, "--output", str(new), *overwrite) == code
    assert "--overwrite replaces its thresholds" in capsys.readouterr().err


def test_thresholds_are_written_apart_from_images_and_other_commands(
    separate: Path, demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(demo_root, tmp_path / "data")
    good = data / "brick" / "test" / "good"
    command = ("--checkpoint", str(separate), "--good", str(good))
    before = files_of(tmp_path)
    for folder in (good, good / "new", data / "brick", data / "brick" / "new"):
        assert run(crad.calibrate.main, *command, "--output", str(folder), "--overwrite") == 1
        assert "lies among the images of" in capsys.readouterr().err
    for held in (tmp_path / "new", tmp_path / "new" / "gauge"):
        with locked(held):
            assert run(crad.calibrate.main, *command, "--output", str(tmp_path / "new")) == 1
            assert f"is writing into '{held}'" in capsys.readouterr().err
    assert files_of(tmp_path) == before


def test_a_damaged_class_is_named_and_can_be_trained_again(separate: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(separate, tmp_path / "copy")
    file = copy / "gauge" / CHECKPOINT_NAME
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError) as raised:
        crad.load(copy, "cpu")
    message = str(raised.value)
    assert f"'{file}' is not a checkpoint, or is damaged" in message
    assert f"use another copy, or remove '{copy / 'gauge'}' so that class 'gauge'" in message
    assert "--overwrite" not in message
    shutil.rmtree(copy / "gauge")
    assert run(main, *message.partition("crad train ")[2].split()) == 0
    assert crad.load(copy, "cpu").thresholds == crad.load(separate, "cpu").thresholds


def test_what_cannot_be_loaded(separate: Path, tmp_path: Path) -> None:
    def error(folder: Path) -> str:
        with pytest.raises(CheckpointError) as raised:
            crad.load(folder, "cpu")
        return str(raised.value)

    older = shutil.copytree(separate, tmp_path / "older")
    (older / PRODUCTS_NAME).unlink()
    assert f"crad train --separate --resume --output {older}" in error(older)
    cut = shutil.copytree(separate, tmp_path / "cut")
    (cut / PRODUCTS_NAME).write_bytes((cut / PRODUCTS_NAME).read_bytes()[:-8])
    assert "recognises products" in error(cut)
    half = shutil.copytree(separate, tmp_path / "half")
    shutil.rmtree(half / "gauge")
    assert "class 'gauge'" in error(half)
    foreign = shutil.copytree(separate, tmp_path / "foreign")
    stored = read_checkpoint(foreign / "gauge", ALL_PARTS)
    replace(stored, part_of="another").write(foreign / "gauge" / CHECKPOINT_NAME)
    assert "not a part" in error(foreign)
    model = replace(stored.config.model, image_size=40)
    other = replace(stored, config=replace(stored.config, model=model))
    other.write(foreign / "gauge" / CHECKPOINT_NAME)
    assert "differ in the size of images" in error(foreign)


def test_an_older_run_is_completed_without_training(
    separate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = shutil.copytree(separate, tmp_path / "older")
    for name in (PRODUCTS_NAME, "report.html", "scores.csv"):
        (older / name).unlink()
    assert run(main, "--separate", "--resume", "--output", str(older)) == 0
    assert capsys.readouterr().out.count("(finished)") == 2
    found, expected = (load_file(folder / PRODUCTS_NAME) for folder in (older, separate))
    torch.testing.assert_close(found, expected)
    assert (older / "report.html").exists()
    with before_call(nn.Module, ctrl_c):  # and then nothing is computed
        assert run(main, "--separate", "--resume", "--output", str(older)) == 0


def test_backbones_that_are_the_same_are_one(separate: Path, tmp_path: Path) -> None:
    same = shutil.copytree(separate, tmp_path / "same")
    first = read_checkpoint(same / "brick")
    stored = read_checkpoint(same / "gauge", ALL_PARTS)
    replace(stored, backbone=first.backbone).write(same / "gauge" / CHECKPOINT_NAME)
    parts = [crad.load(folder, "cpu").parts for folder in (same, separate)]
    assert parts[0]["brick"].backbone is parts[0]["gauge"].backbone
    assert parts[1]["brick"].backbone is not parts[1]["gauge"].backbone


def test_a_single_class(trained: Run, train_command: Train, tmp_path: Path) -> None:
    arguments = ("--separate", "--classes", "gauge", "--epochs", "1")
    assert train_command(trained.data, tmp_path / "run", *arguments) == 0
    image = images_of(trained.data, "gauge")[0]
    assert crad.load(tmp_path / "run", "cpu").predict_one(image).class_name == "gauge"


def test_classes_of_other_frames_are_no_one_model(
    demo_root: Path, train_command: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(demo_root, tmp_path / "data")
    for file in (data / "gauge" / "train" / "good").iterdir():
        Image.open(file).resize((128, 64)).save(file)
    fit = ("--separate", "--epochs", "1", "--fit", "--image-size", "64")
    assert train_command(data, tmp_path / "run", *fit) == 0
    assert "not one model: checkpoint:" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "results.json").read_text())["classes"].keys() == {*NAMES}
