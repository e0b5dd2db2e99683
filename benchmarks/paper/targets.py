"""The targets of the command: tables, figures and experiments, with the runs that they need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from benchmarks.paper import (
    dims,
    figure2b,
    figure3,
    figure4,
    figure5,
    orderings,
    simplex,
    tables,
)
from benchmarks.paper.entries_read import entries_read, records, sentence
from benchmarks.paper.files import write_records
from benchmarks.paper.orderings import Claim
from benchmarks.paper.runs import Runs
from benchmarks.paper.tables import Table
from benchmarks.paper.variants import GLOBAL, LOCAL, Variant


@dataclass(frozen=True)
class Target:
    """A table, a figure or an experiment.

    Attributes:
        title: the heading.
        variants: the detectors to train.
        make: takes finished runs and a folder, writes files into the folder whose names start
            with the name of the target, and returns Markdown without a heading, with links
            relative to the folder.
        of: the data set of the paper's table; None if any will do.
        drawn: whether it needs matplotlib.
        one_seed: whether it uses the runs with the first seed only.
    """

    title: str
    variants: tuple[Variant, ...]
    make: Callable[[Runs, Path], str]
    of: str | None = None
    drawn: bool = False
    one_seed: bool = False

    def select(self, runs: Runs) -> Runs:
        """The runs that the target uses."""
        return replace(runs, seeds=runs.seeds[:1]) if self.one_seed else runs


def _make_table(
    name: str,
    variants: Sequence[Variant],
    build: Callable[[Runs], list[Table]],
    claims: Sequence[Claim],
    grids: Sequence[Variant],
    runs: Runs,
    folder: Path,
) -> str:
    built = build(runs)
    write_records(folder / name, (record for each in built for record in each.records()))
    parts = ["\n".join(each.markdown()) for each in built]
    if claims:
        found = list(orderings.orderings(runs, claims))
        write_records(folder / f"{name}-orderings", orderings.records(found))
        parts.append("\n".join(orderings.markdown(found)))
        write_records(folder / f"{name}-classes", tables.class_records(runs, variants))
    if grids:
        read = entries_read(runs, grids)
        write_records(folder / f"{name}-read", records(read))
        parts.append(sentence(read))
    return "\n\n".join(parts)


def _table(
    name: str,
    title: str,
    variants: tuple[Variant, ...],
    build: Callable[[Runs], list[Table]],
    claims: Sequence[Claim] = (),
    grids: Sequence[Variant] = (),
    of: str = "MVTec AD",
) -> Target:
    make = partial(_make_table, name, variants, build, claims, grids)
    return Target(title, variants, make, of)


def _figure(title: str, variants: tuple[Variant, ...], make: Callable[[Runs, Path], str]) -> Target:
    return Target(title, variants, make, drawn=True, one_seed=True)


_BOTH = tuple(tables.BOTH_SETTINGS.values())

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "table1": _table(
            "table1",
            "Table 1: memories alone",
            tables.TABLE1,
            tables.table1,
            orderings.MEMORIES,
            (LOCAL, GLOBAL),
        ),
        "table2": _table("table2", "Table 2: detection, MVTec AD", _BOTH, tables.table2),
        "table3": _table("table3", "Table 3: localization, MVTec AD", _BOTH, tables.table3),
        "table4": _table(
            "table4", "Table 4: detection and localization, VisA", _BOTH, tables.table4, of="VisA"
        ),
        "table5": _table(
            "table5", "Table 5: the parts of CRAD", tables.TABLE5, tables.table5, orderings.PARTS
        ),
        "figure2b": _figure("Figure 2b: what jitter does", figure2b.VARIANTS, figure2b.make),
        "figure3": _figure(
            "Figure 3: coordinates and decoded features", figure3.VARIANTS, figure3.make
        ),
        "figure4": _figure(
            "Figure 4: the space of the global memory", figure4.VARIANTS, figure4.make
        ),
        "figure5": _figure("Figure 5: anomaly maps side by side", figure5.VARIANTS, figure5.make),
        "dims": Target("Dimensions of the memory", dims.VARIANTS, dims.make, drawn=True),
        "simplex": Target("Interpolation on simplices", simplex.VARIANTS, simplex.make),
    }
)
"""All targets, by name."""
