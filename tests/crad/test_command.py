"""The `crad` command and what all of its sub-commands share: help, errors and exit codes."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch

import crad
import crad.errors
import crad.evaluate
from crad.__main__ import COMMANDS, main
from crad.command_line import run_command
from crad.errors import CradError, PeerError, UsageError
from crad.training.checkpoint import CHECKPOINT_NAME

Command = Callable[..., int]
ERRORS = [each for each in vars(crad.errors).values() if inspect.isclass(each)]


def fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 100


def test_the_version(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(main, "--version") == 0
    assert capsys.readouterr().out == f"crad {crad.__version__}\n"


@pytest.mark.slow
def test_the_package_is_the_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "crad", "fly"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "'fly'" in ended.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_fits_a_screen_and_names_every_command(
    command: Command, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert command(main, *arguments) == 0
    shown = capsys.readouterr().out
    assert fits(shown)
    assert len(shown.splitlines()) <= 40
    for name, (_, does) in COMMANDS.items():
        assert any(line.split() == [name, *does.split()] for line in shown.splitlines())


def test_the_table_of_the_docs_names_every_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "detector.md").read_text()
    told = re.findall(r"^\| `crad ([a-z]+)[^`]*` \|", page, flags=re.MULTILINE)
    assert sorted(told) == sorted(COMMANDS)


def test_an_unknown_command(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(main, "fly") == 2
    (line,) = capsys.readouterr().err.splitlines()
    for told in ("error", "'fly'", *COMMANDS):
        assert told in line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(
    command: Command, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert command(main, name, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: crad {name} ")
    assert fits(shown)
    assert command(main, name, "--no-such-option") == 2
    assert f"crad {name} --help" in capsys.readouterr().err


# Of anomalib's modules, when they are imported first here.
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_all_errors_have_one_base() -> None:
    assert CradError in ERRORS
    found = set()
    for info in pkgutil.walk_packages(crad.__path__, "crad."):
        for each in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(each) and issubclass(each, BaseException):
                found.add(each)
    own = {each for each in found if each.__module__.split(".")[0] == "crad"}
    assert own >= set(ERRORS)
    assert [each for each in own if not issubclass(each, CradError)] == []


# Without that of a process that waits for others to fail.
@pytest.mark.parametrize("error", [each for each in ERRORS if each is not PeerError])
def test_an_error_is_one_line_and_an_exit_code(
    command: Command, capsys: pytest.CaptureFixture[str], error: type[CradError]
) -> None:
    def fail() -> None:
        raise error("thing: of no\n\tuse; take another")

    assert command(lambda _: run_command(fail)) == (2 if error is UsageError else 1)
    assert capsys.readouterr().err == "error: thing: of no use; take another\n"


def test_a_state_that_does_not_fit_is_one_line(
    trained, tmp_path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of PyTorch's error, which has many."""
    file = tmp_path / CHECKPOINT_NAME
    with safetensors.safe_open(trained.output / CHECKPOINT_NAME, "pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(trained.output / CHECKPOINT_NAME)
    for name in [each for each in tensors if each.startswith("model.fusion.0")]:
        del tensors[name]
    safetensors.torch.save_file(tensors, file, metadata)
    assert command(crad.evaluate.main, "--checkpoint", str(file)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for told in (str(file), "fusion.0", "--overwrite"):
        assert told in line
