"""`--backbone auto`: what it chooses, that it says why, and that a run keeps it."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from crad.backbones import LITE, PUBLISHED, auto, weights
from crad.backbones.auto import Choice, choose_backbone
from crad.train import main, train
from crad.train_options import parse_options, settle_backbone
from crad.training import processes
from crad.training.checkpoint import read_checkpoint
from tests.fixtures import run

TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
SMALL = ("--image-size", "32", "--batch-size", "4", "--epochs", "1")


def no_hub(_: str) -> Path:
    raise weights.DownloadError("no route")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The backbones whose weights are on this machine, which reaches no hub; none yet."""
    found: set[str] = set()
    monkeypatch.setattr(auto, "local_weights", lambda name: Path(name) if name in found else None)
    monkeypatch.setattr(auto, "download_weights", no_hub)
    return found


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path | None]]:
    """The choices made, each scattering, by the weights that they were made with."""
    calls: list[Path | None] = []

    def choose(given: Path | None) -> Choice:
        calls.append(given)
        return Choice("scattering", "there is nothing else")

    monkeypatch.setattr(auto, "choose_backbone", choose)
    return calls


# ---- the choice ----


@pytest.mark.parametrize("others", [set(), {LITE}])
def test_published_weights_on_this_machine_come_first(here: set[str], others: set[str]) -> None:
    here |= {PUBLISHED} | others
    assert str(choose_backbone()) == (
        f"backbone: {PUBLISHED}, because its weights are on this machine"
    )


def test_then_those_that_the_hub_gives(here: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    here.add(LITE)
    monkeypatch.setattr(auto, "download_weights", Path)
    assert str(choose_backbone()) == (
        f"backbone: {PUBLISHED}, because its weights have been downloaded"
    )


def test_then_the_package(here: set[str]) -> None:
    here.add(LITE)
    assert str(choose_backbone()) == (
        f"backbone: {LITE}, because the weights of {PUBLISHED} cannot be downloaded (no route)"
    )


def test_then_what_needs_no_weights(here: set[str]) -> None:
    choice = choose_backbone()
    assert choice.name == "scattering"
    assert f"the weights of {PUBLISHED} cannot be downloaded (no route)" in choice.reason
    assert choice.reason.endswith("(pip install 'crad[lite]')")


def test_given_weights_are_those_of_the_published_backbone(here: set[str]) -> None:
    here.add(LITE)
    choice = choose_backbone(Path("b4.pth"))
    assert choice.name == PUBLISHED
    assert "--weights" in choice.reason
    assert "b4.pth" in choice.reason


@pytest.mark.slow
def test_offline_the_hub_is_not_asked(tmp_path: Path) -> None:
    script = "from crad.backbones.auto import choose_backbone; print(choose_backbone())"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"the weights of {PUBLISHED} cannot be downloaded (Offline" in ended.stdout


# ---- the options ----


def test_own_data_takes_it_and_generated_sets_do_not() -> None:
    assert parse_options(["--data", "parts"]).config.model.backbone == "auto"
    assert parse_options([]).config.model.backbone == "scattering"
    given = parse_options(["--data", "demo", "--backbone", "auto"]).config.model
    assert given.backbone == "auto"


@pytest.mark.parametrize("explicit", [[], ["--backbone", "auto"]])
@pytest.mark.parametrize(
    ("name", "preset"), [("scattering", "tiny"), (LITE, "crad"), (PUBLISHED, "crad")]
)
def test_the_preset_on_a_gpu_is_that_of_the_backbone(
    explicit: list[str], name: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    arguments = ["--data", "parts", "--epochs", "7", *explicit]
    config = parse_options(arguments, auto=name).config
    assert (config.model.backbone, config.model.preset) == (name, preset)
    assert config.training.epochs == 7
    given = parse_options([*arguments, "--preset", "crad-s"], auto=name).config
    assert (given.model.backbone, given.model.preset) == (name, "crad-s")


def test_a_backbone_that_is_named_is_taken(chosen: list[Path | None]) -> None:
    config = parse_options(["--data", "parts", "--backbone", "resnet18"], auto=LITE).config
    assert config.model.backbone == "resnet18"


def test_help_shows_it_and_chooses_nothing(
    chosen: list[Path | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, "--data", "parts", "--help") == 0
    assert "(default: auto)" in capsys.readouterr().out
    assert not chosen


# ---- runs ----


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_run_says_what_it_is_and_keeps_it(
    demo_root: Path,
    tmp_path: Path,
    chosen: list[Path | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--data", str(demo_root), "--output", str(tmp_path), *SMALL]
    train(arguments)
    first, second, *_ = lines_of(capsys)
    assert first == "backbone: scattering, because there is nothing else"
    assert "| backbone scattering |" in second
    config = read_checkpoint(tmp_path).config
    assert (config.model.backbone, config.model.preset) == ("scattering", "tiny")
    assert '"auto"' not in json.dumps(dataclasses.asdict(config), default=str)
    for again in ([], ["--backbone", "auto"]):
        assert run(main, *arguments, "--resume", *again) == 0
        assert lines_of(capsys)[0] == second
    assert chosen == [None]


def test_a_run_to_resume_that_was_not_begun_chooses(
    demo_root: Path, tmp_path: Path, chosen: list[Path | None]
) -> None:
    arguments = ["--data", str(demo_root), "--output", str(tmp_path), "--resume", *SMALL]
    assert run(main, *arguments) == 0
    assert chosen == [None]


@pytest.mark.slow
def test_separate_runs_share_one_choice(
    demo_root: Path,
    tmp_path: Path,
    chosen: list[Path | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--data", str(demo_root), "--output", str(tmp_path), "--separate", *SMALL]
    assert run(main, *arguments) == 0
    assert sum(line.startswith("backbone: ") for line in lines_of(capsys)) == 1
    assert chosen == [None]
    for name in ("brick", "gauge"):
        assert read_checkpoint(tmp_path / name).config.model.backbone == "scattering"
    assert run(main, *arguments, "--resume", "--backbone", "auto") == 0
    assert chosen == [None]


def test_the_main_process_chooses_for_all(
    demo_root: Path,
    tmp_path: Path,
    chosen: list[Path | None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another process takes what the main one has chosen."""
    exchanged: list[Callable[[], object]] = []

    def on_main(function: Callable[[], object]) -> object:
        exchanged.append(function)
        return Choice(LITE, "the main process says so")

    monkeypatch.setattr(processes, "on_main", on_main)
    arguments = ["--data", str(demo_root), "--output", str(tmp_path), "--weights", "w.pth"]
    config = settle_backbone(parse_options(arguments), arguments).config
    assert config.model.backbone == LITE
    assert not chosen
    exchanged[0]()
    assert chosen == [Path("w.pth")]


@pytest.mark.slow
@pytest.mark.thorough
def test_two_processes_take_the_same(demo_root: Path, tmp_path: Path) -> None:
    arguments = ["--data", demo_root, "--output", tmp_path / "run", "--preset", "tiny", *SMALL]
    ended = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "crad", "train", *map(str, arguments)],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    first, second, *rest = ended.stdout.splitlines()
    name = read_checkpoint(tmp_path / "run").config.model.backbone
    assert first.startswith(f"backbone: {name}, because the weights of {PUBLISHED} cannot")
    assert "x 2 processes" in second
    assert not any(line.startswith("backbone: ") for line in rest)
