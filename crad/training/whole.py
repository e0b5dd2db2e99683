"""The separate training that the run of a class may be a part of."""

from dataclasses import dataclass

from crad.training.checkpoint import Checkpoint
from crad.training.run_folder import RunFolder
from crad.training.run_record import RunRecord


@dataclass(frozen=True)
class Whole:
    """The separate training that the run of a class is a part of."""

    folder: RunFolder
    record: RunRecord

    def has(self, stored: Checkpoint) -> bool:
        """Whether a run is a part of this training; older versions did not store that."""
        if stored.part_of is None:
            return not self.record.replaces
        return stored.part_of == self.record.id
