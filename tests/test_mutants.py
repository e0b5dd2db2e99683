"""The table of mutants."""

from tests.mutants import MUTANTS, ROOT


def test_every_mutant_has_its_place() -> None:
    places = {each.name: (ROOT / each.file).read_text().count(each.right) for each in MUTANTS}
    assert {name: count for name, count in places.items() if count != 1} == {}
