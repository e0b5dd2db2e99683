"""The training command: what it leaves, what it refuses, and that nothing is lost on the way."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import crad.data.sources
import crad.evaluate
from crad.backbones.scattering import ScatteringBackbone
from crad.data import find_dataset
from crad.errors import DataError
from crad.model.crad import CRAD
from crad.scoring.held_back import hold_back
from crad.scoring.metrics import METRIC_NAMES
from crad.train import main
from crad.training.checkpoint import ALL_PARTS, CHECKPOINT_NAME, read_checkpoint
from crad.training.exemplars import EXEMPLARS_NAME
from crad.training.inputs import prepare
from crad.training.loop import split_epoch
from crad.training.run_record import RECORD_NAME
from tests.fixtures import before_call, before_step, ctrl_c

Train = Callable[..., int]
STEPS = 3
"""In an epoch of `trained`: batches of 4, 4 and 2 images."""


def measured(output: Path) -> dict[str, object]:
    results = json.loads((output / "results.json").read_text())
    return {key: results[key] for key in ("classes", "mean", "epoch")}


@pytest.fixture
def data(tmp_path: Path, demo_root: Path) -> Path:
    """A copy of the data that a test may change."""
    return shutil.copytree(demo_root, tmp_path / "data")


def test_what_a_run_leaves(trained) -> None:
    files = {str(p.relative_to(trained.output)) for p in trained.output.rglob("*") if p.is_file()}
    pictures = {file for file in files if file.startswith("pictures/")}
    assert pictures
    assert files - pictures == {
        "checkpoint.safetensors", "exemplars.safetensors", "results.json", "run.json",
        "report.html", "scores.csv",
        "sheets/brick.png", "sheets/gauge.png",
    }  # fmt: skip
    results = trained.results
    assert (results["protocol"], results["seed"], results["epoch"]) == ("crad", 0, 3)
    entry = results["classes"]["brick"]
    assert (entry["n_train"], entry["n_test"]) == (5, 6)  # a tenth is held back, at least one
    assert list(results["classes"]) == ["brick", "gauge"]
    assert 0 <= results["mean"]["image_auroc"] <= 1
    assert {"features", "training", "evaluation"} <= results["timing"].keys()
    assert results["environment"]["torch"] == torch.__version__


def test_the_first_lines_and_the_table(
    train_command: Train, demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--epochs", "1", "--discrete.shrinkage", "0.1"]
    assert train_command(demo_root, tmp_path / "run", *arguments) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("device cpu (")
    assert "kernels " in first
    assert "backbone scattering" in first
    for told in ("no effect", "--discrete.shrinkage", "attention"):
        assert told in second
    assert any(line.startswith("brick") for line in rest)
    assert any(line.startswith("mean") for line in rest)


@pytest.mark.slow
def test_the_seed_decides_all(trained, train_command: Train, tmp_path: Path) -> None:
    torch.rand(3)
    assert train_command(trained.data, tmp_path / "same", "--seed", "0") == 0
    assert measured(tmp_path / "same") == measured(trained.output)
    assert train_command(trained.data, tmp_path / "other", "--seed", "1") == 0
    first, same, other = (
        read_checkpoint(folder).model["global_representation.memory.weight"]
        for folder in (trained.output, tmp_path / "same", tmp_path / "other")
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_the_best_epoch_stands_beside_the_last(
    trained, train_command: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "best_on_test" not in trained.results
    assert train_command(trained.data, tmp_path / "run", "--track-best") == 0
    assert measured(tmp_path / "run") == measured(trained.output)  # the last epoch, as without
    best = json.loads((tmp_path / "run" / "results.json").read_text())["best_on_test"]
    assert f"best_on_test: epoch {best['epoch']} of 3" in capsys.readouterr().out
    epochs = [measured(trained.output)]
    for epoch in (1, 2):  # in shorter runs, these have the same rates
        output = tmp_path / str(epoch)
        assert train_command(trained.data, output, "--epochs", str(epoch)) == 0
        epochs.append(measured(output))
    assert best in epochs
    assert best["mean"]["image_auroc"] == max(each["mean"]["image_auroc"] for each in epochs)


def test_the_best_epoch_is_not_lost_when_resumed(
    trained, train_command: Train, tmp_path: Path
) -> None:
    with before_step(2 * STEPS, ctrl_c):
        assert train_command(trained.data, tmp_path, "--track-best") == 130
    stored = read_checkpoint(tmp_path, ALL_PARTS)
    assert stored.best_on_test is not None
    best = dict.fromkeys(METRIC_NAMES, 1.0)
    replace(stored, best_on_test={"epoch": 1, "classes": {}, "mean": best}).save(tmp_path)
    assert train_command(trained.data, tmp_path, "--resume", "--track-best") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["epoch"], results["best_on_test"]["epoch"]) == (3, 1)


def test_several_protocols(trained, train_command: Train, tmp_path: Path) -> None:
    assert train_command(trained.data, tmp_path, "--protocol", "crad", "uniad") == 0
    assert measured(tmp_path) == measured(trained.output)
    others = json.loads((tmp_path / "results.json").read_text())["other_protocols"]
    assert list(others) == ["uniad"]
    again = ["--checkpoint", str(tmp_path), "--output", str(tmp_path / "again")]
    crad.evaluate.main(again)  # which takes the protocols of the run
    evaluated = json.loads((tmp_path / "again" / "results.json").read_text())
    assert list(evaluated["other_protocols"]) == ["uniad"]
    assert others["uniad"]["classes"]["brick"].keys() == trained.results["classes"]["brick"].keys()


@pytest.mark.slow
def test_runs_of_one_process_may_differ_in_precision(
    trained, tmp_path: Path, train_command: Train
) -> None:
    assert read_checkpoint(trained.output).precision == "fp32"
    for precision in ("bf16", "fp32"):
        arguments = ["--precision", precision, "--epochs", "1"]
        assert train_command(trained.data, tmp_path / "run", "--overwrite", *arguments) == 0
        assert read_checkpoint(tmp_path / "run").precision == precision


@pytest.mark.slow
def test_killed_and_resumed(trained, tmp_path: Path, train_command: Train) -> None:
    output, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = ["--data", str(trained.data), *trained.arguments, "--epochs", "12"]
    process = subprocess.Popen(
        [sys.executable, "-m", "crad", "train", "--output", str(output), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    try:
        deadline = time.monotonic() + 600
        while not (output / "checkpoint.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 1 <= read_checkpoint(output).epoch < 12
    main(["--resume", "--output", str(output)])
    main(["--output", str(whole), *arguments])
    assert measured(output) == measured(whole)
    resumed, uninterrupted = (read_checkpoint(each, ALL_PARTS) for each in (output, whole))
    for part in ALL_PARTS:
        torch.testing.assert_close(
            getattr(resumed, part), getattr(uninterrupted, part), rtol=0, atol=0
        )


@pytest.mark.parametrize("epoch", [0, 2])
def test_ctrl_c_says_how_to_go_on(
    trained,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    epoch: int,
) -> None:
    with before_step(epoch * STEPS, ctrl_c):
        assert train_command(trained.data, tmp_path) == 130
    error = capsys.readouterr().err
    assert (f"epoch {epoch} of 3" if epoch else "no epoch") in error
    # The same command with --resume goes on, or begins.
    assert train_command(trained.data, tmp_path, "--resume") == 0
    assert measured(tmp_path) == measured(trained.output)


@pytest.mark.parametrize("epoch", [0, 1])
def test_ctrl_c_does_not_take_the_former_run_for_the_new_one(
    trained,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    epoch: int,
) -> None:
    """Interrupted before the former run is removed, and after the first epoch of the new one."""
    output = shutil.copytree(trained.output, tmp_path / "run")
    stop = before_step(STEPS, ctrl_c) if epoch else before_call(ScatteringBackbone, ctrl_c)
    with stop:
        assert train_command(trained.data, output, "--overwrite") == 130
    error = capsys.readouterr().err
    if epoch:
        assert "epoch 1 of 3" in error
    else:
        assert "no epoch" in error
        assert read_checkpoint(output).epoch == 3  # the former run, untouched


def test_the_command_to_go_on_with_can_be_copied(
    trained,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "it's mine"
    with before_step(2 * STEPS, ctrl_c):
        assert train_command(trained.data, output, "--skip-bad", "--device", "cpu") == 130
    command = capsys.readouterr().err.strip().partition("continue with: ")[2]
    assert shlex.split(command) == [
        *("crad", "train", "--resume"),
        *("--output", str(output), "--device", "cpu"),
    ]
    main(shlex.split(command)[2:])
    assert measured(output) == measured(trained.output)


def test_what_a_killed_write_left_is_removed(trained, tmp_path: Path, train_command: Train) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    (output / ".checkpoint.safetensors.1.tmp").write_bytes(b"half")
    assert train_command(trained.data, output, "--resume") == 0
    assert {path.name for path in output.iterdir()} == {
        "checkpoint.safetensors", "exemplars.safetensors", "results.json", "run.json", "sheets",
        "scores.csv", "report.html", "pictures",
    }  # fmt: skip


def test_resuming_a_finished_run_trains_no_more(
    trained, tmp_path: Path, train_command: Train
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    with before_step(0, ctrl_c):
        assert train_command(trained.data, output, "--resume") == 0
    assert measured(output) == measured(trained.output)


def test_no_epoch_opens_a_file(
    trained, tmp_path: Path, train_command: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, before, steps = 0, 0, 0
    decode_file = crad.data.sources.decode_file

    def counting(*arguments: object) -> object:
        nonlocal opened
        opened += 1
        return decode_file(*arguments)

    def step(_: int, model: CRAD) -> None:
        nonlocal before, steps
        steps += model.training
        before = before or opened
        assert opened == before > 0

    monkeypatch.setattr(crad.data.sources, "decode_file", counting)
    with before_call(CRAD, step):
        assert train_command(trained.data, tmp_path) == 0
    assert steps == 3 * STEPS
    # Statistics and features of the images trained on, features of those held back and of the test.
    assert opened == 10 + 10 + 2 + 12


def test_a_run_is_not_overwritten_by_accident(
    trained, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    assert train_command(trained.data, output) == 1
    error = capsys.readouterr().err
    for told in (str(output), "checkpoint.safetensors", "--resume", "--overwrite", "--output"):
        assert told in error
    shutil.copy(output / "sheets" / "brick.png", output / "sheets" / "kept.png")
    options = ("--overwrite", "--epochs", "1", "--classes", "gauge")
    assert train_command(trained.data, output, *options) == 0
    assert measured(output)["epoch"] == 1
    assert {path.name for path in (output / "sheets").iterdir()} == {"gauge.png", "kept.png"}


def test_a_bad_image_is_named_before_training(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    for bad in ("brick/train/good/003.png", "gauge/test/good/001.png"):
        (data / bad).write_bytes((data / bad).read_bytes()[:200])
        assert train_command(data, tmp_path / "run") == 1
        captured = capsys.readouterr().err
        assert captured.count(f"'{data / bad}'") == 1
        assert "--skip-bad" in captured
        assert "Traceback" not in captured
        (data / bad).unlink()
        shutil.copy(data / "brick/train/good/000.png", data / bad)


def test_bad_images_are_skipped_named_and_counted(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = next((data / "gauge" / "ground_truth").rglob("*_mask.png"))
    bad = [data / "brick/train/good/003.png", data / "gauge/test/good/001.png", mask]
    for path in bad:
        path.write_bytes(b"no image")
    assert train_command(data, tmp_path / "run", "--skip-bad") == 0
    captured = capsys.readouterr()
    for path in bad:
        assert captured.err.count(f"cannot read image '{path}'") == 1
    assert captured.err.count("skipped: ") == 3
    for told in ("2 images", "1 mask"):
        assert told in captured.out
    classes = measured(tmp_path / "run")["classes"]
    # The image whose mask is bad still counts as defective.
    assert (classes["brick"]["n_train"], classes["gauge"]["n_test"]) == (4, 5)


def test_a_class_without_readable_images(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "brick/train/good").iterdir():
        path.write_bytes(b"no image")
    assert train_command(data, tmp_path / "run", "--skip-bad") == 1
    error = capsys.readouterr().err
    assert "'brick'" in error
    assert str(data) in error


def test_without_test_images(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("brick", "gauge"):
        shutil.rmtree(data / name / "test")
    assert train_command(data, tmp_path / "run", "--epochs", "1") == 0
    assert "no test images" in capsys.readouterr().out
    results = measured(tmp_path / "run")
    assert results["mean"] == dict.fromkeys(METRIC_NAMES)
    assert results["classes"]["brick"]["n_test"] == 0


def test_without_masks(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("brick", "gauge"):
        shutil.rmtree(data / name / "ground_truth")
    assert train_command(data, tmp_path / "run", "--epochs", "1") == 0
    assert "pixel metrics" in capsys.readouterr().out
    mean = measured(tmp_path / "run")["mean"]
    assert mean["pixel_auroc"] is None
    assert mean["image_auroc"] is not None


def test_with_some_masks(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    next((data / "gauge" / "ground_truth").rglob("*_mask.png")).unlink()
    assert train_command(data, tmp_path / "run", "--epochs", "1") == 0
    assert "1 of 6 defective images" in capsys.readouterr().out
    assert measured(tmp_path / "run")["mean"]["pixel_auroc"] is not None


def test_a_loss_that_is_not_finite_stops_and_spoils_nothing(
    trained,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spoil(model: CRAD) -> None:
        model.local_representation.memory.weight.data.fill_(float("nan"))

    with before_step(STEPS, spoil):
        assert train_command(trained.data, tmp_path) == 1
    assert "epoch 2 is nan" in capsys.readouterr().err
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.epoch == 1
    assert all(t.isfinite().all() for t in checkpoint.model.values())


def test_a_full_disk_is_an_error_that_names_the_file(
    trained,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fill(_: CRAD) -> None:
        (tmp_path / f".{CHECKPOINT_NAME}.{os.getpid()}.tmp").symlink_to("/dev/full")

    with before_step(STEPS, fill):
        assert train_command(trained.data, tmp_path) == 1
    error = capsys.readouterr().err
    for told in (str(tmp_path / CHECKPOINT_NAME), "free some space", "--resume"):
        assert told in error
    written = {CHECKPOINT_NAME, EXEMPLARS_NAME, RECORD_NAME}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert read_checkpoint(tmp_path).epoch == 1


def test_data_that_changed_are_not_resumed(
    trained, data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command(data, tmp_path / "run", "--epochs", "1") == 0
    (data / "brick/train/good/000.png").unlink()
    capsys.readouterr()
    assert train_command(data, tmp_path / "run", "--epochs", "1", "--resume") == 1
    error = capsys.readouterr().err
    for told in (str(data), str(tmp_path / "run"), "1 missing", "--overwrite"):
        assert told in error


def test_images_that_changed_are_not_resumed(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on or held back, as many as before."""
    assert train_command(data, tmp_path / "run", "--epochs", "1") == 0
    data = data.rename(tmp_path / "moved")
    resume = (data, tmp_path / "run", "--epochs", "1", "--resume")
    assert train_command(*resume) == 0
    images = sorted((data / "brick/train/good").iterdir())
    for image in images:
        former = image.read_bytes()
        shutil.copy(data / "brick/test/good/000.png", image)
        capsys.readouterr()
        assert train_command(*resume) == 1
        error = capsys.readouterr().err
        assert f"1 new or changed, the first is '{image}'; 1 missing or changed" in error
        image.write_bytes(former)
    images[0].rename(images[0].with_name("new.png"))
    assert train_command(*resume) == 1
    assert "new.png'" in capsys.readouterr().err


def test_a_run_of_a_former_version_is_resumed_on_its_images(trained) -> None:
    stored = replace(read_checkpoint(trained.output, ALL_PARTS), draws="run", images={})
    inputs = prepare(stored.config, stored, torch.device("cpu"))
    dataset, config = find_dataset(trained.data), stored.config
    share, seed = config.decisions.calibration_share, config.training.seed
    _, held = hold_back(dataset, share, seed, "run")
    assert [each.path for each in inputs.held_back.samples] == [each.path for each in held]
    assert inputs.draws == "run"
    with pytest.raises(DataError, match="their numbers differ"):
        prepare(stored.config, replace(stored, n_train={"brick": 4}), torch.device("cpu"))


def test_what_is_left_out_and_what_is_there_twice_is_said(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    good = data / "brick/train/good"
    shutil.copy(good / "000.png", data / "brick/test/good/copy.png")
    shutil.copy(data / "gauge/train/good/001.png", data / "gauge/train/good/copy.png")
    shutil.copytree(good, data / "brick/valid")
    (data / "license.txt").touch()
    run = tmp_path / "run"
    assert train_command(data, run, "--epochs", "1") == 0
    begun, protocol, ended = capsys.readouterr().out.partition("protocol crad")
    assert protocol
    note = json.loads((run / "results.json").read_text())["note"]
    left_out = ("not used: 6 images in 1 folder ('brick/valid')", "not used: 1 file of other types")
    repeated = (
        "same file: 1 image in training and test, so that what is measured is too good "
        "('brick/train/good/000.png' = 'brick/test/good/copy.png')",
        "same file: 1 image in training twice "
        "('gauge/train/good/001.png' = 'gauge/train/good/copy.png')",
    )
    for told in (*left_out, *repeated):
        assert (note.count(told), ended.count(told)) == (1, 1)
        assert len([line for line in begun.splitlines() if line.startswith(told)]) == 1
    arguments = ["--checkpoint", str(run), "--output", str(tmp_path / "evaluated")]
    crad.evaluate.main(arguments)
    out = capsys.readouterr().out
    note = json.loads((tmp_path / "evaluated/results.json").read_text())["note"]
    for told in left_out:
        assert (note.count(told), out.count(told)) == (1, 1)


@pytest.mark.parametrize("arguments", [(), ("--separate",)])
def test_a_class_of_one_normal_image_has_no_threshold(
    data: Path,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    for image in sorted((data / "gauge/train/good").iterdir())[1:]:
        image.unlink()
    assert train_command(data, tmp_path / "run", *arguments) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    for told in ("'gauge'", "--classes", "--calibration-share 0"):
        assert told in line
    assert "class 1" not in captured.out
    assert not (tmp_path / "run").exists()
    without = (*arguments, "--calibration-share", "0", "--epochs", "1", "--components", "4")
    assert train_command(data, tmp_path / "run", *without) == 0


def test_nothing_readable_is_an_error_in_spite_of_skip_bad(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    for image in (data / "brick/test").rglob("*.png"):
        image.write_bytes(b"no image")
    alone = ("--skip-bad", "--epochs", "1", "--classes", "brick")
    assert train_command(data, tmp_path / "run", *alone) == 1
    assert "none of the test images" in capsys.readouterr().err
    for image in (data / "brick/train/good").iterdir():
        image.write_bytes(b"no image")
    assert train_command(data, tmp_path / "run", *alone) == 1
    assert "none of the training images" in capsys.readouterr().err


def test_no_readable_image_held_back_is_an_error_in_spite_of_skip_bad(
    data: Path, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    _, held = hold_back(find_dataset(data), 0.1, seed=0)
    (bad,) = [each.path for each in held if each.class_name == "gauge"]
    bad.write_bytes(b"no image")
    assert train_command(data, tmp_path / "run", "--skip-bad", "--epochs", "1") == 1
    error = capsys.readouterr().err
    for told in ("'gauge' would have no threshold", "none of its images held back"):
        assert told in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "missing"], ("missing", "folder")),
        (["--image-size", "60"], ("--image-size", "60", "8")),
        (["--backbone", "resnet81"], ("resnet81", "resnet18")),
        (["--output", __file__], (__file__, "--output")),
        (["--output", f"{__file__}/run"], (f"'{__file__}'", "--output")),
        (["--backbone", "resnet18", "--weights", "missing.pth"], ("weights", "'missing.pth'")),
        pytest.param(
            ["--device", "cuda"],
            ("'cuda'", "--device"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without"),
        ),
    ],
)
def test_errors_are_one_line(
    demo_root: Path,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: tuple[str, ...],
) -> None:
    assert train_command(demo_root, tmp_path / "run", *arguments) == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error")]
    for each in told:
        assert each in line
    assert not (tmp_path / "run").exists()  # not even an empty folder is left


def test_a_timm_backbone(
    trained, tmp_path: Path, train_command: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    torch.manual_seed(5)
    weights = tmp_path / "resnet18.pth"
    torch.save(timm.create_model("resnet18").state_dict(), weights)
    arguments = ["--backbone", "resnet18", "--weights", str(weights), "--preset", "tiny"]
    output = tmp_path / "run"
    assert train_command(trained.data, output, *arguments, "--epochs", "1") == 0
    weights.unlink()  # the checkpoint holds them
    detector = crad.load(output)
    assert len(detector.predict(next(trained.data.rglob("*.png")))) == 1


@pytest.mark.parametrize(
    ("images", "batch_size", "processes", "sizes"),
    [
        (9, 4, 1, [4, 5]),
        (10, 4, 1, [4, 4, 2]),
        (8, 4, 1, [4, 4]),
        (1, 4, 1, [1]),
        (3, 1, 1, [1, 1, 1]),
        (10, 4, 2, [4, 6]),
        (12, 8, 2, [8, 4]),
        (5, 2, 2, [2, 3]),
        (6, 2, 2, [2, 2, 2]),
    ],
)
def test_batches_of_an_epoch(
    images: int, batch_size: int, processes: int, sizes: list[int]
) -> None:
    batches = split_epoch(torch.randperm(images), batch_size, processes)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(images))
