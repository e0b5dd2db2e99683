"""A comparison that a command measures: records in a folder, and a page that is made of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.paper.files import write_text
from crad.errors import OutputError
from crad.files import read_json
from crad.outputs import locked

Record = dict[str, Any]
"""What a run measured, as its JSON file holds it."""


def mark(command: str) -> str:
    """The first line of a page, by which the command knows its own."""
    return f"<!-- written by {command} -->"


def compare(
    command: str,
    output: Path,
    report: Path | None,
    measure: Callable[[], None] | None,
    page: Callable[[], str],
) -> None:
    """Measure what is missing, and write the page.

    Args:
        command: that the user gave.
        output: folder of the records.
        report: file of the page; None writes none.
        measure: writes records to the folder; None measures nothing.
        page: the text of the page, whose first line is `mark`.

    Raises:
        CradError: what ``measure`` and ``page`` raise.
        OSError: the page cannot be read or written.
        OutputError: the folder is in use, or the page is a file that the command did not write.
    """
    if report:
        _check_page(report, command)
    if measure:
        with locked(output):
            measure()
    if report:
        write_text(report, page())
        print(f"written to {report}")


def read_record(path: Path, command: str) -> Record | None:
    """What a run measured; None if it was not measured yet.

    Args:
        path: of its file.
        command: that wrote it.

    Raises:
        OutputError: there is another file by that name.
    """
    if not path.exists():
        return None
    stored = read_json(path)
    if not isinstance(stored, dict) or stored.get("made_by") != command:
        raise OutputError(
            f"output: '{path}' was not written by {command}; move it away, or choose another "
            "folder with --output"
        )
    return stored


def check_same(path: Path, stored: Record, identity: Mapping[str, Any]) -> None:
    """Refuse a record of other settings.

    Args:
        path: of its file.
        stored: the record.
        identity: the entries that it is to have.

    Raises:
        OutputError: one is another.
    """
    if changed := [key for key, value in identity.items() if stored.get(key) != value]:
        raise measured(path, f"with another {changed[0]}")


def measured(path: Path, how: str) -> OutputError:
    """The error of a record that was measured otherwise."""
    return OutputError(
        f"output: '{path}' was measured {how}; measure it again with --overwrite, or choose "
        "another folder with --output"
    )


def read_records(output: Path, command: str) -> list[Record]:
    """All records of a command in a folder; other files are passed over."""
    found = [read_json(path) for path in sorted(output.rglob("*.json"))]
    return [each for each in found if isinstance(each, dict) and each.get("made_by") == command]


def _check_page(report: Path, command: str) -> None:
    """Refuse a file that the command did not write."""
    if not report.exists():
        return
    first = mark(command)
    if not (report.is_file() and report.read_text("utf-8", "replace").startswith(first)):
        raise OutputError(
            f"report: '{report}' exists and was not written by {command}; move it away, or choose "
            "another file with --report"
        )
