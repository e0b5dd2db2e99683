"""The epoch that is kept, and that accuracy does not fall while training goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import crad.evaluate
import crad.train_thresholds
from crad.config import Config, TrainingConfig
from crad.data.demo import write_demo
from crad.errors import CheckpointError
from crad.model.crad import CRAD
from crad.training.checkpoint import ALL_PARTS, Checkpoint, Kept, read_checkpoint
from crad.training.keeping import held_back_error, keep_best, kept_note
from tests.crad.test_checkpoint import CHECKPOINTS, rewrite, stored
from tests.fixtures import before_step, ctrl_c

Train = Callable[..., int]
BEST = ("--keep", "best")
STEPS = 3
"""In an epoch of `trained`."""

SIZE = 64
FALL = 0.05
"""Of an AUROC over 40 test images, from one number of epochs to another, that means nothing."""


def after(epoch: int) -> Checkpoint:
    """A run after an epoch, whose states hold its number."""
    return Checkpoint(
        config=Config(),
        epoch=epoch,
        feature_size=(2, 3, 4),
        colour_scale=(0.0, float(epoch)),
        n_train={"nut": 3},
        seconds=float(epoch),
        model=state(epoch),
        backbone={},
        optimizer=state(epoch),
        random=state(epoch),
    )


def state(epoch: int) -> dict[str, torch.Tensor]:
    return {"number": torch.tensor(float(epoch))}


def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch is worse than the one before."""
    errors = count(1)
    monkeypatch.setattr(crad.train_thresholds, "held_back_error", lambda *_: float(next(errors)))


def metrics(output: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


@torch.no_grad()
def test_the_error_is_the_loss_of_images_in_evaluation() -> None:
    torch.manual_seed(0)
    model = CRAD(4, 3, 5, depth=1, expansion=4, jitter_prob=0).eval()
    found = model(3 * torch.randn(6, 4, 3, 5))
    assert held_back_error(found.anomaly_map, 4) == pytest.approx(float(found.loss))


def test_the_smallest_error_is_kept_and_training_goes_on_from_the_last() -> None:
    run = None
    for epoch, error in enumerate((3.0, 2.0, 2.0, 5.0), 1):
        run = keep_best(run, after(epoch), error)
    assert run is not None
    assert run.kept == Kept(2, 2.0)
    assert (run.model, run.colour_scale) == (after(2).model, (0.0, 2.0))
    assert (run.epoch, run.seconds) == (4, 4.0)
    assert run.latest == run.optimizer == run.random == after(4).model
    again = keep_best(run, after(5), 1.0)
    assert (again.kept, again.model, again.latest) == (Kept(5, 1.0), after(5).model, {})


def test_what_is_kept_does_not_change_while_training_goes_on() -> None:
    new = after(1)
    kept = keep_best(None, new, 1.0)
    new.model["number"].add_(1)
    assert kept.model == after(1).model


def test_the_note_names_the_epoch_unless_it_is_the_last() -> None:
    last = keep_best(None, after(1), 1.0)
    assert kept_note(last) is kept_note(after(1)) is None
    note = kept_note(keep_best(last, after(2), 2.0))
    assert note is not None
    assert "epoch 1 of 2" in note


def test_a_run_is_measured_by_the_epoch_that_it_keeps(
    trained, train_command: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    assert train_command(trained.data, short, "--epochs", "1") == 0
    rising(monkeypatch)
    assert train_command(trained.data, long, *BEST) == 0
    first, run, last = (read_checkpoint(each, ALL_PARTS) for each in (short, long, trained.output))
    assert metrics(long)["mean"] == metrics(short)["mean"]
    assert metrics(long)["decisions"] == metrics(short)["decisions"]
    assert "epoch 1 of 3" in metrics(long)["note"]
    assert (run.epoch, run.kept) == (3, Kept(1, 1.0))
    torch.testing.assert_close(run.model, first.model, rtol=0, atol=0)
    torch.testing.assert_close(run.latest, last.model, rtol=0, atol=0)
    assert (run.thresholds, run.colour_scale) == (first.thresholds, first.colour_scale)


def test_an_interrupted_run_keeps_the_same_epoch(
    trained, train_command: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising(monkeypatch)
    assert train_command(trained.data, tmp_path / "whole", *BEST) == 0
    rising(monkeypatch)
    with before_step(2 * STEPS, ctrl_c):
        assert train_command(trained.data, tmp_path / "part", *BEST) == 130
    assert read_checkpoint(tmp_path / "part").kept == Kept(1, 1.0)
    assert train_command(trained.data, tmp_path / "part", "--resume", *BEST) == 0
    whole, part = (read_checkpoint(tmp_path / each, ALL_PARTS) for each in ("whole", "part"))
    assert whole.kept == part.kept == Kept(1, 1.0)
    for each in ALL_PARTS:
        torch.testing.assert_close(getattr(part, each), getattr(whole, each), rtol=0, atol=0)
    assert metrics(tmp_path / "part")["mean"] == metrics(tmp_path / "whole")["mean"]


@pytest.mark.parametrize("arguments", [(), (*BEST, "--calibration-share", "0")])
def test_without_images_held_back_or_a_choice_it_is_the_last(
    trained,
    train_command: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    rising(monkeypatch)
    assert train_command(trained.data, tmp_path, *arguments) == 0
    run = read_checkpoint(tmp_path, ALL_PARTS)
    assert (run.kept, run.latest) == (None, {})


def test_a_run_of_a_former_version_keeps_its_last_epoch(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        former = read_checkpoint(CHECKPOINTS / f"version-{version}.safetensors")
        assert (former.config.training.keep, former.kept) == ("last", None)
    replace(after(1), config=Config(training=TrainingConfig(keep="best"))).save(tmp_path)
    assert read_checkpoint(tmp_path).config.training.keep == "best"


def test_a_damaged_choice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    keep_best(None, after(1), 1.0).save(tmp_path)
    assert read_checkpoint(tmp_path).kept == Kept(1, 1.0)
    rewrite(file, run=json.dumps(stored(file) | {"kept": {"epoch": "one"}}))
    with pytest.raises(CheckpointError, match="kept"):
        read_checkpoint(tmp_path)


@pytest.mark.slow
@pytest.mark.thorough
def test_accuracy_does_not_fall_while_training_goes_on(
    train_command: Train, tmp_path: Path
) -> None:
    """Two textures, 27 images each: four times as many epochs make the last one worse."""
    root = tmp_path / "textures"
    write_demo(root, n_train=40, n_test=20, size=SIZE, classes=("grass", "gravel"))
    settings = ("--image-size", str(SIZE), "--batch-size", "16", "--calibration-share", "0.33")
    cached = ("--feature-cache", str(tmp_path / "features"))
    runs = {epochs: tmp_path / str(epochs) for epochs in (20, 80)}
    for epochs, output in runs.items():
        assert train_command(root, output, *BEST, *settings, *cached, "--epochs", str(epochs)) == 0
    run = read_checkpoint(runs[80], ALL_PARTS)
    assert run.kept is not None
    assert run.kept.epoch < 80
    replace(run, model=run.latest, latest={}).save(tmp_path / "last")
    crad.evaluate.main(
        ["--checkpoint", str(tmp_path / "last"), "--output", str(tmp_path / "last"), "--overwrite"]
    )
    few, many, last = (
        [metrics(each)["mean"][name] for name in ("image_auroc", "pixel_auroc")]
        for each in (runs[20], runs[80], tmp_path / "last")
    )
    assert all(late >= early - FALL for early, late in zip(few, many, strict=True))
    assert any(late < early - FALL for early, late in zip(few, last, strict=True))
