"""From scored test images to what a person sees: results.json, the table and the sheets."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from crad.checkpoint import CHECKPOINT_NAME, Checkpoint
from crad.demo import DEMO_NAMES, demo_dataset
from crad.detector import PROTOCOL
from crad.metrics import Metrics, ScoredImage, summarise
from crad.pictures import write_sheets
from crad.results import DEMO_NOTE, Results, environment, table, write_results

RESULTS_NAME = "results.json"
SHEETS_NAME = "sheets"


def make_results(
    images: Iterable[ScoredImage],
    *,
    checkpoint: Checkpoint,
    data: str,
    n_train: Mapping[str, int],
    left_out: str | None,
    timing: Mapping[str, float],
    device: torch.device,
    baselines: Mapping[str, Metrics],
) -> Results:
    """Measure, and say what was measured on what.

    Args:
        images: the scored test images.
        checkpoint: what scored them.
        data: where they are from.
        n_train: all classes, in order, with their numbers of training images.
        left_out: how many images and masks could not be read, as a sentence.
        timing: seconds by phase.
        device: what computed.
        baselines: what other detectors reach on the same images.
    """
    metrics = summarise(images, n_train)
    results: Results = {
        "protocol": PROTOCOL.name,
        "seed": checkpoint.config.seed,
        "epoch": checkpoint.epoch,
        "classes": metrics["classes"],
        "mean": metrics["mean"],
        "timing": {phase: round(seconds, 2) for phase, seconds in timing.items()},
        "environment": environment(device),
        "data": data,
    }
    if note := "; ".join(filter(None, [DEMO_NOTE if _is_demo(data) else None, left_out])):
        results["note"] = note
    if baselines:
        results["baselines"] = dict(baselines)
    return results


def report(
    results: Results, images: list[ScoredImage], output: Path | None, *, show: bool = True
) -> None:
    """Print the table and what cannot be measured; replace results and sheets in ``output``.

    Args:
        results: what to report.
        images: the scored images it is of.
        output: the folder; None writes nothing.
        show: whether to print the table.

    Raises:
        OSError: a file cannot be written.
        ImageError: an image for a sheet cannot be read any more.
    """
    if output:
        write_results(output / RESULTS_NAME, results)
    if show:
        print(table(results))
    if missing := _not_measured(results, images):
        print(missing)
    if output:
        shutil.rmtree(output / SHEETS_NAME, ignore_errors=True)
        note = f"{results['data']}: {results['note']}" if "note" in results else None
        write_sheets(output / SHEETS_NAME, images, note=note)
        print(f"written to {output}")


def clear_run(output: Path) -> None:
    """Remove a former run from a folder, so that no file of it is taken for one of another."""
    for name in (RESULTS_NAME, CHECKPOINT_NAME):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / SHEETS_NAME, ignore_errors=True)


def _is_demo(data: str) -> bool:
    """Whether the data are a generated set: its name, its folder in the cache, or a class of it."""
    if data in DEMO_NAMES:
        return True
    path = Path(data).expanduser().resolve()
    return any(
        folder.name.startswith(f"{name}-v") and folder == demo_dataset(name).resolve()
        for name in DEMO_NAMES
        for folder in (path, path.parent)
    )


def _not_measured(results: Results, images: list[ScoredImage]) -> str | None:
    if not images:
        return "not measured: there are no test images (expected <class>/test/{good,<defect>})"
    if results["mean"]["image_auroc"] is None:
        return "not measured: AUROC needs normal and anomalous test images of a class"
    if results["mean"]["pixel_auroc"] is None:
        return "pixel AUROC not measured: there are no usable masks (<class>/ground_truth/<defect>)"
    defective = [image.sample for image in images if image.sample.is_anomaly]
    if without := sum(sample.mask is None for sample in defective):
        return (
            f"pixel AUROC is of part of the images: {without} of {len(defective)} defective images "
            "have no mask"
        )
    return None
