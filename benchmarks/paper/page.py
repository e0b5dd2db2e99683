"""A Markdown page with a generated section for each target, between marks, and prose by hand."""

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.markdown import around
from benchmarks.paper.files import WRITTEN_BY, files_of, write_text
from benchmarks.paper.runs import Runs
from benchmarks.paper.targets import Target
from crad.config import settings
from crad.errors import OutputError
from crad.files import replacing
from crad.report.environment import commit

_NAMED = (
    "--preset", "--backbone", "--components", "--image-size", "--epochs", "--batch-size",
    "--learning-rate", "--depth", "--expansion", "--absent", "--discrete.address", "--protocol",
    "--calibration-share",
)  # fmt: skip


def section(target: Target, body: str, runs: Runs, command: str) -> str:
    """The section of a target in Markdown: title, body, settings, times and machine.

    Args:
        target: a table, a figure or an experiment.
        body: the Markdown that `Target.make` returned.
        runs: finished.
        command: the command line.
    """
    return "\n\n".join([f"## {target.title}", body, *_about(target, runs, command)]) + "\n"


def _about(target: Target, runs: Runs, command: str) -> Iterator[str]:
    """Two paragraphs: command and settings; times, machine and versions."""
    values = settings(runs.base)
    named = []
    for name in _NAMED:
        value = values[name]
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        named.append(f"`{name} {shown}`")
    seeds = ", ".join(map(str, runs.seeds))
    deviations = (
        " Standard deviations are over seeds, with n - 1 in the denominator."
        if len(runs.seeds) > 1
        else ""
    )
    yield (
        f"`{command}`: data {Path(runs.base.data.source).name}, classes "
        f"{', '.join(runs.classes())}; seed{'s' * (len(runs.seeds) > 1)} {seeds}. "
        f"{', '.join(named)}.{deviations}"
    )
    results = [each for variant in target.variants for each in runs.results(variant)]
    if not results:
        return
    timing: Counter[str] = Counter()
    for each in results:
        timing.update(each["timing"])
    spent = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in timing.items())
    where = results[-1]["environment"]
    trained = [*dict.fromkeys(each["environment"].get("commit") for each in results)]
    code = f", commit {' and '.join(filter(None, trained))}" if any(trained) else ""
    written = commit()
    by = f" by commit {written}" if written and [written] != trained else ""
    cores, threads = _count(where["cpu_count"], "core"), _count(where["threads"], "thread")
    yield (
        f"{_count(len(results), 'run')}, total wall time: {spent} (runs on the same images share "
        f"their features). {where['cpu']}, {cores}, {threads}, device {where['device']}; torch "
        f"{where['torch']}, NumPy {where['numpy']}, Python {where['python']}, crad "
        f"{where['crad']}{code}. Written on {datetime.now(UTC):%Y-%m-%d}{by}."
    )


def check_page(report: Path, names: Iterable[str]) -> None:
    """Check, before anything is trained, that sections can be put into a page.

    Args:
        report: the page, which need not exist.
        names: of the targets.

    Raises:
        OSError: the page cannot be read.
        OutputError: the page is no text, or marks of a section are missing, repeated or swapped.
    """
    for name in names:
        _around(report, name)
        copies = files_of(report.with_suffix(""), name)
        if copies and not (report.exists() and _marks(name)[0] in report.read_text("utf-8")):
            raise OutputError(
                f"report: '{copies[0]}' belongs to no section of '{report}'; move it away, or "
                "choose another file with --report"
            )


def put_into(report: Path, name: str, text: str, folder: Path) -> None:
    """Replace or append the section of a target in a page, and copy its files beside the page.

    Args:
        report: the page; created if it does not exist.
        name: of the target.
        text: of the section.
        folder: of the target's files, which are copied to a folder with the name of the page.

    Raises:
        OSError: a file cannot be read or written.
        OutputError: as for `check_page`.
    """
    before, after = _around(report, name)
    files = report.with_suffix("")
    for source in files_of(folder, name):
        if source.suffix != ".md":
            with replacing(files / source.name) as temporary:
                shutil.copyfile(source, temporary)
    text = re.sub(rf"\]\(({re.escape(name)}[-.][^)]*)\)", rf"]({files.name}/\1)", text)
    begin, end = _marks(name)
    write_text(report, f"{before}{begin}\n{text.rstrip()}\n{end}{after}")


def _around(report: Path, name: str) -> tuple[str, str]:
    """The text before and after the section of a target; errors as for `check_page`."""
    begin, end = _marks(name)
    try:
        page = report.read_text(encoding="utf-8") if report.exists() else "# Ablations\n"
    except UnicodeDecodeError as error:
        raise OutputError(
            f"report: '{report}' is not UTF-8 text ({error}); choose another file with --report"
        ) from error
    if begin not in page and end not in page:
        return f"{page.rstrip()}\n\n", "\n"
    try:
        return around(page, begin, end)
    except ValueError as error:
        raise OutputError(
            f"report: '{report}': {error}; mend it, or choose another file with --report"
        ) from error


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by {WRITTEN_BY} -->", f"<!-- end of {name} -->"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
