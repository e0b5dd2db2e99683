"""The paper's own numbers: Lee et al., ECCV 2024, tables 1 to 5, AUROC in percent."""

import json
from functools import cache
from importlib import resources
from typing import Any

from crad.data.demo import DEMO_NAMES
from crad.errors import DataError


@cache
def published() -> dict[str, Any]:
    """The content of `published.json`, by table."""
    file = resources.files("benchmarks.paper") / "published.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def published_classes(data: str) -> dict[str, str]:
    """The names of the classes of a data set: those of the folders, and those in the paper.

    Args:
        data: ``"MVTec AD"`` or ``"VisA"``.
    """
    table = {"MVTec AD": "table2_mvtec_detection", "VisA": "table4_visa"}[data]
    return {name.lower().replace(" ", "_"): name for name in published()[table] if name != "Mean"}


def is_published_data(target: str, data: str, classes: tuple[str, ...], of: str) -> bool:
    """Whether all classes belong to the data set of a table.

    Args:
        target: the table.
        data: the name or path of the data.
        classes: of the data.
        of: the data set of the table in the paper.

    Raises:
        DataError: the classes belong to the paper's other data set.
    """
    known = published_classes(of)
    if all(name in known for name in classes):
        return True
    other = "VisA" if of == "MVTec AD" else "MVTec AD"
    if data not in DEMO_NAMES and any(name in published_classes(other) for name in classes):
        fitting = "table4" if other == "VisA" else "table2 or table3"
        raise DataError(
            f"{target}: expected classes of {of}, but '{data}' has classes of {other}; "
            f"run {fitting}, or choose other --data"
        )
    return False
