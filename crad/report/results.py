"""`results.json`: what a run measured, on what, and how long it took."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from crad.data.demo import is_demo
from crad.files import write_json
from crad.report.environment import environment
from crad.scoring.calibration import Decisions
from crad.scoring.metrics import ClassMetrics, EpochMetrics, MeanMetrics, Metrics, summarise
from crad.training.checkpoint import Checkpoint

DEMO_NOTE = "demo set: a stand-in, not a benchmark"
"""The `note` of every result on a generated set."""

SEPARATE_NOTE = "one model for each class"
"""The beginning of the `note` of every result in the separate setting."""


class Results(TypedDict):
    """The content of ``results.json``; what cannot be measured is None.

    Attributes:
        protocol: the name of the protocol in `crad.scoring.protocols.PROTOCOLS`.
        seed: the seed of the run.
        epoch: the number of epochs trained.
        classes: the metrics of each class.
        mean: the mean over the classes.
        timing: seconds by name of the phase.
        environment: what `crad.report.environment.environment` returns, or more.
        data: the data set, a name or a path.
        note: what a reader of the numbers must know, such as `DEMO_NOTE`.
        baselines: other detectors measured on the same images, by name and the same protocol.
        other_protocols: the metrics of the same maps by further protocols, by name.
        best_on_test: the epoch with the best mean image AUROC, chosen on the test images, so not to
            be taken for what the run reaches; with the metrics of that epoch. In the separate
            setting, an epoch for each class.
        decisions: the threshold of each class, the number of normal images it is from, and the
            false alarms and misses it leads to on the test images.
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


def make_results(
    metrics: Mapping[str, Metrics],
    *,
    checkpoint: Checkpoint,
    data: str,
    left_out: str | None,
    timing: Mapping[str, float],
    device: Any,
    decisions: Decisions | None = None,
    baselines: Mapping[str, Metrics] | None = None,
    best_on_test: EpochMetrics | None = None,
) -> Results:
    """Say what was measured on what.

    Args:
        metrics: by name of the protocol; the first is the one that is reported.
        checkpoint: what was measured.
        data: where the test images are from.
        left_out: how many images and masks could not be read, as a sentence.
        timing: seconds by phase.
        device: what computed.
        decisions: what thresholds do to these images, if there are any.
        baselines: what other detectors reach on the same images, by the first protocol.
        best_on_test: the best epoch on these images, by the first protocol, if that was tracked.
    """
    (protocol, reported), *others = metrics.items()
    results: Results = {
        "protocol": protocol,
        "seed": checkpoint.config.training.seed,
        "epoch": checkpoint.epoch,
        "classes": reported["classes"],
        "mean": reported["mean"],
        "timing": {phase: round(seconds, 2) for phase, seconds in timing.items()},
        "environment": environment(device),
        "data": data,
    }
    extra = {
        "note": "; ".join(filter(None, [DEMO_NOTE if is_demo(data) else None, left_out])),
        "baselines": baselines,
        "other_protocols": dict(others),
        "best_on_test": best_on_test,
        "decisions": decisions,
    }
    return cast(Results, {**results, **{name: value for name, value in extra.items() if value}})


def combine_results(parts: Sequence[Results]) -> Results:
    """Join the results of classes that were trained alone, in the order given.

    Timing is the sum; the mean is over the classes in which a metric can be measured. The best
    epoch on the test images is each class's own.
    """
    timing: Counter[str] = Counter()
    for part in parts:
        timing.update(part["timing"])
    last, joined = parts[-1], _join(parts)
    results: Results = {
        "protocol": last["protocol"],
        "seed": last["seed"],
        "epoch": last["epoch"],
        "classes": joined["classes"],
        "mean": joined["mean"],
        "timing": {phase: round(seconds, 2) for phase, seconds in timing.items()},
        "environment": last["environment"],
        "data": last["data"],
        "note": _separate_note(parts),
    }
    if "baselines" in last:
        results["baselines"] = _join_by_name(part["baselines"] for part in parts)
    if "other_protocols" in last:
        results["other_protocols"] = _join_by_name(part["other_protocols"] for part in parts)
    if "best_on_test" in last:
        best = [part["best_on_test"] for part in parts]
        epochs = {name: cast(int, each["epoch"]) for each in best for name in each["classes"]}
        results["best_on_test"] = {"epoch": epochs, **_join(best)}
    if decided := [part["decisions"] for part in parts if "decisions" in part]:
        results["decisions"] = {
            "false_alarm_rate": decided[0]["false_alarm_rate"],
            "classes": {name: each for part in decided for name, each in part["classes"].items()},
        }
    return results


def write_results(path: str | os.PathLike[str], results: Results) -> None:
    """Write ``results.json``, atomically.

    Args:
        path: the file to write.
        results: the content.

    Raises:
        ValueError: a number is NaN or infinite; the message says where.
        StorageError: the file cannot be written; the former one is untouched.
    """
    if where := _not_finite(results):
        raise ValueError(f"results: {where} is not a finite number; use None for what is unknown")
    write_json(Path(path), results)


def _join_by_name(parts: Iterable[Mapping[str, Metrics]]) -> dict[str, Metrics]:
    parts = list(parts)
    return {name: _join([each[name] for each in parts]) for name in parts[0]}


def _join(parts: Sequence[Metrics | Results]) -> Metrics:
    return summarise({name: entry for part in parts for name, entry in part["classes"].items()})


def _separate_note(parts: Sequence[Results]) -> str:
    """Say what the classes' notes say, once if that is the same."""
    notes = {name: part["note"] for part in parts for name in part["classes"] if "note" in part}
    if len(notes) == len(parts) and len({*notes.values()}) == 1:
        return f"{SEPARATE_NOTE}; {parts[0]['note']}"
    return "; ".join([SEPARATE_NOTE, *(f"{name}: {note}" for name, note in notes.items())])


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
