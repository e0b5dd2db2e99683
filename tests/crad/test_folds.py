"""Thresholds from folds: all normal images train, and all calibrate."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import crad
from crad.data.samples import Sample
from crad.scoring.calibration import Calibration, Thresholds
from crad.scoring.held_back import draw_folds
from crad.training.checkpoint import ALL_PARTS, read_checkpoint

SMALL = ("--epochs", "1", "--calibration-folds", "3")


def samples(**counts: int) -> list[Sample]:
    return [
        Sample(Path(f"{name}/{index}.png"), name, "good")
        for name, count in counts.items()
        for index in range(count)
    ]


@pytest.mark.parametrize("n_folds", [2, 3, 5, 50])
def test_every_image_is_in_one_fold_and_every_class_in_all(n_folds: int) -> None:
    every = samples(nut=11, bolt=23, pin=2)
    folds = draw_folds(every, n_folds, seed=1)
    assert sorted(place for fold in folds for place in fold) == [*range(len(every))]
    assert len(folds) == min(n_folds, 23)
    for name, count in (("nut", 11), ("bolt", 23), ("pin", 2)):
        held = [sum(every[place].class_name == name for place in fold) for fold in folds]
        assert max(held) - min(held) <= 1
        assert max(held) < count
    assert folds == draw_folds(every, n_folds, seed=1) != draw_folds(every, n_folds, seed=2)


def test_a_fold_of_a_class_does_not_depend_on_the_others() -> None:
    alone = draw_folds(samples(nut=12), 4, seed=0)
    after = draw_folds(samples(bolt=7, nut=12), 4, seed=0)
    assert [[place - 7 for place in fold if place >= 7] for fold in after] == alone


@pytest.mark.slow
def test_all_images_train_and_calibrate(
    trained,
    train_command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_command(trained.data, tmp_path / "all", *SMALL) == 0
    printed = capsys.readouterr().out
    assert "calibration: 3 more trainings" in printed
    assert "few normal images of class 'brick' (and 1 other): 6 of its 6 set" in printed
    stored = read_checkpoint(tmp_path / "all", ALL_PARTS)
    assert stored.n_train == {"brick": 6, "gauge": 6}
    assert [*map(len, stored.calibration.values())] == [6, 6]
    assert stored.thresholds == stored.calibration.thresholds(0.01)
    results = json.loads((tmp_path / "all" / "results.json").read_text())
    assert results["decisions"]["classes"]["brick"]["n_calibration"] == 6
    # The model is the one that all images train without folds.
    share = ("--epochs", "1", "--calibration-share", "0")
    assert train_command(trained.data, tmp_path / "none", *share) == 0
    torch.testing.assert_close(stored.model, read_checkpoint(tmp_path / "none").model)
    # No score is that of the model, which has seen the image.
    paths = sorted((trained.data / "brick" / "train" / "good").iterdir())
    seen = [each.score for each in crad.load(tmp_path / "all", "cpu").predict(paths)]
    assert sorted(seen) != pytest.approx(stored.calibration["brick"], rel=1e-4)


@pytest.mark.slow
def test_a_run_that_stopped_before_its_folds_is_resumed(
    trained, train_command: Callable[..., int], tmp_path: Path
) -> None:
    assert train_command(trained.data, tmp_path, *SMALL) == 0
    whole = read_checkpoint(tmp_path, ALL_PARTS)
    replace(whole, calibration=Calibration(), thresholds=Thresholds()).save(tmp_path)
    (tmp_path / "results.json").unlink()
    assert train_command(trained.data, tmp_path, *SMALL, "--resume") == 0
    assert read_checkpoint(tmp_path).calibration == whole.calibration
