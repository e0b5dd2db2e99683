"""Words for messages."""

import pytest

from crad.words import count, enumerate_some


@pytest.mark.parametrize(("number", "words"), [(0, "0 masks"), (1, "1 mask"), (2, "2 masks")])
def test_numbers_of_things(number: int, words: str) -> None:
    assert count(number, "mask") == words


@pytest.mark.parametrize(
    ("names", "words"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b, c"), (["a", "b", "c", "d"], "a, b, c, ...")],
)
def test_the_first_of_some_names(names: list[str], words: str) -> None:
    assert enumerate_some(names) == words
