"""The numbers of the paper: Lee et al., ECCV 2024, tables 1 to 5, AUROC in percent."""

import json
from functools import cache
from importlib import resources
from typing import Any

from crad.command_line import CommandError
from crad.data.demo import DEMO_NAMES


@cache
def published() -> dict[str, Any]:
    """All numbers, by table; `published.json` beside this file."""
    file = resources.files("benchmarks.paper") / "published.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def published_classes(data: str) -> dict[str, str]:
    """The classes of a data set as its folders are called, and as the paper calls them.

    Args:
        data: ``"MVTec AD"`` or ``"VisA"``.
    """
    table = {"MVTec AD": "table2_mvtec_detection", "VisA": "table4_visa"}[data]
    return {name.lower().replace(" ", "_"): name for name in published()[table] if name != "Mean"}


def is_published_data(target: str, data: str, classes: tuple[str, ...], of: str) -> bool:
    """Whether the classes are those that the paper has in a table.

    Args:
        target: the table.
        data: a name or a path.
        classes: those of the data.
        of: the data set of the table.

    Raises:
        CommandError: they are those of the paper's other data set.
    """
    known = published_classes(of)
    if all(name in known for name in classes):
        return True
    other = "VisA" if of == "MVTec AD" else "MVTec AD"
    if data not in DEMO_NAMES and any(name in published_classes(other) for name in classes):
        fitting = "table4" if other == "VisA" else "table2 or table3"
        raise CommandError(
            f"{target}: the paper's is of {of}, but '{data}' has classes of {other}; "
            f"make {fitting} of it, or give other --data"
        )
    return False
