"""``run.json``: what a run says of itself beside its checkpoint."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crad.files import irregular, write_json

RECORD_NAME = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """What a run says of itself. Paths are here, as they mean nothing on another machine.

    Attributes:
        data: where its data are; empty if that is not known.
        id: of the separate setting, by which its folder knows the runs of its classes.
        classes: of the separate setting, in order.
        replaces: whether runs of classes that are not of this one may be replaced.
    """

    data: str = ""
    id: str = ""
    classes: tuple[str, ...] = ()
    replaces: bool = False

    def write(self, folder: Path) -> None:
        """Write the record, if that is not what the folder says already.

        Raises:
            StorageError: it cannot be written.
        """
        if (read_record(folder) or RunRecord()) != self:
            usual = dataclasses.asdict(RunRecord(self.data))
            content = {
                name: value
                for name, value in dataclasses.asdict(self).items()
                if name == "data" or value != usual[name]
            }
            write_json(folder / RECORD_NAME, content)


def read_record(folder: Path) -> RunRecord | None:
    """Read the record of a folder; None if there is none, or something else by that name."""
    file = folder / RECORD_NAME
    if irregular(file):
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = {each.name for each in dataclasses.fields(RunRecord)}
        if not isinstance(found, dict) or not {"data"} <= {*found} <= known:
            return None
        return RunRecord(
            data=str(found["data"]),
            id=str(found.get("id", "")),
            classes=tuple(map(str, found.get("classes", ()))),
            replaces=bool(found.get("replaces", False)),
        )
    except (OSError, ValueError, TypeError):
        return None
