"""Writing files and folders: whole or not at all, and nothing of the user's is replaced."""

import errno
import fcntl
import glob
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from crad.errors import OutputError, StorageError

LONGEST_NAME = 255
"""Bytes in the name of a file, of the usual file systems."""

_LOCK_NAME = ".crad.lock"
_STALE_SECONDS = 24 * 60 * 60  # a killed process left what it wrote; writing takes less
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


@contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place once the block succeeds.

    The temporary file is hidden, ends in ``.tmp`` and has the number of the process in its name.
    A symbolic link is followed, missing folders are made.

    Args:
        path: the file to write; a regular file, or nothing yet.
        durable: whether to wait until it is on disk. A delayed write then reports a full disk
            before the former file is replaced.

    Raises:
        StorageError: writing failed, or ``path`` is no regular file; a former file is untouched.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "not a regular file"
        raise StorageError(f"cannot write '{path}': it is {kind}; give the name of a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot write '{path}': there is no folder '{target.parent}', and it cannot be made "
            f"({error.strerror}); choose another one"
        ) from error
    temporary = target.with_name(f"{_temporary_prefix(target)}{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            reason = error.strerror or str(error)
            raise StorageError(error.errno, reason, str(path)) from error
        raise


def remove_leftovers(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Remove the temporary files that killed processes left beside files."""
    prefixes: dict[Path, set[str]] = {}
    for path in paths:
        target = Path(os.path.realpath(path))
        prefixes.setdefault(target.parent, set()).add(_temporary_prefix(target))
    for folder, wanted in prefixes.items():
        for leftover in folder.glob(".*.tmp"):
            prefix, process = leftover.stem.rpartition(".")[::2]
            other = process.isdecimal() and int(process) != os.getpid()
            if other and f"{prefix}." in wanted:
                leftover.unlink(missing_ok=True)


def cut_name(name: str, length: int) -> str:
    """Shorten the name of a file to a number of bytes, at the end of a character."""
    data = os.fsencode(name)
    return name if len(data) <= length else data[:length].decode("utf-8", errors="ignore")


def _temporary_prefix(target: Path) -> str:
    return f".{cut_name(target.name, LONGEST_NAME - 20)}."


def write_atomically(
    path: str | os.PathLike[str], writer: Callable[[BinaryIO], object], *, durable: bool = True
) -> None:
    """Write a file by calling ``writer`` with it, open and binary; otherwise as `replacing`."""
    with replacing(path, durable=durable) as temporary, temporary.open("wb") as file:
        writer(file)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented UTF-8 JSON; otherwise as `replacing`.

    Raises:
        ValueError: it holds NaN or an infinity, for which JSON has no form.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates; a backslash makes of each a JSON escape.
    data = text.encode("utf-8", errors="backslashreplace")
    write_atomically(path, lambda file: file.write(data))


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``path`` once the block succeeds.

    If another process made it meanwhile, that folder stays. What a killed process left is removed
    by a call a day later.

    Raises:
        OSError: writing failed; the temporary folder is gone.
    """
    folder = Path(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}-*"):
        with suppress(OSError):  # another process may remove it at the same time
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        # mkdtemp's folder is for its owner only; one in it has the usual mode.
        written = temporary / folder.name
        written.mkdir()
        yield written
        try:
            written.rename(folder)
        except OSError:
            if not (folder.is_dir() and any(folder.iterdir())):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def irregular(path: str | os.PathLike[str]) -> str | None:
    """Say what a path is if it is neither missing nor a regular file: ``"a FIFO"``, for instance.

    Opening a FIFO would wait until another process writes into it.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None  # opening it says why
    return _KINDS.get(stat.S_IFMT(mode), "a device") if not stat.S_ISREG(mode) else None


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
        OutputError: an output is one of the inputs, another output, or a file that crad did not
            write.
    """
    read = {_identity(path): path for path in inputs}
    written: dict[tuple[int, int] | str, Output] = {}
    for output in outputs:
        name, identity = f"{output.option}: '{output.path}'", _identity(output.path)
        way_out = f"give another {output.option}"
        if identity in read:
            raise OutputError(f"{name} is an input of this command; {way_out}")
        if identity in written:
            raise OutputError(f"{name} is written by {written[identity].option} too; {way_out}")
        written[identity] = output
        if output.path.is_dir():
            raise OutputError(f"{name} is a folder; {way_out}")
        there = next(each for each in output.path.absolute().parents if each.exists())
        if not there.is_dir():
            raise OutputError(f"{name} cannot be written, as '{there}' is a file; {way_out}")
        if os.path.lexists(output.path) and not (
            output.path.is_file() and output.is_own(output.path)
        ):
            raise OutputError(
                f"{name} exists and was not written by crad; {way_out}, or move the file away"
            )


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
    new = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    path = folder / _LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    """Make and lock a file, and write the number of this process into it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            holder = os.pread(descriptor, 32, 0)
            if holder and not holder.isdigit():
                raise OutputError(
                    f"output: '{path}' was not written by crad; move it away, or choose another "
                    "folder"
                )
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BlockingIOError:
            process = f" (process {holder.decode()})" if holder else ""
            os.close(descriptor)
            raise OutputError(
                f"output: another command{process} is writing into '{path.parent}'; wait until it "
                "ends, or choose another folder"
            ) from None
        except FileNotFoundError:
            pass  # its holder has just removed it
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSPC, errno.ENOTSUP, errno.ENOSYS):
                return descriptor
            os.close(descriptor)
            raise
        except OutputError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def full_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path, with ``~`` and links followed as far as they lead somewhere."""
    return Path(os.path.realpath(os.path.expanduser(path)))


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
