"""What the commands share: how an error reaches the person at the terminal."""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm

from crad.backbones import BackboneError
from crad.checkpoint import CheckpointError
from crad.data import DataError
from crad.devices import DeviceError
from crad.images import ImageError


class CommandError(Exception):
    """Something that a command cannot do; the message names it and the way out."""


_EXPECTED = (
    BackboneError,
    CheckpointError,
    CommandError,
    DataError,
    DeviceError,
    ImageError,
    OSError,
)


def run_command(command: Callable[[], object]) -> None:
    """Run a command; an expected error is one line on stderr and exit code 1, Ctrl-C is 130."""
    try:
        command()
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{': ' if str(interrupt) else ''}{interrupt}", file=sys.stderr)
        sys.exit(130)
    except _EXPECTED as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        way_out = "; free some space and run it again, training with --resume" if full else ""
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


class BadImages:
    """The images that cannot be read: named and counted, each once, or an error.

    Args:
        skip: whether to go on without them (``--skip-bad``).
    """

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self._messages: set[str] = set()

    def __call__(self, error: ImageError) -> None:
        """Note an image that is left out.

        Raises:
            ImageError: if none may be left out.
        """
        if not self._skip:
            raise ImageError(f"{error}; replace or remove it, or leave it out with --skip-bad")
        if str(error) not in self._messages:
            self._messages.add(str(error))
            tqdm.write(f"skipped: {error}", file=sys.stderr)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Leave out the image whose reading fails in the block, or raise the error."""
        try:
            yield
        except ImageError as error:
            self(error)

    def __len__(self) -> int:
        return len(self._messages)
