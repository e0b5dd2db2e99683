"""Writers of the data beside tables and figures: records, text and arrays."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crad.errors import OutputError
from crad.files import write_atomically, write_json

WRITTEN_BY = "python -m benchmarks.paper"
"""In the text of every target, by which its files are known."""


def files_of(folder: Path, name: str) -> list[Path]:
    """The files of a target in a folder."""
    found = sorted([*folder.glob(f"{name}.*"), *folder.glob(f"{name}-*.*")])
    return [path for path in found if path.is_file()]


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse, before anything is trained, a folder with files of others by the names of targets.

    Args:
        folder: that the files of targets are written into.
        names: of the targets.

    Raises:
        OutputError: there is such a file.
    """
    for name in names:
        text, found = folder / f"{name}.md", files_of(folder, name)
        if found and not (
            text.is_file() and WRITTEN_BY in text.read_text(encoding="utf-8", errors="replace")
        ):
            raise OutputError(
                f"output: '{found[0]}' exists and was not written by {WRITTEN_BY}; move it away, "
                "or choose another folder with --output"
            )


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as CSV and as JSON, atomically.

    Args:
        path: without a suffix.
        records: the rows; in CSV, the items of a list are separated by spaces.

    Raises:
        OSError: a file cannot be written.
    """
    records = list(records)
    write_json(path.with_suffix(".json"), records)
    columns = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {
                name: " ".join(map(str, value)) if isinstance(value, list) else value
                for name, value in record.items()
            }
        )
    data = text.getvalue().encode()
    write_atomically(path.with_suffix(".csv"), lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    data = text.encode()
    write_atomically(path, lambda file: file.write(data))


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays by name as NPZ, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))
