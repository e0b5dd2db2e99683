"""The images and masks that cannot be read: named and counted, each once, or an error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from tqdm import tqdm

from crad.errors import ImageError, MaskError

_Noted: TypeAlias = tuple[set[str], set[str]]


class BadImages:
    """Leave out the images and masks that cannot be read, or raise their errors.

    Args:
        skip: whether to go on without them (``--skip-bad``).
        quiet: whether to print nothing, as all but one of several processes do.
    """

    def __init__(self, *, skip: bool, quiet: bool = False) -> None:
        self._skip = skip
        self._quiet = quiet
        self._images: set[str] = set()
        self._masks: set[str] = set()

    def __call__(self, error: ImageError) -> None:
        """Note an image or a mask that is left out.

        Raises:
            ImageError: if none may be left out.
        """
        if not self._skip:
            raise type(error)(
                f"{error}; replace or remove it, or leave it out with --skip-bad"
            ) from error
        self._note(str(error), self._masks if isinstance(error, MaskError) else self._images)

    def share(self, gather: Callable[[_Noted], list[_Noted]]) -> None:
        """Note what any process has left out.

        Args:
            gather: gives all processes what each of them has.
        """
        for images, masks in gather((self._images, self._masks)):
            for error in sorted(images):
                self._note(error, self._images)
            for error in sorted(masks):
                self._note(error, self._masks)

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

    def _note(self, error: str, noted: set[str]) -> None:
        if error not in noted:
            noted.add(error)
            if not self._quiet:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
