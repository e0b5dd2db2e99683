"""A page of what was reproduced: a section for each target, between marks, in a text by hand."""

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.paper.files import write_text
from benchmarks.paper.runs import Runs
from benchmarks.paper.targets import Target
from crad.command_line import CommandError
from crad.config import flatten, option
from crad.files import replacing
from crad.report.results import commit

_NAMED = (
    "preset", "backbone", "components", "image_size", "epochs", "batch_size", "learning_rate",
    "depth", "expansion", "absent", "discrete.address", "protocol", "calibration_share",
)  # fmt: skip


def section(target: Target, body: str, runs: Runs, command: str) -> str:
    """What there is to say about a target, in Markdown.

    Args:
        target: what was made.
        body: what `Target.make` gave.
        runs: finished.
        command: what made it, as it was typed.
    """
    return "\n\n".join([f"## {target.title}", body, *_about(target, runs, command)]) + "\n"


def _about(target: Target, runs: Runs, command: str) -> Iterator[str]:
    """Paragraphs: the command and the settings; times; where and when."""
    settings = flatten(runs.base)
    named = []
    for name in _NAMED:
        value = settings[name]
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        named.append(f"`{option(name)} {shown}`")
    seeds = ", ".join(map(str, runs.seeds))
    deviations = (
        " Standard deviations are those of a sample of seeds (n - 1 in the denominator)."
        if len(runs.seeds) > 1
        else ""
    )
    yield (
        f"`{command}`: data {Path(runs.base.data).name}, classes "
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
        f"{_count(len(results), 'run')}, in all {spent} (wall time; a run that has the images of "
        f"the one before has its features too). {where['cpu']}, {cores}, {threads}, device "
        f"{where['device']}; torch {where['torch']}, NumPy {where['numpy']}, Python "
        f"{where['python']}, crad {where['crad']}{code}. Written on "
        f"{datetime.now(UTC):%Y-%m-%d}{by}."
    )


def check_page(report: Path, names: Iterable[str]) -> None:
    """Refuse, before any work is done for it, a page that sections cannot be put into.

    Args:
        report: the page, which need not be there.
        names: of the targets.

    Raises:
        CommandError: it is no text, or has the marks of a section, but not once and in order.
        OSError: it cannot be read.
    """
    for name in names:
        _around(report, name)


def put_into(report: Path, name: str, text: str, folder: Path) -> None:
    """Replace the section of a target in a page, or add it, with its files beside the page.

    Args:
        report: the page; made if there is none.
        name: of the target.
        text: its section.
        folder: where its files are, which go to a folder of the page's name.

    Raises:
        CommandError: as for `check_page`.
        OSError: a file cannot be read or written.
    """
    before, after = _around(report, name)
    files = report.with_suffix("")
    for source in sorted([*folder.glob(f"{name}.*"), *folder.glob(f"{name}-*.*")]):
        if source.is_file() and source.suffix != ".md":
            with replacing(files / source.name) as temporary:
                shutil.copyfile(source, temporary)
    text = re.sub(rf"\]\(({re.escape(name)}[-.][^)]*)\)", rf"]({files.name}/\1)", text)
    begin, end = _marks(name)
    write_text(report, f"{before}{begin}\n{text.rstrip()}\n{end}{after}")


def _around(report: Path, name: str) -> tuple[str, str]:
    """What a page has before and after the section of a target; errors as for `check_page`."""
    begin, end = _marks(name)
    try:
        page = report.read_text(encoding="utf-8") if report.exists() else "# Reproduction\n"
    except UnicodeDecodeError as error:
        raise CommandError(
            f"report: '{report}' is no UTF-8 text ({error}); name another file with --report"
        ) from error
    if begin not in page and end not in page:
        return f"{page.rstrip()}\n\n", "\n"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found or begin in rest or end in after:
        raise CommandError(
            f"report: '{report}' should have the lines '{begin}' and '{end}' once and in this "
            "order; mend it, or name another file with --report"
        )
    return before, after


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by python -m benchmarks.paper -->", f"<!-- end of {name} -->"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
