"""``run.json``: what a run says of itself beside its checkpoint."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from crad.files import read_json, write_json

RECORD_NAME = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """What a run says of itself. Paths are here, as they mean nothing on another machine.

    Attributes:
        data: where its data are; empty if that is not known.
        id: of the separate setting, by which its folder knows the runs of its classes.
        classes: of the separate setting, in order.
        replaces: whether runs of classes that are not of this one may be replaced.
        added: the folders of classes that were added to its model from elsewhere.
    """

    data: str = ""
    id: str = ""
    classes: tuple[str, ...] = ()
    replaces: bool = False
    added: tuple[str, ...] = ()

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
    found = read_json(folder / RECORD_NAME)
    usual = dataclasses.asdict(RunRecord())
    if not isinstance(found, dict) or not {"data"} <= {*found} <= {*usual}:
        return None
    values = {**usual, **found}
    for name in ("added", "classes"):
        if isinstance(values[name], list):
            values[name] = tuple(map(str, values[name]))
    fits = all(type(values[name]) is type(value) for name, value in usual.items())
    return RunRecord(**values) if fits else None
