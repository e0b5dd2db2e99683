"""The memory of this machine: how much there is, keeping it, and errors for lack of it."""

import ctypes
import math
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

_OUT_OF_MEMORY = re.compile(  # PyTorch has no error of its own for the memory of the CPU
    r"can't allocate memory|not enough memory|Storage size calculation overflowed"
)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, of this machine or of a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep memory that is freed in the block for what is allocated next, until the block ends.

    glibc gives a freed tensor of over 32 MiB back to the system at once, and clearing the pages of
    the next one makes a training step up to three times as long (benchmarks/test_crad.py). Other C
    libraries are left as they are.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(libc, "mallopt", None)
    if libc is None or mallopt is None:
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # glibc's defaults
        mallopt(_M_MMAP_MAX, 65536)
        mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


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
