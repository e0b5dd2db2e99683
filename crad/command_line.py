"""What the commands share: their options, and how an error reaches the person at the terminal."""

import errno
import io
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

import tyro

from crad import launch
from crad.data.decoding import MAX_MEGAPIXELS
from crad.data.sources import BATCH_SIZE
from crad.detector import Choices
from crad.devices import PrecisionName
from crad.errors import CradError, PeerError, UsageError
from crad.loading import load_any
from crad.memory import freed_memory_kept, is_out_of_memory
from crad.predictor import Predictor
from crad.shared_options import BitDepth, MaxMegapixels
from crad.training import processes
from crad.words import one_line

T = TypeVar("T")

_ERROR_DELAY = 2.0  # seconds

# Seconds in which another signal does not stop what the first one lets end. A later one counts, as
# an exception in the clean-up of an object is lost.
_AGAIN = 5.0

_LESS_MEMORY = "lower --batch-size, or close other programs"
_FULL = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}
_STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


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

    def load(self, checkpoint: Path, choices: Choices) -> Predictor:
        """Load a detector from a checkpoint or an exported file; compile it if that is asked for.

        Raises:
            CradError: as for `crad.loading.load_any`, or an exported file is to be compiled.
        """
        detector = load_any(checkpoint, self.device, self.precision, **vars(choices))
        if self.compile:
            detector.compile()
        return detector


@dataclass(frozen=True)
class DetectorOptions:
    """What may be chosen of a trained detector."""

    false_alarm_rate: float | None = None
    """Share of normal images that may be taken for defective. Default: that of training."""
    uncertain: float | None = None
    """Decide "uncertain" where the p-value is above the false alarm rate, but at most this.
    Default: decide good or defect."""
    max_megapixels: MaxMegapixels = MAX_MEGAPIXELS
    bit_depth: BitDepth = None

    def choices(self) -> Choices:
        """The same for the library."""
        return Choices(self.bit_depth, self.max_megapixels, self.false_alarm_rate, self.uncertain)


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
    with _one_line_of_errors():
        return tyro.cli(
            options,
            args=arguments,
            default=tyro.MISSING_NONPROP if default is None else default,
            prog=f"crad {command}",
            description=description,
            config=(tyro.conf.OmitArgPrefixes,),
            console_outputs=launch.is_first(),
        )


@contextmanager
def _one_line_of_errors() -> Iterator[None]:
    """Print what is wrong with a command line without the box that tyro draws around it."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit:
        inside = re.sub(r"^╭.*", "", box.getvalue(), flags=re.MULTILINE)  # without its title
        if words := re.sub(r"[\s─│╰╯]+", " ", inside).strip():
            _say(f"error: {words}")
        raise


def make_command(
    options: type[T],
    run: Callable[[T], object],
    name: str,
    description: str,
    *,
    shared: bool = False,
) -> Callable[..., None]:
    """Make the ``main`` of a command from its options and what it does with them.

    Args:
        options: as for `parse`.
        run: what the command does.
        name: of the command.
        description: as for `parse`.
        shared: as for `run_command`.
    """

    def main(arguments: Sequence[str] | None = None) -> None:
        run_command(
            lambda: run(parse(options, arguments, command=name, description=description)),
            shared=shared,
        )

    return main


def run_command(
    command: Callable[[], object],
    *,
    again: str = "run it again",
    less_memory: str = _LESS_MEMORY,
    shared: bool = False,
) -> None:
    """Run a command; an error that a user can cause is one line on stderr.

    The exit code is then 1, or 2 for a wrong command line; 130 after Ctrl-C, 143 after SIGTERM and
    129 after SIGHUP; and 141, in silence, if the reader of the output has seen enough, as ``head``
    has.

    Args:
        command: what to run.
        again: what to do once a full disk has space again.
        less_memory: what to do if memory does not suffice.
        shared: whether several processes share the work. Otherwise only the first one does it, and
            the others return at once. Of processes that share, each error is printed by one.
    """
    first = launch.is_first()
    if not shared:
        if not first:
            return
        launch.leave()
    _open_streams()
    # Of a damaged file Pillow warns before it fails, and the error names the file.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    with _signals_as_interrupts() as received:
        try:
            with freed_memory_kept():
                command()
            sys.stdout.flush()
            if processes.has_joined():
                _exit(0)
        except (KeyboardInterrupt, Exception) as error:
            if received or isinstance(error, KeyboardInterrupt):
                # C code that a signal finds may turn it into an error of another kind.
                number = received[-1] if received else signal.SIGINT
                way_on = str(error) if isinstance(error, KeyboardInterrupt) else ""
                if first:
                    _say(f"\n{': '.join(filter(None, (_STOPPED[number], way_on)))}")
                _exit(128 + number)
            if isinstance(error, BrokenPipeError):
                _close_streams()
                _exit(128 + signal.SIGPIPE)
            message = _message(error, again, less_memory)
            if message is None:
                raise
            _close_streams()
            if not first or isinstance(error, PeerError):
                time.sleep(_ERROR_DELAY)  # if the first one has failed too, it says so meanwhile
            if processes.may_print_error():
                _say(f"error: {one_line(message)}")
            _exit(2 if isinstance(error, UsageError) else 1)


def _exit(code: int) -> NoReturn:
    """End this process.

    Threads of torch.distributed may abort a process that unloads PyTorch, after all is done.
    """
    if processes.has_joined():
        _close_streams()
        os._exit(code)
    sys.exit(code)


def _message(error: BaseException, again: str, less_memory: str) -> str | None:
    """What to tell a user of an error; None if it is not one that a user can cause."""
    if is_out_of_memory(error):
        reason = re.sub(r"\[enforce fail.*?\] |err == 0\. |DefaultCPUAllocator: ", "", str(error))
        return f"memory: there is not enough ({reason.strip() or 'MemoryError'}); {less_memory}"
    if not isinstance(error, CradError | OSError):
        return None
    if not isinstance(error, OSError):
        return str(error)
    message = str(error)
    if not isinstance(error, CradError) and error.errno and error.filename is None:
        message = f"standard output: {error.strerror}"  # files have names, standard output has none
    way_out = _FULL.get(error.errno or 0)
    return f"{message}; {way_out} and {again}" if way_out else message


def _say(line: str) -> None:
    with suppress(OSError):  # nobody can read it
        print(line, file=sys.stderr, flush=True)


def _open_streams() -> None:
    """Let what is printed to a closed stream go nowhere, and escape what a stream cannot show."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _close_streams() -> None:
    """Let what is still buffered for a stream that takes no more go nowhere.

    On exit it would be a second error.
    """
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _signals_as_interrupts() -> Iterator[list[signal.Signals]]:
    """Turn SIGTERM and SIGHUP in the block into KeyboardInterrupt, as SIGINT is.

    Yields:
        The signals that came.
    """
    received: list[signal.Signals] = []
    last = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _AGAIN and number != signal.SIGINT:
            return
        last = now
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    former = {}
    if threading.current_thread() is threading.main_thread():
        for each in _STOPPED:
            handler = signal.getsignal(each)
            if handler in (signal.SIG_DFL, signal.default_int_handler):  # under nohup it is ignored
                former[each] = signal.signal(each, interrupt)
    try:
        yield received
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)
