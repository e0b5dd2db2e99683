"""Words for messages."""

import re
from collections.abc import Collection

_SHOWN = 3  # names in a message


def count(number: int, thing: str) -> str:
    """A number of things, in words."""
    return f"{number} {thing}{'s' * (number != 1)}"


def enumerate_some(names: Collection[str]) -> str:
    """The first of some names."""
    return ", ".join([*names][:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def one_line(text: str) -> str:
    """A text without line breaks, as names of files and errors of PyTorch may have."""
    return re.sub(r"\s*\n\s*", " ", text)
