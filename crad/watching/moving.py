"""Moving files where others may lie, without replacing any."""

import errno
import filecmp
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from crad.errors import StorageError
from crad.files import LONGEST_NAME, cut_name

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


def free_names(folder: Path, name: str, beside: str = "") -> Iterator[Path]:
    """The files in a folder that a name may get: itself, then with a number, if nothing is there.

    Args:
        folder: that need not be there.
        name: of a file.
        beside: an ending, with which nothing may be there either.
    """
    stem, suffix = Path(name).stem, Path(name).suffix
    for number in itertools.count(1):
        end = suffix if number == 1 else f"-{number}{suffix}"
        path = folder / f"{cut_name(stem, LONGEST_NAME - len(os.fsencode(end + beside)))}{end}"
        if not os.path.lexists(path) and not os.path.lexists(f"{path}{beside}"):
            yield path


def move(source: Path, target: Path) -> None:
    """Move a file, also to another file system.

    A crash leaves it in one of the two places, or whole in both; then `finish_move` ends it.

    Raises:
        FileExistsError: there is a file already.
        StorageError: it cannot be moved; it is where it was.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.EXDEV:
                _copy(source, target)
            elif error.errno in _NO_LINKS:
                if os.path.lexists(target):
                    raise FileExistsError(errno.EEXIST, "exists", str(target)) from error
                os.rename(source, target)
                return
            else:
                raise
        os.unlink(source)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(error.errno, error.strerror, str(target)) from error


def finish_move(source: Path, target: Path) -> bool:
    """End a move that a crash may have cut short; False if another file lies there.

    Args:
        source: the file, which is there.
        target: where it was to move.
    """
    if not os.path.lexists(target):
        move(source, target)
        return True
    if not os.path.isfile(target):
        return False
    if os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False):
        os.unlink(source)
        return True
    return False


def _copy(source: Path, target: Path) -> None:
    """Copy a file, with its time, which has its name once it is on disk."""
    temporary = target.with_name(f".{cut_name(target.name, LONGEST_NAME - 20)}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        with suppress(OSError):  # some file systems keep none of it
            shutil.copystat(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        try:
            os.link(temporary, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, "exists", str(target)) from error
            os.rename(temporary, target)
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
