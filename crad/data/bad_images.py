"""Unreadable images and masks, which are each reported once or raised as an error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from crad.errors import ImageError, MaskError
from crad.words import count, one_line


class BadImages:
    """Skip the images and masks that cannot be read, or raise their errors.

    Args:
        skip: whether to go on without them (``--skip-bad``).
        quiet: whether to print nothing, as in all but one of several processes.
    """

    def __init__(self, *, skip: bool, quiet: bool = False) -> None:
        self._skip = skip
        self._quiet = quiet
        self._noted: dict[str, bool] = {}  # message of an error: whether a mask has it

    def __call__(self, error: ImageError) -> None:
        """Note an image or a mask that is skipped, or raise its error."""
        if not self._skip:
            way_out = (
                "replace or remove the mask, or go on without it with --skip-bad"
                if isinstance(error, MaskError)
                else "replace or remove it, or leave it out with --skip-bad"
            )
            raise type(error)(f"{error}; {way_out}") from error
        self._note(str(error), isinstance(error, MaskError))

    def share(self, gather: Callable[[dict[str, bool]], list[dict[str, bool]]]) -> None:
        """Note what any process has skipped; `gather` returns the argument of each process."""
        for noted in gather(self._noted):
            for error, is_mask in noted.items():
                self._note(error, is_mask)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Skip the image or mask whose reading fails in the block, or raise the error."""
        try:
            yield
        except ImageError as error:
            self(error)

    def note(self) -> str | None:
        """Say how many were skipped; None if none was."""
        masks = sum(self._noted.values())
        images = len(self._noted) - masks
        notes = []
        if images:
            notes.append(f"{count(images, 'image')} could not be read and left out")
        if masks:
            notes.append(
                f"{count(masks, 'mask')} could not be used; pixel metrics leave out "
                f"{'their images' if masks > 1 else 'its image'}"
            )
        return "; ".join(notes) or None

    def _note(self, error: str, is_mask: bool) -> None:
        if error not in self._noted:
            self._noted[error] = is_mask
            if not self._quiet:
                tqdm.write(f"skipped: {one_line(error)}", file=sys.stderr)
