"""Tables of scores, written row by row: what stops a prediction loses no row before."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from crad.errors import OutputError, StorageError
from crad.files import remove_leftovers, replacing
from crad.outputs import Output, try_lock
from crad.scoring.prediction import Prediction

COLUMNS = ("image", "score", "p_value", "decision", "threshold", "class_name", "regions")
_FORMER = (  # of older versions
    ("image", "score", "decision", "threshold", "class_name"),
    ("image", "score", "p_value", "decision", "threshold", "class_name"),
)
_LONGEST_ROW = 2**20  # bytes; a path has at most 4,096, and a map hundreds of regions

Row = Mapping[str, Any]


def row_of(prediction: Prediction) -> Row:
    """The row of an image."""
    values = (
        str(prediction.path),
        prediction.score,
        prediction.p_value,
        prediction.decision,
        prediction.threshold,
        prediction.class_name,
        None if prediction.regions is None else [*map(asdict, prediction.regions)],
    )
    return dict(zip(COLUMNS, values, strict=True))


def boxes_of(boxes: Iterable[Sequence[int]]) -> str:
    """Boxes in a cell of a table: left, top, right and bottom of each."""
    return "; ".join(" ".join(map(str, box)) for box in boxes)


class Format(Protocol):
    """How rows become a file. After each row the file is complete."""

    begin: bytes
    between: bytes
    end: bytes

    def encode(self, row: Row) -> bytes:
        """The bytes of a row."""

    def is_own(self, path: Path) -> bool:
        """Whether a file is a table of this format that crad wrote."""


class Csv:
    """Comma-separated values, a line for each image below the names of the columns."""

    between = end = b""

    def __init__(self) -> None:
        self.begin = self.line(COLUMNS)

    def encode(self, row: Row) -> bytes:
        """A line; of regions, it has the boxes."""
        regions = row["regions"]
        boxes = None if regions is None else boxes_of(each["box"] for each in regions)
        return self.line([{**row, "regions": boxes}[name] for name in COLUMNS])

    def is_own(self, path: Path) -> bool:
        """Whether the first line names the columns."""
        with path.open("rb") as file:
            first = file.readline(len(self.begin))
        return first in map(self.line, (COLUMNS, *_FORMER))

    @staticmethod
    def line(cells: Sequence[Any]) -> bytes:
        """The cells of a line, as bytes."""
        text = io.StringIO(newline="")
        csv.writer(text).writerow(cells)
        return text.getvalue().encode("utf-8", errors="backslashreplace")


class Json:
    """A list of objects."""

    begin, between, end = b"[\n", b",\n", b"\n]\n"

    def encode(self, row: Row) -> bytes:
        """An object on a line."""
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        # A file name that is not UTF-8 holds lone surrogates; a backslash makes each an escape.
        return b"  " + text.encode("utf-8", errors="backslashreplace")

    def is_own(self, path: Path) -> bool:
        """Whether the file begins as a list of scores."""
        with path.open("rb") as file:
            head = file.read(_LONGEST_ROW).decode("utf-8", errors="replace")
        begin = re.match(r"\[\s*", head)
        try:
            row, _ = json.JSONDecoder().raw_decode(head, begin.end() if begin else 0)
        except (ValueError, RecursionError):
            return False
        return isinstance(row, dict) and tuple(row) in (COLUMNS, *_FORMER)


class ScoreFile:
    """A table that takes the place of a former one with its first row, and then grows.

    Args:
        option: that asks for it.
        path: the file.
        form: of its rows.
    """

    def __init__(self, option: str, path: Path, form: Format) -> None:
        self.output = Output(option, path, form.is_own)
        self._path = path
        self._form = form
        self._file: BinaryIO | None = None

    def check(self) -> None:
        """Refuse a table that another command is writing.

        Raises:
            OutputError: it is.
        """
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            if not try_lock(file.fileno()):
                raise OutputError(
                    f"{self.output.option}: another command is writing '{self._path}'; wait until "
                    f"it ends, or give another {self.output.option}"
                )

    def add(self, row: Row) -> None:
        """Add a row; it is in the file when this returns.

        Raises:
            StorageError: it cannot be written; the rows before it are in the file.
        """
        data = self._form.encode(row) + self._form.end
        try:
            if self._file is None:
                remove_leftovers([self._path])
                with replacing(self._path) as temporary:
                    file = temporary.open("w+b", buffering=0)
                    try_lock(file.fileno())
                    _write(file, self._form.begin + data)
                self._file = file
            else:
                self._append(self._file, self._form.between + data)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Wait until the rows are on disk.

        Raises:
            StorageError: they cannot be written.
        """
        if self._file:
            try:
                with self._file as file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise StorageError(error.errno, error.strerror, str(self._path)) from error

    def _append(self, file: BinaryIO, data: bytes) -> None:
        end = file.seek(0, os.SEEK_END) - len(self._form.end)
        try:
            file.seek(end)
            _write(file, data)
        except BaseException:
            file.truncate(end)
            file.seek(end)
            _write(file, self._form.end)
            raise


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of the data, of which a system call may take a part only."""
    while data:
        data = data[file.write(data) :]
