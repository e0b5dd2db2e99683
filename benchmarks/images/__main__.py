"""The command ``python -m benchmarks.images``."""

from collections.abc import Sequence

from benchmarks.images.options import ImageOptions, parse_options
from benchmarks.images.page import check_page, write_page
from benchmarks.images.runs import measure_all
from crad.command_line import run_command
from crad.outputs import locked


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: of the command line; None for those of the process.
    """
    run_command(lambda: compare(parse_options(arguments)), again="run the same command again")


def compare(options: ImageOptions) -> None:
    """Measure what is missing, and write the page.

    Raises:
        CradError: what `benchmarks.images.runs.measure_all` raises.
        OutputError: a folder or the page cannot be used.
    """
    if options.report:
        check_page(options.report)
    if options.isa:
        with locked(options.output):
            measure_all(options)
    if options.report:
        write_page(options.report, options.output)
        print(f"written to {options.report}")


if __name__ == "__main__":
    main()
