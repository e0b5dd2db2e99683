"""`results.json`: what a run measured, on what, and how long it took."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast

from crad.data.demo import is_demo
from crad.files import write_json
from crad.report.environment import environment
from crad.scoring.calibration import Decisions
from crad.scoring.metrics import EpochMetrics, Metrics, summarise
from crad.scoring.suspects import Suspect
from crad.training.checkpoint import Checkpoint

DEMO_NOTE = "demo set: a stand-in, not a benchmark"
"""The `note` of every result on a generated set."""


SuspectEntry = TypedDict(
    "SuspectEntry", {"image": str, "class": str, "score": float, "times_the_median": float}
)
"""A normal image that may not be normal; the median is that of the scores of its class."""


class Results(Metrics):
    """The content of ``results.json``; what cannot be measured is None.

    Attributes:
        epoch: the number of epochs trained.
        timing: seconds by phase.
        data: the data set, a name or a path.
        note: what a reader of the numbers must know, such as `DEMO_NOTE`.
        baselines: other detectors on the same images, by the same protocol.
        other_protocols: the metrics of the same maps by further protocols.
        best_on_test: the epoch with the best mean image AUROC. It is chosen on the test images, so
            it is not what the run reaches. In the separate setting, an epoch for each class.
        suspects: normal images that may not be normal, the worst first.
    """

    protocol: str
    seed: int
    epoch: int
    timing: dict[str, float]
    environment: dict[str, Any]
    data: NotRequired[str]
    note: NotRequired[str]
    baselines: NotRequired[dict[str, Metrics]]
    other_protocols: NotRequired[dict[str, Metrics]]
    best_on_test: NotRequired[EpochMetrics]
    decisions: NotRequired[Decisions]
    suspects: NotRequired[list[SuspectEntry]]


def make_results(
    metrics: Mapping[str, Metrics],
    *,
    checkpoint: Checkpoint,
    data: str,
    notes: Sequence[str | None],
    timing: Mapping[str, float],
    device: Any,
    decisions: Decisions | None = None,
    baselines: Mapping[str, Metrics] | None = None,
    best_on_test: EpochMetrics | None = None,
    suspects: Sequence[Suspect] = (),
) -> Results:
    """Say what was measured on what.

    Args:
        metrics: by name of the protocol; the first is the one that is reported.
        checkpoint: what was measured.
        data: where the test images are from.
        notes: what a reader of the numbers must know, each a sentence or None.
        timing: seconds by phase.
        device: what computed.
        decisions: left out if None, as are the next two.
        baselines: by the first protocol.
        best_on_test: by the first protocol.
        suspects: normal images that may not be normal; left out if there are none.
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
        "note": "; ".join(filter(None, [DEMO_NOTE if is_demo(data) else None, *notes])),
        "baselines": baselines,
        "other_protocols": dict(others),
        "best_on_test": best_on_test,
        "decisions": decisions,
        "suspects": [suspect_entry(each) for each in suspects],
    }
    return cast(Results, {**results, **{name: value for name, value in extra.items() if value}})


def suspect_entry(suspect: Suspect) -> SuspectEntry:
    """What is written of an image that may not be normal."""
    return {
        "image": str(suspect.sample.path),
        "class": str(suspect.sample.class_name),
        "score": suspect.score,
        "times_the_median": suspect.times,
    }


def combine_results(parts: Sequence[Results]) -> Results:
    """Join the results of classes that were trained alone, in their order; timing is the sum."""
    timing: Counter[str] = Counter()
    for part in parts:
        timing.update(part["timing"])
    last = parts[-1]
    results: Results = {
        **last,
        **_join(parts),
        "timing": {phase: round(seconds, 2) for phase, seconds in timing.items()},
        "note": _separate_note(parts),
    }
    key: Literal["baselines", "other_protocols"]
    for key in ("baselines", "other_protocols"):
        if key in last:
            results[key] = {name: _join([part[key][name] for part in parts]) for name in last[key]}
    if "best_on_test" in last:
        best = [part["best_on_test"] for part in parts]
        epochs = {name: cast(int, each["epoch"]) for each in best for name in each["classes"]}
        results["best_on_test"] = {"epoch": epochs, **_join(best)}
    if decided := [part["decisions"] for part in parts if "decisions" in part]:
        # Of a class that an older crad finished, by the only protocol there was.
        protocols = dict.fromkeys(part.get("protocol", "crad") for part in decided)
        results["decisions"] = {
            "protocol": ", ".join(protocols),
            "false_alarm_rate": decided[0]["false_alarm_rate"],
            "classes": {name: each for part in decided for name, each in part["classes"].items()},
        }
    results.pop("suspects", None)  # those of the last part alone
    if suspects := [each for part in parts for each in part.get("suspects", ())]:
        results["suspects"] = sorted(suspects, key=lambda each: -each["times_the_median"])
    return results


def write_results(path: str | os.PathLike[str], results: Results) -> None:
    """Write ``results.json``, atomically.

    Raises:
        ValueError: a number is NaN or infinite; the message says where.
    """
    if where := _not_finite(results, "results"):
        raise ValueError(f"{where} is not a finite number; use None for what is unknown")
    write_json(path, results)


def _join(parts: Sequence[Metrics]) -> Metrics:
    return summarise({name: entry for part in parts for name, entry in part["classes"].items()})


def _separate_note(parts: Sequence[Results]) -> str:
    """Say what the classes' notes say, once if that is the same."""
    notes = {name: part["note"] for part in parts for name in part["classes"] if "note" in part}
    same = len(notes) == len(parts) and len({*notes.values()}) == 1
    told = [parts[0]["note"]] if same else [f"{name}: {note}" for name, note in notes.items()]
    return "; ".join(["one model for each class", *told])


def _not_finite(value: object, where: str) -> str | None:
    """Name the first number in nested mappings that is NaN or infinite."""
    if isinstance(value, Mapping):
        found = (_not_finite(inner, f"{where}.{key}") for key, inner in value.items())
        return next(filter(None, found), None)
    return where if isinstance(value, float) and not math.isfinite(value) else None
