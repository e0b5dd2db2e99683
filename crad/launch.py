"""Which process of several this is, as torchrun, mpirun or srun tell it in the environment."""

import os
import platform
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crad.errors import LaunchError

# What each launcher sets: the marks that tell it from others, and where its numbers are.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OPEN_MPI = tuple(
    f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
)
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
_SLURM_IDS = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NODEID", "SLURM_STEP_NODELIST")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PORTS = range(20000, 32000)  # below those that systems hand out by themselves


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that were started together.

    Attributes:
        start: the command, without the number of processes, that starts them.
        rank: number of this process, from 0.
        count: number of processes.
        local_rank: number of this process on its machine, from 0.
        local_count: number of processes on its machine.
        machine: names its machine, or its part of one, among those of the launch.
        address: host of the process with rank 0.
        port: there, for the processes to find each other.
    """

    start: tuple[str, ...]
    rank: int
    count: int
    local_rank: int
    local_count: int
    machine: str
    address: str
    port: int

    def environment(self) -> dict[str, str]:
        """The same as torchrun would tell it."""
        values = (self.rank, self.count, self.local_rank, self.local_count, self.address, self.port)
        return dict(zip(_TORCHRUN, map(str, values), strict=True))


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Read the place of this process from the environment; None if it is alone.

    A launcher inside another counts: torchrun, then mpirun (Open MPI; MPICH and Intel MPI), then a
    step of srun. The script of a Slurm batch job is one process, whatever the size of the job.

    Args:
        environment: the variables.

    Raises:
        LaunchError: a launcher's variables are there only in part, or do not name the machine of
            the first process.
    """
    if "LOCAL_RANK" in environment:
        return _from_torchrun(environment)
    if "OMPI_COMM_WORLD_RANK" in environment:
        numbers = _numbers("mpirun", environment, _OPEN_MPI)
        job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid")
        return _launch("mpirun -n", numbers, environment, job)
    if "PMI_RANK" in environment and "MPI_LOCALRANKID" in environment:
        numbers = _numbers("mpirun", environment, _HYDRA)
        return _launch("mpirun -n", numbers, environment, environment.get("PMI_PORT"))
    if "SLURM_STEP_ID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        rank, count, local_rank = _numbers("srun", environment, _SLURM[:3])
        if count == 1:
            return None
        numbers = [rank, count, local_rank, _slurm_local_count(environment)]
        job = f"{environment.get('SLURM_JOB_ID')}.{environment['SLURM_STEP_ID']}"
        first_host, machine = _slurm_first_host(environment), environment["SLURM_NODEID"]
        return _launch("srun -n", numbers, environment, job, first_host, machine)
    return None


def is_first() -> bool:
    """Whether this process has rank 0, or is alone as far as its environment tells."""
    try:
        launch = find_launch()
    except LaunchError:
        return True
    return launch is None or launch.rank == 0


def leave() -> None:
    """Make this process one that is alone, for work that processes do not share."""
    for name in (*_TORCHRUN, *_OPEN_MPI, *_HYDRA, *_SLURM, *_SLURM_IDS):
        os.environ.pop(name, None)


def _from_torchrun(environment: Mapping[str, str]) -> Launch:
    needed = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    values = {name: environment.get(name, "") for name in needed}
    wrong = [n for n, v in values.items() if not (v.isdecimal() or (v and n == "MASTER_ADDR"))]
    if wrong:
        raise LaunchError(
            f"processes: LOCAL_RANK is set, but {', '.join(wrong)} is missing or invalid; start "
            "several processes with torchrun --nproc_per_node N -m crad train, or unset LOCAL_RANK "
            "for one"
        )
    return Launch(
        ("torchrun", "--nproc_per_node"),
        int(values["RANK"]),
        int(values["WORLD_SIZE"]),
        int(values["LOCAL_RANK"]),
        int(environment.get("LOCAL_WORLD_SIZE", "1")),
        environment.get("GROUP_RANK") or _machine(),
        values["MASTER_ADDR"],
        int(values["MASTER_PORT"]),
    )


def _numbers(launcher: str, environment: Mapping[str, str], names: tuple[str, ...]) -> list[int]:
    wrong = [name for name in names if not environment.get(name, "").isdecimal()]
    if wrong:
        raise LaunchError(
            f"processes: {launcher} started this one, but {', '.join(wrong)} is missing or "
            f"invalid; start several processes with {launcher} -n N crad train, or unset "
            f"{names[0]} for one"
        )
    return [int(environment[name]) for name in names]


def _launch(
    start: str,
    numbers: list[int],
    environment: Mapping[str, str],
    job: str | None,
    first_host: str | None = None,
    machine: str | None = None,
) -> Launch | None:
    """The launch, with the address and port that no launcher but torchrun sets."""
    rank, count, local_rank, local_count = numbers
    if count == 1:
        return None
    address = environment.get("MASTER_ADDR") or (
        "127.0.0.1" if local_count == count else first_host
    )
    if not address:
        raise LaunchError(
            f"processes: {count} on several machines, but nothing names the machine of the first "
            "one; export MASTER_ADDR=HOST and MASTER_PORT=PORT to all, with a port that is free "
            "there"
        )
    port = environment.get("MASTER_PORT", "")
    if port and not port.isdecimal():
        raise LaunchError(f"processes: MASTER_PORT is '{port}'; export a number, or unset it")
    # Processes of one mpirun without an id have its daemon on their machine as their parent.
    derived = _PORTS[zlib.crc32((job or str(os.getppid())).encode()) % len(_PORTS)]
    return Launch(
        tuple(start.split()),
        rank,
        count,
        local_rank,
        local_count,
        machine or _machine(),
        address,
        int(port or derived),
    )


def _machine() -> str:
    """A name of this machine that no other has.

    Containers on different machines may share a host name, and containers on one machine, each
    with processes of its own, share the boot id of the kernel: only both together are unique.
    """
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:  # another system
        boot = ""
    return f"{platform.node()} {boot}".strip()


def _slurm_local_count(environment: Mapping[str, str]) -> int:
    """Tasks on this machine, of which Slurm tells as ``2(x3),1``: three machines of 2, one of 1."""
    text, node = (
        environment.get("SLURM_STEP_TASKS_PER_NODE", ""),
        environment.get("SLURM_NODEID", ""),
    )
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    counts = [int(number) for number, times in parts for _ in range(int(times or 1))]
    if not (node.isdecimal() and int(node) < len(counts)):
        raise LaunchError(
            f"processes: srun started this one, but SLURM_NODEID is '{node}' and "
            f"SLURM_STEP_TASKS_PER_NODE is '{text}'; start several processes with srun -n N crad "
            "train, or unset SLURM_STEP_ID for one"
        )
    return counts[int(node)]


def _slurm_first_host(environment: Mapping[str, str]) -> str | None:
    """The first of ``node[07-09,12],other``; None where it may not be that of the first task."""
    if "arbitrary" in environment.get("SLURM_DISTRIBUTION", ""):
        return None
    hosts = environment.get("SLURM_STEP_NODELIST", "")
    found = re.match(r"([\w.-]+)(?:\[(\d+)[\d,-]*\])?(?:,|$)", hosts)
    return found[1] + (found[2] or "") if found else None
