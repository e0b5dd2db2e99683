"""Tables for a terminal: columns two spaces apart, words flush left and numbers flush right."""

import re
import sys
import unicodedata
from collections.abc import Sequence

_GAP = "  "
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def lay_out(
    rows: Sequence[Sequence[str]],
    *,
    left: int = 1,
    total: bool = False,
    titles: Sequence[tuple[str, int]] = (),
) -> list[str]:
    """Lay out a table whose first row is its head, and draw a rule below that.

    Args:
        rows: all with as many cells.
        left: number of columns that are flush left.
        total: whether the last row stands below a rule.
        titles: groups of columns, from the left: a title above them, and their number.
    """
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    spans, begin = [], 0
    for title, count in titles:
        widths[begin] += max(0, _width(title) - _span(widths[begin : begin + count]))
        spans.append(_span(widths[begin : begin + count]))
        begin += count
    rule = "-" * _span(widths)
    head, *body = (_line(row, widths, left) for row in rows)
    if total:
        body[-1:] = [rule, body[-1]]
    above = [_line([title for title, _ in titles], spans, 1)] if titles else []
    return [*above, head, rule, *body]


def printable(text: str) -> str:
    r"""Escape line breaks, as in ``a\nb``, and what the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    line = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    return line.encode(encoding, errors="backslashreplace").decode(encoding)


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded = []
    for column, (cell, wide) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (wide - _width(cell))
        padded.append(cell + space if column < left else space + cell)
    return _GAP.join(padded).rstrip()


def _span(widths: Sequence[int]) -> int:
    """The width of columns together, from the first to the last."""
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _width(text: str) -> int:
    """Columns that a text takes in a terminal: an East Asian wide character takes two."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)
