"""Tables 1 to 5 of the paper with our numbers, the paper's and their differences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import markdown
from benchmarks.paper.metrics import METRICS, Measured, measured, measured_record
from benchmarks.paper.published import is_published_data, published, published_classes
from benchmarks.paper.runs import Runs
from benchmarks.paper.variants import (
    CRAD,
    CRAD_SEPARATE,
    GLOBAL,
    GLOBAL_ATTENTION_16,
    GLOBAL_ATTENTION_64,
    GLOBAL_VQ_16,
    GLOBAL_VQ_64,
    LOCAL,
    LOCAL_ATTENTION_64,
    LOCAL_ATTENTION_256,
    LOCAL_VQ_64,
    LOCAL_VQ_256,
    NO_JITTER,
    NO_REFINEMENT,
    Variant,
)

TABLE1 = (
    LOCAL_VQ_64,
    LOCAL_VQ_256,
    LOCAL_ATTENTION_64,
    LOCAL_ATTENTION_256,
    LOCAL,
    GLOBAL_VQ_16,
    GLOBAL_VQ_64,
    GLOBAL_ATTENTION_16,
    GLOBAL_ATTENTION_64,
    GLOBAL,
)
"""The detectors of table 1, row by row."""

TABLE5 = (GLOBAL, LOCAL, NO_REFINEMENT, NO_JITTER, CRAD)
"""The detectors of table 5, row by row."""

BOTH_SETTINGS = {"unified": CRAD, "separate": CRAD_SEPARATE}
"""The detectors of tables 2 to 4."""


@dataclass(frozen=True)
class Cell:
    """Our number and the paper's; None if there is none."""

    ours: Measured | None
    paper: float | None = None
    paper_std: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        labels: the first columns, by name.
        cells: the numbers, by metric or setting.
        others: the paper's numbers of other methods, by method and then as in ``cells``.
    """

    labels: Mapping[str, str]
    cells: Mapping[str, Cell]
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        of: the data set of the paper's numbers.
        comparable: whether ours are of the same data set; otherwise no differences are shown.
        rows: all with the same labels and cells.
    """

    of: str
    comparable: bool
    rows: Sequence[Row]

    def markdown(self) -> Iterator[str]:
        """The lines of the table."""
        first = self.rows[0]
        paper = "paper" if self.comparable else f"paper ({self.of})"
        head = [*first.labels]
        for group in first.cells:
            head += [f"{group}: here", paper] + ["difference"] * self.comparable
        methods = list(first.others)
        groups = "/".join(first.cells)
        head += [f"{method}, {paper} {groups}" for method in methods]
        lines = []
        for row in self.rows:
            line = [*row.labels.values()]
            for cell in row.cells.values():
                line += ["-" if cell.ours is None else str(cell.ours), _published(cell)]
                if self.comparable:
                    line.append(_signed(_difference(cell)))
            for method in methods:
                numbers = row.others.get(method, {})
                line.append("/".join(_plain(numbers.get(group)) for group in row.cells))
            lines.append(line)
        yield from markdown.table(head, lines)

    def records(self) -> Iterator[dict[str, Any]]:
        """A record for each number."""
        for row in self.rows:
            for group, cell in row.cells.items():
                yield {
                    **row.labels,
                    "method": row.labels.get("method", "CRAD"),
                    "metric": group,
                    "ours_mean": cell.ours and round(cell.ours.mean, 4),
                    "ours_std": cell.ours and cell.ours.std and round(cell.ours.std, 4),
                    "ours_seeds": [round(each, 4) for each in cell.ours.values]
                    if cell.ours
                    else [],
                    "paper_mean": cell.paper,
                    "paper_std": cell.paper_std,
                    "paper_data": self.of,
                    "difference": _difference(cell) if self.comparable else None,
                }
            for method, numbers in row.others.items():
                for group, number in numbers.items():
                    yield {
                        **row.labels,
                        "method": method,
                        "metric": group,
                        "paper_mean": number,
                        "paper_data": self.of,
                    }


def table1(runs: Runs) -> list[Table]:
    """Table 1: memories alone, without refinement and jitter, one model for all classes."""
    rows = [
        Row(
            {
                "perspective": line["perspective"],
                "method": line["method"],
                "entries": str(line["entries"]),
            },
            {
                metric: Cell(
                    measured(runs.results(variant), metric),
                    line[metric]["mean"],
                    line[metric]["std"],
                )
                for metric in METRICS
            },
        )
        for line, variant in zip(published()["table1_memories_unified_mvtec"], TABLE1, strict=True)
    ]
    return [Table("MVTec AD", _all_published("table1", runs), rows)]


def table5(runs: Runs) -> list[Table]:
    """Table 5: what each part of CRAD brings, one model for all classes."""
    rows = [
        Row(
            {part: "yes" if line[part] else "" for part in ("global", "local", "refine", "jitter")},
            {
                metric: Cell(measured(runs.results(variant), metric), line[metric])
                for metric in METRICS
            },
        )
        for line, variant in zip(published()["table5_ablation_unified_mvtec"], TABLE5, strict=True)
    ]
    return [Table("MVTec AD", _all_published("table5", runs), rows)]


def table2(runs: Runs) -> list[Table]:
    """Table 2: detection in each class of MVTec AD, unified and separate."""
    return [_by_class("table2", runs, "detection", published()["table2_mvtec_detection"])]


def table3(runs: Runs) -> list[Table]:
    """Table 3: localization in each class of MVTec AD, unified and separate."""
    return [_by_class("table3", runs, "localization", published()["table3_mvtec_localization"])]


def table4(runs: Runs) -> list[Table]:
    """Table 4: detection and localization in each class of VisA, unified and separate."""
    numbers = published()["table4_visa"]
    return [
        _by_class("table4", runs, metric, {name: row[metric] for name, row in numbers.items()})
        for metric in METRICS
    ]


def class_records(runs: Runs, variants: Iterable[Variant]) -> Iterator[dict[str, Any]]:
    """The numbers of each class, for tables that show the mean over classes only."""
    for variant in variants:
        results = runs.results(variant)
        for name in runs.classes():
            for metric in METRICS:
                yield {
                    "detector": variant.name,
                    "class": name,
                    "metric": metric,
                    **measured_record(measured(results, metric, name)),
                }


def _by_class(target: str, runs: Runs, metric: str, numbers: Mapping[str, Any]) -> Table:
    """A table with a row for each class, and one for the mean.

    Args:
        target: its name.
        runs: finished.
        metric: a key of `METRICS`.
        numbers: the paper's, by class, method and setting (unified or separate).
    """
    of = "VisA" if target == "table4" else "MVTec AD"
    classes, known = runs.classes(), published_classes(of)
    same = is_published_data(target, runs.base.data.source, classes, of)
    results = {setting: runs.results(variant) for setting, variant in BOTH_SETTINGS.items()}
    rows = []
    for name in (*classes, None):
        line: Mapping[str, Any] = {method: {} for method in numbers["Mean"]}
        if name is None:
            if not same or len(classes) == len(known):  # else the mean is over other classes
                line = numbers["Mean"]
        elif same:
            line = numbers[known[name]]
        line = dict(line)
        ours: Mapping[str, float] = line.pop("CRAD")
        cells = {
            setting: Cell(
                measured(results[setting], metric, name),
                ours.get(setting),
                ours.get(f"{setting}_std"),
            )
            for setting in BOTH_SETTINGS
        }
        label = "Mean" if name is None else known[name] if same else name
        rows.append(Row({"class": label}, cells, line))
    return Table(of, same, rows)


def _all_published(target: str, runs: Runs) -> bool:
    """Whether the data have all classes of MVTec AD, and no others."""
    classes = runs.classes()
    same = is_published_data(target, runs.base.data.source, classes, "MVTec AD")
    return same and len(classes) == len(published_classes("MVTec AD"))


def _difference(cell: Cell) -> float | None:
    if cell.ours is None or cell.paper is None:
        return None
    return round(cell.ours.mean - cell.paper, 4)


def _published(cell: Cell) -> str:
    std = "" if cell.paper_std is None else f" ± {cell.paper_std}"
    return _plain(cell.paper) + std


def _plain(number: float | None) -> str:
    return "-" if number is None else f"{number:.1f}"


def _signed(number: float | None) -> str:
    return "-" if number is None else f"{number:+.2f}"
