"""An ablation of our own: local memories with equal numbers of entries in 1 to 6 dimensions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import markdown
from benchmarks.paper.entries_read import entries_read
from benchmarks.paper.files import write_records
from benchmarks.paper.metrics import METRICS, Measured, measured, measured_record
from benchmarks.paper.plotting import COLOURS, MARKERS, drawing, save
from benchmarks.paper.runs import Runs
from benchmarks.paper.variants import Variant

RESOLUTIONS = {
    64: ((64,), (8, 8), (4, 4, 4), (2,) * 6),
    256: ((256,), (16, 16), (4, 4, 4, 4)),
}
"""The grids, by their number of entries."""


def variant(resolution: tuple[int, ...]) -> Variant:
    """A local memory alone, without refinement.

    Unlike the detectors of table 1, it has jitter: without jitter, coordinates hardly spread from
    where they start, and few entries are read whatever the number of dimensions.
    """
    return Variant(global_="none", local_resolution=resolution, refinement=False)


VARIANTS = tuple(variant(each) for group in RESOLUTIONS.values() for each in group)
"""The detectors."""

_READ = "entries read"
_COLUMNS = (*METRICS, _READ)

Curve = list[tuple[int, Measured | None]]


def make(runs: Runs, folder: Path) -> str:
    """Write ``dims.csv``, ``dims.json`` and the plot ``dims.svg``; give the table in Markdown.

    Args:
        runs: finished.
        folder: to write into.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    curves = {
        (entries, metric): [
            (len(each), measured(runs.results(variant(each)), metric)) for each in resolutions
        ]
        for entries, resolutions in RESOLUTIONS.items()
        for metric in METRICS
    }
    read = entries_read(runs, VARIANTS)
    for entries, resolutions in RESOLUTIONS.items():
        curves[entries, _READ] = [(len(each), read[variant(each)]) for each in resolutions]
    write_records(folder / "dims", _records(curves))
    _plot(curves, folder / "dims.svg")
    return "\n".join(_markdown(curves)) + "\n\n![AUROC against dimensions](dims.svg)"


def _records(curves: dict[tuple[int, str], Curve]) -> Iterator[dict[str, Any]]:
    for (entries, metric), curve in curves.items():
        for dimensions, value in curve:
            yield {
                "entries": entries,
                "dimensions": dimensions,
                "metric": metric,
                **measured_record(value),
            }


def _markdown(curves: dict[tuple[int, str], Curve]) -> Iterator[str]:
    rows = []
    for entries, resolutions in RESOLUTIONS.items():
        for index, resolution in enumerate(resolutions):
            values = [curves[entries, metric][index][1] for metric in _COLUMNS]
            cells = ["-" if value is None else str(value) for value in values]
            grid = " x ".join(map(str, resolution))
            rows.append([str(entries), str(len(resolution)), grid, *cells])
    yield from markdown.table(["entries", "dimensions", "grid", *_COLUMNS], rows)


def _plot(curves: dict[tuple[int, str], Curve], path: Path) -> None:
    """Means with standard deviations over seeds."""
    with drawing() as pyplot:
        figure, axes = pyplot.subplots(1, len(METRICS), figsize=(7, 2.8))
        for axis, metric in zip(axes, METRICS, strict=True):
            for style, entries in enumerate(RESOLUTIONS):
                found = [(d, value) for d, value in curves[entries, metric] if value]
                axis.errorbar(
                    [d for d, _ in found],
                    [value.mean for _, value in found],
                    [value.std or 0.0 for _, value in found],
                    color=COLOURS[style],
                    marker=MARKERS[style],
                    linestyle=("-", "--")[style],
                    capsize=3,
                    label=f"{entries} entries",
                )
            axis.set(title=metric, xlabel="dimensions D of the memory", xticks=range(1, 7))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("AUROC in percent")
        axes[-1].legend()
        save(figure, path)
