"""Memory: how much there is, in control groups and under limits; what is kept and given back."""

import ctypes
import resource
import sys
from pathlib import Path

import psutil
import pytest
import torch

from crad.memory import available_memory, freed_memory_kept

GROUPS = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def write_group(folder: Path, version: int, limit: object, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = GROUPS[version]
    for file, value in zip(files, (limit, used), strict=False):
        (folder / file).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{files[2]} {cached}\nactive_file 900\n")


def write_proc(folder: Path, version: int, path: str, mount: Path, root: str = "/") -> Path:
    """What the system tells of a process in a control group."""
    proc = folder / "proc"
    proc.mkdir()
    line = f"0::{path}" if version == 2 else f"4:cpu:/other\n3:memory:{path}\n0::/none"
    (proc / "cgroup").write_text(f"{line}\n")
    kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,memory"
    point = str(mount).replace(" ", r"\040")
    (proc / "mountinfo").write_text(
        "23 1 0:1 / / rw - ext4 /dev/vda rw\n"
        f"31 23 0:28 {root} {point} rw,relatime shared:9 - {kind}\n"
    )
    return proc


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_control_group_counts_less_its_use(tmp_path: Path, version: int) -> None:
    mount = tmp_path / "c group"
    proc = write_proc(tmp_path, version, "/outer/inner/own", mount)
    whole = available_memory(proc)
    assert whole > 10**6
    no_limit = "max" if version == 2 else 2**63 - 4096
    write_group(mount / "outer/inner/own", version, no_limit, 7)
    assert available_memory(proc) == pytest.approx(whole, rel=0.5)
    write_group(mount / "outer", version, 9000, 5000, cached=1500)
    assert available_memory(proc) == 5500
    write_group(mount / "outer/inner/own", version, 6000, 1000)
    assert available_memory(proc) == 5000
    write_group(mount / "outer/inner", version, 4000, 4100)
    assert available_memory(proc) == 0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", ["/docker/abc/part", "/elsewhere"])
def test_the_control_group_of_a_container(tmp_path: Path, version: int, path: str) -> None:
    """Whose mount point is its own group: its path below that, or none that is there."""
    mount = tmp_path / "cgroup"
    proc = write_proc(tmp_path, version, path, mount, root="/docker/abc")
    write_group(mount, version, 9000, 1000)
    assert available_memory(proc) == 8000
    write_group(mount / "part", version, 3000, 1000)
    assert available_memory(proc) == (2000 if path.endswith("part") else 8000)


def test_without_control_groups_the_system_tells(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "missing") > 10**6
    assert available_memory() > 10**6


def test_a_limit_on_the_address_space_counts(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**27, hard))
    try:
        assert 0 < available_memory(tmp_path / "missing") <= 2**27
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


LARGE = 256 * 2**20  # bytes; far above where glibc's own adjustment stops


def memory_after_a_large_tensor() -> int:
    """Bytes of this process that are in memory once the tensor is freed."""
    torch.empty(LARGE, dtype=torch.uint8).fill_(1)
    return psutil.Process().memory_info().rss


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's"
)
def test_freed_memory_is_kept_in_the_block_and_given_back_after_it() -> None:
    before = memory_after_a_large_tensor()
    with freed_memory_kept():
        kept = memory_after_a_large_tensor()
    after = psutil.Process().memory_info().rss
    assert kept - before > 0.9 * LARGE
    assert after - before < 0.1 * LARGE
