"""What the commands share: their options, and how an error reaches the person at the terminal."""

import errno
import io
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tyro

from crad.data.batches import BATCH_SIZE
from crad.devices import PrecisionName, freed_memory_kept
from crad.errors import CradError, PeerError, UsageError

T = TypeVar("T")

_ERROR_DELAY = 2.0  # seconds


@dataclass(frozen=True)
class ComputeOptions:
    """What to compute on."""

    device: str = "auto"
    """auto, cpu, cuda, or one of several GPUs such as cuda:1; auto takes CUDA if there is a GPU."""
    precision: PrecisionName = "auto"
    """Precision of the fusion network; auto takes bf16 for a large one on a CPU that has matrix
    instructions for it."""
    compile: bool = False
    """Compile the fusion network with torch.compile: a large network becomes faster, after about a
    minute of compiling."""


@dataclass(frozen=True)
class InferenceOptions(ComputeOptions):
    """What to compute on."""

    batch_size: int = BATCH_SIZE
    """Images per batch."""

    def check(self) -> None:
        """Refuse a batch size that is not positive.

        Raises:
            UsageError: it is not.
        """
        if self.batch_size < 1:
            raise UsageError(f"--batch-size: expected at least 1, but got {self.batch_size}")


def parse(
    options: type[T],
    arguments: Sequence[str] | None,
    *,
    command: str,
    description: str,
    default: T | None = None,
) -> T:
    """Read a command line; a wrong one prints what is wrong and exits with code 2.

    Args:
        options: a dataclass; a group of options is a field of its own.
        arguments: None takes those of the process.
        command: its name.
        description: for ``--help``; of less than 100 characters, as it is not wrapped.
        default: what holds unless the command line says otherwise.
    """
    return tyro.cli(
        options,
        args=arguments,
        default=tyro.MISSING_NONPROP if default is None else default,
        prog=f"crad {command}",
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def make_command(
    options: type[T], run: Callable[[T], object], name: str, description: str
) -> Callable[..., None]:
    """Make the ``main`` of a command from its options and what it does with them."""

    def main(arguments: Sequence[str] | None = None) -> None:
        run_command(lambda: run(parse(options, arguments, command=name, description=description)))

    return main


def run_command(command: Callable[[], object], *, again: str = "run it again") -> None:
    """Run a command; an error that a user can cause is one line on stderr.

    The exit code is then 1, or 2 for a wrong command line; 130 after Ctrl-C; and 141, in silence,
    if the reader of the output has seen enough, as ``head`` has. Of several processes, those beside
    the main one only print an error that it does not have.

    Args:
        command: what to run.
        again: what to do once a full disk has space again.
    """
    beside = os.environ.get("RANK", "0") != "0"
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that it cannot show is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with freed_memory_kept():
            command()
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        if not beside:
            print(f"\ninterrupted{': ' if str(interrupt) else ''}{interrupt}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # What is still buffered goes nowhere, rather than into a second error on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # 128 + SIGPIPE
    except (CradError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        way_out = f"; free some space and {again}" if full else ""
        if beside or isinstance(error, PeerError):
            time.sleep(_ERROR_DELAY)  # if another one has failed too, torchrun ends this one here
        message = re.sub(r"\s*\n\s*", " ", f"{error}{way_out}")  # torch's have many lines
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
