"""The page of the comparison, made of the JSON files that runs left."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks import markdown
from benchmarks.comparison import Record, mark, read_records
from benchmarks.images.cases import CASES, FORWARD, MODES
from benchmarks.images.options import COMMAND
from benchmarks.report import number
from crad.errors import OutputError
from crad.words import count

_SLOWEST, _FASTEST = 15, 5  # rows of the first tables
_EXAMPLE = "1x3x512x512, bilinear, zeros, smooth"  # the case that is explained

_ABOUT = """\
# Images and few points beside `F.grid_sample`

`crad_kernels.grid_sample` in place of `torch.nn.functional.grid_sample`, in the shapes that people
have: images of 1 to 4 channels, volumes, tables that are looked up, a few points on a feature map.
Both get the same tensors in the same memory format, in one process on the CPU.
"""

_READING = """\
A number is torch's time divided by ours: 2.00 means that ours takes half as long. **Bold: ours
takes longer.** `-` is not measured. What a case consists of:

| part of a case | meaning |
|---|---|
| `1x3x512x512` | batch x channels x size of the axes |
| `100 points` | how many places are sampled; without it, as many as the image has pixels |
| `nearest`, `bilinear`, `bicubic` | the interpolation |
| `zeros`, `border`, `reflection` | what is beyond the borders |
| `identity` | every pixel is sampled at its own place |
| `affine` | the image is turned by 0.3 rad and enlarged by a ninth |
| `smooth` | the image is moved by a wave |
| `random` | the places are anywhere |
| `colours` | the places are the colours of a smooth picture with noise |
| `channels last` | the memory format of the input; channels first without it |
| `float16`, `bfloat16` | the type of all tensors; float32 without it |
| `jitter 0.01` | noise on the coordinates: torch adds `0.01 * torch.randn_like(grid)` |

| step | meaning |
|---|---|
| forward | the sample alone |
| forward + backward | with the gradients of input and coordinates |
| the same, values alone | forward + backward with the gradient of the input |
| the same, coordinates alone | forward + backward with the gradient of the coordinates |"""

_MEASURING = """\
* Steps take turns, ours, torch's, torch's, ours, for 5 to 100 rounds; the least time of each
  counts. A step of less than 0.1 ms is repeated in each round.
* The gradients are new tensors, as from `torch.autograd.grad`.
* Ours takes jitter as `jitter_std`, in the same call.
* Images are bytes divided by 255. In half precision, the coordinates are of that type too, as torch
  demands; with float32 coordinates, which ours takes as well, results are more exact. Backward is
  not timed there: torch's can end the process in bfloat16.
* `F.grid_sample` takes two or three axes. Beside the table of four, torch gathers and weighs the
  corners one after the other.
* Each case is first checked: at most one result or gradient in a thousand may differ from torch's
  by more than the rounding of an index explains (a point on an edge may fall to either side). With
  jitter, the case is checked without it; half precision is checked against torch in float32.
* `F.grid_sample` shares the items of a batch out to threads, and ours points and channels too. So a
  single image on several threads is one thread of torch's beside all of ours.
* `CRAD_KERNELS_CPU_ISA` sets our instruction set; torch chooses its own.
* `OMP_WAIT_POLICY` is not set, so that torch's threads wait as they do by default.
* Noise: in the first case of each group, torch is timed against itself in the same rounds."""


def page_of(output: Path) -> str:
    """The page of all runs in a folder.

    Raises:
        OSError: a file cannot be read.
        OutputError: there are no runs.
    """
    records = read_records(output, COMMAND)
    if not records:
        raise OutputError(f"output: '{output}' holds no results; measure some with --isa")
    return page(records)


class Row:
    """A step of a case in all runs.

    Attributes:
        group: of the case.
        case: its name.
        step: its name.
        ratios: torch's time divided by ours in each run; None where it is not measured.
    """

    def __init__(self, records: Sequence[Record], case: str, step: str) -> None:
        self.case, self.step = case, step
        self.ratios: list[float | None] = []
        for record in records:
            found = record["cases"].get(case)
            times = found["seconds"].get(step) if found else None
            if found:
                self.group: str = found["group"]
            self.ratios.append(times["torch"] / times["ours"] if times else None)

    @property
    def known(self) -> list[float]:
        """The ratios that are measured."""
        return [ratio for ratio in self.ratios if ratio is not None]

    @property
    def cells(self) -> list[str]:
        """Of a table."""
        return [self.case, self.step, *map(_ratio, self.ratios)]


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    records = sorted(
        records, key=lambda each: (_cpu(each), each["isa"] == "avx512", each["threads"])
    )
    rows = [Row(records, case, step) for case, steps in _cases(records).items() for step in steps]
    parts = [
        f"{mark(COMMAND)}\n{_ABOUT}".rstrip(),
        "## How to read a row",
        _READING,
        *_example(records, rows),
        "## In short",
        *_in_short(records, rows),
        *(part for group in _groups(rows) for part in _section(records, rows, group)),
        *_others(records),
        "## How it was measured",
        _MEASURING,
        "## Runs",
        *map(_run, records),
    ]
    return "\n\n".join(parts) + "\n"


def _cases(records: Iterable[Record]) -> dict[str, dict[str, None]]:
    """Names of the cases in the order of `CASES`, and those of their steps."""
    found: dict[str, dict[str, None]] = {str(case): {} for case in CASES}
    for record in records:
        for name, case in record["cases"].items():
            found.setdefault(name, {}).update(dict.fromkeys(case["seconds"]))
    return found


def _groups(rows: Iterable[Row]) -> list[str]:
    return [*dict.fromkeys(row.group for row in rows)]


def _known(rows: Iterable[Row], run: int) -> list[float]:
    """The ratios of a run that are measured."""
    return [ratio for row in rows if (ratio := row.ratios[run]) is not None]


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return number(value) if round(value, 2) >= 1 else f"**{value:.2f}**"


def _cpu(record: Record) -> str:
    """Its name, short."""
    name: str = record["machine"]["cpu"]
    return re.sub(r"\(R\)|\(TM\)| (Processor|CPU)\b.*| @.*", "", name)


def _labels(records: Sequence[Record]) -> list[str]:
    """A name of each run, as short as tells them apart."""
    several = len({*map(_cpu, records)}) > 1
    labels = []
    for record in records:
        isa = {"avx2": "AVX2", "avx512": "AVX-512"}.get(record["isa"], record["isa"])
        machine = f"{_cpu(record)}, " if several else ""
        labels.append(f"{machine}{isa}, {count(record['threads'], 'thread')}")
    return labels


def _example(records: Sequence[Record], rows: Sequence[Row]) -> Iterator[str]:
    """A row in words."""
    chosen = next((row for row in rows if row.case == _EXAMPLE and row.step == FORWARD), None)
    ratio = next(iter(chosen.known), None) if chosen else None
    if chosen is None or ratio is None:
        return
    place = chosen.ratios.index(ratio)
    yield "For example:"
    yield "\n".join(markdown.table(["case", "step", *_labels(records)], [chosen.cells]))
    yield (
        "A photograph of three channels and 512 x 512 pixels is warped by a smooth movement, with "
        f"bilinear interpolation and zeros beyond its borders. With {_labels(records)[place]}, "
        f"torch takes {number(ratio)} times as long as ours; the other columns are other "
        "machines, instruction sets and numbers of threads."
    )


def _in_short(records: Sequence[Record], rows: Sequence[Row]) -> Iterator[str]:
    labels = _labels(records)
    head = ["case", "step", *labels]
    slowest = sorted(rows, key=lambda row: min(row.known))[:_SLOWEST]
    fastest = sorted(rows, key=lambda row: -max(row.known))[:_FASTEST]
    yield "Slowest, by the lowest ratio of a row:"
    yield "\n".join(markdown.table(head, (row.cells for row in slowest)))
    yield "Fastest, by the highest:"
    yield "\n".join(markdown.table(head, (row.cells for row in fastest)))
    yield (
        "Medians, and the lowest ratio of each. Images are float32 images without jitter; their "
        "forward + backward includes the gradients by one input alone:"
    )
    runs = range(len(records))
    cells = [
        [name, *(_median(_known(members, run)) for run in runs)]
        for name, members in _summaries(rows)
    ]
    everything = [_known(rows, run) for run in runs]
    cells.append(["all", *map(_median, everything)])
    cells.append(["ratios below 1", *map(_below, everything)])
    yield "\n".join(markdown.table(["what", *labels], cells))


def _summaries(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Names and members of the summary's rows: images by mode and step, and other groups."""
    images = {str(case): case.mode for case in CASES if case.is_image}
    for mode in MODES:
        of_mode = [row for row in rows if images.get(row.case) == mode]
        for label, is_forward in (("forward", True), ("forward + backward", False)):
            if members := [row for row in of_mode if (row.step == FORWARD) == is_forward]:
                yield f"images, {mode}, {label}", members
    for group in _groups(row for row in rows if row.case not in images):
        yield group, [row for row in rows if row.group == group]


def _median(ratios: Sequence[float]) -> str:
    return f"{_ratio(median(ratios))} ({_ratio(min(ratios))})" if ratios else "-"


def _below(ratios: Sequence[float]) -> str:
    return f"{sum(round(ratio, 2) < 1 for ratio in ratios)} of {len(ratios)}"


def _section(records: Sequence[Record], rows: Iterable[Row], group: str) -> Iterator[str]:
    yield f"## {group}"
    head = ["case", "step", *_labels(records)]
    yield "\n".join(markdown.table(head, (row.cells for row in rows if row.group == group)))


def _others(records: Sequence[Record]) -> Iterator[str]:
    """Forward passes beside what else samples images, if there are any."""
    found: dict[tuple[str, str], list[str]] = {}
    for place, record in enumerate(records):
        for case, entry in record["cases"].items():
            for name, share in entry.get("others_differ", {}).items():
                times = entry["seconds"]["forward"]
                cells = found.setdefault((case, name), ["-"] * len(records) + [""])
                cells[place] = _ratio(times[name] / times["ours"])
                cells[-1] = f"{100 * share:.2g} %"
    if not found:
        return
    yield "## Other ways"
    yield (
        "Their time divided by ours, forward.\n\n"
        "* *split over threads*: a view of the image for each thread, with its share of the "
        "points; the parts of the result are left apart.\n"
        "* *compiled*: by `torch.compile`, for this shape alone.\n"
        "* `cv2.remap`, `map_coordinates` and `grid_pull` take pixel coordinates, which are "
        "computed before and not timed. `cv2.remap` takes the channels last, and runs on as many "
        "threads as we do. `map_coordinates` takes one channel at a time, on one thread, and "
        "computes in float64. The cubic splines of the last two are another interpolation, and are "
        "left out.\n"
        "* kornia's `remap` calls `F.grid_sample`; *patched*, it calls ours in its place.\n\n"
        "The last column is the share of results that are more than half a grey level from torch's."
    )
    head = ["case", "function", *_labels(records), "differs"]
    yield "\n".join(
        markdown.table(head, ([case, name, *cells] for (case, name), cells in found.items()))
    )


def _run(record: Record) -> str:
    where = record["machine"]
    changed = " with changes" if where["changed_since_commit"] else ""
    command = f"{COMMAND} --isa {record['isa']} --threads {record['threads']}"
    noise = [
        times["torch"] / times["torch again"]
        for case in record["cases"].values()
        for times in case["seconds"].values()
        if "torch again" in times
    ]
    lines = [
        f"`{command}`, {record['date']}: {where['cpu']}, {count(where['cores'], 'core')}; torch "
        f"{where['torch']} ({where['isa']}), Python {where['python']}, commit "
        f"{(where['commit'] or 'unknown')[:10]}{changed}.",
        f"Load average when it began: {record['load_average']}.",
        *(f"{note}." for note in record["notes"]),
    ]
    if noise:
        ordered = sorted(noise)
        inner = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        lines.append(
            f"Torch against itself, {count(len(noise), 'step')}: {ordered[0]:.2f} to "
            f"{ordered[-1]:.2f}; all but the outer tenths {inner[0]:.2f} to {inner[1]:.2f}."
        )
    return "\n".join(lines)
