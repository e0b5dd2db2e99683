"""The folder of a run: which files it has, and whether a command may use it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crad.errors import OutputError
from crad.files import check_folder, irregular, remove_leftovers
from crad.training.checkpoint import CHECKPOINT_NAME, PATHS_NAME


@dataclass(frozen=True)
class RunFolder:
    """The folder that a command writes its results into."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.path / CHECKPOINT_NAME

    @property
    def results(self) -> Path:
        """What was measured."""
        return self.path / "results.json"

    @property
    def sheets(self) -> Path:
        """Folder of a picture sheet for each class."""
        return self.path / "sheets"

    def check(self, *, overwrite: bool, resume: bool = False, separate: bool = False) -> None:
        """Refuse, before any work is done for it, a folder that is not for this run.

        Args:
            overwrite: whether a former run may be replaced.
            resume: whether it may be resumed.
            separate: whether the run is one of several models.

        Raises:
            OutputError: it cannot be written into, or holds what should not be lost.
        """
        check_folder(self.path)
        files = (self.checkpoint, self.results, self.path / PATHS_NAME)
        found = [file for file in files if file.exists()]
        if overwrite or not found:
            return
        has_checkpoint, name = self.checkpoint in found, found[0].name
        if not resume:
            problem = f"already holds a run ({name}); --resume continues one, --overwrite replaces"
        elif has_checkpoint and separate:
            problem = "holds one model for all classes; --overwrite replaces"
        elif not has_checkpoint and not separate:
            problem = f"has {name}, but no checkpoint to resume; --overwrite replaces"
        else:
            return
        raise OutputError(
            f"output: '{self.path}' {problem} it, --output DIR chooses another folder"
        )

    def clear(self) -> None:
        """Remove a former run, so that no file of it is taken for one of another."""
        for file in (self.results, self.checkpoint, self.path / PATHS_NAME):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.sheets, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Remove what a killed process left of a checkpoint half written."""
        remove_leftovers(self.checkpoint)

    def read_results(self) -> dict[str, Any] | None:
        """What was measured; None if there is nothing, or something else."""
        if irregular(self.results):
            return None
        try:
            results = json.loads(self.results.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return results if isinstance(results, dict) else None

    def written(self) -> int | None:
        """When the checkpoint was written, in nanoseconds; None if there is none."""
        try:
            return self.checkpoint.stat().st_mtime_ns
        except OSError:
            return None
