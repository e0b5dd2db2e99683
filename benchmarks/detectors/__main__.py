"""The command ``python -m benchmarks.detectors``."""

from collections.abc import Sequence
from functools import partial

from benchmarks.comparison import compare, read_records
from benchmarks.detectors.options import COMMAND, DetectorOptions, parse_options
from benchmarks.detectors.page import page_of
from benchmarks.detectors.picture import draw, has_costs
from benchmarks.detectors.runs import measure_all
from crad.command_line import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; None for those of the process.
    """
    run_command(lambda: run(arguments), again="run the same command again")


def run(arguments: Sequence[str] | None) -> None:
    """Do what the command line says.

    Raises:
        CradError: what `parse_options`, `measure_all` and `page_of` raise.
        OutputError: a folder or the page cannot be used.
    """
    options = parse_options(arguments)
    compare(
        COMMAND,
        options.output,
        options.report,
        partial(measure_all, options) if options.data else None,
        partial(_report, options),
    )


def _report(options: DetectorOptions) -> str:
    """Draw the picture beside the page, if there is one to draw; give the text of the page."""
    assert options.report
    records = read_records(options.output, COMMAND)
    if not has_costs(records):
        return page_of(options.output)
    picture = options.report.with_suffix(".svg")
    text = page_of(options.output, picture.name)
    draw(records, picture)
    return text


if __name__ == "__main__":
    main()
