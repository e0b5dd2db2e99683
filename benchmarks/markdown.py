"""Markdown that the reports write: tables, and generated sections in pages written by hand."""

from collections.abc import Iterable, Iterator, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def around(page: str, begin: str, end: str) -> tuple[str, str]:
    """The text before and after the section between two marks.

    Args:
        page: the whole text.
        begin: the line before the section.
        end: the line after it.

    Raises:
        ValueError: the marks are not there, once and in order.
    """
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended or begin in rest or end in after:
        raise ValueError(f"expected the lines '{begin}' and '{end}', once and in this order")
    return before, after
