"""A comparison that a command measures: records in a folder, and a page that is made of them."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.paper.files import write_text
from crad.errors import OutputError
from crad.outputs import locked


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
