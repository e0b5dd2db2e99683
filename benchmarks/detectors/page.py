"""The page of a comparison, made of the JSON files that runs left."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import markdown
from benchmarks.comparison import Record, mark, read_records
from benchmarks.detectors import words
from benchmarks.detectors.growth import COMMAND as GROWTH
from benchmarks.detectors.growth import read_growth
from benchmarks.detectors.in_paper import paper_table
from benchmarks.detectors.methods import methods
from benchmarks.detectors.options import COMMAND, SETTINGS
from benchmarks.detectors.own_scores import OWN
from benchmarks.detectors.runs import minutes_of
from benchmarks.paper.metrics import Measured
from benchmarks.report import number
from crad.data.demo import DEMO_NAMES, is_demo
from crad.errors import OutputError
from crad.scoring.protocols import DECISION_PROTOCOL
from crad.words import count

COLUMNS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_aupro": "AUPRO",
}
"""The metrics, and what the page calls them."""

_SHORT = ("image_auroc", "pixel_auroc", "pixel_aupro")

_NAMED = (
    "--preset", "--depth", "--expansion", "--epochs", "--batch-size", "--learning-rate",
    "--calibration-share",
)  # fmt: skip


def page_of(output: Path, picture: str | None = None) -> str:
    """The page of all records in a folder.

    Args:
        output: the folder.
        picture: the file of the picture, beside the page; None for a page without one.

    Raises:
        OSError: a file cannot be read.
        OutputError: there are no records, or they do not belong together.
    """
    records = read_records(output, COMMAND)
    if not records:
        raise OutputError(f"output: '{output}' holds no results; measure some with --data")
    return page(records, picture, read_growth(output))


def page(
    records: Iterable[Record], picture: str | None = None, growth: Record | None = None
) -> str:
    """The text of the page.

    Each protocol has a short table, of all records that were measured by it. A section is by the
    first protocol of its records, and of those that have it.

    Args:
        records: of the comparison.
        picture: as for `page_of`.
        growth: what `benchmarks.detectors.growth` measured; None leaves that section out.

    Raises:
        OutputError: the records do not belong together.
    """
    ordered = in_order(records)
    parts = [f"{mark(COMMAND)}\n{words.ABOUT}", "## Methods", _methods(ordered)]
    for protocol in protocols_of(ordered):
        sections = sections_by(ordered, protocol)
        parts += [
            f"## In short, by protocol {protocol}",
            *(_summary(sections, metric) for metric in _SHORT),
        ]
        if protocol == protocols_of(ordered)[0]:
            parts += [f"![accuracy against cost]({picture})"] * bool(picture)
            parts += ["## Where CRAD loses", _losses(sections, protocol)]
    if growth:
        parts += ["## How costs grow", *_growth(growth)]
    for members in sections_by(ordered):
        parts += _section(members)
    return "\n\n".join(parts) + "\n"


def in_order(records: Iterable[Record]) -> list[Record]:
    """The records in the order of the page: sets, settings, methods, seeds."""
    return sorted(records, key=_place)


def protocols_of(records: Iterable[Record]) -> list[str]:
    """The protocols that records were measured by, that of decisions first, without their own."""
    found = dict.fromkeys(name for record in records for name in record["protocols"])
    return sorted(
        (name for name in found if name != OWN), key=lambda name: name != DECISION_PROTOCOL
    )


def sections_by(records: Sequence[Record], protocol: str | None = None) -> list[list[Record]]:
    """Records with ``metrics`` by a protocol, those of a set and a backbone together.

    Args:
        records: in order.
        protocol: those without it are left out; None takes the first of each set.
    """
    sections = []
    for _, group in groupby(records, key=_section_of):
        members = [*group]
        name = protocol or protocols_of(members)[0]
        members = [
            {**each, "metrics": each["protocols"][name], "protocol": name}
            for each in members
            if name in each["protocols"]
        ]
        sections += [members] * bool(members)
    return sections


def title_of(record: Record) -> str:
    """What the page calls the method of a record, with the time that it may train."""
    known = methods().get(record["method"])
    title = known.title if known else record["method"]
    minutes = minutes_of(record["method_settings"])
    return title if minutes is None else f"{title} ({minutes:g} min)"


def _section_of(record: Record) -> tuple[bool, str, str, str]:
    """What the records of a section have in common; generated sets come last."""
    data = record["data"]
    return is_demo(data), data, record["backbone"], record["image_size"]


def _place(record: Record) -> tuple[Any, ...]:
    order = [*methods()]
    return (
        _section_of(record),
        SETTINGS.index(record["setting"]),
        order.index(record["method"]),
        minutes_of(record["method_settings"]) or 0,
        record["seed"],
    )


def rows_of(records: Sequence[Record]) -> Iterator[tuple[list[str], list[Record]]]:
    """The first cells of each row of a table, and the records of its seeds.

    Raises:
        OutputError: a method was measured with other settings for another seed.
    """
    most = len({record["seed"] for record in records})
    for (setting, title), group in groupby(
        records, key=lambda each: (each["setting"], title_of(each))
    ):
        members = [*group]
        if any(each["method_settings"] != members[0]["method_settings"] for each in members):
            raise OutputError(
                f"output: {members[0]['method']} on {members[0]['data']}, {setting}, was measured "
                "with different settings for different seeds; measure it again with --overwrite"
            )
        fewer = f" ({count(len(members), 'seed')})" if len(members) < most else ""
        yield [setting, title + fewer], members


def _methods(records: Sequence[Record]) -> str:
    """What is compared, and what is not."""
    used = {record["method"]: methods()[record["method"]].title for record in records}
    order = [name for name in methods() if name in used]
    lines = [f"* {used[name]}: {words.METHODS[name]}." for name in order]
    left_out = [f"* {name}: {reason}." for name, reason in words.LEFT_OUT.items()]
    return "\n".join([*lines, "", "Left out, with the reason:", "", *left_out])


def _summary(sections: Sequence[Sequence[Record]], metric: str) -> str:
    """Sets and settings down, methods across."""
    order = [*methods()]
    records = [record for section in sections for record in section]
    titles = {
        title_of(each): (order.index(each["method"]), minutes_of(each["method_settings"]) or 0)
        for each in records
    }
    names = sorted(titles, key=lambda title: titles[title])
    rows = []
    for section in sections:
        first = section[0]
        for setting, group in groupby(section, key=lambda record: record["setting"]):
            members = [*group]
            cells = [
                _quality([each for each in members if title_of(each) == name], metric)
                for name in names
            ]
            labels = [first["data"], f"{first['backbone']}, {first['image_size']}", setting]
            rows.append([*labels, *cells])
    table = "\n".join(markdown.table(["data", "backbone, size", "setting", *names], rows))
    return f"{COLUMNS[metric]}:\n\n{table}"


def _losses(sections: Sequence[Sequence[Record]], protocol: str) -> str:
    """On which sets and by which metrics other methods are better than CRAD, by their means."""
    lines = []
    for section in sections:
        for setting, group in groupby(section, key=lambda record: record["setting"]):
            rows = [members for _, members in rows_of([*group])]
            ours = [members for members in rows if members[0]["method"] == "crad"]
            if not ours:
                continue
            rivals = [members for members in rows if not members[0]["method"].startswith("crad")]
            better = []
            for metric in _SHORT:
                best = max(mean_of(members, metric) or 0.0 for members in ours)
                if found := [shown for each in rivals if (shown := _above(best, each, metric))]:
                    better.append(f"{COLUMNS[metric]} (CRAD {best:.2f}): {', '.join(found)}")
            where = f"{section[0]['data']}, {section[0]['backbone']}, {setting}"
            lines.append(f"* {where}: {'; '.join(better) or 'nowhere'}.")
    if not lines:
        return "CRAD was not measured here."
    introduction = (
        f"By the means over seeds and classes, by protocol {protocol} or by their own smoothing "
        "and scores, better than CRAD in image AUROC, pixel AUROC or AUPRO are:"
    )
    reasons = [words.WHY[data] for data in {s[0]["data"]: s for s in sections} if data in words.WHY]
    return "\n\n".join([introduction, "\n".join(lines), *reasons])


def _above(best: float, members: Sequence[Record], metric: str) -> str | None:
    """A method and its metric, if that is above the best of CRAD; by its own scores if better."""
    own = [{"metrics": each["protocols"][OWN]} for each in members if OWN in each["protocols"]]
    by_protocol, by_own = mean_of(members, metric) or 0.0, mean_of(own, metric) or 0.0
    if max(by_protocol, by_own) <= best:
        return None
    name = title_of(members[0])
    return f"{name} ({by_protocol:.2f})" if by_protocol >= by_own else f"{name} ({by_own:.2f}, own)"


def _section(records: Sequence[Record]) -> Iterator[str]:
    """The parts of a section."""
    first = records[0]
    classes = first["metrics"]["classes"]
    features = f"{first['backbone']} at {first['image_size']}"
    yield f"## {first['data']}: {features}, by protocol {first['protocol']}"
    numbers = [
        f"{name} {entry['n_train']} to train on and {entry['n_test']} to test on"
        for name, entry in classes.items()
    ]
    origin = words.origin(first["data"])
    stand_in = " A stand-in, not a benchmark." if is_demo(first["data"]) else ""
    yield f"{origin}{stand_in} Images: {', '.join(numbers)}."
    rows = [
        [*labels, *(_quality(members, metric) for metric in COLUMNS)]
        for labels, members in rows_of(records)
    ]
    yield "\n".join(markdown.table(["setting", "method", *COLUMNS.values()], rows))
    yield "\n".join(
        markdown.table(
            [
                "setting",
                "method",
                "epochs",
                "fit, s",
                "first result, s",
                "images/s, one",
                "images/s, 32",
                "size, MB",
                "memory, MB",
            ],
            [[*labels, *_costs(members)] for labels, members in rows_of(records)],
        )
    )
    if own := [
        {**record, "metrics": record["protocols"][OWN]}
        for record in records
        if OWN in record["protocols"]
    ]:
        rows = [
            [*labels, *(_quality(members, metric) for metric in COLUMNS)]
            for labels, members in rows_of(own)
        ]
        table = "\n".join(markdown.table(["setting", "method", *COLUMNS.values()], rows))
        yield f"By their own smoothing and image scores:\n\n{table}"
    if len(classes) > 1:
        rows = [
            [name, *labels, *(_quality(members, metric, name) for metric in COLUMNS)]
            for name in classes
            for labels, members in rows_of(records)
        ]
        table = "\n".join(markdown.table(["class", "setting", "method", *COLUMNS.values()], rows))
        yield f"<details><summary>By class</summary>\n\n{table}\n\n</details>"
    # A class of another set may have the same name.
    elsewhere = words.origin(first["data"]) == words.NO_ORIGIN
    if elsewhere and (of_paper := paper_table(classes)):
        yield (
            "The paper of CRAD has, of the same classes, by its own code, features and "
            f"protocol:\n\n{of_paper}"
        )
    yield _made(records)


def _growth(found: Record) -> Iterator[str]:
    """The parts on costs against images and classes."""
    yield words.GROWTH
    order = [*methods()]
    records = sorted(found["records"], key=lambda each: order.index(each["method"]))
    fit = "fit, s CPU" if found["clock"] == "cpu" else "fit, s"
    columns = ["method", "classes", "images", fit, "look-up, ms", "size, MB", "memory, MB"]
    rows = [
        [
            methods()[each["method"]].title,
            str(each["n_classes"]),
            str(each["n_images"]),
            number(each["fit"]),
            number(1000 * each["look_up"]),
            number(each["n_bytes"] / 1e6),
            "-" if each["peak_bytes"] is None else number(each["peak_bytes"] / 1e6),
        ]
        for each in records
    ]
    yield "\n".join(markdown.table(columns, rows))
    yield (
        f"`{GROWTH} --data {Path(found['data']).name} --backbone {found['backbone']}`\n\n"
        f"{_machine(found['environment'])}"
    )


def _costs(members: Sequence[Record]) -> Iterator[str]:
    """The cells of what a method costs; a dash where it was not measured."""
    epochs = [each["epochs"] for each in members if each.get("epochs")]
    run = f"{fmean(each['run'] for each in epochs):.0f}" if epochs else "-"
    published = epochs[0]["published"] if epochs else None
    yield run if published is None else f"{run} of {published}"
    clocks = dict.fromkeys(each.get("clock", "wall") for each in members)
    fit = _mean(each["seconds"]["fit"] for each in members)
    yield f"{fit} CPU" if [*clocks] == ["cpu"] else fit
    yield _mean(first for each in members if (first := _first_result(each)) is not None)
    for size in ("1", "32"):
        yield _mean(
            each["images_per_second"][size] for each in members if "images_per_second" in each
        )
    yield _mean(each["n_bytes"] / 1e6 for each in members)
    yield _mean(each["peak_bytes"] / 1e6 for each in members if each.get("peak_bytes") is not None)


def _first_result(record: Record) -> float | None:
    """Seconds from images to the map of the first one; None if they were not measured."""
    if "images_per_second" not in record:
        return None
    seconds = record["seconds"]
    features = 0.0
    if not methods()[record["method"]].takes_images:
        n_train = sum(record["n_train"].values())
        features = seconds["features"] * n_train / (n_train + record["n_test"])
    return features + float(seconds["fit"]) + 1 / float(record["images_per_second"]["1"])


def mean_of(records: Sequence[Record], metric: str) -> float | None:
    """The mean of a metric over seeds, in percent; None where it was not measured."""
    values = [record["metrics"]["mean"][metric] for record in records]
    known = [100 * value for value in values if value is not None]
    return fmean(known) if known else None


def _quality(records: Sequence[Record], metric: str, class_name: str | None = None) -> str:
    """A metric over seeds in percent, of a class or of their mean; a dash where there is none."""
    found = [record["metrics"] for record in records]
    values = [
        (each["mean"] if class_name is None else each["classes"][class_name])[metric]
        for each in found
    ]
    known = [100 * value for value in values if value is not None]
    return str(Measured.of(known)) if known else "-"


def _mean(values: Iterable[float]) -> str:
    known = [*values]
    return number(fmean(known)) if known else "-"


def _made(records: Sequence[Record]) -> str:
    """How the numbers were made: the commands, what they noted, and on what."""
    notes = [
        f"{note}." for note in dict.fromkeys(note for each in records for note in each["notes"])
    ]
    features = _mean(record["seconds"]["features"] for record in records)
    machines = dict.fromkeys(_machine(record["environment"]) for record in records)
    limits = dict.fromkeys(minutes_of(record["method_settings"]) for record in records)
    commands = [
        _command(members, minutes)
        for minutes in limits
        if (members := [r for r in records if minutes_of(r["method_settings"]) == minutes])
    ]
    return "\n\n".join(
        [
            "\n".join(f"`{each}`" for each in commands),
            "\n".join(
                [*_trained(records), *notes, f"Features of all images: {features} s.", *machines]
            ),
        ]
    )


def _command(records: Sequence[Record], minutes: float | None) -> str:
    """The command that measures these records."""
    first = records[0]
    data = first["data"]
    used = {key: {*(record[key] for record in records)} for key in ("method", "setting", "seed")}
    protocols = dict.fromkeys(
        name for record in records for name in record["protocols"] if name != OWN
    )
    return shlex.join(
        [
            *COMMAND.split(),
            *("--data", data if data in DEMO_NAMES else f"PATH/{data}"),
            *("--methods", *(name for name in methods() if name in used["method"])),
            *("--settings", *(name for name in SETTINGS if name in used["setting"])),
            *("--seeds", *map(str, sorted(used["seed"]))),
            *("--backbone", first["backbone"], "--image-size", *first["image_size"].split()),
            *("--protocol", *protocols),
            *([] if minutes is None else ["--minutes", f"{minutes:g}"]),
        ]
    )


def _trained(records: Sequence[Record]) -> Iterator[str]:
    """The settings of CRAD that the page names; the JSON files have all of them."""
    for record in records:
        held = record["method_settings"]
        shown = [f"`{name} {held[name]}`" for name in _NAMED if name in held]
        if record["method"] == "crad" and shown:
            yield f"CRAD: {', '.join(shown)}."
            return


def _machine(where: Mapping[str, Any]) -> str:
    code = f", commit {where['commit']}" if "commit" in where else ""
    return (
        f"{where['cpu']}, {count(where['cpu_count'], 'core')}, "
        f"{count(where['threads'], 'thread')}, device {where['device']}; torch {where['torch']}, "
        f"NumPy {where['numpy']}, Python {where['python']}, crad {where['crad']}{code}."
    )
