"""The comparison with F.grid_sample on images: its cases, the check, and the command."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.images import options, page, runs, steps
from benchmarks.images.__main__ import main
from benchmarks.images.cases import CASES, FORWARD, Case
from benchmarks.images.clock import fastest
from benchmarks.images.others import others
from tests.fixtures import command, one_thread

__all__ = ["command", "one_thread"]

TINY = (
    Case("Tiny", 3, ((6, 8),), (6, 8), mode="bicubic", channels_last=True),
    Case("Few", 2, ((4, 4, 4), (2, 2, 2)), (1, 1, 5), 2, flow="random", jitter_std=0.1),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Two cases of a few points, in an environment that is restored."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("CRAD_KERNELS_CPU_ISA", "baseline")
    monkeypatch.setattr(options, "CASES", TINY)
    monkeypatch.setattr(page, "CASES", TINY)


@pytest.fixture
def two_threads(one_thread: None) -> None:
    """Two threads of torch, for as long as the test runs."""
    torch.set_num_threads(2)


def test_the_row_that_is_explained_is_that_of_a_case() -> None:
    assert page._EXAMPLE in map(str, CASES)


def test_cases_have_names_of_their_own() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)


def test_no_case_runs_the_backward_pass_of_torch_in_half_precision() -> None:
    half = [case for case in CASES if case.dtype != torch.float32]
    assert half
    assert all(case.steps == (FORWARD,) for case in half)


@pytest.mark.parametrize("case", TINY, ids=str)
def test_the_check_finds_a_wrong_result(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.check(case, case.tensors())
    wrong = replace(case, mode="nearest", jitter_std=0.0)
    monkeypatch.setattr(steps, "ours", lambda _: steps.torchs(wrong))
    with pytest.raises(AssertionError, match="of the results differ"):
        steps.check(case, case.tensors())


def test_others_give_what_torch_gives(two_threads: None) -> None:
    case = Case("Sizes", 3, ((12, 16),), (12, 16), flow="affine")
    tensors = case.tensors()
    [(wanted,)] = steps.step(tensors, steps.torchs(case), FORWARD)()
    found = {other.name: other.result(other.call()) for other in others(case)}
    assert {"F.grid_sample, split over threads", "F.grid_sample, compiled"} <= {*found}
    for name, result in found.items():
        assert result.shape == wanted.shape, name
        # OpenCV's weights have 5 bits.
        torch.testing.assert_close(result.float(), wanted, rtol=0, atol=0.04, msg=name)


def test_a_table_of_four_axes_is_composed_of_gathers() -> None:
    case = Case("Tables", 2, ((4, 3, 5, 2),), (1, 1, 3, 4), flow="random")
    steps.check(case, case.tensors())


def test_the_fastest_of_rounds_counts() -> None:
    calls: list[str] = []
    times = fastest([lambda: calls.append("a"), lambda: sum(range(20000))], 0.01)
    assert 0 < times[0] < times[1]


def test_a_run_is_continued_and_shown(
    tiny: None, command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--isa", "baseline", "--threads", "1", "--seconds", "1e-3"]
    arguments += ["--output", str(tmp_path / "results"), "--notes", "Other work ran beside it"]
    assert command(main, *arguments, "--only", "random") == 0
    path = runs.path_of(tmp_path / "results", "baseline", 1)
    first = json.loads(path.read_text())
    assert [*first["cases"]] == [str(TINY[1])]

    monkeypatch.setattr(page, "_EXAMPLE", str(TINY[1]))
    report = tmp_path / "images.md"
    assert command(main, *arguments, "--report", str(report)) == 0
    second = json.loads(path.read_text())
    assert second["cases"][str(TINY[1])] == first["cases"][str(TINY[1])]
    assert {*second["cases"]} == {*map(str, TINY)}
    assert second["notes"] == ["Other work ran beside it"]
    text = report.read_text()
    for case in TINY:
        assert text.count(f"| {case} | forward + backward |") >= 1
        assert f"## {case.group}" in text
    assert "Torch against itself, 4 steps" in text
    reading = text.split("## How to read a row")[1].split("## In short")[0]
    assert f"| {TINY[1]} | forward |" in reading
    assert "With baseline, 1 thread, torch takes " in reading

    another = {**first["machine"], "cpu": "Some(R) Processor @ 2.80GHz"}
    other = {**second, "machine": another}
    text = page.page([second, other])
    assert "| Some, baseline, 1 thread |" in text
    assert "| baseline, 1 thread |" not in text

    monkeypatch.setattr(runs, "machine", lambda: {**first["machine"], "torch": "another"})
    assert command(main, *arguments) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--isa: expected one"),
        (("--isa", "avx2", "--threads", "0"), "--threads"),
        (("--isa", "avx2", "--only", "nothing of that name"), "--only"),
    ],
)
def test_wrong_options(
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert command(main, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_wait_policy_is_refused(
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert command(main, "--isa", "avx2") == 2
    assert "OMP_WAIT_POLICY" in capsys.readouterr().err


def test_a_page_of_others_is_kept(tmp_path: Path, command: Callable[..., int]) -> None:
    page_ = tmp_path / "page.md"
    page_.write_text("mine")
    assert command(main, "--report", str(page_)) == 1
    assert page_.read_text() == "mine"
