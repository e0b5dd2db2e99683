"""Several processes, started by torchrun: one result, one voice, and none left waiting."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import crad.evaluate
from crad.command_line import run_command
from crad.errors import DeviceError, OutputError, TrainingError
from crad.training import processes
from crad.training.checkpoint import ALL_PARTS, read_checkpoint

TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2")

INTERRUPTED = """
import time

from crad.train import main
from crad.training import processes
from tests.fixtures import before_step, ctrl_c

def interrupt(_):
    if processes.rank() == 1:
        time.sleep(1)  # until the other one has written the first epoch
        ctrl_c()

with before_step(2, interrupt):  # the first of the second epoch
    main()
"""


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run something in two processes; ends with an error if one waits for the other for long."""
    return subprocess.run(
        [sys.executable, *TORCHRUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def set_launch(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    """Set what torchrun does for the first of two processes, but for what is changed."""
    values = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    for name, value in (values | changed).items():
        monkeypatch.setenv(name, value)


def replace_by_pages(path: Path) -> None:
    """Make an image one of 12 bits, in a file of two pages."""
    with Image.open(path) as image:
        levels = np.asarray(image.convert("L")).astype(np.uint16) * 16
    path.unlink()
    pages = np.stack([levels, levels])
    tifffile.imwrite(path.with_suffix(".tif"), pages, photometric="minisblack")


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of two processes with the settings of `trained`."""
    output = tmp_path_factory.mktemp("runs") / "two"
    arguments = ["--data", trained.data, "--output", output, *trained.arguments]
    ended = torchrun("-m", "crad", "train", *arguments)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("device cpu (1 threads) x 2 processes |")
    for begin in ("device", "mean", "written to"):
        assert sum(line.startswith(begin) for line in lines) == 1
    return output


@pytest.mark.slow
def test_a_run_of_two_processes_leaves_what_one_does(trained, run: Path) -> None:
    files = [{str(p.relative_to(each)) for p in each.rglob("*")} for each in (run, trained.output)]
    results = results_of(run)
    # The two models differ, and so may the images that each finds suspicious.
    for found, told in zip(files, (results, trained.results), strict=True):
        own = {file for file in found if "suspect" in file}
        suspects = told.pop("suspects", [])
        assert len(own) == (2 * len(suspects) + 1 if suspects else 0)
        found -= own
    assert files[0] == files[1]
    assert results.keys() == {*trained.results} - {"suspects"}
    for name, entry in results["classes"].items():
        assert (entry["n_train"], entry["n_test"]) == (5, 6)
        decisions = results["decisions"]["classes"][name]
        assert (decisions["n_calibration"], decisions["n_good"]) == (1, 3)
    one, two = (read_checkpoint(each, ALL_PARTS) for each in (trained.output, run))
    torch.testing.assert_close(one.backbone, two.backbone, rtol=0, atol=0)
    assert one.optimizer.keys() == two.optimizer.keys()
    # Batches of 4 and 6: no process takes a single image of the last 2.
    assert {float(value) for key, value in two.optimizer.items() if key.endswith(".step")} == {6.0}
    for name, value in one.model.items():
        assert two.model[name].shape == value.shape


@pytest.mark.slow
def test_a_run_of_two_processes_measures_what_its_checkpoint_does(
    run: Path, command: Callable[..., int], tmp_path: Path
) -> None:
    arguments = ["--checkpoint", str(run), "--output", str(tmp_path)]
    assert command(crad.evaluate.main, *arguments) == 0
    assert results_of(tmp_path)["decisions"] == results_of(run)["decisions"]
    for name, expected in results_of(run)["classes"].items():
        assert results_of(tmp_path)["classes"][name] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.thorough
def test_an_evaluation_by_two_processes_is_that_of_one(
    trained, command: Callable[..., int], tmp_path: Path
) -> None:
    """With two images that are left out and two of 12 bits and two pages, one by each process."""
    data = shutil.copytree(trained.data, tmp_path / "data")
    bad = [data / "brick" / "test" / "good" / "000.png", data / "gauge" / "test" / "good/000.png"]
    for path in bad:
        path.write_bytes(b"no image")
        replace_by_pages(path.with_name("001.png"))
    arguments = [
        *("--checkpoint", trained.output, "--data", data, "--protocol", "all", "--bit-depth", "12"),
        *("--skip-bad", "--batch-size", "5", "--output"),
    ]
    ended = torchrun("-m", "crad", "evaluate", *arguments, tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    for path in bad:
        assert ended.stderr.count(f"'{path}'") == 1
    assert ended.stdout.count("2 images") == 1
    assert ended.stdout.count("2 files have further pages") == 1
    assert command(crad.evaluate.main, *map(str, arguments), str(tmp_path / "one")) == 0
    one, two = results_of(tmp_path / "one"), results_of(tmp_path / "two")
    assert two["decisions"] == one["decisions"]
    assert [entry["n_test"] for entry in two["classes"].values()] == [5, 5]
    for protocol in (None, *one["other_protocols"]):
        expected, actual = (
            each["other_protocols"][protocol] if protocol else each for each in (one, two)
        )
        assert actual["mean"] == pytest.approx(expected["mean"], abs=1e-6)
        for name, entry in expected["classes"].items():
            assert actual["classes"][name] == pytest.approx(entry, abs=1e-6)


@pytest.mark.slow
@pytest.mark.thorough
def test_interrupted_and_resumed(
    trained, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is interrupted, the other ends with it; resumed, the run is as if it had not."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    output = tmp_path / "run"
    arguments = ["--data", trained.data, "--output", output, *trained.arguments]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    ended = torchrun("-m", "interrupted", *arguments)
    assert ended.returncode != 0
    assert read_checkpoint(output).epoch == 1
    ended = torchrun("-m", "crad", "train", "--resume", "--output", output)
    assert ended.returncode == 0, ended.stderr
    resumed, whole = (read_checkpoint(each, ALL_PARTS) for each in (output, run))
    for part in ALL_PARTS:
        torch.testing.assert_close(getattr(resumed, part), getattr(whole, part), rtol=0, atol=0)
    for key in ("classes", "mean", "epoch", "decisions"):
        assert results_of(output)[key] == results_of(run)[key]


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_and_is_said_once(trained, tmp_path: Path) -> None:
    data = shutil.copytree(trained.data, tmp_path / "data")
    good = data / "gauge" / "test" / "good"
    for number in range(10):  # the last of them is in the second batch, that of the other process
        shutil.copy(good / "000.png", good / f"9{number}.png")
    replace_by_pages(good / "91.png")
    last = good / "99.png"
    last.write_bytes(b"no image")
    arguments = ["--data", data, "--output", tmp_path / "run", *trained.arguments]
    ended = torchrun("-m", "crad", "train", *arguments)
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if "error: " in line]
    assert len(said) == 1
    assert f"'{last}'" in said[0]
    assert ended.stdout.count("bit depth 12: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_batch_is_of_one_process(count: int) -> None:
    parts = [processes.share(range(23), 4, rank, count) for rank in range(count)]
    assert sorted(item for part in parts for item in part) == list(range(23))
    for part in parts:
        for start in range(0, len(part), 4):  # whole batches, but for the last of all
            batch = part[start : start + 4]
            assert batch == list(range(batch[0], min(batch[0] + 4, 23)))
            assert batch[0] % 4 == 0


def test_without_torchrun_there_is_one_process() -> None:
    with processes.joined(torch.device("cpu")):
        assert (processes.rank(), processes.count(), processes.is_main()) == (0, 1, True)
        assert processes.gather("a") == ["a"]
        assert processes.on_main(lambda: 3) == 3
        values = torch.rand(2, 3)
        rows, same = processes.gather_rows([0, 1], values)
        assert rows == [0, 1]
        assert same is values


def test_a_process_beside_the_main_one_only_says_what_that_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_launch(monkeypatch, RANK="1", LOCAL_RANK="1")

    def raising(error: BaseException) -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: raising(KeyboardInterrupt("continue with")), shared=True)
    assert exit_.value.code == 130
    assert capsys.readouterr().err == ""
    start = time.monotonic()
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: raising(OutputError("no space")), shared=True)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == "error: no space\n"
    # If the main process has failed too, torchrun ends this one meanwhile.
    assert time.monotonic() - start > 1.9


@pytest.mark.parametrize("count", [1, 2])
def test_the_processes_of_a_machine_share_its_memory(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another machine, with less of it, are refused together with these."""
    monkeypatch.setattr(processes, "available_memory", lambda: 8e9)
    monkeypatch.setattr(processes, "local_count", lambda: count)
    processes.check_memory([("this takes", 8e9 / count, "--size")])
    with pytest.raises(TrainingError) as caught:
        processes.check_memory([("this takes", 8e9 / count + 1, "--size")])
    assert "memory: this takes " in str(caught.value)
    assert "; lower --size" in str(caught.value)
    assert ("4 GB are available to each process" in str(caught.value)) == (count == 2)
    assert ("start fewer processes" in str(caught.value)) == (count == 2)
    monkeypatch.setattr(processes, "gather", lambda own: [own, 1e9])
    with pytest.raises(TrainingError, match="1 GB are available"):
        processes.check_memory([("this takes", 2e9, "--size")])


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = torch.cuda.device_count()
    set_launch(monkeypatch, WORLD_SIZE=str(gpus + 1), LOCAL_WORLD_SIZE=str(gpus + 1))
    with (
        pytest.raises(DeviceError, match=rf"\b{gpus + 1} processes .*\b{gpus} GPUs.*--nproc_per_"),
        processes.joined(torch.device("cuda")),
    ):
        pass


@pytest.mark.parametrize(
    ("environment", "wrong"),
    [
        ({"LOCAL_RANK": "0"}, "RANK, WORLD_SIZE, MASTER_PORT, MASTER_ADDR "),
        (
            {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "x"},
            " MASTER_PORT, MASTER_ADDR ",
        ),
        (
            {"LOCAL_RANK": "", "RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1"},
            " LOCAL_RANK, MASTER_ADDR ",
        ),
    ],
)
def test_half_of_what_torchrun_sets_is_one_line(
    trained,
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    wrong: str,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert command(crad.evaluate.main, "--checkpoint", str(trained.output)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: processes: LOCAL_RANK")
    assert wrong in line
    assert "torchrun" in line
