"""Tables and plots made of saved results."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, saved
from benchmarks.cases import Case

MACHINE = {
    "cpu": "Abacus 2",
    "cores": 2,
    "threads": 2,
    "isa": "AVX512",
    "torch": "2.14.1",
    "numpy": "2.4",
    "python": "3.11",
    "crad": "0.1.0",
    "commit": "0123456789abcdef",
    "changed_since_commit": True,
}


def result(case: Case, name: str, median: float, backward: bool = True) -> dict[str, Any]:
    direction = "forward + backward" if backward else "forward"
    return {
        "test": "benchmarks/test_peers.py::test_peer",
        "group": f"{case}; {direction}",
        "name": name,
        **case.facts,
        "direction": direction,
        "jitter": backward,
        **dict.fromkeys(saved.SECONDS, median),
        "rounds": 15,
    }


LOCAL = Case("CRAD local", (8, 8), 216)
PEERS = [
    result(LOCAL, "floor: fill", 0.001, backward=False),
    result(LOCAL, "crad_kernels cpu", 0.0015, backward=False),
    result(LOCAL, "floor: copy", 0.002),
    result(LOCAL, "crad_kernels cpu", 0.004),
    result(LOCAL, "crad_kernels reference", 0.003),  # ours too, so never the fastest peer
    result(LOCAL, "F.grid_sample, flat", 0.1),
    result(LOCAL, "F.embedding_bag", 0.036),
]
MEMORIES = [
    {
        "test": "benchmarks/test_memories.py::test_look_up",
        "group": str(entries),
        "name": name,
        "memory": name,
        "entries": entries,
        "channels": 216,
        "points": 1000,
        "median": 0.001 * entries if name == "VQ" else 0.01,
        "peak_bytes": 2**20 * entries,
    }
    for entries in (64, 256)
    for name in ("grid", "VQ")
]


def save(path: Path, results: list[dict[str, Any]], date: str = "2026-11-24") -> Path:
    path.write_text(json.dumps({"date": date, "machine": MACHINE, "groups": saved.pack(results)}))
    return path


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01341, "0.0134"), (1.3, "1.30"), (12.34, "12.3"), (1336.0, "1,340"), (100.2, "100")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_table_of_readme() -> None:
    lines = list(report.readme_table(PEERS))
    assert lines[2] == (
        "| CRAD local: 8x8, 216, 50,176 | 4.00 | 36.0 (`F.embedding_bag`) | 9.00 | 1.50 "
        "| not yet measured |"
    )
    assert len(lines) == 4  # of the other cases there are no results


def test_the_table_of_all_peers() -> None:
    head, _, row, _ = report.peers_table(PEERS, "forward + backward")
    assert head.split(" | ")[4:6] == ["floor: copy", "crad_kernels cpu"]
    assert row.removesuffix(" |").split(" | ")[-2:] == ["2.00", "9.00"]
    assert row.split(" | ")[3] == "50,176"


def test_what_a_sweep_draws() -> None:
    results = [
        *PEERS,
        result(Case("more", (64, 64), 216), "crad_kernels cpu", 0.008),
        result(Case("other", (64, 64), 216, layout="channels last"), "crad_kernels cpu", 1.0),
    ]
    (entries,) = [sweep for sweep in report.SWEEPS if sweep.field == "entries"]
    lines = report.sweep_lines(results, entries)
    assert lines["crad_kernels cpu"] == [(64, 4.0), (4096, 8.0)]


def test_the_newest_run_of_a_test_counts(tmp_path: Path) -> None:
    new = save(tmp_path / "a.json", PEERS[:1], "2026-11-25")
    old = save(tmp_path / "b.json", [*PEERS, *MEMORIES])
    other = tmp_path / "c.json"
    other.write_text('{"machine": {}, "steps": {}}')
    runs = report.read([new, old, other])
    assert {name: (run.date, len(run.results)) for name, run in runs.items()} == {
        "test_peers": ("2026-11-25", 1),
        "test_memories": ("2026-11-24", 4),
    }


def test_saved_results_are_read_again() -> None:
    packed = saved.pack(PEERS + MEMORIES)
    assert list(saved.unpack(packed)) == PEERS + MEMORIES
    assert packed[1]["channels"] == 216
    assert packed[1]["times"]["F.embedding_bag"] == {
        **dict.fromkeys(saved.SECONDS, 0.036),
        "rounds": 15,
    }


def test_parts_of_a_run_are_put_together(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.json", part) for i, part in enumerate((PEERS[:2], PEERS[2:]))]
    assert report.read(paths)["test_peers"].results == PEERS
    again = result(LOCAL, "F.embedding_bag", 0.05)
    paths.append(save(tmp_path / "again.json", [again]))
    assert report.read(paths)["test_peers"].results == [*PEERS[:-1], again]


def test_pages_and_plots_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    model = {"test": "benchmarks/test_crad.py::test_train", "group": "a step", "name": "ours"}
    more = result(Case("more", (64, 64), 216), "crad_kernels cpu", 0.008)
    path = save(tmp_path / "run.json", [*PEERS, more, *MEMORIES, {**model, "median": 1.5}])
    report.write([path], tmp_path)

    text = readme.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith(f"{report.END}\nafter\n")
    about = "Measured on 2026-11-24: Abacus 2, 2 cores, 2 threads, AVX512; torch 2.14.1"
    assert about in text
    assert "commit 0123456789 with changes" in text

    docs = (tmp_path / "docs/benchmarks.md").read_text()
    assert docs.count(about) == 3
    assert "| a step | ours | 1,500 | 1.00 |" in docs
    assert "| 256 | 10.0 | 256 | 256 | 256 |" in docs
    assert "not yet measured" in docs
    plots = {path.name: path.read_bytes() for path in (tmp_path / "docs").glob("*.svg")}
    assert set(plots) == {"time-against-entries.svg", "look-up-time.svg", "look-up-memory.svg"}
    report.write([path], tmp_path)
    assert plots == {path.name: path.read_bytes() for path in (tmp_path / "docs").glob("*.svg")}


@pytest.mark.parametrize("text", ["", report.BEGIN, report.END + report.BEGIN])
def test_a_readme_without_markers(text: str) -> None:
    with pytest.raises(ValueError, match="once and in this order"):
        report.replaced(text, ["line"])


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results"):
        report.write([], tmp_path)
