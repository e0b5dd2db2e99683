"""The form in which results are saved: what all peers of a group share is written once.

A result is a flat dictionary: the test, the group, the name within it, what was timed, and seconds.
"""

from collections.abc import Iterable, Iterator
from typing import Any

SECONDS = ("median", "min", "q1", "q3")


def pack(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results by group: what is common, and ``times`` with what is each one's own."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["group"], []).append(result)
    packed = []
    for members in groups.values():
        first = members[0]
        own = {"name", "rounds", *SECONDS}
        common = {
            key: value
            for key, value in first.items()
            if key not in own and all(key in m and m[key] == value for m in members)
        }
        times = {
            member["name"]: {
                # Four digits are more than the noise leaves.
                key: float(f"{value:.4g}") if key in SECONDS else value
                for key, value in member.items()
                if key not in common and key != "name"
            }
            for member in members
        }
        packed.append({**common, "times": times})
    return packed


def unpack(groups: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The results again."""
    for group in groups:
        common = {key: value for key, value in group.items() if key != "times"}
        for name, own in group["times"].items():
            yield {**common, "name": name, **own}
