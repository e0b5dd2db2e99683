"""`report.html`: a page that shows what was measured, from a folder, without a server."""

import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crad.data.samples import GOOD
from crad.report.charts import histogram, roc_curve
from crad.report.markup import Pictures, content, document, escaped, figures
from crad.report.results import Results
from crad.report.verdicts import Section, Verdict
from crad.scoring.metrics import COLUMNS as METRICS
from crad.scoring.metrics import measure_ranking
from crad.words import count

_TABLE = {
    "image": ("image", True),
    "result": ("result", True),
    "class": ("class", True),
    "kind": ("kind", True),
    "score": ("score", False),
    "p": ("p", False),
    "threshold": ("threshold", False),
    "margin": ("margin", False),
    "regions": ("regions", False),
    "decision": ("decision", True),
}
"""The columns of the table of all images: title, and whether they hold words."""


def make_page(
    results: Results,
    verdicts: Sequence[Verdict],
    sections: Sequence[Section],
    pictures: Mapping[int, Pictures],
) -> str:
    """Make the page as HTML.

    Args:
        results: what was measured.
        verdicts: on all test images, at least one.
        sections: the images that are shown with pictures.
        pictures: of these images, by `Verdict.number`.
    """
    names = _short_names(verdicts)
    shown = {each.number for section in sections for each in section.shown}
    classes = [name for name in results["classes"] if any(_is_of(name, v) for v in verdicts)]
    title = f"crad: {Path(results.get('data', '')).name or 'test images'}"
    return document(
        title,
        _head(results, verdicts, title),
        _contents(sections),
        _filter(verdicts, classes),
        f'<main>\n<h2 id="classes">Classes</h2>\n{_class_table(results, verdicts, classes)}',
        f'<h2 id="kinds">Kinds of defect</h2>\n{_kind_table(verdicts, classes)}',
        f'<h2 id="scores">Scores</h2>\n{_charts(verdicts, classes)}',
        *(_section(*numbered, pictures, names) for numbered in enumerate(sections)),
        _image_table(),
        "</main>\n",
        _data(verdicts, sections, names, shown),
        f"<script>\n{content('page.js')}</script>\n",
    )


def _is_of(name: str, verdict: Verdict) -> bool:
    return verdict.sample.class_name == name


def _short_names(verdicts: Sequence[Verdict]) -> dict[int, str]:
    """The paths of the images below the folder that holds all of them."""
    paths = {each.number: str(each.sample.path) for each in verdicts}
    root = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    return {number: os.path.relpath(path, root) for number, path in paths.items()}


def _head(results: Results, verdicts: Sequence[Verdict], title: str) -> str:
    good = [each for each in verdicts if not each.sample.is_anomaly]
    defective = [each for each in verdicts if each.sample.is_anomaly]
    outcomes = Counter(each.outcome for each in verdicts)
    decisions = results.get("decisions")
    counts = {
        "test images": str(len(verdicts)),
        "missed defects": f"{outcomes['miss']} of {len(defective)}",
        "false alarms": f"{outcomes['false alarm']} of {len(good)}",
        f"image AUROC ({results['protocol']})": _number(results["mean"]["image_auroc"]),
        f"pixel AUROC ({results['protocol']})": _number(results["mean"]["pixel_auroc"]),
    }
    if not decisions:
        del counts["missed defects"], counts["false alarms"]
    cells = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>"
        for name, value in counts.items()
    )
    rule = (
        f"An image whose score is above the threshold of its class is a defect. The thresholds are "
        f"for a false alarm rate of {decisions['false_alarm_rate']:.3g}; scores are by the "
        f"protocol {decisions['protocol']}."
        if decisions
        else "The checkpoint has no thresholds, so nothing is decided."
    )
    note = f'<p class="note">{escaped(results["note"])}</p>\n' if "note" in results else ""
    told = results["environment"]
    versions = ", ".join(
        f"{name} {told[name]}"
        for name in ("crad", "commit", "torch", "cpu", "device")
        if told.get(name)
    )
    return (
        f"<header>\n<h1>{escaped(title)}</h1>\n"
        f'<p class="faint">{escaped(results.get("data", ""))}; epoch {results["epoch"]}, seed '
        f"{results['seed']}; {escaped(versions)}</p>\n{note}<p>{escaped(rule)}</p>\n"
        f'<dl class="counts">{cells}</dl>\n</header>\n'
    )


def _contents(sections: Sequence[Section]) -> str:
    places = {"classes": "Classes", "kinds": "Kinds of defect", "scores": "Scores"}
    for number, section in enumerate(sections):
        places[f"section-{number}"] = f"{section.title.partition(',')[0]} ({section.total})"
    places["all"] = "All test images"
    links = " ".join(
        f'<li><a href="#{at}">{escaped(title)}</a></li>' for at, title in places.items()
    )
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'


def _filter(verdicts: Sequence[Verdict], classes: Sequence[str]) -> str:
    def choice(name: str, label: str, values: Iterable[str]) -> str:
        options = "".join(f'<option value="{escaped(v)}">{escaped(v)}</option>' for v in values)
        return (
            f'<label>{label} <select name="{name}"><option value="">all</option>{options}'
            "</select></label>\n"
        )

    kinds = dict.fromkeys(each.sample.defect or "" for each in verdicts)
    outcomes = dict.fromkeys(each.outcome for each in verdicts)
    results = [name for name in ("miss", "false alarm", "right") if name in outcomes]
    return (
        '<form class="filter" role="search" aria-label="Filter images">\n'
        f"{choice('class', 'Class', classes)}{choice('kind', 'Kind', kinds)}"
        f"{choice('result', 'Result', results)}"
        '<label>Name <input name="name" type="search" autocomplete="off"></label>\n'
        '<button type="reset">Show all</button>\n'
        '<output id="number" aria-live="polite"></output>\n</form>\n'
    )


def _table(
    heads: Sequence[tuple[str, bool]],
    rows: Iterable[tuple[str | None, Sequence[str]]],
    label: str,
    total: Sequence[str] | None = None,
    groups: Sequence[tuple[str, int]] = (),
) -> str:
    """A table, whose texts are escaped here.

    Args:
        heads: titles, and whether their columns hold words.
        rows: for each its class, and its cells.
        label: what the table shows.
        total: the cells of a last row.
        groups: titles above the heads, and over how many of them.
    """
    kinds = [' class="words"' if words else "" for _, words in heads]

    def line(cells: Sequence[str], of: str | None = None) -> str:
        data = "" if of is None else f' data-class="{escaped(of)}"'
        inner = "".join(
            f"<td{kind}>{escaped(cell)}</td>" for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr{data}>{inner}</tr>\n"

    head = "".join(
        f'<th scope="col"{kind}>{escaped(title)}</th>'
        for kind, (title, _) in zip(kinds, heads, strict=True)
    )
    above = "".join(
        f'<th scope="colgroup" class="group" colspan="{number}">{escaped(title)}</th>'
        for title, number in groups
    )
    above = f"<tr>{above}</tr>\n" if groups else ""
    body = "".join(line(cells, of) for of, cells in rows)
    foot = f"<tfoot>{line(total)}</tfoot>" if total else ""
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table>\n'
        f"<thead>{above}<tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>{foot}</table></div>\n"
    )


def _class_table(results: Results, verdicts: Sequence[Verdict], classes: Sequence[str]) -> str:
    metrics = [name for names in METRICS.values() for name in names]
    heads = [
        *(("class", True), ("train", False), ("good", False), ("false alarms", False)),
        *(("defects", False), ("missed", False), ("threshold", False)),
        *((title, False) for names in METRICS.values() for title in names.values()),
    ]
    groups = [("", 7), *((of, len(names)) for of, names in METRICS.items())]

    def counts(members: Sequence[Verdict]) -> list[str]:
        number = Counter(each.sample.is_anomaly for each in members)
        outcomes = Counter(each.outcome for each in members)
        decided = any(each.threshold is not None for each in members)
        return [
            *(str(number[False]), str(outcomes["false alarm"]) if decided else "-"),
            *(str(number[True]), str(outcomes["miss"]) if decided else "-"),
        ]

    rows: list[tuple[str | None, Sequence[str]]] = []
    for name in classes:
        members = [each for each in verdicts if _is_of(name, each)]
        entry, threshold = results["classes"][name], members[0].threshold
        cells = [
            *(name, str(entry["n_train"]), *counts(members)),
            "-" if threshold is None else f"{threshold:.4g}",
            *(_number(entry[metric]) for metric in metrics),
        ]
        rows.append((name, cells))
    total = ["all", "", *counts(verdicts), ""]
    total += [_number(results["mean"][metric]) for metric in metrics]
    return _table(heads, rows, "Classes", total if len(rows) > 1 else None, groups)


def _kind_table(verdicts: Sequence[Verdict], classes: Sequence[str]) -> str:
    heads = [
        *(("class", True), ("kind", True), ("images", False), ("decided wrongly", False)),
        *(("lowest score", False), ("median score", False), ("highest score", False)),
        ("image AUROC", False),
    ]
    rows: list[tuple[str | None, Sequence[str]]] = []
    for name in classes:
        kinds: dict[str, list[Verdict]] = defaultdict(list)
        for each in verdicts:
            if _is_of(name, each):
                kinds[each.sample.defect or ""].append(each)
        normal = [each.score for each in kinds.get(GOOD, ())]
        for kind, members in sorted(kinds.items(), key=lambda item: item[0] != GOOD):
            scores = [each.score for each in members]
            ranking = None if kind == GOOD else measure_ranking(np.array(scores), np.array(normal))
            wrong = sum(each.outcome in ("miss", "false alarm") for each in members)
            cells = [
                *(name, kind, str(len(members))),
                "-" if members[0].threshold is None else str(wrong),
                *(f"{of(scores):.4g}" for of in (min, statistics.median, max)),
                _number(ranking.auroc if ranking else None),
            ]
            rows.append((name, cells))
    return _table(heads, rows, "Kinds of defect")


def _charts(verdicts: Sequence[Verdict], classes: Sequence[str]) -> str:
    charts = []
    for name in classes:
        members = [each for each in verdicts if _is_of(name, each)]
        good = [each.score for each in members if not each.sample.is_anomaly]
        defective = [each.score for each in members if each.sample.is_anomaly]
        threshold = members[0].threshold
        curve = roc_curve(good, defective, threshold, name) if good and defective else ""
        charts.append(
            f'<section class="chart" data-class="{escaped(name)}"><h3>{escaped(name)}</h3>\n<div>'
            f"{histogram(good, defective, threshold, name)}{curve}</div></section>\n"
        )
    return (
        '<p><span class="key good"></span> good images, upwards; <span class="key defect"></span> '
        "defects, downwards. The ring on the ROC curve is what the threshold decides.</p>\n"
        f'<div class="charts">\n{"".join(charts)}</div>\n'
    )


def _section(
    number: int, section: Section, pictures: Mapping[int, Pictures], names: Mapping[int, str]
) -> str:
    if len(section.shown) < section.total:
        note = f"{len(section.shown)} of {section.total}; all are in the table below."
    else:
        note = "" if section.total else "There are none."
    cases = "".join(_case(each, pictures[each.number], names) for each in section.shown)
    title = f"{escaped(section.title)} ({section.total})"
    return (
        f'<section class="cases">\n<h2 id="section-{number}">{title}</h2>\n'
        f"{f'<p>{note}</p>' if note else ''}\n{cases}</section>\n"
    )


def _case(verdict: Verdict, pictures: Pictures, names: Mapping[int, str]) -> str:
    sample, kind = verdict.sample, (verdict.outcome or "").replace(" ", "-")
    score = f"score {verdict.score:.4g}"
    if verdict.threshold is not None:
        score += f", threshold {verdict.threshold:.4g}"
    if verdict.boxes is not None:
        score += f", {count(len(verdict.boxes), 'region')} marked"
    outcome = f'<span class="{kind}">{verdict.outcome}</span>' if verdict.outcome else ""
    return (
        f'<article class="case {kind}-case" id="image-{verdict.number}" '
        f'data-number="{verdict.number}">\n<header><h3>{escaped(str(sample.class_name))}: '
        f"{escaped(sample.defect or '')}</h3>{outcome}<span>{score}</span></header>\n"
        f'<p class="faint">{escaped(names[verdict.number])}</p>\n'
        f"{figures(pictures)}</article>\n"
    )


def _image_table() -> str:
    heads = "".join(
        f'<th scope="col" data-key="{key}"{" class=words" if words else ""}>'
        f'<button type="button">{title}</button></th>'
        for key, (title, words) in _TABLE.items()
    )
    return (
        '<h2 id="all">All test images</h2>\n'
        "<p>The margin is how far a score is above the threshold, in standard deviations "
        "of the good test images of the class. The same table, with whole paths, is in "
        '<a href="scores.csv">scores.csv</a>.</p>\n'
        "<noscript><p>This table needs JavaScript.</p></noscript>\n"
        '<div class="scroll" role="region" aria-label="All test images" tabindex="0">'
        f'<table id="images"><thead><tr>{heads}</tr></thead><tbody></tbody></table></div>\n'
        '<p><button type="button" id="more" hidden></button></p>\n'
    )


def _data(
    verdicts: Sequence[Verdict],
    sections: Sequence[Section],
    names: Mapping[int, str],
    shown: set[int],
) -> str:
    """The rows of the table as JSON, in which no text can end the element."""
    first = [each.number for section in sections for each in section.shown]
    ranks = {number: rank for rank, number in enumerate(first)}
    rows: list[dict[str, Any]] = []
    for each in verdicts:
        rows.append(
            {
                "number": each.number,
                "rank": ranks.get(each.number, len(first) + each.number),
                "shown": each.number in shown,
                "image": names[each.number],
                "class": str(each.sample.class_name),
                "kind": each.sample.defect or "",
                "score": each.score,
                "p": each.p_value,
                "threshold": each.threshold,
                "margin": round(each.margin, 2),
                "regions": None if each.boxes is None else len(each.boxes),
                "decision": {True: "defect", False: "good", None: "-"}[each.is_defective],
                "result": each.outcome or "",
            }
        )
    text = json.dumps(rows)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="data">{text}</script>\n'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
