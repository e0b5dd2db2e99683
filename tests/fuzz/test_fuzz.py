"""Every fuzzer for some seconds. `python -m tests.fuzz NAME --minutes 60` runs one for long."""

import subprocess
import sys

import pytest

from tests.fuzz.__main__ import NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_case_fails(name: str) -> None:
    # A process of its own: children are forked from it, which threads of other tests would break.
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "--minutes", "0.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout[-20000:]}\n{ended.stderr[-4000:]}"
