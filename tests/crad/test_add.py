"""Adding a class to a trained model: what it learns, what it keeps, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import crad
import crad.calibrate
import crad.checkpoint
import crad.evaluate
import crad.train
from crad.data.demo import write_demo
from crad.data.several import find_datasets
from crad.errors import DataError
from crad.scoring.interest import Interest
from crad.train import main
from crad.training.checkpoint import ALL_PARTS, CHECKPOINT_NAME, Checkpoint, read_checkpoint
from crad.training.exemplars import EXEMPLARS_NAME, has_exemplars, read_exemplars
from tests.crad.conftest import Run
from tests.fixtures import before_step, ctrl_c, files_of, run

Train = Callable[..., int]

EPOCHS = ("--epochs", "1")
GONE = "/nowhere/data"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of classes that the model does not have; not to be changed."""
    root = tmp_path_factory.mktemp("elsewhere")
    write_demo(root / "data", n_train=6, n_test=6, size=64, classes=("grass", "gravel"))
    return root / "data"


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory, trained: Run, elsewhere: Path) -> Path:
    """The run that has added grass, with the images of the others; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "added"
    assert add(elsewhere / "grass", trained.output, output) == 0
    return output


@pytest.fixture
def moved(trained: Run, tmp_path: Path) -> Path:
    """A copy of the run whose images are gone."""
    output = shutil.copytree(trained.output, tmp_path / "moved")
    (output / "run.json").write_text(json.dumps({"data": GONE}))
    return output


def add(folder: Path, base: Path, output: Path, *arguments: str) -> int:
    paths = ("--add", str(folder), "--checkpoint", str(base), "--output", str(output))
    return run(main, *paths, *(EPOCHS if "--resume" not in arguments else ()), *arguments)


def results_of(folder: Path) -> dict[str, object]:
    results = json.loads((folder / "results.json").read_text())
    return {key: results[key] for key in ("classes", "mean", "decisions")}


def test_a_class_is_learned_and_the_others_are_kept(
    trained: Run, added: Path, elsewhere: Path
) -> None:
    base, found = read_checkpoint(trained.output), read_checkpoint(added)
    assert found.n_train == {"brick": 5, "gauge": 5, "grass": 5}
    assert [*found.thresholds] == [*found.calibration] == ["brick", "gauge", "grass"]
    for name in ("brick", "gauge"):
        assert found.calibration[name] != base.calibration[name]
    assert base.config.model == found.config.model
    assert (found.epoch, found.config.training.epochs) == (1, 1)
    for name, tensor in base.backbone.items():
        assert torch.equal(tensor, found.backbone[name])
    record = json.loads((added / "run.json").read_text())
    assert record == {"data": str(trained.data), "added": [str(elsewhere / "grass")]}
    detector = crad.load(added, "cpu")
    for root, name in ((trained.data, "gauge"), (elsewhere, "grass")):
        images = sorted((root / name / "test" / "good").iterdir())
        assert {each.class_name for each in detector.predict(images)} == {name}


def test_decisions_stay_those_of_the_protocol_of_the_model(
    trained: Run, elsewhere: Path, tmp_path: Path
) -> None:
    base = read_checkpoint(trained.output, ALL_PARTS)
    former = replace(base.config.decisions, decision_protocol="inside")
    replace(base, config=replace(base.config, decisions=former)).save(tmp_path / "base")
    assert add(elsewhere / "grass", tmp_path / "base", tmp_path / "out") == 0
    assert read_checkpoint(tmp_path / "out").config.decisions.decision_protocol == "inside"


def test_it_is_evaluated_on_all_classes_where_they_are(
    added: Path, command: Train, tmp_path: Path
) -> None:
    arguments = ("--checkpoint", str(added), "--output", str(tmp_path / "out"))
    assert command(crad.evaluate.main, *arguments) == 0
    assert results_of(tmp_path / "out") == results_of(added)


def test_training_starts_from_the_model(trained: Run, elsewhere: Path, tmp_path: Path) -> None:
    still = ("--learning-rate", "0", "--memory-learning-rate", "0")
    assert add(elsewhere / "grass", trained.output, tmp_path, *still) == 0
    base, found = (read_checkpoint(path).model for path in (trained.output, tmp_path))
    name = "global_representation.memory.weight"
    assert torch.equal(found[name], base[name])


def test_models_of_folds_learn_as_long_as_the_model_before(
    trained: Run,
    elsewhere: Path,
    train_command: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned = []

    def calibrate(*arguments: Any) -> Checkpoint:
        learned.append(arguments[-1])
        checkpoint: Checkpoint = arguments[2]
        return checkpoint

    monkeypatch.setattr(crad.train, "cross_calibrate", calibrate)
    folds = ("--epochs", "2", "--calibration-folds", "2")
    assert train_command(trained.data, tmp_path / "base", *folds) == 0
    assert add(elsewhere / "grass", tmp_path / "base", tmp_path / "new") == 0
    assert learned == [2, 2]


def test_features_stand_for_images_that_are_gone(
    moved: Path, added: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(moved)
    assert add(elsewhere / "grass", moved, tmp_path / "new") == 0
    told = capsys.readouterr().out
    assert "features of 10 normal images of the other classes" in told
    assert GONE in told
    assert files_of(moved) == before
    found, with_images = read_checkpoint(tmp_path / "new", ALL_PARTS), read_checkpoint(added)
    assert found.n_train == with_images.n_train
    assert [*map(len, found.calibration.values())] == [1, 1, 1]
    for name, tensor in with_images.products.items():  # of all images, not of some
        torch.testing.assert_close(found.products[name], tensor)
    for name, scores in with_images.calibration.items():
        assert found.calibration[name] == pytest.approx(scores, rel=0.3)
    kept = read_exemplars(tmp_path / "new", found.images["digests"], Interest())
    assert kept is not None
    assert {each.class_name for each in kept.train.samples} == {"brick", "gauge", "grass"}


@pytest.mark.slow
@pytest.mark.thorough
def test_from_features_alone_the_old_classes_are_not_forgotten(
    train_command: Train, command: Train, tmp_path: Path
) -> None:
    """Without an image of them, their image AUROC falls by at most 0.1."""
    root, base, new = (tmp_path / name for name in ("data", "base", "new"))
    old = ("circuit_board", "gauge")
    write_demo(root, n_train=30, n_test=20, size=64, classes=(*old, "brick"))
    (tmp_path / "apart").mkdir()
    grown = (root / "brick").rename(tmp_path / "apart" / "brick")
    settings = ("--image-size", "64", "--batch-size", "16")
    assert train_command(root, base, *settings, "--epochs", "30") == 0
    (base / "run.json").write_text(json.dumps({"data": GONE}))
    assert add(grown, base, new, "--epochs", "30") == 0
    assert {*read_checkpoint(new).n_train} == {*old, "brick"}
    for checkpoint in (base, new):  # on the same images
        output = tmp_path / f"{checkpoint.name} measured"
        arguments = ("--checkpoint", str(checkpoint), "--data", str(root))
        assert command(crad.evaluate.main, *arguments, "--output", str(output)) == 0
    before, after = (
        json.loads((tmp_path / f"{name} measured" / "results.json").read_text())["classes"]
        for name in ("base", "new")
    )
    print({name: (before[name]["image_auroc"], after[name]["image_auroc"]) for name in old})
    assert [*before] == [*after] == [*old]
    for name in old:
        assert before[name]["image_auroc"] > 0.7
        assert after[name]["image_auroc"] > before[name]["image_auroc"] - 0.1


def test_the_added_model_is_added_to(
    added: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(elsewhere / "gravel", added, tmp_path / "new") == 0
    assert "15 normal images of the other classes train too" in capsys.readouterr().out
    found = read_checkpoint(tmp_path / "new")
    assert [*found.n_train] == ["brick", "gauge", "grass", "gravel"]
    folders = [str(elsewhere / name) for name in ("grass", "gravel")]
    assert json.loads((tmp_path / "new" / "run.json").read_text())["added"] == folders
    gone = shutil.copytree(added, tmp_path / "gone")  # and from features of features
    (gone / "run.json").write_text(json.dumps({"data": GONE, "added": [GONE]}))
    assert add(elsewhere / "gravel", gone, tmp_path / "other") == 0
    torch.testing.assert_close(read_checkpoint(tmp_path / "other").products, found.products)


def test_a_class_beside_the_others_is_part_of_their_data(
    trained: Run, elsewhere: Path, train_command: Train, tmp_path: Path
) -> None:
    data = shutil.copytree(trained.data, tmp_path / "data")
    assert train_command(data, tmp_path / "run", "--epochs", "1") == 0
    shutil.copytree(elsewhere / "grass", data / "grass")
    assert add(data / "grass", tmp_path / "run", tmp_path / "new") == 0
    assert json.loads((tmp_path / "new" / "run.json").read_text()) == {"data": str(data)}
    resume = ("--resume", "--output", str(tmp_path / "new"), "--epochs", "2")
    assert run(main, *resume) == 0
    assert results_of(tmp_path / "new")["classes"].keys() == {"brick", "gauge", "grass"}


def test_changed_images_are_not_taken_for_those_of_the_run(
    trained: Run, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(trained.data, tmp_path / "data")
    base = shutil.copytree(trained.output, tmp_path / "base")
    (base / "run.json").write_text(json.dumps({"data": str(data)}))
    next((data / "brick" / "train" / "good").iterdir()).unlink()
    assert add(elsewhere / "grass", base, tmp_path / "new") == 0
    told = capsys.readouterr().out
    assert "features of 10 normal images" in told
    assert "have changed" in told
    assert add(elsewhere / "grass", base, tmp_path / "other", "--data", str(data)) == 1
    assert "have changed" in capsys.readouterr().err


def test_interrupted_and_resumed(
    moved: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grass = elsewhere / "grass"
    assert add(grass, moved, tmp_path / "whole", "--epochs", "2") == 0
    with before_step(0, ctrl_c):
        assert add(grass, moved, tmp_path / "new", "--epochs", "2") == 130
    assert not (tmp_path / "new").exists()
    with before_step(4, ctrl_c):  # an epoch has four
        assert add(grass, moved, tmp_path / "new", "--epochs", "2") == 130
    error = capsys.readouterr().err
    resume = f"crad train --resume --output {tmp_path / 'new'} --add {grass} --checkpoint {moved}"
    assert f"epoch 1 of 2 is on disk; continue with: {resume}" in error
    assert add(grass, moved, tmp_path / "new", "--epochs", "2") == 1  # without --resume
    assert add(grass, moved, tmp_path / "new", "--resume") == 0
    whole, resumed = (read_checkpoint(tmp_path / name) for name in ("whole", "new"))
    torch.testing.assert_close(whole.model, resumed.model, rtol=0, atol=0)
    assert results_of(tmp_path / "whole") == results_of(tmp_path / "new")
    assert run(main, "--resume", "--output", str(tmp_path / "new")) == 1  # the images are gone
    assert GONE in capsys.readouterr().err.splitlines()[-1]


def test_without_images_and_features_nothing_is_added(
    moved: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (moved / EXEMPLARS_NAME).unlink()
    before = files_of(moved)
    assert add(elsewhere / "grass", moved, tmp_path / "new") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    for told in (GONE, "no features of them", "--data PATH"):
        assert told in error
    assert files_of(moved) == before
    assert not (tmp_path / "new").exists()
    assert add(elsewhere / "grass", moved, tmp_path / "new", "--data", GONE) == 1
    assert GONE in capsys.readouterr().err


def test_damaged_features_are_named(
    moved: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = moved / EXEMPLARS_NAME
    file.write_bytes(file.read_bytes()[:-100])
    assert add(elsewhere / "grass", moved, tmp_path / "new") == 1
    assert "no features of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--separate"], 2, "--separate"),
        (["--minutes", "3"], 2, "--minutes"),
        (["--classes", "brick"], 2, "--classes"),
        (["--seed", "1"], 2, "--seed: the model in"),
        (["--depth", "2"], 2, "--depth: the model in"),
        (["--backbone", "resnet18"], 2, "--backbone: the model in"),
        (["--exemplars", "-1"], 2, "--exemplars"),
    ],
)
def test_settings_are_those_of_the_model(
    trained: Run,
    elsewhere: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    assert add(elsewhere / "grass", trained.output, tmp_path / "new", *arguments) == code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--add", "x"],
        ["--add", ""],
        ["--checkpoint", "x"],
        ["--add", "", "--checkpoint", "x", "--output", "y"],
        ["--add", "x", "--checkpoint", "x"],
    ],
)
def test_what_goes_together(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, *arguments) != 0
    assert "error:" in capsys.readouterr().err


def test_wrong_folders(
    trained: Run, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(folder: Path, base: Path = trained.output, output: Path | None = None) -> str:
        assert add(folder, base, output or tmp_path / "new") == 1
        return capsys.readouterr().err.splitlines()[-1]

    before = files_of(trained.output)
    assert "has a class 'brick' already" in error(trained.data / "brick")
    assert "not the folder of a class but of classes (grass, gravel)" in error(elsewhere)
    assert "there is no such folder" in error(tmp_path / "missing")
    (tmp_path / "nut" / "train" / "good").mkdir(parents=True)
    assert "no images in" in error(tmp_path / "nut")
    (tmp_path / "visa" / "Data" / "Images").mkdir(parents=True)
    assert "not the folder of a class" in error(tmp_path / "visa")
    only = shutil.copytree(elsewhere / "grass", tmp_path / "only")
    for image in sorted((only / "train" / "good").iterdir())[1:]:
        image.unlink()
    assert "'only' would have no threshold" in error(only)
    grass = elsewhere / "grass"
    assert "stays as it is; choose another folder" in error(grass, output=trained.output)
    assert "lies among the images" in error(grass, output=grass / "run")
    assert "there is no file" in error(grass, tmp_path / "no run")
    assert run(crad.checkpoint.main, "strip", str(trained.output), str(tmp_path / "small")) == 0
    capsys.readouterr()
    assert "was stripped" in error(grass, tmp_path / "small")
    assert files_of(trained.output) == before
    assert not (tmp_path / "new").exists()


def test_another_bit_depth_is_refused(
    trained: Run, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = shutil.copytree(elsewhere / "grass", tmp_path / "deep")
    for file in (deep / "train" / "good").iterdir():
        grey = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 16
        Image.fromarray(grey).save(file)
    assert add(deep, trained.output, tmp_path / "new") == 1
    error = capsys.readouterr().err
    assert "the images of 'deep' have 12 bits" in error
    assert "--bit-depth 16" in error
    assert add(deep, trained.output, tmp_path / "new", "--bit-depth", "16") == 0


def test_a_model_without_thresholds_gets_none(
    trained: Run, elsewhere: Path, train_command: Train, tmp_path: Path
) -> None:
    share = ("--epochs", "1", "--calibration-share", "0")
    assert train_command(trained.data, tmp_path / "base", *share) == 0
    assert add(elsewhere / "grass", tmp_path / "base", tmp_path / "new") == 0
    assert not read_checkpoint(tmp_path / "new").thresholds


def test_thresholds_without_images_held_back_are_kept(
    trained: Run,
    elsewhere: Path,
    train_command: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    share = ("--epochs", "1", "--calibration-share", "0")
    assert train_command(trained.data, tmp_path / "base", *share) == 0
    good = trained.data / "brick" / "test" / "good"
    calibrated = tmp_path / "base" / CHECKPOINT_NAME
    arguments = ("--checkpoint", str(calibrated), "--good", str(good), "--overwrite")
    assert run(crad.calibrate.main, *arguments, "--output", str(calibrated)) == 0
    capsys.readouterr()
    assert add(elsewhere / "grass", tmp_path / "base", tmp_path / "new") == 0
    assert "thresholds kept, though the model changes" in capsys.readouterr().out
    base, new = (read_checkpoint(tmp_path / name) for name in ("base", "new"))
    assert new.thresholds == base.thresholds
    assert new.thresholds


def test_features_are_bounded_and_of_their_run(
    trained: Run, train_command: Train, tmp_path: Path
) -> None:
    assert train_command(trained.data, tmp_path / "two", "--epochs", "1", "--exemplars", "2") == 0
    digests = read_checkpoint(tmp_path / "two", ALL_PARTS).images["digests"]
    kept = read_exemplars(tmp_path / "two", digests, Interest())
    assert kept is not None
    assert [each.class_name for each in kept.train.samples] == ["brick"] * 2 + ["gauge"] * 2
    assert [each.class_name for each in kept.held_back.samples] == ["brick", "gauge"]
    assert [*map(len, kept.pooled.values())] == [6, 6]
    assert has_exemplars(trained.output, digests)  # of the same images
    assert not has_exemplars(trained.output, digests[1:])
    none = ("--epochs", "1", "--exemplars", "0", "--overwrite")
    assert train_command(trained.data, tmp_path / "two", *none) == 0
    assert not (tmp_path / "two" / EXEMPLARS_NAME).exists()
    assert run(main, "--resume", "--output", str(tmp_path / "two")) == 0  # which gives them
    assert has_exemplars(tmp_path / "two", digests)


def test_a_file_of_another_origin_is_left_alone(
    trained: Run, train_command: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / EXEMPLARS_NAME).write_text("mine")
    assert train_command(trained.data, tmp_path, "--epochs", "1") == 1
    assert EXEMPLARS_NAME in capsys.readouterr().err
    assert (tmp_path / EXEMPLARS_NAME).read_text() == "mine"


def test_what_counts_of_the_images_is_kept(
    trained: Run, elsewhere: Path, train_command: Train, tmp_path: Path
) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "brick.png")
    Image.fromarray(255 - mask).save(tmp_path / "grass.png")
    roi = ("--epochs", "1", "--roi", str(tmp_path))
    assert train_command(trained.data, tmp_path / "base", *roi) == 0
    grass = elsewhere / "grass"
    assert add(grass, tmp_path / "base", tmp_path / "new", "--roi", str(tmp_path)) == 0
    masks = read_checkpoint(tmp_path / "new").interest["masks"]
    assert masks.shape[0] == 3
    assert masks[0, :, :16].all()
    assert not masks[0, :, 16:].any()
    assert masks[1].all()
    assert not masks[2, :, :16].any()


def test_classes_in_several_folders(trained: Run, elsewhere: Path) -> None:
    added = [str(elsewhere / "grass")]
    found = find_datasets(str(trained.data), added)
    assert found.classes == ("brick", "gauge", "grass")
    assert [each.class_name for each in found.train[::6]] == ["brick", "gauge", "grass"]
    assert found.place(found.train[0]).startswith("brick/train/good/")
    assert found.place(found.train[-1]).startswith("train/good/")
    assert find_datasets(str(trained.data), added, classes=["grass"]).classes == ("grass",)
    assert find_datasets(GONE, added, classes=["grass"]).classes == ("grass",)
    with pytest.raises(DataError, match="no class 'nut'"):
        find_datasets(str(trained.data), added, classes=["grass", "nut"])
