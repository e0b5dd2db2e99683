"""`results.json`: what a run measured, on what, and how long it took; and its table."""

import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch

from crad.detector import PROTOCOL
from crad.files import write_json
from crad.report import tables
from crad.scoring.calibration import Decisions
from crad.scoring.metrics import ClassMetrics, EpochMetrics, MeanMetrics, Metrics

__all__ = ["DEMO_NOTE", "Results", "commit", "environment", "one_line", "table", "write_results"]

DEMO_NOTE = "demo set: a stand-in, not a benchmark"
"""The `note` of every result on the demo set."""

# Columns of the table, and the metrics in them.
_IMAGE_COLUMNS = {"AUROC": "image_auroc", "AP": "image_ap", "F1max": "image_f1_max"}
_PIXEL_COLUMNS = {
    "AUROC": "pixel_auroc",
    "AP": "pixel_ap",
    "F1max": "pixel_f1_max",
    "AUPRO": "pixel_aupro",
}
_BASELINE_COLUMNS = {"image": "image_auroc", "pixel": "pixel_auroc"}


class Results(TypedDict):
    """The content of ``results.json``; what cannot be measured is None.

    Attributes:
        protocol: the name of the protocol in `crad.scoring.protocols.PROTOCOLS`.
        seed: the seed of the run.
        epoch: the number of epochs trained.
        classes: the metrics of each class.
        mean: the mean over the classes.
        timing: seconds by name of the phase.
        environment: what `environment` returns, or more.
        data: the data set, a name or a path.
        note: what a reader of the numbers must know, such as `DEMO_NOTE`.
        baselines: other detectors measured on the same images, by name and the same protocol.
        other_protocols: the metrics of the same maps by further protocols, by name.
        best_on_test: the epoch with the best mean image AUROC, chosen on the test images, so not to
            be taken for what the run reaches; with the metrics of that epoch. In the separate
            setting, an epoch for each class.
        decisions: the threshold of each class, the number of normal images it is from, and the
            false alarms and misses it leads to on the test images; by the scores that
            `crad.predict` gives, whatever the protocol.
    """

    protocol: str
    seed: int
    epoch: int
    classes: dict[str, ClassMetrics]
    mean: MeanMetrics
    timing: dict[str, float]
    environment: dict[str, Any]
    data: NotRequired[str]
    note: NotRequired[str]
    baselines: NotRequired[dict[str, Metrics]]
    other_protocols: NotRequired[dict[str, Metrics]]
    best_on_test: NotRequired[EpochMetrics]
    decisions: NotRequired[Decisions]


def write_results(path: str | os.PathLike[str], results: Results) -> None:
    """Write ``results.json``, atomically.

    Args:
        path: the file to write.
        results: the content.

    Raises:
        ValueError: a number is NaN or infinite; the message says where.
        OSError: the file cannot be written; the former one is untouched.
    """
    if where := _not_finite(results):
        raise ValueError(f"results: {where} is not a finite number; use None for what is unknown")
    write_json(path, results)


def environment(device: torch.device | str) -> dict[str, str | int]:
    """Describe what a run ran on: versions, platform, processor, threads and device.

    In a working copy of git, also the commit of the code.

    Args:
        device: the device that computed.
    """
    device = torch.device(device)
    found: dict[str, str | int] = {"python": platform.python_version()}
    for package in ("crad", "torch", "numpy", "pillow", "scikit-image", "timm"):
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
    """The commit of this code when it is first asked for; None if it is in no working copy of git.

    Code that was changed since is ``"0123456789 with changes"``.
    """
    commands = (
        ["ls-files", "--error-unmatch", Path(__file__).name],  # no other project's working copy
        ["rev-parse", "--short=10", "HEAD"],
        ["status", "--porcelain", "."],
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


def table(results: Results) -> str:
    """Lay the metrics out for a terminal: for each protocol a line for each class, and their mean.

    Each baseline adds two columns to the first protocol. What could not be measured is ``-``.

    Args:
        results: what `write_results` takes.
    """
    reported: Metrics = {"classes": results["classes"], "mean": results["mean"]}
    lines = _table(results["protocol"], reported, results.get("baselines", {}))
    for protocol, metrics in results.get("other_protocols", {}).items():
        lines += ["", *_table(protocol, metrics, {})]
    if best := results.get("best_on_test"):
        lines.append(_best_line(best, results["epoch"]))
    if decisions := results.get("decisions"):
        lines += ["", *_decisions_table(decisions)]
    if note := results.get("note"):
        lines.append(note)
    return "\n".join(lines)


def _best_line(best: EpochMetrics, last: int) -> str:
    """Say what the best epoch reaches, or in the separate setting the best one of each class."""
    epoch = best["epoch"]
    which = f"epoch {epoch}"
    if isinstance(epoch, dict):
        which = f"each class after an epoch of its own, {min(epoch.values())} to "
        which += str(max(epoch.values()))
    image, pixel = _cell(best["mean"]["image_auroc"]), _cell(best["mean"]["pixel_auroc"])
    return (
        f"best_on_test: {which} of {last}, mean AUROC of images {image}, of pixels {pixel}; chosen "
        "on the test images"
    )


def _decisions_table(decisions: Decisions) -> list[str]:
    """Lay out what the thresholds of the classes lead to."""
    rate, classes = decisions["false_alarm_rate"], decisions["classes"]
    rows = [["class", "held back", "threshold", "false alarms", "misses"]]
    totals = [0, 0, 0, 0]
    for name, entry in classes.items():
        counts = (
            entry["false_alarms"], entry["n_good"], entry["misses"], entry["n_defective"],
        )  # fmt: skip
        totals = [total + each for total, each in zip(totals, counts, strict=True)]
        held_back, threshold = str(entry["n_calibration"]), f"{entry['threshold']:.4g}"
        rows.append([_shown(name), held_back, threshold, *_parts(counts)])
    rows.append(["all", "", "", *_parts(totals)])
    widths = tables.widths(rows)
    head, *body, total = (tables.line(row, widths) for row in rows)
    rule = tables.rule(widths)
    lines = [
        f"decisions by scores of protocol {PROTOCOL.name} at a false alarm rate of "
        f"{rate:.3g}: above its threshold an image is defective",
        *(head, rule, *body, rule, total),
    ]
    numbers = [entry["n_calibration"] for entry in classes.values()]
    if 0 in numbers:
        lines.append("a class of which no images were held back has the highest threshold of all")
    fewest = min(filter(None, numbers), default=0)
    if fewest and 1 / (fewest + 1) > rate + 1e-9:
        lines.append(
            f"only {fewest} of the normal images of a class were held back: its threshold is the "
            f"largest of their scores, and on average 1 of {fewest + 1} normal images to come is "
            "above it"
        )
    return lines


def _table(protocol: str, metrics: Metrics, baselines: Mapping[str, Metrics]) -> list[str]:
    groups = [("image", metrics, _IMAGE_COLUMNS), ("pixel", metrics, _PIXEL_COLUMNS)]
    for name, baseline in baselines.items():
        groups.append((f"{name.replace('_', ' ')} AUROC", baseline, _BASELINE_COLUMNS))
    rows = [["class", "train", "test", *(title for _, _, names in groups for title in names)]]
    for name, entry in metrics["classes"].items():
        measured = [_cells(each["classes"].get(name), names) for _, each, names in groups]
        rows.append([_shown(name), str(entry["n_train"]), str(entry["n_test"]), *chain(*measured)])
    rows.append(
        ["mean", "", "", *chain(*(_cells(each["mean"], names) for _, each, names in groups))]
    )

    widths = tables.widths(rows)
    titles, spans, begin = [f"protocol {protocol}"], [tables.span(widths[:3])], 3
    for title, _, names in groups:  # a title stands over its columns
        end = begin + len(names)
        widths[begin] += max(0, tables.width(title) - tables.span(widths[begin:end]))
        titles.append(title)
        spans.append(tables.span(widths[begin:end]))
        begin = end
    rule = tables.rule(widths)
    head, *body, mean = (tables.line(row, widths) for row in rows)
    return [tables.line(titles, spans), head, rule, *body, rule, mean]


def one_line(text: str) -> str:
    r"""Escape line breaks and other control characters, as in ``a\nb``."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)


def _cells(
    measured: ClassMetrics | MeanMetrics | None, columns: Mapping[str, str]
) -> Iterator[str]:
    for name in columns.values():
        yield _cell(cast(Mapping[str, float | None], measured or {}).get(name))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _parts(counts: Sequence[int]) -> list[str]:
    """Cells of such as ``1 of 10``, of numbers that are part and whole in turn."""
    pairs = zip(counts[::2], counts[1::2], strict=True)
    return [f"{part} of {whole}" if whole else "-" for part, whole in pairs]


def _shown(name: str) -> str:
    """A name as a terminal can show it, whatever bytes are in it."""
    return one_line(name).encode("utf-8", "replace").decode("utf-8")


def _not_finite(value: object, where: str = "") -> str | None:
    """Name the first number in nested mappings and lists that is NaN or infinite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else where
    entries: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list | tuple):
        entries = enumerate(value)
    found = (_not_finite(inner, f"{where}.{key}" if where else str(key)) for key, inner in entries)
    return next(filter(None, found), None)


def _cpu_name() -> str:
    """Name the processor as Linux does; elsewhere as Python does."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
