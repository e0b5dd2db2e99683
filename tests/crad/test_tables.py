"""Tables for a terminal: what is flush where, and how wide characters are."""

from crad.report import tables


def test_words_are_flush_left_and_numbers_flush_right() -> None:
    rows = [["name", "kind", "ms"], ["a", "long kind", "1.25"], ["面板", "b", "10"]]
    widths = tables.widths(rows)
    assert widths == [4, 9, 4]
    assert [tables.line(row, widths, left=2) for row in rows] == [
        "name  kind         ms",
        "a     long kind  1.25",
        "面板  b            10",
    ]
    assert tables.line(rows[2], widths) == "面板          b    10"
    assert tables.rule(widths) == "-" * tables.span(widths) == "-" * len("a     long kind  1.25")


def test_a_line_ends_with_its_last_word() -> None:
    assert tables.line(["all", "", ""], [5, 3, 4]) == "all"
