"""Where a command may write: which files may be replaced, and a lock for a folder."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from crad.errors import OutputError, StorageError
from crad.files import irregular

_LOCK_NAME = ".crad.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # on this file system


@dataclass(frozen=True)
class Output:
    """A file that a command is asked to write.

    Attributes:
        option: that asks for it.
        path: the file.
        is_own: whether a file there was written by crad, as an earlier output of this kind.
    """

    option: str
    path: Path
    is_own: Callable[[Path], bool]


def check_outputs(outputs: Iterable[Output], inputs: Iterable[Path]) -> None:
    """Refuse, before any work is done, to write over a file that is not an earlier output.

    Args:
        outputs: what the command is to write.
        inputs: files that it reads.

    Raises:
        OutputError: an output is one of the inputs, another output, or a file with content that
            crad did not write; or it cannot be written.
    """
    read = {_identity(path) for path in inputs}
    written: dict[tuple[int, int] | str, Output] = {}
    for output in outputs:
        identity = _identity(output.path)
        if identity in read:
            problem: str | None = "is an input of this command"
        elif identity in written:
            problem = f"is written by {written[identity].option} too"
        else:
            problem = _problem(output)
        if problem:
            raise OutputError(
                f"{output.option}: '{output.path}' {problem}; give another {output.option}"
            )
        written[identity] = output


def _problem(output: Output) -> str | None:
    """Why an output cannot be written, or may not be replaced."""
    if kind := irregular(output.path):
        return f"is {kind}"
    there = next(each for each in output.path.absolute().parents if each.exists())
    if not there.is_dir():
        return f"cannot be written, as '{there}' is a file"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"cannot be written, as writing into '{there}' is not permitted"
    if not os.path.lexists(output.path):
        return None
    if output.path.is_file() and output.is_own(output.path):
        return None
    return "exists and was not written by crad for this purpose (move it away)"


def _identity(path: Path) -> tuple[int, int] | str:
    """What two names of one file have in common."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands from writing into a folder during the block; it is made if missing.

    The system releases the lock of a process that dies. A new folder that stays empty is removed.
    On a file system without locks there is none.

    Raises:
        OutputError: another command is writing there, or the folder cannot be used.
        StorageError: the folder cannot be made.
    """
    check_folder(folder)
    path = folder / _LOCK_NAME
    if kind := irregular(path):
        raise OutputError(f"output: '{path}' is {kind}; move it away, or choose another folder")
    new = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    try:
        descriptor = _lock(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(error.errno, reason, str(folder)) from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
        for each in new:
            with suppress(OSError):  # it is no longer empty
                each.rmdir()


def _lock(path: Path) -> int:
    """Make and lock a file, with its folder, and write the number of this process into it."""
    while True:
        with suppress(FileNotFoundError):  # the holder has just removed it, or its folder
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if _is_locked(path, descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _is_locked(path: Path, descriptor: int) -> bool:
    """Lock an open file; False if another process has replaced or removed it meanwhile."""
    holder = os.pread(descriptor, 32, 0)
    if holder and not holder.isdigit():
        raise OutputError(
            f"output: '{path}' was not written by crad; move it away, or choose another folder"
        )
    if not try_lock(descriptor):
        process = f" (process {holder.decode()})" if holder else ""
        raise OutputError(
            f"output: another command{process} is writing into '{path.parent}'; wait until it "
            "ends, or choose another folder"
        )
    if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
        return False
    with suppress(OSError):  # on a full disk the lock holds without the number
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return True


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; False if another process has it.

    Where the file system has no locks, it counts as locked.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def check_folder(folder: Path) -> None:
    """Refuse an output folder that cannot be written into, before any work is done for it.

    Raises:
        OutputError: it is a file or lies in one, or writing there is not permitted.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"output: '{there}' is a file; choose a folder with --output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"output: writing into '{there}' is not permitted; choose another folder with --output"
        )
