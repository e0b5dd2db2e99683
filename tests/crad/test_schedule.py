"""How many epochs a run takes that is not told, and what it says about the time."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crad.train import main
from crad.training.checkpoint import read_checkpoint
from crad.training.schedule import FEWEST_STEPS, Pace, choose_epochs, describe, warn_if_short
from tests.fixtures import run

# As `SMALL` of conftest.py, without a number of epochs.
SMALL = (
    *("--backbone", "scattering", "--preset", "cpu", "--image-size", "32", "--batch-size", "4"),
)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def first_epoch_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule lets a model see each image twice."""
    monkeypatch.setattr("crad.training.schedule._MOST_EPOCHS", 2)


def test_the_rule_sees_as_many_images_whatever_their_number() -> None:
    paces = [Pace(1, 0.1, 0.1), Pace(1000, 9.0, 9.0)]
    for pace in paces:
        counts = {n: choose_epochs(pace, n, None) for n in (1, 100, 128, 500, 1000, 4000, 10**8)}
        assert counts == {1: 200, 100: 200, 128: 200, 500: 51, 1000: 26, 4000: 13, 10**8: 1}


@pytest.mark.parametrize(
    ("minutes", "epochs"), [(5.0, 30), (0.1, 1), (1 / 6, 1), (1 / 3, 2), (0.0001, 1)]
)
def test_a_time_is_filled_but_not_exceeded(minutes: float, epochs: int) -> None:
    assert choose_epochs(Pace(steps=18, step=0.5, rest=1.0), 300, minutes) == epochs


def test_the_time_is_said_in_seconds_or_minutes() -> None:
    assert "4 epochs of 9 steps, about 40 s on this machine" in describe(4, Pace(9, 1.0, 1.0))
    assert "30 epochs of 9 steps, about 5 min on this machine" in describe(30, Pace(9, 1.0, 1.0))


def test_a_run_of_few_steps_is_warned_of() -> None:
    assert warn_if_short(FEWEST_STEPS, 1, None) is None
    assert warn_if_short(20, 5, 0.1) is None
    told = warn_if_short(2, 7, None)
    assert told is not None
    assert told.startswith("warning: 14 training steps in all, and with fewer than 100 ")
    assert told.endswith("may miss most defects; give --epochs 15 or more")
    told = warn_if_short(1, 1, 0.01)
    assert told is not None
    assert "warning: 1 training step in" in told
    assert told.endswith("; leave --minutes out, or give --epochs 100 or more")


def test_no_rule_takes_few_steps() -> None:
    pace = Pace(1, 0.1, 0.1)
    for n_images in (1, 16, 17, 128, 1000, 10**5):
        steps = -(-n_images // 16)
        assert warn_if_short(choose_epochs(pace, n_images, None), steps, None) is None


def forecast(printed: str) -> tuple[int, float]:
    """Epochs and seconds of the line about the training."""
    found = re.search(r"^training: (\d+) epochs .* about (\d+) s on", printed, re.MULTILINE)
    assert found
    return int(found[1]), float(found[2])


def test_the_rule_is_followed_stored_and_kept(
    demo_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first_epoch_rule: None,
) -> None:
    for name in "first", "second":
        assert run(main, "--data", str(demo_root), "--output", str(tmp_path / name), *SMALL) == 0
        assert forecast(capsys.readouterr().out)[0] == 2
    first, second = (read_checkpoint(tmp_path / name) for name in ("first", "second"))
    assert first.epoch == first.config.training.epochs == 2
    assert first.config == second.config
    for name, value in first.model.items():
        torch.testing.assert_close(value, second.model[name], rtol=0, atol=0)

    resume = ["--resume", "--output", str(tmp_path / "first")]
    assert run(main, *resume) == 0
    assert "training:" not in capsys.readouterr().out
    assert run(main, *resume, "--minutes", "3") == 2
    error = capsys.readouterr().err
    assert "--minutes: the run" in error
    assert "--epochs N changes that" in error


def test_measuring_changes_nothing(
    demo_root: Path, tmp_path: Path, train_command: Callable[..., int], first_epoch_rule: None
) -> None:
    chosen, told = tmp_path / "chosen", tmp_path / "told"
    assert run(main, "--data", str(demo_root), "--output", str(chosen), *SMALL) == 0
    epochs = ["--epochs", "2"]
    assert run(main, "--data", str(demo_root), "--output", str(told), *SMALL, *epochs) == 0
    first, second = (read_checkpoint(output) for output in (chosen, told))
    assert first.thresholds == second.thresholds
    for name, value in first.model.items():
        torch.testing.assert_close(value, second.model[name], rtol=0, atol=0)


def test_a_time_is_kept(
    demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(demo_root), "--output", str(tmp_path), *SMALL, "--minutes", "0.05"]
    assert run(main, *arguments) == 0
    printed = capsys.readouterr().out
    epochs, seconds = forecast(printed)
    stored = read_checkpoint(tmp_path)
    assert stored.epoch == epochs
    steps = epochs * 3
    way_out = "leave --minutes out, or give --epochs 34 or more"
    warning = f"warning: {steps} training steps in all, and with fewer than 100 a detector may "
    warning += f"miss most defects; {way_out}"
    told = json.loads((tmp_path / "results.json").read_text()).get("note", "")
    assert (warning in told) == (steps < 100)
    assert printed.count(warning) == (2 if steps < 100 else 0)  # when it begins, and at the end
    assert stored.config.training.minutes == 0.05
    assert seconds <= 3  # what the machine then takes is for docs/performance.md


@pytest.mark.slow
def test_each_class_of_a_separate_run_has_its_own_number(
    demo_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crad.train.choose_epochs", lambda *_: next(numbers))
    numbers = iter([1, 2])
    arguments = ["--separate", "--output", str(tmp_path)]
    assert run(main, "--data", str(demo_root), *arguments, *SMALL) == 0
    epochs = [read_checkpoint(tmp_path / name).epoch for name in ("brick", "gauge")]
    assert epochs == [1, 2]
    capsys.readouterr()
    (tmp_path / "results.json").unlink()
    assert run(main, "--resume", *arguments) == 0  # both are known to be finished
    assert capsys.readouterr().out.count("(finished)") == 2
