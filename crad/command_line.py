"""What the commands share: how an error reaches the person at the terminal."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from crad.devices import freed_memory_kept
from crad.errors import CradError, ImageError, MaskError, PeerError
from crad.training import processes


class CommandError(CradError):
    """Something that a command cannot do; the message names it and the way out."""


_ERROR_DELAY = 2.0  # seconds


def run_command(command: Callable[[], object], *, again: str = "run it again") -> None:
    """Run a command; an expected error is one line on stderr and exit code 1, Ctrl-C is 130.

    A reader of the output that has seen enough, as ``head`` has, is no error: 141, in silence.
    Of several processes, those beside the main one only print an error that it does not have.

    Args:
        command: what to run.
        again: what to do once a full disk has space again.
    """
    beside = os.environ.get("RANK", "0") != "0"
    try:
        with freed_memory_kept():
            command()
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        if beside:
            sys.exit(130)
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
        print(f"error: {error}{way_out}", file=sys.stderr)
        sys.exit(1)


def refuse(message: str) -> NoReturn:
    """Print what is wrong with the command line and exit with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size that is not positive."""
    if batch_size < 1:
        refuse(f"--batch-size: expected at least 1, but got {batch_size}")


def check_output(folder: Path) -> None:
    """Refuse, before any work is done for it, an output folder that cannot be written into.

    Raises:
        CommandError: it is a file or lies in one, or writing there is not permitted.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise CommandError(f"output: '{there}' is a file; choose a folder with --output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CommandError(
            f"output: writing into '{there}' is not permitted; choose another folder with --output"
        )


class BadImages:
    """The images and masks that cannot be read: named and counted, each once, or an error.

    Args:
        skip: whether to go on without them (``--skip-bad``).
    """

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self._images: set[str] = set()
        self._masks: set[str] = set()

    def __call__(self, error: ImageError) -> None:
        """Note an image or a mask that is left out.

        Raises:
            ImageError: if none may be left out.
        """
        if not self._skip:
            raise ImageError(f"{error}; replace or remove it, or leave it out with --skip-bad")
        noted = self._masks if isinstance(error, MaskError) else self._images
        self._note(str(error), noted)

    def share(self) -> None:
        """Note what any process has left out."""
        for images, masks in processes.gather((self._images, self._masks)):
            for error in sorted(images):
                self._note(error, self._images)
            for error in sorted(masks):
                self._note(error, self._masks)

    def _note(self, error: str, noted: set[str]) -> None:
        if error not in noted:
            noted.add(error)
            if processes.is_main():
                tqdm.write(f"skipped: {error}", file=sys.stderr)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Leave out the image or mask whose reading fails in the block, or raise the error."""
        try:
            yield
        except ImageError as error:
            self(error)

    def note(self) -> str | None:
        """Say how many were left out; None if none was."""
        images, masks = len(self._images), len(self._masks)
        notes = []
        if images:
            notes.append(f"{images} image{'s' * (images > 1)} could not be read and left out")
        if masks:
            notes.append(f"{masks} mask{'s' * (masks > 1)} could not be read")
        return "; ".join(notes) or None
