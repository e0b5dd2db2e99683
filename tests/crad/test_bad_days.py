"""What goes wrong outside of crad: one line that names the way out, an exit code, nothing lost."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import crad.predict
import crad.train
from crad.backbones import Backbone
from crad.command_line import run_command
from crad.data.demo import demo_dataset
from crad.errors import BackboneError, CheckpointError, StorageError
from crad.training.checkpoint import read_checkpoint
from crad.training.features import extract
from tests.fixtures import before_step

Train = Callable[..., int]
Command = Callable[..., int]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr, but for progress bars."""
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line.strip() and "/s" not in line]
    return line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--learning-rate", "1e300"), "--learning-rate"),
        (("--clip-norm", "0"), "--clip-norm: expected a finite number above 0"),
        (("--local.jitter-std", "1e300"), "--local.jitter-std"),
        (("--batch-size", "1" + 22 * "0"), "--batch-size: expected less than"),
        (("--image-size", "1" + 12 * "0"), "--image-size: expected less than"),
        (("--global.resolution", "4", "1" + 12 * "0"), "--global.resolution: expected less than"),
        (("--components", "652"), "--components: expected 1 to 651"),
        (("--depth", "1001"), "--depth: expected 0 to 1000"),
        (("--local.resolution", *9 * "2"), "--local.resolution: expected 1 to 8 positive sizes"),
    ],
)
def test_a_number_out_of_range_is_refused(
    trained,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    named: str,
) -> None:
    assert train_command(trained.data, tmp_path / "run", *arguments) == 2
    assert named in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        (("--learning-rate", "1e9"), "lower --learning-rate"),
        (("--memory-learning-rate", "1e9"), "--memory-learning-rate"),
        (("--weight-decay", "1e9"), "lower --learning-rate"),
        (("--local.jitter-prob", "1", "--local.jitter-std", "1e38"), "--learning-rate"),
        (("--image-size", "1000000"), "lower --image-size"),
        (("--local.resolution", "100000", "100000"), "--local.resolution"),
        (("--expansion", "1000000000"), "--expansion"),
    ],
)
def test_what_diverges_or_does_not_fit_names_what_to_lower(
    trained,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    way_out: str,
) -> None:
    assert train_command(trained.data, tmp_path / "run", "--track-best", *arguments) == 1
    line = error_line(capsys)
    assert line.startswith("error: ")
    assert way_out in line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at x] . DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_too_little_memory_is_one_line(
    command: Command, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail() -> None:
        raise error

    assert command(lambda _: run_command(fail)) == 1
    assert "lower --batch-size" in error_line(capsys)


def test_features_that_are_not_finite_name_the_images(demo_root: Path) -> None:
    class Infinite(Backbone):
        """A backbone of broken weights."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3), keepdim=True) / 0

    samples = [
        crad.data.Sample(path) for path in sorted((demo_root / "brick").glob("train/good/*.png"))
    ]
    with pytest.raises(BackboneError, match=r"000\.png.*use other weights"):
        extract(Infinite(), samples, 32, device=torch.device("cpu"), skip=None)


def test_a_checkpoint_that_gives_no_finite_map_decides_nothing(trained) -> None:
    detector = crad.load(trained.output)
    for buffer in detector.backbone.buffers():
        buffer.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="maps are not finite"):
        detector.predict(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "hung up"),
    ],
)
def test_a_signal_ends_training_with_the_way_on(
    trained,
    tmp_path: Path,
    train_command: Train,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    word: str,
) -> None:
    former = signal.getsignal(number)
    with before_step(3, lambda _: signal.raise_signal(number)):  # the first of the second epoch
        assert train_command(trained.data, tmp_path / "run") == code
    line = error_line(capsys)
    assert line.startswith(f"{word}: epoch 1 of 3 is on disk; continue with: crad train --resume")
    assert read_checkpoint(tmp_path / "run").epoch == 1
    assert signal.getsignal(number) == former


def test_a_signal_that_is_ignored_stays_ignored(
    trained, tmp_path: Path, train_command: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with before_step(3, lambda _: signal.raise_signal(signal.SIGHUP)):
            assert train_command(trained.data, tmp_path / "run") == 0
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_folder_of_one_model_a_class_names_them(
    trained, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gauge", "brick"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.safetensors").touch()
    arguments = ("--checkpoint", str(tmp_path), str(trained.data))
    assert command(crad.predict.main, *arguments) == 1
    line = error_line(capsys)
    assert f"'{tmp_path}' holds no model, and no run.json" in line
    assert "brick, gauge" in line


@pytest.mark.parametrize("variable", ["CRAD_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_a_cache_that_cannot_be_written_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("CRAD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    with pytest.raises(StorageError, match="set the environment variable CRAD_CACHE") as caught:
        demo_dataset("demo")
    assert str(tmp_path / "file") in str(caught.value)


def test_an_unknown_option_is_one_line_with_similar_ones(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(crad.train.main, "--batchsize", "3") == 2
    line = error_line(capsys)
    assert line.startswith("error: ")
    for told in ("--batchsize", "--batch-size", "crad train --help"):
        assert told in line


def run_shell(line: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a line of shell, in which ``crad`` is the command, and "$@" are arguments."""
    python = f'crad() {{ "{sys.executable}" -m crad "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", python, "bash", *map(str, arguments)],
        capture_output=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()} | environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ('crad predict --csv "$CSV" "$@" <&- >&- 2>&-', 0, b""),
        (
            'crad predict --csv "$CSV" "$@" >/dev/full',
            1,
            b"error: standard output: No space left on device",
        ),
        ('crad predict --csv "$CSV" "$@" | true; exit ${PIPESTATUS[0]}', 141, b""),
    ],
)
@pytest.mark.thorough
def test_streams_that_take_nothing(
    trained, tmp_path: Path, line: str, code: int, said: bytes
) -> None:
    table = tmp_path / "scores.csv"
    inputs = ("--checkpoint", trained.output, trained.data / "brick" / "test")
    ended = run_shell(line, *inputs, CSV=str(table))
    assert ended.returncode == code, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert b"Exception ignored" not in ended.stderr
    errors = [each for each in ended.stderr.splitlines() if each.startswith(b"error: ")]
    assert len(errors) == bool(said)
    assert re.fullmatch(said + b".*", b"".join(errors))
    if code == 0:
        assert len(table.read_text().splitlines()) == 7


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_name(trained, tmp_path: Path) -> None:
    folder = tmp_path / "dätä"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "名.png")
    (folder / os.fsdecode(b"x\xff.png")).write_bytes(b"no image")
    ended = run_shell(
        'crad predict --skip-bad "$@"',
        *("--checkpoint", trained.output, folder),
        PYTHONIOENCODING="ascii",
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    )
    assert ended.returncode == 0, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert ended.stdout.isascii()
    assert b".png" in ended.stdout
    assert b"skipped: " in ended.stderr
