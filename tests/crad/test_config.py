"""Settings: presets, which default holds when, what is refused, and what resuming compares."""

import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import crad.train
from crad.command_line import run_command
from crad.config import PRESETS, Config, settings
from crad.detector import create_model
from crad.errors import UsageError
from crad.idle_options import without_effect
from crad.train_options import parse_options
from crad.train_resume import stored_run
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint


def test_the_default_is_the_tiny_preset_on_the_demo_set() -> None:
    options = parse_options([])
    decisions = replace(PRESETS["tiny"].decisions, calibration_share=1 / 3)
    assert options.config == replace(PRESETS["tiny"], decisions=decisions)
    assert options.config.data.source == "demo"
    assert options.config.model.backbone == "scattering"
    assert options.output.folder == Path("runs/demo")
    assert not any((options.output.resume, options.output.overwrite, options.config.data.skip_bad))


def test_own_data_takes_a_pretrained_backbone_and_the_preset_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = parse_options(["--data", "parts/"]).config
    assert config.model.backbone == "auto"
    assert (config.model.preset, config.model.image_size) == ("cpu", 224)
    assert (config.model.depth, config.model.expansion) == (3, 64)
    assert config.training.epochs_chosen

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = parse_options(["--data", "parts/"]).config
    assert parse_options(["--data", "parts/", "--preset", "auto"]).config == config
    on_cpu = parse_options(["--data", "parts/", "--device", "cpu"]).config
    assert (on_cpu.model.preset, on_cpu.training.epochs_chosen) == ("cpu", True)
    assert not config.training.epochs_chosen
    assert (config.model.preset, config.model.image_size) == ("crad", 224)
    assert (config.training.epochs, config.training.batch_size) == (50, 64)
    assert (config.model.depth, config.model.expansion) == (11, 864)
    assert config.data.source == str(Path("parts").resolve())
    assert (config.decisions.calibration_share, config.decisions.false_alarm_rate) == (0.1, 0.01)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("data", ["demo", "demo-hard", "parts"])
def test_scattering_takes_the_tiny_preset_whatever_the_data(
    data: str, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    config = parse_options(["--data", data, "--backbone=scattering", "--preset=auto"]).config
    assert (config.model.preset, config.model.image_size) == ("tiny", 128)
    assert (config.training.epochs, config.training.epochs_chosen) == (20, False)


def test_any_option_overrides_the_preset_in_any_order() -> None:
    arguments = ["--epochs", "7", "--preset", "crad-s", "--local.resolution", "3", "4"]
    config = parse_options(arguments).config
    assert config.training.epochs == 7
    assert config.model.expansion == 216
    assert config.model.local_resolution == (3, 4)
    config = parse_options(["--global.resolution", "2", "2", "2", "--seed", "0"]).config
    assert config.model.global_resolution == (2, 2, 2)


def test_every_setting_has_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    shown = capsys.readouterr().out
    for name in settings(Config()):
        assert name in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--minutes", "0"], "--minutes"),
        (["--minutes", "inf"], "--minutes"),
        (["--minutes", "5", "--epochs", "3"], "--minutes"),
        (["--batch-size", "-1"], "--batch-size"),
        (["--norm-batch", "1"], "--norm-batch"),
        (["--image-size", "8"], "--image-size"),
        (["--seed", "-1"], "--seed"),
        (["--local.jitter-prob", "2"], "--local.jitter-prob"),
        (["--global.resolution", "4", "0"], "--global.resolution"),
        (["--local.memory", "none", "--global.memory", "none"], "--global.memory"),
        (["--local.memory", "bank"], "bank"),
        (["--discrete.shrinkage", "1"], "--discrete.shrinkage"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--resume", "--overwrite"], "--overwrite"),
        (["--preset", "huge"], "huge"),
        (["--epoch-count", "3"], "--epoch-count"),
        (["--epochs", "many"], "--epochs"),
        (["--data"], "--data"),
        (["--calibration-share", "1"], "--calibration-share"),
        (["--false-alarm-rate", "0"], "--false-alarm-rate"),
        (["--feature-memory", "-1"], "--feature-memory"),
        (["--feature-memory", "nan"], "--feature-memory"),
        (["--protocol"], "--protocol"),
        (["--protocol", "mvtec"], "mvtec"),
    ],
)
def test_wrong_options_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: parse_options(arguments))
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "idle"),
    [
        (["--local.memory", "attention", "--local.jitter-std", "0.1"], "--local.jitter-std"),
        (["--local.jitter-prob", "0", "--local.jitter-std", "0.1"], "--local.jitter-std"),
        (["--local.jitter-std", "0", "--local.jitter-prob", "1"], "--local.jitter-prob"),
        (["--local.memory", "none", "--local.resolution", "4", "4"], "--local.resolution"),
        (["--global.memory", "none", "--global.resolution", "2"], "--global.resolution"),
        (
            [
                *("--local.memory", "attention", "--global.memory", "attention"),
                *("--grid.interpolation", "simplex"),
            ],
            "--grid.interpolation",
        ),
        (["--discrete.address", "hidden"], "--discrete.address"),
        (["--discrete.shrinkage", "0.1"], "--discrete.shrinkage"),
        (["--refinement.off", "--refinement.mse-weight", "1"], "--refinement.mse-weight"),
        (["--refinement.off", "--refinement.cosine-weight", "1"], "--refinement.cosine-weight"),
        (["--refinement.off", "--refinement.mse-threshold", "1"], "--refinement.mse-threshold"),
        (["--absent", "zeros"], "--absent"),
        (["--depth", "0", "--expansion", "3"], "--expansion"),
        (["--depth", "0", "--norm-batch", "4"], "--norm-batch"),
        (["--norm-batch", "16", "--batch-size", "16"], "--norm-batch"),
        (["--calibration-share", "0", "--false-alarm-rate", "0.1"], "--false-alarm-rate"),
        (["--backbone", "resnet18", "--components", "3"], "--components"),
    ],
)
def test_what_has_no_effect_is_named(arguments: list[str], idle: str) -> None:
    config = parse_options(arguments).config
    found = without_effect(config)
    assert found is not None
    assert found.startswith(f"no effect: {idle} (needs ")
    assert found.count("(needs") == 1
    if config.model.backbone == "scattering":  # and it is true: the model is the same without it
        states = []
        for each in (config, usual(config, idle)):
            torch.manual_seed(0)
            states.append(create_model(each, (8, 4, 4)))
        torch.testing.assert_close(states[0].state_dict(), states[1].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--preset", "crad", "--backbone", "resnet18"],
        ["--local.jitter-std", "0.1", "--local.resolution", "3", "--global.resolution", "3"],
        ["--refinement.off", "--local.jitter-prob", "0", "--global.memory", "none"],
        ["--local.memory", "attention", "--discrete.address", "hidden"],
        ["--global.memory", "attention", "--discrete.shrinkage", "0.1"],
        ["--global.memory", "none", "--absent", "zeros", "--components", "8"],
        ["--refinement.mse-weight", "1", "--refinement.mse-threshold", "1"],
        ["--false-alarm-rate", "0.1"],
        ["--local.jitter-std", "0", "--local.jitter-prob", "0"],
        ["--norm-batch", "4"],
        ["--grid.interpolation", "simplex", "--local.memory", "none"],
    ],
)
def test_nothing_is_said_of_what_has_an_effect_or_was_not_changed(arguments: list[str]) -> None:
    assert without_effect(parse_options(arguments).config) is None


def usual(config: Config, option: str) -> Config:
    """The configuration with an option as the preset has it."""
    preset = PRESETS[config.model.preset]
    names = {
        "grid.interpolation": "interpolation",
        "discrete.address": "address",
        "discrete.shrinkage": "shrinkage",
    }
    for group in ("model", "training", "decisions"):
        for each in fields(getattr(config, group)):
            if each.name in (names.get(option[2:]), option[2:].replace("-", "_"), *spelt(option)):
                value = getattr(getattr(preset, group), each.name)
                changed = replace(getattr(config, group), **{each.name: value})
                return replace(config, **{group: changed})
    raise AssertionError(option)


def spelt(option: str) -> tuple[str, ...]:
    """What a dotted option may be called as a setting."""
    group, _, name = option[2:].replace("-", "_").rpartition(".")
    return (name, f"{group}_{name}") if group in ("refinement", "local") else (f"{group}_{name}",)


@pytest.mark.parametrize("arguments", [["--help"], ["--preset", "crad", "--help"]])
def test_help_fits_and_shows_the_defaults_that_hold(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_options(arguments)
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for topic in ("data", "model", "training", "decisions", "output"):
        assert f" {topic} options " in shown
    assert f"(default: {864 if 'crad' in arguments else 64})" in shown


def test_resuming_takes_the_settings_of_the_run(trained, demo_root: Path) -> None:
    options = parse_options(["--resume", "--output", str(trained.output)])
    assert (options.config.training.epochs, options.config.model.image_size) == (3, 32)
    assert options.config.data.source == str(demo_root)
    same = ["--resume", "--output", str(trained.output), "--data", str(demo_root), "--epochs", "3"]
    assert parse_options(same) == options


@pytest.mark.parametrize(
    "changed",
    [
        ["--seed", "1"],
        ["--local.resolution", "8", "9"],
        ["--track-best"],
        ["--precision", "bf16"],
    ],
)
def test_resuming_with_another_setting_is_refused(
    trained, changed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        crad.train.main(["--resume", "--output", str(trained.output), *changed])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert f"error: {changed[0]}" in error
    assert str(trained.output) in error


@pytest.mark.parametrize("free", [["--skip-bad"], ["--feature-memory", "1"], ["--compile"]])
def test_what_is_of_no_consequence_may_change_when_resumed(trained, free: list[str]) -> None:
    options = parse_options(["--resume", "--output", str(trained.output), *free])
    stored = stored_run(options, ())
    assert stored is not None
    assert stored.epoch == 3


@pytest.mark.parametrize("same", [[], ["--track-best"], ["--track-best", "--skip-bad"]])
def test_the_flags_of_a_run_may_be_given_again(trained, tmp_path: Path, same: list[str]) -> None:
    stored = read_checkpoint(trained.output)
    decisions = replace(stored.config.decisions, track_best=True)
    replace(stored, config=replace(stored.config, decisions=decisions)).save(tmp_path)
    options = parse_options(["--resume", "--output", str(tmp_path), *same])
    assert stored_run(options, ()) is not None
    assert options.config.decisions.track_best


def test_resuming_a_run_that_does_not_say_where_its_data_are(
    trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained.output / CHECKPOINT_NAME, tmp_path)
    with pytest.raises(SystemExit) as exit_:
        crad.train.main(["--resume", "--output", str(tmp_path)])
    assert exit_.value.code == 2
    assert "--data" in capsys.readouterr().err
    options = parse_options(["--resume", "--output", str(tmp_path), "--data", str(trained.data)])
    assert stored_run(options, ()).epoch == 3


def test_data_that_moved_are_named_when_resuming(
    trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shutil.copytree(trained.output, tmp_path / "run")
    moved = shutil.copytree(trained.data, tmp_path / "moved")
    crad.train.main(["--resume", "--output", str(output), "--data", str(moved)])
    assert read_checkpoint(output).config.data.source == str(moved)
    (moved / "brick" / "train" / "good" / "000.png").unlink()
    with pytest.raises(SystemExit) as exit_:
        crad.train.main(["--resume", "--output", str(output)])
    assert exit_.value.code == 1
    assert str(moved) in capsys.readouterr().err


def test_resuming_what_does_not_exist_begins_it(tmp_path: Path) -> None:
    arguments = ["--resume", "--output", str(tmp_path), "--epochs", "4"]
    with pytest.raises(UsageError, match=f"no checkpoint in '{re.escape(str(tmp_path))}'.*--data"):
        parse_options(arguments)
    options = parse_options([*arguments, "--data", "demo"])
    assert options.config.training.epochs == 4
    assert not (tmp_path / CHECKPOINT_NAME).exists()
