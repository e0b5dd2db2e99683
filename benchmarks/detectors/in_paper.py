"""What the paper of CRAD has for the classes of a set, if they are of MVTec AD or VisA."""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from benchmarks.detectors.options import SETTINGS
from benchmarks.markdown import table
from benchmarks.paper.published import published, published_classes

_KINDS = {"detection": "image AUROC", "localization": "pixel AUROC"}


def paper_table(class_names: Iterable[str]) -> str | None:
    """A table of the paper's numbers, in percent: means over these classes.

    Args:
        class_names: those of the set; None is returned unless all are of one of the two sets.
    """
    names = [*class_names]
    for data in ("MVTec AD", "VisA"):
        known = published_classes(data)
        if all(name in known for name in names):
            numbers = {kind: _numbers(data, kind) for kind in _KINDS}
            return _table(numbers, [known[name] for name in names])
    return None


def _numbers(data: str, kind: str) -> dict[str, Any]:
    """By class, method and setting."""
    if data == "MVTec AD":
        number = {"detection": "table2", "localization": "table3"}[kind]
        found: dict[str, Any] = published()[f"{number}_mvtec_{kind}"]
        return found
    return {name: entry[kind] for name, entry in published()["table4_visa"].items()}


def _table(numbers: dict[str, dict[str, Any]], names: list[str]) -> str:
    columns = [(kind, setting) for kind in _KINDS for setting in SETTINGS]
    methods = dict.fromkeys(name for each in names for name in numbers["detection"][each])
    rows = []
    for method in methods:
        cells = []
        for kind, setting in columns:
            found = [numbers[kind][name].get(method, {}).get(setting) for name in names]
            cells.append("-" if None in found else f"{fmean(found):.1f}")
        rows.append([method, *cells])
    headings = [f"{_KINDS[kind]}, {setting}" for kind, setting in columns]
    return "\n".join(table(["method", *headings], rows))
