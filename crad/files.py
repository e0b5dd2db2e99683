"""Files and folders: writing them whole or not at all, reading what may be damaged, names."""

import glob
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from crad.errors import StorageError

LONGEST_NAME = 255
"""Bytes in the name of a file, of the usual file systems."""

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


def full_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path, with ``~`` and links followed as far as they lead somewhere."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; None if there is none, or it is damaged or no regular file."""
    if irregular(path):
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
