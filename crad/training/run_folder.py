"""The folder of a run: which files it has, and whether a command may use it."""

import re
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crad.errors import CheckpointError, OutputError
from crad.files import LONGEST_NAME, cut_name, read_json, remove_leftovers
from crad.outputs import Output, check_folder, check_outputs, locked
from crad.png import is_own_jpeg, is_own_png
from crad.training import processes
from crad.training.checkpoint import CHECKPOINT_NAME, Checkpoint, is_checkpoint, read_checkpoint
from crad.training.exemplars import EXEMPLARS_NAME, is_exemplars
from crad.training.run_record import RECORD_NAME, read_record
from crad.training.separate_run import PRODUCTS_NAME, is_products

SCORES_HEAD = "image,class,kind,truth,score,"
"""How the table of the test images begins, whatever columns follow."""

PAGE_HEAD = '<!doctype html>\n<html lang="en">\n<head>\n<meta name="generator" content="crad">\n'
"""How a page with pictures begins."""

_PICTURE = re.compile(r"\d{5,}-(image|map|overlay)\.jpg|\d{5,}-truth\.png")
_SUSPECT_PICTURE = re.compile(r"suspect-\d{5,}-(image|overlay)\.jpg")


@dataclass(frozen=True)
class RunFolder:
    """The folder that a command writes its results into."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.path / CHECKPOINT_NAME

    @property
    def exemplars(self) -> Path:
        """Features by which a later training remembers the classes."""
        return self.path / EXEMPLARS_NAME

    @property
    def products(self) -> Path:
        """What names the class of an image for the models of a separate run."""
        return self.path / PRODUCTS_NAME

    @property
    def results(self) -> Path:
        """What was measured."""
        return self.path / "results.json"

    @property
    def sheets(self) -> Path:
        """Folder of a picture sheet for each class."""
        return self.path / "sheets"

    @property
    def scores(self) -> Path:
        """The score and the decision of each test image."""
        return self.path / "scores.csv"

    @property
    def page(self) -> Path:
        """The page that shows what was measured."""
        return self.path / "report.html"

    @property
    def suspects(self) -> Path:
        """The page that shows normal images that may not be normal."""
        return self.path / "suspects.html"

    @property
    def pictures(self) -> Path:
        """Folder of the pictures of both pages."""
        return self.path / "pictures"

    def locked(self) -> AbstractContextManager[None]:
        """Keep other commands out of the folder, as `crad.outputs.locked`, in the main process."""
        return locked(self.path) if processes.is_main() else nullcontext()

    def of_class(self, name: str) -> Path:
        """The folder of the run of a class, in that of a run of several models.

        Raises:
            OutputError: a file or folder of the run has the name of the class.
        """
        own = (
            *(self.checkpoint, self.results, self.sheets, self.path / RECORD_NAME),
            *(self.scores, self.page, self.suspects, self.pictures),
            *(self.exemplars, self.products),
        )
        if name.casefold() in [path.name for path in own]:
            raise OutputError(
                f"output: the run of class '{name}' would need the name that '{self.path / name}' "
                "has for something else; rename the class, or train without --separate"
            )
        return self.path / name

    def check(
        self, *, overwrite: bool, resume: bool | None = False, separate: bool = False
    ) -> None:
        """Refuse, before any work is done for it, a folder that is not for this run.

        Args:
            overwrite: whether a former run may be replaced.
            resume: whether it may be resumed; None if the command cannot.
            separate: whether the run is one of several models.

        Raises:
            OutputError: it cannot be written into, or holds what should not be lost.
        """
        check_folder(self.path)
        self.check_foreign()
        files = (self.checkpoint, self.path / RECORD_NAME)
        found = [file for file in files if file.exists()] + self.measurements()
        found += [self.suspects] if self.suspects.exists() else []
        if overwrite or not found:
            return
        has_checkpoint, name = self.checkpoint in found, found[0].relative_to(self.path)
        if resume is None:
            raise OutputError(
                f"output: '{self.path}' already holds a run ({name}); --overwrite replaces it, or "
                "choose another folder"
            )
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

    def check_foreign(self) -> None:
        """Refuse a folder in which a file of another origin has the name of one of a run.

        Raises:
            OutputError: there is such a file.
        """
        folders = (self.sheets, self.pictures)
        evidence = (self.scores, self.page, self.suspects)
        files = (
            *(self.checkpoint, self.path / RECORD_NAME, self.results, *evidence),
            *(self.exemplars, self.products),
        )
        for path in (*files, *folders):
            if path.is_symlink() or (path in folders and path.exists() and not path.is_dir()):
                kind = "a link" if path.is_symlink() else "not a folder"
                raise OutputError(
                    f"output: '{path}' is {kind}; move it away, or choose another folder with "
                    "--output"
                )
        check_outputs(
            [
                Output("--output", self.checkpoint, is_checkpoint),
                Output("--output", self.path / RECORD_NAME, lambda _: bool(read_record(self.path))),
                Output("--output", self.exemplars, is_exemplars),
                Output("--output", self.products, is_products),
                Output("--output", self.results, lambda _: self.read_results() is not None),
                Output("--output", self.scores, lambda file: _begins(file, SCORES_HEAD)),
                Output("--output", self.page, lambda file: _begins(file, PAGE_HEAD)),
                Output("--output", self.suspects, lambda file: _begins(file, PAGE_HEAD)),
                *(
                    Output("--output", file, _is_own_picture)
                    for pattern in (_PICTURE, _SUSPECT_PICTURE)
                    for file in self._pictures(pattern)
                ),
            ],
            inputs=(),
        )

    def check_sheets(self, names: Iterable[str]) -> None:
        """Refuse a folder in which a file of another origin has the name of a sheet.

        Args:
            names: of the classes.

        Raises:
            OutputError: there is such a file.
        """
        former = self._own_sheets()
        outputs = [
            Output("--output", self.sheet(name), lambda file: file in former or is_own_png(file))
            for name in names
        ]
        check_outputs(outputs, inputs=())

    def begin(self, checkpoint: Checkpoint) -> None:
        """Put a new run, with its first checkpoint, in the place of a former one.

        Raises:
            StorageError: it cannot be written; the former run is untouched.
        """
        sheets = self._own_sheets()
        checkpoint.save(self.path)
        for file in (self.exemplars, self.products):
            file.unlink(missing_ok=True)
        self._clear_measurements(sheets)

    def measurements(self) -> list[Path]:
        """Results, sheets and the evidence of test images that are there."""
        files = (self.results, self.scores, self.page)
        return [file for file in files if file.exists()] + self._own_sheets()

    def clear(self) -> None:
        """Remove a former run but for its record, once it may not be taken for the new one."""
        sheets = self._own_sheets()
        for file in (self.checkpoint, self.exemplars, self.products):
            file.unlink(missing_ok=True)
        self._clear_measurements(sheets)

    def _clear_measurements(self, sheets: Iterable[Path]) -> None:
        self.results.unlink(missing_ok=True)
        for file in sheets:
            file.unlink(missing_ok=True)
        self.clear_evidence()
        self.clear_suspects()
        for folder in (self.sheets, self.pictures):
            with suppress(OSError):  # it is not empty, or missing
                folder.rmdir()

    def clear_evidence(self) -> None:
        """Remove the page of the test images, its pictures and their table, in this order.

        So no page shows pictures of another measurement. Files of another origin stay.
        """
        remove_leftovers([self.page, self.scores])
        pictures = filter(_is_own_picture, self._pictures(_PICTURE))
        for file in (self.page, *pictures, self.scores):
            file.unlink(missing_ok=True)

    def clear_suspects(self) -> None:
        """Remove the page of suspicious training images, then its pictures.

        An evaluation leaves them, as they are of the training.
        """
        remove_leftovers([self.suspects])
        for file in (self.suspects, *filter(_is_own_picture, self._pictures(_SUSPECT_PICTURE))):
            file.unlink(missing_ok=True)

    def sheet(self, class_name: str) -> Path:
        """The picture sheet of a class."""
        return self.sheets / f"{cut_name(class_name, LONGEST_NAME - 4)}.png"

    def keep_sheets(self, kept: Collection[Path]) -> None:
        """Remove all other sheets; files of another origin stay."""
        for file in self._own_sheets():
            if file not in kept:
                file.unlink(missing_ok=True)

    def _own_sheets(self) -> list[Path]:
        """The sheets of the run there, whose classes its results and its checkpoint name."""
        names = {*(self.read_results() or {"classes": {}})["classes"]}
        with suppress(CheckpointError):
            names |= {*read_checkpoint(self.checkpoint, parts=()).n_train}
        sheets = [self.sheet(name) for name in sorted(names)]
        return [file for file in sheets if file.parent == self.sheets and file.is_file()]

    def _pictures(self, pattern: re.Pattern[str]) -> list[Path]:
        """The files with a name that a picture of a page may have."""
        found = self.pictures.iterdir() if self.pictures.is_dir() else ()
        return sorted(file for file in found if pattern.fullmatch(file.name))

    def remove_leftovers(self) -> None:
        """Remove what a killed process left of files half written."""
        remove_leftovers([self.checkpoint, self.exemplars, self.results, self.path / RECORD_NAME])

    def read_results(self) -> dict[str, Any] | None:
        """What was measured; None if there is nothing, or something else."""
        results = read_json(self.results)
        if not isinstance(results, dict) or not {"protocol", "environment"} <= {*results}:
            return None
        return results if isinstance(results.get("classes"), dict) else None

    def written(self) -> int | None:
        """When the checkpoint was written, in nanoseconds; None if there is none."""
        try:
            return self.checkpoint.stat().st_mtime_ns
        except OSError:
            return None


def _begins(file: Path, head: str) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(head)) == head.encode()


def _is_own_picture(file: Path) -> bool:
    return is_own_png(file) if file.suffix == ".png" else is_own_jpeg(file)
