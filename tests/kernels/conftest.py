"""What tests of the kernels have in common where Triton interprets its own."""

import pytest

from crad_kernels import backends
from crad_kernels._backends.triton import INTERPRETED, plan


@pytest.fixture(autouse=True)
def _few_programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after the other: the fewer, the sooner it ends."""
    places = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    if INTERPRETED and any(getattr(place, "name", "") in backends() for place in places):
        monkeypatch.setattr(plan, "FEW", 0)
        monkeypatch.setattr(plan, "PAIRS", 512)
