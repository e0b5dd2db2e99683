"""The checkpoint file: complete, replaced in one step, refused when it is not what it should be."""

import dataclasses
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import crad
import crad.checkpoint
import crad.train
from crad.config import Config, DataConfig, ModelConfig, TrainingConfig
from crad.errors import CheckpointError, StorageError
from crad.scoring.calibration import Threshold, Thresholds
from crad.scoring.metrics import summarise
from crad.training.checkpoint import (
    _IMPLIED_UP_TO,
    ALL_PARTS,
    CHECKPOINT_NAME,
    VERSION,
    Checkpoint,
    _from_version_1,
    read_checkpoint,
)
from crad.training.run_record import RECORD_NAME, RunRecord, read_record

CHECKPOINTS = Path(__file__).parent / "checkpoints"


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(
        config=Config(
            data=DataConfig(source="/data/näh maschine"), training=TrainingConfig(seed=3)
        ),
        precision="bf16",
        epoch=4,
        feature_size=(2, 3, 4),
        colour_scale=(0.5, 1.5),
        n_train={"näh maschine": 3},
        seconds=1.25,
        model={"a.weight": torch.rand(2, 3, 3, 3).to(memory_format=torch.channels_last)},
        backbone={"fitted": torch.tensor(True)},
        optimizer={"a.weight.step": torch.tensor(7.0)},
        random={"cpu": torch.get_rng_state()},
        images={"digests": torch.tensor([-(2**63), 5])},
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


def test_former_versions_chose_and_stored_other_images(tmp_path: Path) -> None:
    """A run that is resumed goes on with its choice, whatever version writes it."""
    former = read_checkpoint(CHECKPOINTS / "version-2.safetensors", ALL_PARTS)
    assert (former.draws, former.images) == ("run", {})
    former.write(tmp_path / CHECKPOINT_NAME)
    assert read_checkpoint(tmp_path).draws == "run"


def test_training_states_are_read_on_demand(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    assert read_checkpoint(tmp_path).model
    assert not read_checkpoint(tmp_path).optimizer
    assert not read_checkpoint(tmp_path, parts=()).model


def test_it_replaces_the_former(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    replace(checkpoint, epoch=5).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT_NAME, RECORD_NAME}
    assert read_checkpoint(tmp_path).epoch == 5


def test_a_full_disk_leaves_the_former_one(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    (tmp_path / f".{CHECKPOINT_NAME}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=CHECKPOINT_NAME) as caught:
        replace(checkpoint, epoch=5).save(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT_NAME, RECORD_NAME}
    assert read_checkpoint(tmp_path).epoch == 4


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_cut_short(tmp_path: Path, checkpoint: Checkpoint, length: int) -> None:
    checkpoint.save(tmp_path)
    file = tmp_path / CHECKPOINT_NAME
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT_NAME}.*--overwrite"):
        read_checkpoint(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / CHECKPOINT_NAME))):
        read_checkpoint(tmp_path)


def rewrite(file: Path, **metadata: str) -> None:
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata() | metadata
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, metadata)


def stored(file: Path) -> dict[str, Any]:
    with safetensors.safe_open(file, "pt") as opened:
        run: dict[str, Any] = json.loads(opened.metadata()["run"])
    return run


def test_another_version(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    rewrite(tmp_path / CHECKPOINT_NAME, version="99")
    with pytest.raises(
        CheckpointError, match=rf"{CHECKPOINT_NAME}.* 99.* 1 to {VERSION}.*--overwrite"
    ):
        read_checkpoint(tmp_path)


def test_a_setting_of_the_model_that_is_not_known_is_refused(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    checkpoint.save(tmp_path)
    run = stored(tmp_path / CHECKPOINT_NAME)
    run["settings"]["model"]["colour"] = "green"
    rewrite(tmp_path / CHECKPOINT_NAME, run=json.dumps(run))
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT_NAME}.*colour"):
        read_checkpoint(tmp_path)


def test_a_protocol_of_decisions_that_is_not_known_is_refused(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    decisions = replace(checkpoint.config.decisions, decision_protocol="mvtec")
    replace(checkpoint, config=replace(checkpoint.config, decisions=decisions)).save(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT_NAME}.* mvtec; install"):
        read_checkpoint(tmp_path)


def test_other_settings_may_be_unknown_or_missing(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    run = stored(tmp_path / CHECKPOINT_NAME)
    run["settings"]["training"]["colour"] = "green"
    del run["settings"]["training"]["seed"], run["settings"]["model"]["depth"]
    rewrite(tmp_path / CHECKPOINT_NAME, run=json.dumps(run))
    config = read_checkpoint(tmp_path).config
    assert (config.training.seed, config.model.depth) == (0, ModelConfig().depth)


def test_a_missing_setting_is_what_its_version_did(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a setting ``absent`` whose default is other than what the version did."""
    checkpoint.save(tmp_path)
    run = stored(tmp_path / CHECKPOINT_NAME)
    del run["settings"]["model"]["absent"]
    rewrite(tmp_path / CHECKPOINT_NAME, run=json.dumps(run))
    since = {VERSION: {"model": {"absent": "zeros"}}, 1: {"model": {"absent": "drop"}}}
    monkeypatch.setattr("crad.training.checkpoint._IMPLIED_UP_TO", since)
    assert read_checkpoint(tmp_path).config.model.absent == "zeros"


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_checkpoints_of_every_version_load(version: int, tmp_path: Path) -> None:
    """Their scores are those of the version that wrote them, and training goes on from them."""
    file = CHECKPOINTS / f"version-{version}.safetensors"
    detector = crad.load(file, device="cpu", precision="fp32")
    image = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    (prediction,) = detector.predict(image)
    assert prediction.score == pytest.approx(2.553755521774292, rel=1e-4)
    assert detector.protocol.name == "crad"
    assert detector.thresholds["brick"] == Threshold(1.969123125076294, 20)
    whole = read_checkpoint(file, ALL_PARTS)
    assert whole.precision == "fp32"
    assert whole.config.data.source == "demo"
    assert whole.config.model.local_resolution == (3, 3)
    assert (whole.config.training.epochs, whole.config.training.jitter_std) == (1, 0.05)
    assert whole.config.decisions.calibration_share == 1 / 3
    assert whole.optimizer
    assert whole.random


def test_the_settings_of_every_version_are_accounted_for() -> None:
    """A new setting of the model needs the value that stands for what former versions did."""
    names = {each.name for each in dataclasses.fields(ModelConfig)} - {"weights"}
    for version in range(1, VERSION + 1):
        run = stored(CHECKPOINTS / f"version-{version}.safetensors")
        found = _from_version_1(run) if version == 1 else run["settings"]
        since = [group for each, group in _IMPLIED_UP_TO.items() if each >= version]
        known = {*found["model"], *(name for group in since for name in group.get("model", {}))}
        assert names <= known, f"version {version}"


def test_nothing_stored_is_a_path(tmp_path: Path, checkpoint: Checkpoint) -> None:
    checkpoint.save(tmp_path)
    with safetensors.safe_open(tmp_path / CHECKPOINT_NAME, "pt") as opened:
        assert "/" not in str(opened.metadata())
    assert read_checkpoint(tmp_path).config.data.source == "/data/näh maschine"
    (tmp_path / RECORD_NAME).unlink()
    assert read_checkpoint(tmp_path).config.data.source == ""


def test_stripped_for_inference(
    trained, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.safetensors"
    strip = [crad.checkpoint.main, "strip", str(trained.output), str(file)]
    assert command(*strip) == 0
    assert file.stat().st_size < 0.5 * (trained.output / CHECKPOINT_NAME).stat().st_size
    image = next((trained.data / "brick" / "test" / "good").iterdir())
    ((expected,), (found,)) = (crad.load(each).predict(image) for each in (trained.output, file))
    assert (found.score, found.threshold) == (expected.score, expected.threshold)
    np.testing.assert_array_equal(found.scored_map, expected.scored_map)
    stripped = read_checkpoint(file, ALL_PARTS)
    assert (stripped.optimizer, stripped.random, stripped.images) == ({}, {}, {})
    assert command(*strip) == 1
    assert str(file) in capsys.readouterr().err
    assert command(*strip, "--overwrite") == 0
    assert command(*strip[:3], str(trained.output / CHECKPOINT_NAME), "--overwrite") == 1


def test_a_stripped_checkpoint_is_not_resumed(
    trained, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run" / CHECKPOINT_NAME
    assert command(crad.checkpoint.main, "strip", str(trained.output), str(file)) == 0
    before = file.read_bytes()
    resume = ["--resume", "--output", str(file.parent), "--data", str(trained.data)]
    assert command(crad.train.main, *resume) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for told in (f"'{file}'", "stripped", "--overwrite", "--output"):
        assert told in line
    assert file.read_bytes() == before


def test_other_tensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / CHECKPOINT_NAME)
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT_NAME}.*--weights"):
        read_checkpoint(tmp_path)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("1 / 0",)

    torch.save(Runs(), tmp_path / CHECKPOINT_NAME)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("settings", "model", "depth"), None),
        (("settings", "model", "depth"), 10**12),
        (("settings", "model", "image_size"), True),
        (("settings", "model", "local_resolution"), [2, "2"]),
        (("settings", "model", "absent"), "other"),
        (("settings", "training", "jitter_std"), math.nan),
        (("settings", "decisions", "protocol"), ["other"]),
        (("feature_size",), [2, 3]),
        (("n_train",), None),
        (("n_train", "brick"), -1),
        (("thresholds", "brick", "score"), "1"),
        (("thresholds", "brick", "score"), math.inf),
        (("thresholds", "brick", "n_images"), -1),
        (("draws",), "other"),
        (("seconds",), 10**400),
    ],
)
def test_values_that_were_never_written(tmp_path: Path, where: tuple[str, ...], value: Any) -> None:
    file = shutil.copy(CHECKPOINTS / f"version-{VERSION}.safetensors", tmp_path / CHECKPOINT_NAME)
    run = holder = stored(file)
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = value
    rewrite(file, run=json.dumps(run))
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("depth", 2), ("expansion", 2**30), ("local_resolution", [4, 4]), ("global_memory", "none")],
)
def test_settings_of_another_model(tmp_path: Path, setting: str, value: Any) -> None:
    file = shutil.copy(CHECKPOINTS / f"version-{VERSION}.safetensors", tmp_path / CHECKPOINT_NAME)
    run = stored(file)
    run["settings"]["model"][setting] = value
    rewrite(file, run=json.dumps(run))
    with pytest.raises(CheckpointError, match="does not match"):
        crad.load(file)


def test_an_image_size_that_the_model_does_not_fit(tmp_path: Path) -> None:
    file = shutil.copy(CHECKPOINTS / f"version-{VERSION}.safetensors", tmp_path / CHECKPOINT_NAME)
    run = stored(file)
    run["settings"]["model"]["image_size"] = 64
    rewrite(file, run=json.dumps(run))
    with pytest.raises(CheckpointError, match="images of 64 pixels"):
        crad.load(file).predict(np.zeros((8, 8), np.uint8))


def test_a_name_that_is_wrong_beside_other_runs(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "demo").mkdir()
    checkpoint.save(tmp_path / "demo")
    with pytest.raises(CheckpointError, match=r"no file '.*dmeo'"):
        read_checkpoint(tmp_path / "dmeo")
    with pytest.raises(CheckpointError, match=r"holds no model.*: demo$"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100_000,
        "[]",
        "3",
        "{}",
        '{"data": 3}',
        '{"data": "x", "mine": 1}',
        '{"data": ["x"]}',
    ],
)
def test_a_record_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD_NAME).write_text(content)
    assert read_record(tmp_path) is None
    (tmp_path / RECORD_NAME).write_text('{"data": "x", "classes": ["a"], "id": "3"}')
    assert read_record(tmp_path) == RunRecord("x", "3", ("a",))
