"""Folders on disk, each read once, and what of them is not used."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from crad.errors import DataError
from crad.words import count, enumerate_some

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in lower case; the case of a suffix does not matter."""


class Folder:
    """A folder, which is read once, when it is first asked for, without hidden entries.

    Args:
        path: of the folder.
        exists: False gives an empty one.
    """

    def __init__(self, path: Path, *, exists: bool = True) -> None:
        self.path = path
        self.exists = exists

    @property
    def files(self) -> list[Path]:
        """All files, in natural order; whatever is no folder counts as one.

        Raises:
            DataError: the folder cannot be read, or has a link that leads nowhere. Such a link with
                the suffix of an image counts as a file, so that opening it is an error.
        """
        return self._entries[0]

    @cached_property
    def images(self) -> list[Path]:
        """The files that are images by their suffix; otherwise as `files`."""
        return [path for path in self.files if is_image(path)]

    @property
    def folders(self) -> list["Folder"]:
        """The folders in it, in natural order; links are followed. Errors as for `files`."""
        return list(self._entries[1].values())

    def at(self, *names: str) -> "Folder":
        """The folder at a place below; an empty one if it is missing. Errors as for `files`."""
        found = self
        for name in names:
            inner = found._entries[1]
            found = inner.get(name) or Folder(found.path / name, exists=False)
        return found

    def walk(self, skip: Callable[["Folder"], bool] = lambda _: False) -> Iterator["Folder"]:
        """Yield this folder and all below it, each once, whatever links lead to it.

        Args:
            skip: whether a folder below, and all in it, is left out.

        Raises:
            DataError: as for `files`.
        """
        seen: set[str] = set()
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder.path)
            if real in seen:
                continue
            seen.add(real)
            yield folder
            waiting += [inner for inner in reversed(folder.folders) if not skip(inner)]

    @cached_property
    def _entries(self) -> tuple[list[Path], dict[str, "Folder"]]:
        files: list[Path] = []
        folders: dict[str, Folder] = {}
        if not self.exists:
            return files, folders
        try:
            with os.scandir(self.path) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise DataError(
                f"data: the folder '{self.path}' cannot be read ({error.strerror}); permit it, or "
                "move the folder away"
            ) from error
        for entry in sorted(visible, key=lambda entry: natural_key(entry.name)):
            path = self.path / entry.name
            is_link = entry.is_symlink()
            if os.path.isdir(path) if is_link else entry.is_dir():
                folders[entry.name] = Folder(path)
            elif is_link and not is_image(path) and not os.path.exists(path):
                raise DataError(f"data: the link '{path}' leads nowhere; repair or remove it")
            else:
                files.append(path)
        return files, folders


def natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    """Sort key that orders ``img2`` before ``img10``."""
    pieces = re.findall(r"(\D*)(\d*)", name.casefold())
    return [(text, int(digits or -1)) for text, digits in pieces], name


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def not_used(
    root: Folder, used: Iterable[Path], passed_over: Collection[Path], rule: str
) -> tuple[str, ...]:
    """Count the files below a folder that are not used, in a line for images and one for others.

    Args:
        root: the folder.
        used: the files that are.
        passed_over: folders to ignore.
        rule: which images are read.

    Raises:
        DataError: a folder cannot be read, or a link leads nowhere.
    """
    used = {*used}
    real = {folder: os.path.realpath(folder) for folder in {path.parent for path in used}}
    taken = {(real[path.parent], path.name) for path in used}
    images: Counter[Path] = Counter()
    others: Counter[Path] = Counter()
    suffixes: Counter[str] = Counter()
    for folder in root.walk(skip=lambda each: each.path in passed_over):
        place, name = os.path.realpath(folder.path), folder.path.relative_to(root.path)
        for path in folder.files:
            if (place, path.name) in taken:
                continue
            if is_image(path):
                images[name] += 1
            else:
                others[name] += 1
                suffixes[path.suffix.lower() or "without suffix"] += 1
    lines = []
    if images:
        lines.append(
            f"not used: {count(images.total(), 'image')} in {_places(images)}; only {rule} are read"
        )
    if others:
        kinds = enumerate_some([f"{n} {suffix}" for suffix, n in suffixes.most_common()])
        lines.append(
            f"not used: {count(others.total(), 'file')} of other types ({kinds}) in "
            f"{_places(others)}; images end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return tuple(lines)


def _places(folders: Collection[Path]) -> str:
    """The folders of some files; `repr` shows line breaks, and bytes that are no character."""
    return f"{count(len(folders), 'folder')} ({enumerate_some([repr(str(f)) for f in folders])})"
