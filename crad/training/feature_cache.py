"""Where features are kept: in memory as long as they fit, else in a temporary file."""

import math
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor

from crad.errors import StorageError
from crad.training import processes

_SHARE = 0.5  # of the memory that is available


class FeatureCache:
    """Make the tensors that features are kept in, within a budget of memory.

    What is beyond the budget, or shared by several processes, lies in a file that is mapped into
    memory, in the folder TMPDIR of the environment, else in ``/var/tmp``, which unlike ``/tmp`` is
    on a disk. Its name is removed once it is open, so that it is gone however the process ends.

    Args:
        gigabytes: the budget, in 1e9 bytes; None takes half of the memory that is available.
    """

    def __init__(self, gigabytes: float | None = None) -> None:
        self._left = _SHARE * available_memory() if gigabytes is None else 1e9 * gigabytes

    def allocate(self, *size: int) -> Tensor:
        """Make a float32 tensor on the CPU, one for all processes, which call this together."""
        n_bytes = 4 * math.prod(size)
        if not n_bytes or (processes.count() == 1 and n_bytes <= self._left):
            self._left -= n_bytes
            return torch.empty(size)
        path = _reserve(n_bytes) if processes.local_rank() == 0 else None
        try:
            path = processes.gather(path)[processes.rank() - processes.local_rank()]
            assert path is not None  # the file of the first process on this machine
            tensor = torch.from_file(str(path), shared=True, size=math.prod(size))
            processes.gather(None)  # all have opened it
        finally:
            if path and processes.local_rank() == 0:
                path.unlink()
        return tensor.view(size)


def available_memory(proc: Path = Path("/proc/self")) -> int:
    """Bytes of memory that can be had without swapping, within the limits on this process.

    These are the limits of its control groups (of containers, for instance), of all that they lie
    in, and of its address space; what is in use there already does not count.

    Args:
        proc: what the system tells of this process.
    """
    left = [int(psutil.virtual_memory().available)]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        left.append(most - psutil.Process().memory_info().vms)
    return int(max(0, min([*left, *map(_left_in, _control_groups(proc))])))


def _control_groups(proc: Path) -> Iterator[Path]:
    """The folders of the control groups of a process that limit memory, from the inside out.

    A process sees the file system of its container, where the path of its group may not exist, but
    the mount point is then its group.
    """
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:  # another system
        return
    for mount in mounts:
        fields, _, kind = mount.partition(" - ")
        version, *_, options = kind.split() or [""]
        is_v1 = version == "cgroup" and "memory" in options.split(",")
        if not (is_v1 or version == "cgroup2"):
            continue
        root, point = (Path(_unescape(each)) for each in fields.split()[3:5])
        for line in groups:
            _, controllers, path = line.split(":", 2)
            if ("memory" in controllers.split(",")) if is_v1 else not controllers:
                group = Path(path)
                inner = group.relative_to(root) if group.is_relative_to(root) else Path()
                yield from (point / each for each in (inner, *inner.parents))


def _left_in(group: Path) -> float:
    """Bytes that a control group may still take; infinity without a limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):  # not of this version, or "max"
            most, now = (int((group / file).read_text()) for file in (limit, used))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return most - now + int(stat.get(cached, 0))  # the system takes that back when needed
    return math.inf


def _unescape(path: str) -> str:
    """Undo how ``mountinfo`` writes spaces and the like."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _reserve(n_bytes: int) -> Path:
    """Make a file of a size, with its space on the disk: a full one must not end the process."""
    default = "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()
    folder = Path(os.environ.get("TMPDIR") or default)
    problem = None
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        problem = "is not a writable folder"
    elif (free := shutil.disk_usage(folder).free) < n_bytes:
        problem = f"has {free / 1e9:.1f} GB free"
    if problem:
        raise StorageError(
            f"features: a temporary file of {n_bytes / 1e9:.1f} GB is needed, but '{folder}' "
            f"{problem}; set TMPDIR to another folder, or raise --feature-memory"
        )
    with tempfile.NamedTemporaryFile(prefix="crad-features-", dir=folder, delete=False) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except BaseException as error:
            os.unlink(file.name)
            if isinstance(error, OSError):
                raise StorageError(error.errno, error.strerror, str(folder)) from error
            raise
    return Path(file.name)
