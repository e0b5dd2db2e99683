"""Turns saved results into README's table, ``docs/benchmarks.md`` and plots.

``python -m benchmarks.report [FILE ...]`` reads what ``pytest benchmarks --benchmark-only
--benchmark-json FILE`` wrote, all of ``benchmarks/results`` if no file is named. Of every test the
newest file that holds it counts, with its machine, versions and date.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import markdown
from benchmarks.saved import unpack
from crad.files import replacing, write_atomically

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- benchmarks: written by python -m benchmarks.report -->"
END = "<!-- end of benchmarks -->"
OURS = "crad_kernels cpu"
UNMEASURED = "not yet measured"

# The cases of README's table: name and layout.
README_CASES = (
    ("CRAD local", None),
    ("CRAD global", None),
    ("2-D", None),
    ("2-D, few channels", None),
    ("3-D, large", None),
    ("3-D", None),
    ("4-D", None),
    ("6-D", None),
    ("image warp", "channels first"),
)

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Cases that differ in one number.

    Attributes:
        field: the number.
        label: of the axis.
        fixed: what the others are.
    """

    field: str
    label: str
    fixed: Mapping[str, Any]


SWEEPS = (
    Sweep("points", "points", {"dimensions": 2, "entries": 4096, "channels": 16}),
    Sweep("entries", "entries of the grid", {"dimensions": 2, "channels": 216, "points": 50_176}),
    Sweep("channels", "channels", {"dimensions": 2, "entries": 64, "points": 50_176}),
    Sweep("dimensions", "dimensions D", {"entries": 4096, "channels": 64, "points": 50_176}),
)


# ---- what is read ----


@dataclass(frozen=True)
class Run:
    """The results of a test file in one run, and where they were measured."""

    date: str
    machine: Mapping[str, Any]
    results: Sequence[Result]

    @property
    def about(self) -> str:
        """Machine, versions and date, as a sentence."""
        m = self.machine
        changed = " with changes" if m["changed_since_commit"] else ""
        commit = f", commit {m['commit'][:10]}{changed}" if m["commit"] else ""
        return (
            f"Measured on {self.date}: {m['cpu']}, {m['cores']} cores, {m['threads']} threads, "
            f"{m['isa']}; torch {m['torch']}, NumPy {m['numpy']}, Python {m['python']}, "
            f"crad {m['crad']}{commit}."
        )


def read(paths: Iterable[Path]) -> dict[str, Run]:
    """The newest run of every test file, by its name; files of other kinds are passed over.

    Files of the same day, machine, versions and commit are parts of one run; what two of them hold
    is taken from the later one by name.
    """
    runs: dict[str, Run] = {}
    contents = [json.loads(path.read_text()) for path in paths]
    for content in sorted(
        (content for content in contents if "groups" in content), key=lambda c: str(c["date"])
    ):
        of_file: dict[str, list[Result]] = {}
        for result in unpack(content["groups"]):
            name = Path(result["test"].partition("::")[0]).stem
            of_file.setdefault(name, []).append(result)
        for name, results in of_file.items():
            run = Run(content["date"], content["machine"], results)
            former = runs.get(name)
            if former and (former.date, former.machine) == (run.date, run.machine):
                parts = [*former.results, *results]
                newest = {(part["group"], part["name"]): part for part in parts}
                run = Run(run.date, run.machine, list(newest.values()))
            runs[name] = run
    return runs


# ---- tables ----


def number(value: float) -> str:
    """Three digits, without an exponent: 0.0134, 1.34, 1,340."""
    if value == 0:
        return "0"
    text = f"{float(f'{value:.3g}'):,.10f}".rstrip("0").rstrip(".")
    digits = text.replace(",", "").replace(".", "").lstrip("0")
    return text if len(digits) >= 3 or value >= 100 else f"{value:#.3g}"


def ms(seconds: float) -> str:
    """A time in milliseconds."""
    return number(seconds * 1e3)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown, and an empty one."""
    yield from markdown.table(head, rows)
    yield ""


def groups(results: Iterable[Result]) -> dict[str, dict[str, Result]]:
    """Results by group and by name."""
    found: dict[str, dict[str, Result]] = {}
    for result in results:
        found.setdefault(result["group"], {})[result["name"]] = result
    return found


def floor_of(group: Mapping[str, Result]) -> Result | None:
    """What moves the memory and nothing else."""
    return next((result for name, result in group.items() if name.startswith("floor")), None)


def fastest_peer(group: Mapping[str, Result]) -> Result | None:
    """The fastest that is not ours."""
    others = [
        result for name, result in group.items() if not name.startswith(("floor", "crad_kernels"))
    ]
    return min(others, key=lambda result: float(result["median"]), default=None)


def _size(result: Result) -> str:
    return "x".join(map(str, result["size"]))


def _times(group: Mapping[str, Result], other: Result | None) -> str:
    """Our time as a multiple of the floor's, or another's as a multiple of ours."""
    ours = group.get(OURS)
    if ours is None or other is None:
        return "-"
    if other["name"].startswith("floor"):
        return number(ours["median"] / other["median"])
    return number(other["median"] / ours["median"])


def readme_table(results: Sequence[Result]) -> Iterator[str]:
    """Forward and backward beside the fastest peer, and forward beside filling the output."""

    def group(case: tuple[str, str | None], direction: str, jitter: bool) -> dict[str, Result]:
        about = (*case, direction, jitter)
        fields = ("case", "layout", "direction", "jitter")
        return {r["name"]: r for r in results if tuple(r[field] for field in fields) == about}

    rows = []
    for case in README_CASES:
        both = group(case, "forward + backward", True)
        forward = group(case, "forward", False)
        if OURS not in both:
            continue
        ours, peer = both[OURS], fastest_peer(both)
        layout = f", {case[1]}" if case[1] else ""
        rows.append(
            (
                f"{case[0]}: {_size(ours)}, {ours['channels']:,}, {ours['points']:,}{layout}",
                ms(ours["median"]),
                f"{ms(peer['median'])} (`{peer['name']}`)" if peer else "-",
                _times(both, peer),
                _times(forward, floor_of(forward)),
                UNMEASURED,
            )
        )
    yield from table(
        (
            "grid, channels, points",
            "`crad_kernels`, ms",
            "fastest peer, ms",
            "peer / ours",
            "forward / fill",
            "GPU",
        ),
        rows,
    )


def peers_table(results: Sequence[Result], direction: str) -> Iterator[str]:
    """All peers on all cases, in milliseconds."""
    of_direction = groups(r for r in results if r["direction"] == direction)
    names = list(dict.fromkeys(name for group in of_direction.values() for name in group))
    names.sort(key=lambda name: (not name.startswith("floor"), not name.startswith(OURS)))
    rows = []
    for group in of_direction.values():
        first = next(iter(group.values()))
        traits = [_size(first), f"{first['channels']:,}", f"{first['points']:,}"]
        jitter = (
            ""
            if first["jitter"] == (direction != "forward")
            else (", jitter" if first["jitter"] else ", no jitter")
        )
        layout = f", {first['layout']}" if first["layout"] else ""
        rows.append(
            [
                f"{first['case']}{layout}{jitter}",
                *traits,
                *(ms(group[name]["median"]) if name in group else "-" for name in names),
                _times(group, floor_of(group)),
                _times(group, fastest_peer(group)),
            ]
        )
    head = ["case", "grid", "C", "points", *names, "ours / floor", "fastest peer / ours"]
    yield from table(head, rows)


def memories_table(results: Sequence[Result]) -> Iterator[str]:
    """Time and memory of every look-up against the entries."""
    names = list(dict.fromkeys(r["memory"] for r in results))
    by = {(r["entries"], r["memory"]): r for r in results}
    rows = []
    for entries in sorted({r["entries"] for r in results}):
        found = [by.get((entries, name)) for name in names]
        rows.append(
            [
                f"{entries:,}",
                *(ms(r["median"]) if r else "-" for r in found),
                *(number(r["peak_bytes"] / 2**20) if r and r["peak_bytes"] else "-" for r in found),
            ]
        )
    head = ["entries", *(f"{n}, ms" for n in names), *(f"{n}, MiB" for n in names)]
    yield from table(head, rows)


def any_table(results: Sequence[Result]) -> Iterator[str]:
    """Of a test that this report knows nothing of."""
    rows = []
    for title, group in groups(results).items():
        best = min(float(result["median"]) for result in group.values())
        for name, result in group.items():
            rows.append((title, name, ms(result["median"]), number(result["median"] / best)))
    yield from table(("what", "how", "ms", "/ fastest"), rows)


# ---- plots ----


def plot(
    path: Path,
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, Sequence[tuple[float, float]]],
) -> None:
    """Lines on logarithmic axes, as an SVG that is the same for the same numbers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {"svg.hashsalt": "crad", "svg.fonttype": "none", "font.size": 9}
    with pyplot.rc_context(style), replacing(path) as temporary:
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for name, line in lines.items():
            floor = name.startswith("floor")
            axes.plot(
                *zip(*sorted(line), strict=True),
                marker="" if floor else "o",
                markersize=3,
                linestyle=":" if floor else "-",
                linewidth=2.5 if name in (OURS, "grid") else 1.2,
                color="black" if floor else None,
                label=name,
            )
        axes.set(xscale="log", yscale="log", xlabel=labels[0], ylabel=labels[1], title=title)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def sweep_lines(results: Sequence[Result], sweep: Sweep) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of every peer against the number that the sweep varies."""
    fixed = {
        **sweep.fixed,
        "layout": None,
        "dtype": "float32",
        "direction": "forward + backward",
        "jitter": True,
    }
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        if all(result[field] == value for field, value in fixed.items()):
            point = float(result[sweep.field]), 1e3 * float(result["median"])
            lines.setdefault(result["name"], []).append(point)
    return lines


def memories_lines(
    results: Sequence[Result], field: str, unit: float
) -> dict[str, list[tuple[float, float]]]:
    """A number of every look-up against the entries."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        if result[field]:
            point = float(result["entries"]), float(result[field]) * unit
            lines.setdefault(result["memory"], []).append(point)
    return lines


# ---- pages ----


def peers_section(run: Run, docs: Path) -> Iterator[str]:
    """The kernels beside their peers."""
    yield from ("## Sampling", "", run.about, "")
    yield (
        "Milliseconds, medians. A floor moves the memory that every peer has to move and computes "
        "nothing: *fill* fills the result, *copy* reads the inputs and writes all results. The "
        "forward is without a graph and, unless said, without jitter; forward + backward is with "
        "jitter unless said. Where no layout is named, every peer has the one that it likes best. "
        "bfloat16 values have float32 coordinates; peers that do not take them are given float32, "
        "and their result is rounded. A dash: not installed, cannot do it, or takes too much time "
        "or memory; `pytest benchmarks --benchmark-only -rs` says which."
    )
    yield ""
    for direction in ("forward", "forward + backward"):
        yield from (f"### {direction.capitalize()}", "")
        yield from peers_table(run.results, direction)
    yield from ("GPU: " + UNMEASURED + ".", "")
    for sweep in SWEEPS:
        lines = sweep_lines(run.results, sweep)
        if len({x for line in lines.values() for x, _ in line}) < 2:
            continue
        fixed = ", ".join(f"{value:,} {name}" for name, value in sweep.fixed.items())
        name = f"time-against-{sweep.field}.svg"
        title = f"forward + backward, jitter; {fixed}"
        plot(docs / name, title, (sweep.label, "milliseconds"), lines)
        yield from (f"![Time against {sweep.field}; {fixed}]({name})", "")


def memories_section(run: Run, docs: Path) -> Iterator[str]:
    """The memory look-up."""
    first = run.results[0]
    yield from ("## The memory look-up", "", run.about, "")
    yield (
        f"{first['points']:,} features of {first['channels']} channels looked up in a memory, "
        "without gradients. The grid is square, two-dimensional, and sampled at coordinates that "
        "are a linear function of the feature, which is timed too; VQ takes the nearest entry "
        "(`torch.cdist`, `argmin`, gather), with at most 2^28 distances kept at a time; attention "
        "is `F.scaled_dot_product_attention`, the entries being keys and values. The memory is "
        "what a fresh process grows by at most, beyond features and entries; the result alone "
        f"takes {number(first['points'] * first['channels'] * 4 / 2**20)} MiB."
    )
    yield ""
    yield from memories_table(run.results)
    for field, unit, label, name in (
        ("median", 1e3, "milliseconds", "look-up-time.svg"),
        ("peak_bytes", 2.0**-20, "MiB", "look-up-memory.svg"),
    ):
        lines = memories_lines(run.results, field, unit)
        plot(docs / name, "memory look-up", ("entries", label), lines)
        yield from (f"![Memory look-up: {label} against entries]({name})", "")


def page(runs: Mapping[str, Run], docs: Path) -> Iterator[str]:
    """``docs/benchmarks.md``, the plots beside it."""
    yield from ("<!-- Written by `python -m benchmarks.report`. -->", "# Benchmarks", "")
    for name, run in sorted(runs.items(), key=lambda item: item[0] != "test_peers"):
        if name == "test_peers":
            yield from peers_section(run, docs)
        elif name == "test_memories":
            yield from memories_section(run, docs)
        else:
            yield from (f"## `benchmarks/{name}.py`", "", run.about, "")
            yield from any_table(run.results)


def replaced(text: str, lines: Iterable[str]) -> str:
    """The text with what is between the markers replaced.

    Raises:
        ValueError: if the markers are not there, once and in order.
    """
    before, after = markdown.around(text, BEGIN, END)
    return before + BEGIN + "\n" + "\n".join(lines).rstrip() + "\n" + END + after


def write(paths: Sequence[Path], root: Path) -> None:
    """Write README's table, the page and the plots below ``root``."""
    runs = read(paths)
    if not runs:
        raise ValueError(f"no results in {', '.join(map(str, paths)) or 'benchmarks/results'}")
    docs = root / "docs"
    text = "\n".join(page(runs, docs)).rstrip() + "\n"
    write_atomically(docs / "benchmarks.md", lambda file: file.write(text.encode()))
    if "test_peers" in runs:
        run = runs["test_peers"]
        readme = root / "README.md"
        lines = [run.about, "Forward + backward with jitter, float32.", ""]
        new = replaced(readme.read_text(), [*lines, *readme_table(run.results)])
        write_atomically(readme, lambda file: file.write(new.encode()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    write(options.files or sorted((ROOT / "benchmarks/results").glob("*.json")), ROOT)


if __name__ == "__main__":
    main()
