"""The options of the comparison."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.images.cases import CASES, Case
from crad.errors import UsageError

COMMAND = "python -m benchmarks.images"
OUTPUT = Path("benchmarks") / "results" / "images"

_DESCRIPTION = (
    "Time crad_kernels.grid_sample beside F.grid_sample on the CPU, for one instruction set and "
    "one number of threads, and write a JSON file to --output. Cases that are there are not "
    "measured again."
)


@dataclass(frozen=True)
class ImageOptions:
    """The options of the command."""

    isa: Literal["avx512", "avx2", "baseline"] | None = None
    """Instruction set of crad_kernels. None: only --report is written."""
    threads: int | None = None
    """Threads of both. Default: as many as torch takes."""
    only: str = ""
    """Measure only cases whose name contains this."""
    seconds: float = 0.2
    """Time for the rounds of one step; at least five are run."""
    notes: tuple[str, ...] = ()
    """Kept with the results and shown on the page: what else ran on the machine."""
    output: Path = OUTPUT
    """Folder of the JSON files."""
    overwrite: bool = False
    """Measure again what is there."""
    report: Path | None = None
    """Write a page of all that is in --output to this Markdown file."""

    @property
    def cases(self) -> list[Case]:
        """Those to measure."""
        return [case for case in CASES if self.only in str(case)]


def parse_options(arguments: Sequence[str] | None = None) -> ImageOptions:
    """Read the command line; a wrong one prints what is wrong and exits with code 2.

    Args:
        arguments: None for those of the process.

    Raises:
        UsageError: an option is out of range, or the environment changes how torch's threads wait.
    """
    options = tyro.cli(ImageOptions, args=arguments, prog=COMMAND, description=_DESCRIPTION)
    if not options.isa and not options.report:
        raise UsageError("--isa: expected one, or --report for a page of what is there")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads: expected at least 1, but got {options.threads}")
    if options.seconds <= 0:
        raise UsageError(f"--seconds: expected more than 0, but got {options.seconds}")
    if not options.cases:
        raise UsageError(f"--only: no case contains '{options.only}'")
    if options.isa and "OMP_WAIT_POLICY" in os.environ:
        raise UsageError("OMP_WAIT_POLICY is set, which changes the times of calls; unset it")
    return options
