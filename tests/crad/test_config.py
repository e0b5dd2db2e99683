"""Settings: presets, which default holds when, what is refused, and what resuming compares."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crad.config import PRESETS, Config, from_json, to_json, without_effect
from crad.detector import create_model
from crad.options import parse_options
from crad.training.checkpoint import CHECKPOINT_NAME


def test_the_default_is_the_tiny_preset_on_the_demo_set() -> None:
    options = parse_options([])
    assert options.config == replace(PRESETS["tiny"], calibration_share=1 / 3)
    assert options.config.data == "demo"
    assert options.config.backbone == "scattering"
    assert options.output == Path("runs/demo")
    assert not any((options.resume, options.overwrite, options.skip_bad))


def test_own_data_takes_a_pretrained_backbone_and_the_full_preset() -> None:
    config = parse_options(["--data", "parts/"]).config
    assert config.backbone == "tf_efficientnet_b4.aa_in1k"
    assert (config.preset, config.image_size, config.epochs, config.batch_size) == (
        "crad", 224, 50, 64,
    )  # fmt: skip
    assert (config.depth, config.expansion) == (11, 864)
    assert config.data == str(Path("parts").resolve())
    assert (config.calibration_share, config.false_alarm_rate) == (0.1, 0.01)


@pytest.mark.parametrize("data", ["demo", "demo-hard", "parts"])
def test_scattering_takes_the_tiny_preset_whatever_the_data(data: str) -> None:
    config = parse_options(["--data", data, "--backbone=scattering"]).config
    assert (config.preset, config.image_size, config.epochs) == ("tiny", 128, 20)


def test_any_option_overrides_the_preset_in_any_order() -> None:
    config = parse_options(["--epochs", "7", "--preset", "crad-s", "--local.resolution", "3", "4"])
    assert config.config.epochs == 7
    assert config.config.expansion == 216
    assert config.config.local.resolution == (3, 4)
    config = parse_options(["--global.resolution", "2", "2", "2", "--seed", "0"])
    assert config.config.global_.resolution == (2, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--batch-size", "-1"], "--batch-size"),
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
        (["--calibration-share", "1"], "--calibration-share: expected less than 1"),
        (["--false-alarm-rate", "0"], "--false-alarm-rate: expected more than 0"),
        (["--feature-memory", "-1"], "--feature-memory: expected at least 0"),
        (["--feature-memory", "nan"], "--feature-memory: expected at least 0"),
        (["--protocol"], "--protocol: expected all, or one or more of crad, paper"),
        (["--protocol", "mvtec"], "mvtec"),
    ],
)
def test_wrong_options_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_options(arguments)
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
        (["--discrete.address", "hidden"], "--discrete.address"),
        (["--discrete.shrinkage", "0.1"], "--discrete.shrinkage"),
        (["--refinement.off", "--refinement.mse-weight", "1"], "--refinement.mse-weight"),
        (["--refinement.off", "--refinement.cosine-weight", "1"], "--refinement.cosine-weight"),
        (["--refinement.off", "--refinement.mse-threshold", "1"], "--refinement.mse-threshold"),
        (["--absent", "zeros"], "--absent"),
        (["--depth", "0", "--expansion", "3"], "--expansion"),
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
    if config.backbone == "scattering":  # and it is true: the model is the same without it
        states = []
        for each in (config, replace(config, **usual(config, idle))):
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
    ],
)
def test_nothing_is_said_of_what_has_an_effect_or_was_not_changed(arguments: list[str]) -> None:
    assert without_effect(parse_options(arguments).config) is None


def usual(config: Config, name: str) -> dict[str, object]:
    """The option of a name as the preset has it, to replace in a configuration."""
    group, _, leaf = name.removeprefix("--").replace("-", "_").rpartition(".")
    preset = PRESETS[config.preset]
    if not group:
        return {leaf: getattr(preset, leaf)}
    group = {"global": "global_"}.get(group, group)
    changed = {leaf: getattr(getattr(preset, group), leaf)}
    return {group: replace(getattr(config, group), **changed)}


def test_help_shows_the_defaults_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_options(["--preset", "crad", "--help"])
    assert exit_.value.code == 0
    assert "(default: 864)" in capsys.readouterr().out


def test_settings_survive_json() -> None:
    numbers = ["--local.resolution", "3", "4", "5", "--discrete.shrinkage", "0.0025"]
    names = ["--weights", "w.pth", "--global.memory", "vq", "--discrete.address", "hidden"]
    scoring = ["--protocol", "ader", "crad", "--track-best"]
    options = parse_options([*numbers, *names, *scoring, "--refinement.off"])
    assert options.config.protocol == ("ader", "crad")
    assert options.config.track_best
    assert from_json(json.loads(json.dumps(to_json(options.config)))) == options.config


def test_settings_of_another_version_are_refused() -> None:
    settings = to_json(Config())
    del settings["depth"]
    with pytest.raises(ValueError, match="depth"):
        from_json(settings)


def test_resuming_takes_the_settings_of_the_run(trained, demo_root: Path) -> None:
    options = parse_options(["--resume", "--output", str(trained.output)])
    assert (options.config.epochs, options.config.image_size) == (3, 64)
    assert options.config.data == str(demo_root)
    same = ["--resume", "--output", str(trained.output), "--data", str(demo_root), "--epochs", "3"]
    assert parse_options(same) == options


@pytest.mark.parametrize(
    "changed",
    [["--seed", "1"], ["--data", "demo"], ["--local.resolution", "8", "9"], ["--track-best"]],
)
def test_resuming_with_another_setting_is_refused(
    trained, changed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_options(["--resume", "--output", str(trained.output), *changed])
    assert exit_.value.code == 2
    assert f"error: {changed[0]}" in capsys.readouterr().err


def test_resuming_what_does_not_exist_begins_it(tmp_path: Path) -> None:
    options = parse_options(["--resume", "--output", str(tmp_path), "--epochs", "4"])
    assert options.config.epochs == 4
    assert not (tmp_path / CHECKPOINT_NAME).exists()
