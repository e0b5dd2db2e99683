"""What of the sweep over plans needs no GPU: all but its times."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.cases import Case
from benchmarks.gpu import sweep
from benchmarks.peers import Peer, peers
from crad_kernels import backends

SMALL = (Case("small", (4, 4), 33, (50,)), Case("other", (9,), 2, (7,)))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small cases, by the CUDA kernels where tests have compiled them for the processor."""
    monkeypatch.setattr(sweep, "CASES", SMALL)
    if backends()["cuda"].devices != ("cpu",):

        def stand_in(device: str) -> dict[str, Peer]:
            return {"crad_kernels cuda": peers(device)["crad_kernels reference"]}

        monkeypatch.setattr(sweep, "peers", stand_in)


def test_every_plan_of_every_case_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(sweep.VARIABLE, raising=False)
    arguments = ["--device", "cpu", "--results", str(tmp_path)]
    assert sweep.main(arguments) == 0
    assert sweep.VARIABLE not in os.environ
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-none-plans.json")
    cases = json.loads(path.read_text())["cases"]
    assert list(cases) == [str(case) for case in SMALL]
    for rows in cases.values():
        assert [row["plan"] for row in rows] == list(sweep.PLANS)
        assert rows[0]["forward"]
        assert rows[0]["forward + backward"]
    assert "as it is" in capsys.readouterr().out
    # A second run measures nothing again.
    before = path.read_text()
    assert sweep.main(arguments) == 0
    assert path.read_text() == before


def test_what_there_is_no_time_for_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["--device", "cpu", "--results", str(tmp_path), "--minutes", "0"]) == 1
    assert "the time is up" in capsys.readouterr().err


def test_a_plan_of_the_user_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sweep.VARIABLE, "tile=32")
    with sweep.forced("batch=8"):
        assert os.environ[sweep.VARIABLE] == "batch=8"
    assert os.environ[sweep.VARIABLE] == "tile=32"


@pytest.mark.skipif(backends()["cuda"].devices != ("cpu",), reason="no kernels to cut")
def test_a_choice_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SMALL[0]
    assert sweep.measure(small, "family=memory,threads=64,vector=1", "cpu")["forward"]
    assert sweep.measure(small, "batch=100000", "cpu")["forward"] == {}
    monkeypatch.setenv(sweep.VARIABLE, "tiles=3")
    trial = sweep.Trial(sweep.peers("cpu")["crad_kernels cuda"], small, small.tensors())
    with pytest.raises(RuntimeError, match=r"CRAD_KERNELS_PLAN: expected .* but got 'tiles=3'"):
        trial.forward(0.0)
