"""What a run ran on: versions, processor, device, and the commit of the code."""

import os
import platform
import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("crad", "torch", "numpy", "pillow", "scikit-image", "timm")


def environment(device: torch.device | str) -> dict[str, str | int]:
    """Describe what a run on a device ran on; in a working copy of git, with the code's commit."""
    device = torch.device(device)
    found: dict[str, str | int] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["torch"] = torch.__version__  # with the build, as in 2.11.0+cu128
    found["platform"] = platform.platform()
    found["cpu"] = _cpu_name()
    found["cpu_count"] = os.cpu_count() or 1
    found["threads"] = torch.get_num_threads()
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if code := commit():
        found["commit"] = code
    return found


@cache
def commit() -> str | None:
    """The commit of this code when first asked for; None if it is in no working copy of git.

    Code that was changed since is ``"0123456789 with changes"``.
    """
    commands = (
        ["ls-files", "--error-unmatch", Path(__file__).name],  # no other project's working copy
        ["rev-parse", "--short=10", "HEAD"],
        ["status", "--porcelain", ".."],
    )
    try:
        _, name, changes = (
            subprocess.run(
                ["git", *command],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{name}{' with changes' if changes else ''}"


def _cpu_name() -> str:
    """Name the processor as Linux does; elsewhere as Python does."""
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:(.*)", cpus.read_text() if cpus.exists() else "", re.M)
    return found[1].strip() if found else platform.processor() or platform.machine()
