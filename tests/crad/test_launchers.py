"""Processes started by torchrun, mpirun and srun: they find each other, and end together."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import crad.launch
from benchmarks.paper.__main__ import main
from crad.command_line import run_command
from crad.errors import LaunchError
from crad.launch import find_launch
from crad.training.peers import Peers

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = BATCH_SCRIPT | {
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "1234",
}
MASTER = {"MASTER_ADDR": "first", "MASTER_PORT": "1234"}

# The last process fails in one way, while the others do something else.
FAILING = """
import os, signal, sys, time
import torch
import crad.launch
from benchmarks.paper.__main__ import main
from crad.command_line import run_command
from crad.errors import DataError
from crad.training import processes

end, wait = sys.argv[1:]

def work():
    with processes.joined(torch.device("cpu"), grace=3.0):
        processes.gather(None)
        if processes.rank() == processes.count() - 1:
            if end == "error":
                raise DataError("the reason")
            elif end == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)
        elif wait == "exchange":
            processes.gather(None)
        elif wait == "reading":
            os.read(os.pipe()[0], 1)
        else:
            while True:
                torch.rand(100, 100) @ torch.rand(100, 100)

run_command(work, shared=True)
"""


# Two machines of two processes, whose ranks alternate, as with srun --distribution=cyclic.
CYCLIC = """
import sys
from pathlib import Path
import torch
from crad.training import processes
from crad.training.feature_memory import FeatureMemory

with processes.joined(torch.device("cpu")):
    values = FeatureMemory().allocate(4)
    values[processes.local_rank()] = processes.rank()
    processes.gather(None)
    said = (processes.rank(), values[:2].tolist())
    told = processes.gather(said)
print(said, file=sys.stderr)
"""


def launched(
    launcher: str, count: int, *arguments: str, folder: Path, machines: int = 1
) -> tuple[list[int], list[str]]:
    """Run something in several processes; the exit codes, and the lines of all on stderr.

    For srun, which is simulated, each has a code of its own. It ends no process for another. The
    ranks of several ``machines`` alternate.
    """
    if launcher == "mpirun" and not shutil.which("mpirun"):
        pytest.skip("there is no mpirun; Debian's package openmpi-bin has one")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, *arguments]
    commands = [command]
    environments: list[Mapping[str, str]] = [environment]
    if launcher == "torchrun":
        module = ("-m", "torch.distributed.run", "--nproc_per_node", str(count))
        commands = [[sys.executable, *module, *arguments]]
    elif launcher == "mpirun":
        options = ("--allow-run-as-root", "--oversubscribe")
        commands = [["mpirun", "-n", str(count), *options, *command]]
    else:
        step = {
            "SLURM_JOB_ID": str(folder),
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_STEP_TASKS_PER_NODE": f"{count // machines}(x{machines})",
            "SLURM_STEP_NODELIST": "localhost",
        }
        places = [
            {
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank // machines),
                "SLURM_NODEID": str(rank % machines),
            }
            for rank in range(count)
        ]
        environments = [environment | step | place for place in places]
        commands = [command] * count
    running = [
        subprocess.Popen(
            each, env=values, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for each, values in zip(commands, environments, strict=True)
    ]
    try:
        said = [each.communicate(timeout=600) for each in running]
    finally:
        for each in running:
            each.kill()
    lines = [line for _, err in said for line in err.splitlines()]
    return [each.returncode for each in running], lines


@pytest.mark.parametrize(
    ("environment", "start"),
    [
        (TORCHRUN, ("torchrun", "--nproc_per_node")),
        (OPEN_MPI | MASTER, ("mpirun", "-n")),
        (HYDRA | MASTER, ("mpirun", "-n")),
        (STEP | MASTER, ("srun", "-n")),
        (STEP | HYDRA | OPEN_MPI | TORCHRUN, ("torchrun", "--nproc_per_node")),
        (STEP | OPEN_MPI | MASTER, ("mpirun", "-n")),
    ],
)
def test_a_launcher_tells_the_place_of_a_process(
    environment: dict[str, str], start: tuple[str, ...]
) -> None:
    launch = find_launch(environment)
    assert launch is not None
    assert launch.start == start
    assert launch.environment() == TORCHRUN


def test_a_machine_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the launcher; else by host and kernel, of which containers share one or the other."""

    def name(environment: dict[str, str]) -> str:
        launch = find_launch(environment | MASTER)
        assert launch is not None
        return launch.machine

    assert name(STEP) == STEP["SLURM_NODEID"]
    assert name(TORCHRUN | {"GROUP_RANK": "5"}) == "5"
    here = name(OPEN_MPI)
    assert here == name(HYDRA) == name(OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0"})
    monkeypatch.setattr("platform.node", lambda: "another")
    other_host = name(OPEN_MPI)
    monkeypatch.undo()
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(crad.launch, "_BOOT_ID", tmp_path / "boot_id")
    other_kernel = name(OPEN_MPI)
    monkeypatch.setattr(crad.launch, "_BOOT_ID", tmp_path / "missing")
    assert len({here, other_host, other_kernel, name(OPEN_MPI)}) == 4


@pytest.mark.slow
@pytest.mark.thorough
def test_ranks_of_a_machine_need_not_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "cyclic.py").write_text(CYCLIC)
    codes, lines = launched("srun", 4, str(tmp_path / "cyclic.py"), folder=tmp_path, machines=2)
    assert codes == 4 * [0], lines
    found = sorted(line for line in lines if line.startswith("("))
    assert found == [f"({rank}, [{rank % 2}.0, {rank % 2 + 2}.0])" for rank in range(4)]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH_SCRIPT,
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_one_process_is_alone(environment: dict[str, str]) -> None:
    assert find_launch(environment) is None


@pytest.mark.parametrize("environment", [OPEN_MPI, HYDRA, STEP | {"SLURM_STEP_NODELIST": "a[1"}])
def test_on_several_machines_one_must_be_named(environment: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match="export MASTER_ADDR=HOST and MASTER_PORT=PORT"):
        find_launch(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node[07-09,12],x", "node07"), ("a.b,c", "a.b"), ("n-1[3],x", "n-13"), ("one", "one")],
)
def test_the_first_machine_of_a_slurm_step(nodes: str, first: str) -> None:
    launch = find_launch(STEP | {"SLURM_STEP_NODELIST": nodes})
    assert launch is not None
    assert launch.address == first


@pytest.mark.parametrize(("node", "expected"), [("0", 3), ("2", 3), ("3", 1)])
def test_the_tasks_of_a_slurm_step_on_this_machine(node: str, expected: int) -> None:
    step = STEP | {"SLURM_STEP_TASKS_PER_NODE": "3(x3),1", "SLURM_NODEID": node}
    launch = find_launch(step)
    assert launch is not None
    assert launch.local_count == expected


@pytest.mark.parametrize("environment", [OPEN_MPI, HYDRA, STEP])
def test_what_is_missing_is_named(environment: dict[str, str]) -> None:
    marks = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "MPI_LOCALRANKID", "SLURM_STEP_ID"}
    needed = set(environment) - marks - set(BATCH_SCRIPT) - {"SLURM_STEP_NODELIST"}
    for name in needed - {"SLURM_STEP_NUM_TASKS"}:
        for value in ("", "x"):
            with pytest.raises(LaunchError, match=f"{name}.* is "):
                find_launch(environment | MASTER | {name: value})


def test_a_process_that_finds_no_other_says_which_it_is() -> None:
    launch = find_launch(OPEN_MPI | MASTER)
    assert launch is not None
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    store = torch.distributed.HashStore()
    store.set("crad-peers", f"{port} 00")
    message = "processes: rank 3 of 4 did not find the others .* start all of them again"
    with pytest.raises(LaunchError, match=message):
        Peers(store, replace(launch, address="127.0.0.1"), grace=1.0)


def test_processes_on_one_machine_agree_on_a_port() -> None:
    def port(environment: dict[str, str], **changed: str) -> int:
        launch = find_launch(environment | changed)
        assert launch is not None
        assert launch.address == "127.0.0.1"
        return launch.port

    one = {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}
    ports = [port(STEP | one, SLURM_PROCID=str(rank)) for rank in range(4)]
    assert len({*ports, port(STEP | one, SLURM_STEP_ID="2")}) == 2
    mpi = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    jobs = [port(mpi, PMIX_NAMESPACE=job) for job in ("1", "1", "2")]
    assert jobs[0] == jobs[1] != jobs[2]
    hydra = HYDRA | {"MPI_LOCALNRANKS": "4"}
    assert port(hydra) == port(hydra | {"PMI_RANK": "0"})
    assert port(hydra, MASTER_PORT="4321") == 4321


@pytest.mark.parametrize("environment", [TORCHRUN, OPEN_MPI, HYDRA, STEP])
def test_of_work_that_is_not_shared_only_the_first_process_does_any(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (environment | MASTER).items():
        monkeypatch.setenv(name, value)
    run_command(lambda: print("worked"))
    assert capsys.readouterr() == ("", "")
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        if name in environment:
            monkeypatch.setenv(name, "0")
    run_command(lambda: print("worked", find_launch()))
    assert capsys.readouterr() == ("worked None\n", "")


def test_the_paper_s_experiments_are_not_shared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    main(["table1", "--no-such-option"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_command_that_is_not_shared_runs_once(trained, tmp_path: Path) -> None:
    source, target = trained.output, tmp_path / "small.safetensors"
    arguments = ("-m", "crad", "checkpoint", "strip", str(source), str(target))
    codes, lines = launched("mpirun", 2, *arguments, folder=tmp_path)
    assert set(codes) == {0}
    assert not [line for line in lines if "error" in line.lower()]
    assert target.is_file()


@pytest.mark.slow
@pytest.mark.thorough
def test_processes_of_mpirun_share_a_run(trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("--data", str(trained.data), "--output", str(run), *trained.arguments)
    codes, lines = launched("mpirun", 2, "-m", "crad", "train", *arguments, folder=tmp_path)
    assert set(codes) == {0}
    assert not [line for line in lines if "warn" in line.lower() or "error" in line.lower()]
    files = [
        {p.relative_to(each) for p in each.rglob("*") if not p.name.startswith("suspect")}
        for each in (run, trained.output)  # which differ in what they find suspicious
    ]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("launcher", "count", "end", "wait"),
    [
        ("srun", 3, "error", "exchange"),
        ("srun", 2, "kill", "computing"),
        ("mpirun", 2, "kill", "reading"),
        ("torchrun", 2, "exit", "exchange"),
    ],
)
def test_when_one_process_fails_all_end(
    launcher: str, count: int, end: str, wait: str, tmp_path: Path
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    start = time.monotonic()
    arguments = (str(tmp_path / "failing.py"), end, wait)
    codes, lines = launched(launcher, count, *arguments, folder=tmp_path)
    assert time.monotonic() - start < 90  # nearly all of it to import torch on a busy machine
    assert 0 not in codes
    errors = [line for line in lines if line.startswith("error: ")]
    own = ["error: the reason"] if end == "error" else []
    peers = [line for line in errors if line not in own]
    assert all("another process failed (rank " in line for line in peers)
    tracebacks = [line for line in lines if line.startswith("Traceback")]
    assert len(tracebacks) <= (launcher == "torchrun")  # of its own
    if launcher == "srun":
        assert [line for line in errors if line in own] == own
        assert codes[:-1] == (count - 1) * [1]
        assert 1 <= len(peers) < count
