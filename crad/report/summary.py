"""The tables that a person reads after a run: metrics of each class, and decisions."""

from collections.abc import Collection, Mapping

from crad.report.results import Results
from crad.report.tables import lay_out, printable
from crad.scoring.calibration import ClassDecisions, Decisions, promise
from crad.scoring.metrics import COLUMNS, EpochMetrics, Metrics
from crad.words import count

_BASELINE_COLUMNS = {"image_auroc": "image", "pixel_auroc": "pixel"}


def summary(results: Results) -> str:
    """Lay the metrics out for a terminal: for each protocol a line for each class, and their mean.

    Each baseline adds two columns to the first protocol. What could not be measured is ``-``.
    """
    lines = _metrics(results["protocol"], results, results.get("baselines", {}))
    for protocol, metrics in results.get("other_protocols", {}).items():
        lines += ["", *_metrics(protocol, metrics, {})]
    if best := results.get("best_on_test"):
        lines.append(_best(best, results["epoch"]))
    if decisions := results.get("decisions"):
        lines += ["", *_decisions(decisions)]
    if note := results.get("note"):
        lines.append(note)
    return "\n".join(lines)


def _metrics(protocol: str, metrics: Metrics, baselines: Mapping[str, Metrics]) -> list[str]:
    groups = [(of, metrics, columns) for of, columns in COLUMNS.items()]
    for name, baseline in baselines.items():
        groups.append((f"{name.replace('_', ' ')} AUROC", baseline, _BASELINE_COLUMNS))
    rows = [["class", "train", "test", *(t for _, _, columns in groups for t in columns.values())]]
    measured = [(each, metric) for _, each, columns in groups for metric in columns]
    for name, entry in metrics["classes"].items():
        cells = [_cell(each["classes"].get(name, {}).get(metric)) for each, metric in measured]
        rows.append([printable(name), str(entry["n_train"]), str(entry["n_test"]), *cells])
    rows.append(["mean", "", "", *(_cell(each["mean"].get(metric)) for each, metric in measured)])
    titles = [(title, len(columns)) for title, _, columns in groups]
    return lay_out(rows, total=True, titles=[(f"protocol {protocol}", 3), *titles])


def _best(best: EpochMetrics, last: int) -> str:
    """Say what the best epoch reaches, or in the separate setting the best one of each class."""
    epoch, which = best["epoch"], f"epoch {best['epoch']}"
    if isinstance(epoch, dict):
        epochs = epoch.values()
        which = f"each class after its own epoch, {min(epochs)} to {max(epochs)}"
    image, pixel = _cell(best["mean"]["image_auroc"]), _cell(best["mean"]["pixel_auroc"])
    return (
        f"best_on_test: {which} of {last}, mean image AUROC {image}, pixel AUROC {pixel}; chosen "
        "on the test images"
    )


def _decisions(decisions: Decisions) -> list[str]:
    """Lay out what the thresholds of the classes lead to."""
    rate, classes = decisions["false_alarm_rate"], decisions["classes"]
    rows = [["class", "good images", "threshold", "false alarms", "misses"]]
    for name, entry in classes.items():
        n_images, threshold = str(entry["n_calibration"]), f"{entry['threshold']:.4g}"
        rows.append([printable(name), n_images, threshold, *_counts([entry])])
    rows.append(["all", "", "", *_counts(classes.values())])
    lines = [
        f"decisions (protocol {decisions['protocol']}, false alarm rate {rate:.3g}): an image "
        "whose score is above the threshold of its class is a defect",
        *lay_out(rows, total=True),
    ]
    numbers = [entry["n_calibration"] for entry in classes.values()]
    if 0 in numbers:
        lines.append("a class without good images uses the highest threshold of all classes")
    fewest = min(filter(None, numbers), default=0)
    if fewest and 1 / (fewest + 1) > rate + 1e-9:
        lines.append(
            f"only {count(fewest, 'normal image')} for the threshold of a class: it is their "
            f"largest score, which on average 1 of {fewest + 1} new normal images exceeds; add "
            "normal images, use --calibration-folds or a larger --calibration-share, or give crad "
            "calibrate new ones"
        )
    elif promised := promise(numbers, rate):
        lines.append(promised)
    return lines


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _counts(entries: Collection[ClassDecisions]) -> list[str]:
    """Cells for the false alarms and the misses of classes together, such as ``1 of 10``."""
    false_alarms = sum(entry["false_alarms"] for entry in entries)
    misses = sum(entry["misses"] for entry in entries)
    n_good = sum(entry["n_good"] for entry in entries)
    n_defective = sum(entry["n_defective"] for entry in entries)
    pairs = ((false_alarms, n_good), (misses, n_defective))
    return [f"{part} of {whole}" if whole else "-" for part, whole in pairs]
