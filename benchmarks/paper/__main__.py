"""The command ``python -m benchmarks.paper``."""

import sys
from collections.abc import Sequence

from benchmarks.paper import cost
from benchmarks.paper.files import check_files, write_text
from benchmarks.paper.options import PaperOptions, parse_options
from benchmarks.paper.page import check_page, put_into, section
from benchmarks.paper.plotting import check_drawing
from benchmarks.paper.published import is_published_data
from benchmarks.paper.runs import Runs
from benchmarks.paper.targets import TARGETS
from crad.command_line import run_command
from crad.outputs import locked


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; None for those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "cost":
        cost.main(arguments[1:])
        return
    run_command(lambda: make(parse_options(arguments)), again="run the same command again")


def make(options: PaperOptions) -> None:
    """Make tables and figures, and train the detectors that they need.

    Raises:
        DataError: the data set is not that of a table.
        OutputError: a folder or the page cannot be used.
        Exception: what `benchmarks.paper.runs.Runs.finish` raises.
    """
    with locked(options.output):
        _make(options)


def _make(options: PaperOptions) -> None:
    check_files(options.output, options.targets)
    if options.report:
        check_page(options.report, options.targets)
    runs = Runs(options.config, options.seeds, options.output, options.compute)
    targets = {name: TARGETS[name] for name in dict.fromkeys(options.targets)}
    for name, target in targets.items():
        if target.drawn:
            check_drawing()
        if target.of:
            is_published_data(name, options.config.data.source, runs.classes(), target.of)
    for one_seed in (False, True):
        some = [target for target in targets.values() if target.one_seed == one_seed]
        if some:
            some[0].select(runs).finish(variant for each in some for variant in each.variants)
    for name, target in targets.items():
        chosen = target.select(runs)
        body = target.make(chosen, options.output)
        text = section(target, body, chosen, options.command)
        write_text(options.output / f"{name}.md", text)
        if options.report:
            put_into(options.report, name, text, options.output)
        print(f"\n{text}")
    beside = f" and {options.report}" if options.report else ""
    print(f"written to {options.output}{beside}")


if __name__ == "__main__":
    main()
