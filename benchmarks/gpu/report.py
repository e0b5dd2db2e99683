"""What a check on a GPU writes and prints: the machine, the results of its steps, a table."""

import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import output_of, versions

Report = dict[str, Any]


def write_json(path: Path, content: Any) -> None:
    """Write a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def slug(name: str) -> str:
    """A device's name as part of a file's: ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def machine(commit: str | None) -> Report:
    """The current GPU and what runs on it; `commit` is the code's, if it is not in a repository."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": gpu.name,
        "gpus": torch.cuda.device_count(),
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
        "l2_bytes": gpu.L2_cache_size,
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "cpus": os.cpu_count(),
        **versions(commit),
    }


def open_report(folder: Path, about: Report, what: str = "") -> tuple[Path, Report]:
    """Today's report on this GPU, if it is of the same machine, versions and commit; or a new one.

    Any other file stays; the new report then has a number in its name. `what` it is of is part of
    the name.
    """
    name = "-".join(filter(None, (date.today().isoformat(), slug(about["gpu"]), what)))
    for number in itertools.count(1):
        path = folder / f"{name}{f'-{number}' * (number > 1)}.json"
        if not path.exists():
            break
        with suppress(OSError, ValueError):
            earlier = json.loads(path.read_text())
            if isinstance(earlier, dict) and earlier.get("machine") == about:
                return path, earlier
    return path, {"machine": about, "steps": {}}


def row_lines(row: Report) -> Iterator[str]:
    """What was measured of training: a line, and one for each share of the time."""
    quantities = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key != "name" and not isinstance(value, dict)
    ]
    yield f"{row['name']}: {', '.join(quantities)}"
    for key, shares in row.items():
        if isinstance(shares, dict):
            yield from (f"  {share:6.1%}  {key}: {name}" for name, share in shares.items())


def table(report: Report) -> Iterator[str]:
    """The lines that are printed last: times, what was measured of training, then steps."""
    times = [t for step in report["steps"].values() for t in step.get("times", ())]
    for case in dict.fromkeys(t["case"] for t in times):
        yield case
        of_case = [t for t in times if t["case"] == case]
        for peer in dict.fromkeys(t["peer"] for t in of_case):
            cells = [
                t.get("error")
                or t.get("skipped")
                or f"{t['ms']:9.3f} ms {t['times_floor']:7.1f}x floor"
                for t in of_case
                if t["peer"] == peer
            ]
            yield f"  {peer:31}" + "  ".join(cells)
    for step in report["steps"].values():
        for row in step.get("rows", ()):
            yield from row_lines(row)
    for name, step in report["steps"].items():
        last_line = step.get("output", "").strip().rpartition("\n")[2]
        detail = step.get("reason") or step.get("summary") or last_line
        yield f"{step['status']:9} {step['seconds']:6.0f} s  {name}  {detail}".rstrip()


def show(report: Report) -> None:
    """Print the table."""
    sys.stdout.write("\n".join(table(report)) + "\n")
