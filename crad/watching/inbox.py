"""The folder that images arrive in."""

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from crad.data.folders import is_image
from crad.errors import DataError


@dataclass(frozen=True)
class Identity:
    """What tells a file from another one of the same name, and a complete one from a growing one.

    Attributes:
        size: in bytes.
        modified: nanoseconds since 1970.
    """

    size: int
    modified: int


@dataclass(frozen=True)
class Arrival:
    """A file that has arrived."""

    path: Path
    identity: Identity


def identity_of(path: Path) -> Identity | None:
    """The identity of a regular file; None if there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return Identity(found.st_size, found.st_mtime_ns)


class Inbox:
    """Finds the images in a folder that are complete: of one size and time in two looks.

    Sub-folders, links, hidden files and files without the suffix of an image are left alone.

    Args:
        folder: that they arrive in.
        interval: seconds between the two looks at least.
    """

    def __init__(self, folder: Path, interval: float) -> None:
        self.interval = interval
        self._folder = folder
        self._seen: dict[Path, tuple[Identity, float]] = {}

    def look(self, done: Collection[Arrival] = ()) -> list[Arrival]:
        """Give the complete images, the oldest first.

        Args:
            done: what is left out.

        Raises:
            DataError: the folder cannot be read.
        """
        now = time.monotonic()
        seen: dict[Path, tuple[Identity, float]] = {}
        complete: list[Arrival] = []
        for arrival in self._images():
            if arrival in done:
                continue
            identity, since = self._seen.get(arrival.path, (None, now))
            if identity != arrival.identity:
                since = now
            seen[arrival.path] = arrival.identity, since
            if now - since >= self.interval:
                complete.append(arrival)
        self._seen = seen
        return sorted(complete, key=lambda each: (each.identity.modified, each.path.name))

    def _images(self) -> list[Arrival]:
        found = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    path = self._folder / entry.name
                    if entry.name.startswith(".") or not is_image(path):
                        continue
                    if entry.is_file(follow_symlinks=False) and (identity := identity_of(path)):
                        found.append(Arrival(path, identity))
        except OSError as error:
            raise DataError(
                f"watch: the folder '{self._folder}' cannot be read ({error.strerror}); name "
                "another one"
            ) from error
        return found
