"""The page of results: sections between marks, and what each says of its runs."""

from pathlib import Path

import pytest

from benchmarks.paper import page
from benchmarks.paper.files import WRITTEN_BY, check_files
from benchmarks.paper.page import check_page, put_into, section
from benchmarks.paper.runs import Runs
from benchmarks.paper.targets import TARGETS
from benchmarks.paper.variants import Variant
from crad.config import Config, DataConfig
from crad.errors import OutputError


class TrainedAt(Runs):
    """Runs whose code had these commits, in turn."""

    commits: tuple[str | None, ...] = (None,)

    def classes(self) -> tuple[str, ...]:
        return ("brick", "gauge")

    def results(self, variant: Variant) -> list:
        environment = {
            "cpu": "Abacus 2", "cpu_count": 2, "threads": 1, "device": "cpu", "torch": "2.14",
            "numpy": "2.4", "python": "3.11", "crad": "0.1.0",
        }  # fmt: skip
        timing = {"features": 1.5, "training": 20.0}
        return [
            {"timing": timing, "environment": {**environment, "commit": each}}
            for each in self.commits
        ]


def about(monkeypatch: pytest.MonkeyPatch, written: str | None, *commits: str | None) -> str:
    monkeypatch.setattr(page, "commit", lambda: written)
    monkeypatch.setattr(TrainedAt, "commits", commits)
    runs = TrainedAt(Config(data=DataConfig("somewhere/screws")), (0, 1), Path("runs"))
    return section(TARGETS["figure2b"], "The body.", runs, "the command")


def test_a_section_names_settings_times_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    text = about(monkeypatch, None, None, None)
    assert text.startswith(f"## {TARGETS['figure2b'].title}\n\nThe body.\n\n")
    for part in (
        "`the command`", "data screws", "brick, gauge", "seeds 0, 1", "`--preset ", "2 runs",
        "features 3 s", "training 40 s", "Abacus 2, 2 cores, 1 thread", "device cpu", "torch 2.14",
    ):  # fmt: skip
        assert part in text
    assert "commit" not in text.partition("the command")[2]


@pytest.mark.parametrize(
    ("written", "commits", "expected"),
    [
        ("aaaa", ("aaaa", "aaaa"), ["commit aaaa"]),
        ("bbbb", ("aaaa", "aaaa"), ["commit aaaa", "by commit bbbb"]),
        ("bbbb", ("aaaa", "bbbb"), ["commit aaaa and bbbb", "by commit bbbb"]),
        (None, ("aaaa", None), ["commit aaaa"]),
    ],
)
def test_a_section_names_the_commits(
    written: str | None,
    commits: tuple[str | None, ...],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = about(monkeypatch, written, *commits)
    assert all(part in text for part in expected)
    assert text.count("commit ") == len(expected)


def test_a_section_is_replaced_and_the_prose_around_it_kept(tmp_path: Path) -> None:
    folder, file = tmp_path / "made", tmp_path / "docs" / "page.md"
    folder.mkdir()
    for name in ("dims.svg", "dims-more.csv", "dims.md", "dimsum.csv"):
        (folder / name).write_text(name)
    put_into(file, "dims", "## Dims\n\n![plot](dims.svg)\n", folder)
    put_into(file, "table1", "one\n", folder)
    assert {path.name for path in file.with_suffix("").iterdir()} == {"dims.svg", "dims-more.csv"}
    assert "![plot](page/dims.svg)" in file.read_text()
    file.write_text(file.read_text() + "By hand.\n")
    before = file.read_text()
    put_into(file, "table1", "two\n", folder)
    assert file.read_text() == before.replace("\none\n", "\ntwo\n")


def test_a_page_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    check_page(file, ["table1"])  # it need not exist
    file.write_text("<!-- table5: written by python -m benchmarks.paper -->\n")
    check_page(file, ["table1"])
    with pytest.raises(OutputError, match=r"page\.md.*'<!-- end of table5 -->'"):
        check_page(file, ["table1", "table5"])
    file.write_bytes(b"\xff")
    with pytest.raises(OutputError, match=r"page\.md.*UTF-8"):
        check_page(file, ["table1"])
    with pytest.raises(IsADirectoryError):
        check_page(tmp_path, ["table1"])


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    folder, page = tmp_path / "made", tmp_path / "page.md"
    folder.mkdir()
    check_files(folder, ["table1"])
    (folder / "table1.csv").write_text("mine")
    check_files(folder, ["table5"])
    with pytest.raises(OutputError, match=r"table1\.csv.*--output"):
        check_files(folder, ["table1"])
    (folder / "table1.md").write_text(f"`{WRITTEN_BY} table1`")
    check_files(folder, ["table1"])
    put_into(page, "table1", "one\n", folder)
    check_page(page, ["table1"])
    page.write_text("mine")
    with pytest.raises(OutputError, match=r"page.table1\.csv.*--report"):
        check_page(page, ["table1"])
