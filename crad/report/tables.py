"""Tables for a terminal: columns two spaces apart, words flush left and numbers flush right."""

import unicodedata
from collections.abc import Sequence

__all__ = ["line", "rule", "span", "width", "widths"]

_GAP = 2


def widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Give each column the width of its widest cell; all rows have as many cells."""
    return [max(map(width, column)) for column in zip(*rows, strict=True)]


def line(cells: Sequence[str], widths: Sequence[int], *, left: int = 1) -> str:
    """Join the cells of a row, the first ``left`` flush left and the others flush right.

    Args:
        cells: no wider than their columns.
        widths: of the columns.
        left: number of cells.
    """
    padded = []
    for column, (cell, wide) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (wide - width(cell))
        padded.append(cell + space if column < left else space + cell)
    return (" " * _GAP).join(padded).rstrip()


def span(widths: Sequence[int]) -> int:
    """The width of columns together, from the first to the last."""
    return sum(widths) + _GAP * (len(widths) - 1)


def rule(widths: Sequence[int]) -> str:
    """Draw a line below or above rows with columns of these widths."""
    return "-" * span(widths)


def width(text: str) -> int:
    """Columns that `text` takes in a terminal: an East Asian wide character takes two."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)
