"""The machine that times are measured on, and the versions of what runs on it."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def output_of(*command: str) -> str | None:
    """What a command prints, run in this repository; None if it is not there or fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            cwd=Path(__file__).parents[1],
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def version_of(package: str) -> str | None:
    """Of an installed package; None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(commit: str | None = None) -> dict[str, Any]:
    """What runs here; `commit` is the code's, if it is not in a repository."""
    # Results that were just written change no code.
    changes = "git", "status", "--porcelain", "--", ".", ":!benchmarks/results"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version_of("numpy"),
        "triton": version_of("triton"),
        "crad": version_of("crad"),
        "commit": commit or output_of("git", "rev-parse", "HEAD"),
        "changed_since_commit": None if commit else bool(output_of(*changes)),
        "platform": platform.platform(),
    }


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def machine() -> dict[str, Any]:
    """The CPU and what runs on it."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        **versions(),
        **{name: version_of(name) for name in ("torch-interpol", "vector-quantize-pytorch")},
    }
