"""Another number of epochs for a run to resume: what it reaches, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from crad.train import main
from crad.training.checkpoint import ALL_PARTS, Checkpoint, read_checkpoint
from crad.training.schedule import learning_rate_factor, other_rates
from tests.fixtures import before_call, before_step, ctrl_c, files_of, run

Train = Callable[..., int]
STEPS = 3
"""In an epoch of `trained`: batches of 4, 4 and 2 images."""


def resume(output: Path, *arguments: str) -> int:
    return run(main, "--resume", "--output", str(output), *arguments)


def results_of(output: Path) -> dict[str, object]:
    results = json.loads((output / "results.json").read_text())
    return {key: results[key] for key in ("classes", "mean", "decisions", "epoch")}


def scores_of(output: Path) -> str:
    return (output / "scores.csv").read_text()


def assert_same(first: Checkpoint, second: Checkpoint) -> None:
    """The same to the bit, but for the time that was spent."""
    for part in ALL_PARTS:
        one, other = getattr(first, part), getattr(second, part)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), (part, name)
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0, **states(first))


def states(checkpoint: Checkpoint) -> dict[str, object]:
    return {part: getattr(checkpoint, part) for part in ALL_PARTS}


def test_the_rates_of_a_run_and_of_a_longer_one() -> None:
    assert [learning_rate_factor(epoch, 5) for epoch in range(5)] == [1, 1, 1, 1, 0.1]
    assert not other_rates(16, 20, 60)  # the end of 20 epochs has not begun
    assert [*other_rates(18, 20, 60)] == [17, 18]
    assert [*other_rates(20, 20, 60)] == [17, 18, 19, 20]
    assert [*other_rates(20, 20, 22)] == [17, 18]  # 22 epochs end with four and a half
    assert not other_rates(16, 60, 20)
    assert [*other_rates(19, 60, 20)] == [17, 18, 19]
    for former, new, done in ((20, 60, 20), (60, 20, 20), (7, 5, 5), (1, 2, 1)):
        differing = [
            epoch + 1
            for epoch in range(done)
            if learning_rate_factor(epoch, former) != learning_rate_factor(epoch, new)
        ]
        assert differing == [*other_rates(done, former, new)]


@pytest.mark.parametrize(
    ("done", "former", "new"),
    [(2, "3", "5"), pytest.param(1, "5", "2", marks=pytest.mark.slow)],
)
def test_before_the_rate_falls_it_is_as_if_begun_that_way(
    trained,
    train_command: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    done: int,
    former: str,
    new: str,
) -> None:
    assert train_command(trained.data, tmp_path / "begun", "--epochs", new) == 0
    with before_step(done * STEPS, ctrl_c):
        assert train_command(trained.data, tmp_path / "raised", "--epochs", former) == 130
    capsys.readouterr()
    assert resume(tmp_path / "raised", "--epochs", new) == 0
    line = f"epochs: {new} instead of {former}, of which {done} are done"
    assert line in capsys.readouterr().out.splitlines()
    first, second = (read_checkpoint(tmp_path / name, ALL_PARTS) for name in ("begun", "raised"))
    assert_same(first, replace(second, file=first.file))
    assert results_of(tmp_path / "begun") == results_of(tmp_path / "raised")
    assert scores_of(tmp_path / "begun") == scores_of(tmp_path / "raised")


def test_a_finished_run_trains_on(
    trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    with before_step(STEPS, ctrl_c):  # after one more epoch
        assert resume(output, "--epochs", "6") == 130
    told = capsys.readouterr()
    line = "epochs: 6 instead of 3, of which 3 are done; epoch 3 had a tenth of the learning rate"
    assert line in told.out
    assert "epoch 4 of 6 is on disk" in told.err
    assert results_of(output)["epoch"] == 3  # of the last measurement, until there is another
    with before_step(2 * STEPS, ctrl_c):  # what is left, without being told again
        assert resume(output) == 0
    stored = read_checkpoint(output)
    assert stored.epoch == stored.config.training.epochs == 6
    assert results_of(output)["epoch"] == 6
    assert "epochs:" not in capsys.readouterr().out
    assert scores_of(output) != scores_of(trained.output)
    assert stored.calibration != read_checkpoint(trained.output).calibration


def test_fewer_epochs_than_are_done_are_refused(
    trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    before = files_of(output)
    assert resume(output, "--epochs", "2") == 2
    error = capsys.readouterr().err
    for told in ("--epochs", str(output), "3 epochs already", "at least 3"):
        assert told in error
    assert files_of(output) == before


def test_a_run_ends_where_it_is(
    trained, train_command: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with before_step(3 * STEPS, ctrl_c):
        assert train_command(trained.data, tmp_path, "--epochs", "30") == 130
    with before_step(0, ctrl_c):  # nothing more is trained
        assert resume(tmp_path, "--epochs", "3") == 0
    assert "epoch 3 had ten times the learning rate of a run that" in capsys.readouterr().out
    assert read_checkpoint(tmp_path).config.training.epochs == 3
    assert results_of(tmp_path)["epoch"] == 3


def test_a_time_is_no_way_to_train_on(
    trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    stored = read_checkpoint(output, ALL_PARTS)
    chosen = replace(stored.config.training, minutes=5.0, epochs_chosen=True)
    replace(stored, config=replace(stored.config, training=chosen)).save(output)
    assert resume(output, "--minutes", "7") == 2
    error = capsys.readouterr().err
    assert "--minutes: the run in" in error
    assert "3 epochs, not 7.0; --epochs N changes that" in error
    with before_step(0, ctrl_c):  # what it was started with is no other time
        assert resume(output, "--minutes", "5") == 0
    assert resume(output, "--epochs", "4") == 0
    training = read_checkpoint(output).config.training
    assert (training.epochs, training.minutes, training.epochs_chosen) == (4, None, False)
    assert resume(output, "--minutes", "5") == 2


@pytest.mark.slow
@pytest.mark.thorough
def test_all_classes_train_on(
    trained, train_command: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are told before the first is trained, so that an interrupted run is of one length."""
    assert train_command(trained.data, tmp_path, "--separate", "--epochs", "1") == 0
    capsys.readouterr()
    with before_step(1, ctrl_c):  # one more epoch of the first class, of one step
        assert resume(tmp_path, "--separate", "--epochs", "3") == 130
    assert capsys.readouterr().out.count(": epochs: 3 instead of 1, of which 1 are done") == 2
    names = ("brick", "gauge")
    lengths = [read_checkpoint(tmp_path / name).config.training.epochs for name in names]
    assert lengths == [3, 3]
    assert resume(tmp_path, "--separate") == 0
    assert [read_checkpoint(tmp_path / name).epoch for name in names] == [3, 3]
    assert json.loads((tmp_path / "results.json").read_text())["epoch"] == 3
    before = files_of(tmp_path)
    with before_call(nn.Module, ctrl_c):
        assert resume(tmp_path, "--separate", "--epochs", "2") == 2
    assert files_of(tmp_path) == before
    assert resume(tmp_path / "gauge", "--epochs", "4") == 0
    assert resume(tmp_path, "--separate") == 2  # which of the two is meant?
    assert "--epochs N changes that" in capsys.readouterr().err
    with before_step(1, ctrl_c):
        assert resume(tmp_path, "--separate", "--epochs", "4") == 0


@pytest.mark.slow
def test_folds_are_of_the_new_length(trained, train_command: Train, tmp_path: Path) -> None:
    folds = ("--calibration-folds", "2")
    assert train_command(trained.data, tmp_path / "begun", *folds, "--epochs", "2") == 0
    assert train_command(trained.data, tmp_path / "raised", *folds, "--epochs", "1") == 0
    assert resume(tmp_path / "raised", "--epochs", "2") == 0
    begun, raised = (read_checkpoint(tmp_path / name) for name in ("begun", "raised"))
    assert raised.calibration == begun.calibration
