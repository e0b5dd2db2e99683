"""The table of what was scored: each row is on disk before its image moves."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from crad.errors import OutputError, StorageError
from crad.report.scores import COLUMNS, boxes_of
from crad.watching.inbox import Arrival, Identity

HEAD = ("time", *COLUMNS, "moved_to", "heat_map", "bytes", "modified")
_LINE_END = b"\r\n"

_LONGEST_CELL = 2**24  # a noisy map has many regions


def _rows(reader: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with long cells; the limit is one of the whole process, so it is set for each row."""
    while True:
        former = csv.field_size_limit(_LONGEST_CELL)
        try:
            row = next(reader, None)
        finally:
            csv.field_size_limit(former)
        if row is None:
            return
        yield row


@dataclass(frozen=True)
class Entry:
    """A row that was written.

    Attributes:
        arrival: the image, where it arrived.
        moved_to: where it was to move, below the output folder; empty if it was to stay.
    """

    arrival: Arrival
    moved_to: str


class Record:
    """A CSV file that grows by a row for each image, and survives a crash.

    Opening it removes the part of a row that a crash left at its end.

    Args:
        path: the file, which is made if there is none.

    Attributes:
        n_removed: bytes of that part.

    Raises:
        OutputError: there is another file.
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StorageError(error.errno, error.strerror, str(path)) from error
        self._end = 0  # of the last whole row
        self._last = 0  # where that begins
        self._file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            self.n_removed = self._mend()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def last(self) -> Entry | None:
        """The last row; None if there is none.

        Raises:
            OutputError: somebody has changed it.
        """
        return next(self._read(self._last), None) if self._last < self._end else None

    def entries(self) -> Iterator[Entry]:
        """All rows, in order; errors as for `last`."""
        return self._read(len(_line(HEAD)))

    def _read(self, start: int) -> Iterator[Entry]:
        with self._path.open("rb") as file:
            file.seek(start)
            lines = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
            for row in _rows(csv.DictReader(lines, HEAD)):
                try:
                    identity = Identity(int(row["bytes"]), _nanoseconds(row["modified"]))
                except (TypeError, ValueError, AttributeError):
                    raise OutputError(
                        f"output: '{self._path}' was changed: the row of '{row['image']}' has no "
                        "bytes or time; undo that, or move it away"
                    ) from None
                yield Entry(Arrival(Path(row["image"]), identity), row["moved_to"])

    def add(
        self,
        arrival: Arrival,
        row: Mapping[str, Any],
        *,
        moved_to: str = "",
        heat_map: str = "",
    ) -> None:
        """Add a row; it is on disk when this returns.

        Args:
            arrival: the image.
            row: what was found, as of `crad.report.scores.row_of`.
            moved_to: as of `Entry`.
            heat_map: its file, below the output folder; empty without one.

        Raises:
            StorageError: it cannot be written; the file is as before.
        """
        regions = row["regions"]
        cells = {
            **row,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "image": str(arrival.path),
            "regions": None if regions is None else boxes_of(each["box"] for each in regions),
            "moved_to": moved_to,
            "heat_map": heat_map,
            "bytes": arrival.identity.size,
            "modified": _text(arrival.identity.modified),
        }
        self._append(_line([cells[name] for name in HEAD]))

    def _append(self, data: bytes) -> None:
        try:
            self._file.seek(self._end)
            rest = data
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            self._file.truncate(self._end)
            if isinstance(error, OSError):
                raise StorageError(error.errno, error.strerror, str(self._path)) from error
            raise
        self._last, self._end = self._end, self._end + len(data)

    def _mend(self) -> int:
        """Cut the file after its last whole row, or write the names of the columns.

        Returns:
            The bytes that were cut.
        """
        head = _line(HEAD)
        first = self._file.read(len(head))
        if not head.startswith(first):
            raise OutputError(
                f"output: '{self._path}' is not the table of an earlier crad watch; move it away, "
                "or choose another --output"
            )
        if first != head:
            self._append(head)
            self._last = self._end
            _sync_folder(self._path.parent)
            return 0
        self._end = self._last = at = len(head)
        is_quoted = False  # a name may hold the end of a line
        with self._path.open("rb") as file:
            file.seek(at)
            for line in file:
                at += len(line)
                is_quoted ^= line.count(b'"') % 2 == 1
                if line.endswith(_LINE_END) and not is_quoted:
                    self._last, self._end = self._end, at
        if at > self._end:
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())
        return at - self._end


def _line(cells: Iterable[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue().encode("utf-8", errors="surrogateescape")


def _text(nanoseconds: int) -> str:
    """A time as text, to the nanosecond."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def _nanoseconds(text: str) -> int:
    whole, _, rest = text.removesuffix("Z").partition(".")
    seconds = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()
    return int(seconds) * 10**9 + int(rest)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
