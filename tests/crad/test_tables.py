"""Columns of a table: their widths, sides, titles and rules."""

from crad.report.tables import lay_out, printable


def test_columns() -> None:
    rows = [["name", "kind", "n"], ["a", "long kind", "1.25"], ["面板", "b", "10"]]
    assert lay_out(rows, left=2) == [
        "name  kind          n",
        "---------------------",
        "a     long kind  1.25",
        "面板  b            10",
    ]


def test_a_total_and_titles() -> None:
    rows = [["class", "a", "b"], ["brick", "1", "2"], ["all", "", ""]]
    assert lay_out(rows, total=True, titles=[("who", 1), ("a wide title", 2)]) == [
        "who    a wide title",
        "class          a  b",
        "-------------------",
        "brick          1  2",
        "-------------------",
        "all",
    ]


def test_what_a_terminal_cannot_show_is_escaped(capsys) -> None:
    assert printable("a\nb\x1b[31m\u2028\udce9") == r"a\nb\x1b[31m\u2028\udce9"
