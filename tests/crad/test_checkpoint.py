"""The checkpoint file: complete, replaced in one step, refused when it is not what it should be."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from crad.config import Config
from crad.errors import CheckpointError
from crad.scoring.calibration import Threshold, Thresholds
from crad.scoring.metrics import summarise
from crad.training.checkpoint import ALL_PARTS, CHECKPOINT_NAME, Checkpoint, read_checkpoint


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(
        config=Config(seed=3, weights=Path("w.pth")),
        epoch=4,
        feature_size=(2, 3, 4),
        colour_scale=(0.5, 1.5),
        n_train={"näh maschine": 3},
        seconds=1.25,
        model={"a.weight": torch.rand(2, 3, 3, 3).to(memory_format=torch.channels_last)},
        backbone={"fitted": torch.tensor(True)},
        optimizer={"a.weight.step": torch.tensor(7.0)},
        random={"cpu": torch.get_rng_state()},
        best_on_test={"epoch": 2, **summarise({})},
        thresholds=Thresholds({"näh maschine": Threshold(0.1 + 0.2, 7)}),
    )


def test_what_is_read_is_what_was_written(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    for path in (tmp_path, tmp_path / CHECKPOINT_NAME):
        read = read_checkpoint(path, ALL_PARTS)
        for part in ALL_PARTS:
            torch.testing.assert_close(getattr(read, part), getattr(checkpoint, part))
        parts = {part: {} for part in ALL_PARTS}
        assert replace(read, **parts) == replace(checkpoint, **parts)


def test_training_states_are_read_on_demand(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    assert read_checkpoint(tmp_path).model
    assert not read_checkpoint(tmp_path).optimizer
    assert not read_checkpoint(tmp_path, parts=()).model


def test_it_is_the_only_file_and_replaces_the_former(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    checkpoint.save(tmp_path)
    replace(checkpoint, epoch=5).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]
    assert read_checkpoint(tmp_path).epoch == 5


def test_a_full_disk_leaves_the_former_one(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match=CHECKPOINT_NAME):
            replace(checkpoint, epoch=5).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]
    assert read_checkpoint(tmp_path).epoch == 4


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_cut_short(tmp_path: Path, checkpoint: Checkpoint, length: int) -> None:
    checkpoint.save(tmp_path)
    file = tmp_path / CHECKPOINT_NAME
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT_NAME}.*cut short"):
        read_checkpoint(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        read_checkpoint(tmp_path)


def rewrite(folder: Path, **metadata: str) -> None:
    file = folder / CHECKPOINT_NAME
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata() | metadata
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, metadata)


def test_another_version(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    rewrite(tmp_path, version="99")
    with pytest.raises(CheckpointError, match=r"version 99, this crad reads version 1"):
        read_checkpoint(tmp_path)


def test_other_settings(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    with safetensors.safe_open(tmp_path / CHECKPOINT_NAME, "pt") as opened:
        run = json.loads(opened.metadata()["run"])
    run["config"]["colour"] = "green"
    rewrite(tmp_path, run=json.dumps(run))
    with pytest.raises(CheckpointError, match="colour"):
        read_checkpoint(tmp_path)


def test_an_older_crad_is_told_by_its_settings(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """As before there were thresholds: not taken for damaged, and not read without them."""
    checkpoint.save(tmp_path)
    with safetensors.safe_open(tmp_path / CHECKPOINT_NAME, "pt") as opened:
        run = json.loads(opened.metadata()["run"])
    del run["thresholds"], run["config"]["calibration_share"]
    rewrite(tmp_path, run=json.dumps(run))
    with pytest.raises(CheckpointError, match="of another crad: its settings differ in calibr"):
        read_checkpoint(tmp_path)


def test_other_tensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / CHECKPOINT_NAME)
    with pytest.raises(CheckpointError, match="no crad checkpoint"):
        read_checkpoint(tmp_path)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("1 / 0",)

    torch.save(Runs(), tmp_path / CHECKPOINT_NAME)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path)
