"""What of the check on a GPU needs none: its processes, what is read of them, what is written."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_report, gpu_timings, sanitizer_cases
from benchmarks.cases import CASES
from benchmarks.gpu_check import End, Step
from benchmarks.peers import peers
from crad_kernels import backends
from crad_kernels.backends import Backend
from tests.cases import JUDGE

ABOUT = {"gpu": "NVIDIA H100 80GB HBM3", "commit": "abc"}


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is named, and nothing else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda commit: {**ABOUT, "commit": commit})


def python(code: str, seconds: float = 60) -> End:
    return gpu_check.run([sys.executable, "-c", code], seconds)


# ---- processes ----


def test_a_process_gives_its_status_and_what_it_printed() -> None:
    end = python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert end.code == 3
    assert set(end.output.split()) == {"out", "err"}
    assert end.report(False)["status"] == "failed"


def test_a_process_whose_time_is_up_is_interrupted() -> None:
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('written')"
    end = python("print('begun', flush=True)\n" + code, 2)
    assert end.code is None
    assert end.output.split() == ["begun", "written"]
    assert end.report(False)["status"] == "timed out"


# ---- what is read ----

JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="one"/>
<testcase classname="a" name="two"><skipped message="no GPU"/></testcase>
<testcase classname="a" name="three"><failure message="wrong">long</failure></testcase>
<testcase classname="a" name="four"><error message="broken"/></testcase>
</testsuite></testsuites>"""


def test_counts_of_tests(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    counts = gpu_check.junit_counts(path)
    assert counts["summary"] == "1 passed, 2 failed, 1 skipped"
    assert counts["failures"] == ["a::three: wrong", "a::four: broken"]
    assert counts["skips"] == ["no GPU"]
    assert gpu_check.junit_counts(tmp_path / "missing.xml") == {}
    path.write_text(JUNIT[:100])
    assert gpu_check.junit_counts(path) == {}


CALLS = "71 calls, forward and backward\n"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (End(0, CALLS + "========= ERROR SUMMARY: 0 errors\n"), "passed"),
        (
            End(0, CALLS + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n"),
            "passed",
        ),
        (End(1, CALLS + "========= ERROR SUMMARY: 3 errors\n"), "failed"),
        (End(0, "========= ERROR SUMMARY: 0 errors\n"), "failed"),  # it ran nothing
        (End(0, CALLS), "failed"),  # and here the tool did not
        (End(None, ""), "timed out"),
        (End(1, "========= Error: Device not supported. Please refer\n"), "skipped"),
    ],
)
def test_findings_of_the_sanitizer(end: End, status: str) -> None:
    assert gpu_check.sanitizer_report(end)["status"] == status


@pytest.mark.parametrize(
    ("end", "status", "summary"),
    [
        (
            End(0, "sm_80 sort 32 registers\n110 variants, 0 of them spill registers\n"),
            "passed",
            "110 variants, 0 of them spill registers",
        ),
        (
            End(0, "60 variants: registers and bytes\n  72 0 sample\n0 spill more\n"),
            "passed",
            "60 variants; 0 spill more",
        ),
        (End(1, "60 variants: registers\n2 spill more\n"), "failed", "60 variants; 2 spill more"),
        (End(0, ""), "failed", ""),
        (End(None, "60 variants: registers\n"), "timed out", "60 variants"),
    ],
)
def test_registers_of_the_variants(end: End, status: str, summary: str) -> None:
    found = gpu_check.variants_report(end)
    assert (found["status"], found["summary"]) == (status, summary)


def test_variants_need_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    assert gpu_check.run_variants("cuda", 1)["reason"] == "nvcc was not found"


# ---- steps ----


def step(kind: str, name: str, status: str = "passed") -> Step:
    return Step(kind, name, lambda seconds: {"status": status})


def test_time_that_a_step_leaves_goes_to_the_rest() -> None:
    todo = [step("tests", "a"), step("tests", "b"), step("timings", "c")]
    assert gpu_check.share(todo[0], todo, 700) == 250  # half of 5 parts in 7
    assert gpu_check.share(todo[1], todo[1:], 700) == 500
    assert gpu_check.share(todo[2], todo[2:], 600) == 600
    assert gpu_check.share(todo[2], todo[2:], -5) == 0


def test_every_kind_can_be_run_alone() -> None:
    for kind in gpu_check.KINDS:
        assert {each.kind for each in gpu_check.steps([kind], None)} <= {kind}
    names = [each.name for each in gpu_check.steps(gpu_check.KINDS, [JUDGE])]
    assert f"tests, {JUDGE}" in names
    assert "times, F.embedding_bag" in names


def test_a_gpu_gets_the_variants_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {name: Backend(name, ("cuda",), "") for name in gpu_check.COMPILED}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "backends", lambda: gpu)
    monkeypatch.setattr(gpu_check, "peers", lambda device: {})
    names = [each.name for each in gpu_check.steps(["variants"], None)]
    assert names == ["registers, cuda", "registers, triton"]
    assert [each.name for each in gpu_check.steps(["variants"], ["triton"])] == names[1:]


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(("status", "code"), [("passed", 0), ("skipped", 0), ("failed", 1)])
def test_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, code: int
) -> None:
    todo = [step("tests", "first", status), step("tests", "second")]
    monkeypatch.setattr(gpu_check, "steps", lambda kinds, chosen: todo)
    assert gpu_check.main(["--results", str(tmp_path)]) == code


@pytest.mark.usefixtures("_gpu")
def test_a_step_that_fails_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(seconds: float) -> gpu_report.Report:
        raise RuntimeError("out of luck")

    todo = [Step("tests", "first", broken), step("timings", "second")]
    monkeypatch.setattr(gpu_check, "steps", lambda kinds, chosen: todo)
    assert gpu_check.main(["--results", str(tmp_path)]) == 1
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())["steps"]
    assert written["first"]["reason"] == "RuntimeError: out of luck"
    assert written["second"]["status"] == "passed"
    assert "out of luck" in capsys.readouterr().out


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_there_is_no_other_kind() -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "guesses"])


# ---- what is written ----


def test_a_report_is_named_after_the_day_and_the_gpu(tmp_path: Path) -> None:
    path, fresh = gpu_report.open_report(tmp_path, ABOUT)
    assert path.name.endswith("-nvidia-h100-80gb-hbm3.json")
    assert len(path.name.split("-nvidia")[0]) == len("2026-11-24")
    assert fresh == {"machine": ABOUT, "steps": {}}


def test_a_report_goes_on_where_it_is_of_the_same_commit(tmp_path: Path) -> None:
    path, begun = gpu_report.open_report(tmp_path, ABOUT)
    begun["steps"]["tests"] = {"status": "passed"}
    gpu_report.write_json(path, begun)
    assert gpu_report.open_report(tmp_path, ABOUT)[1] == begun
    assert gpu_report.open_report(tmp_path, {**ABOUT, "commit": "def"})[1]["steps"] == {}
    path.write_text("{")
    assert gpu_report.open_report(tmp_path, ABOUT)[1]["steps"] == {}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    gpu_report.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        gpu_report.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_the_table_has_times_errors_and_steps() -> None:
    times = [
        {"case": "8x8", "peer": "ours", "direction": "forward", "ms": 0.5, "times_floor": 1.25},
        {"case": "8x8", "peer": "theirs", "skipped": "out of memory"},
    ]
    steps = {
        "times, ours": {"status": "passed", "seconds": 3.2, "times": times},
        "memcheck, ours": {"status": "failed", "seconds": 4.0, "summary": "3 errors"},
    }
    lines = list(gpu_report.table({"machine": ABOUT, "steps": steps}))
    assert lines[0] == "8x8"
    assert "0.500 ms" in lines[1]
    assert "1.2x floor" in lines[1]
    assert "out of memory" in lines[2]
    assert lines[-1].split() == ["failed", "4", "s", "memcheck,", "ours", "3", "errors"]


# ---- the processes themselves, on the CPU ----


@pytest.mark.parametrize("name", [name for name in backends() if name != JUDGE])
def test_calls_for_the_sanitizer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "cpu" not in backends()[name].devices or not backends()[name].usable:
        pytest.skip(f"backend {name} does not take the CPU's tensors here")
    sanitizer_cases.main(name, "cpu")
    assert "calls, forward and backward" in capsys.readouterr().out


def test_the_fewest_bytes_of_a_case() -> None:
    """A grid of 8x8x216 and 50,176 points, in float32."""
    grid, coords, out = 8 * 8 * 216 * 4, 50_176 * 2 * 4, 50_176 * 216 * 4
    assert CASES[0].fewest_bytes(backward=False) == grid + coords + out
    assert CASES[0].fewest_bytes(backward=True) == 3 * (grid + coords) + 2 * out


class Clock:
    """An event that is always a millisecond after the last."""

    def __init__(self, enable_timing: bool) -> None:
        self.enable_timing = enable_timing

    def record(self) -> None:
        pass

    def elapsed_time(self, other: Any) -> float:
        return 1.0


def test_times_take_turns_with_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(synchronize=lambda: None, Event=Clock, _sleep=lambda cycles: None)
    monkeypatch.setattr(gpu_timings.torch, "cuda", gpu)
    turns: list[int] = []
    assert set(gpu_timings.times(turns.append, 3, seconds=0.0)) == {1.0}
    assert turns == [0, 1, 2, 0] + [i % 3 for i in range(10)]


def test_peers_are_those_of_the_device() -> None:
    for device in ("cpu", "cuda"):
        names = [name for name in peers(device) if name.startswith("crad_kernels ")]
        for name in names:
            record = backends()[name.removeprefix("crad_kernels ")]
            assert record.takes(torch.device(device), 2)
        assert f"crad_kernels {JUDGE}" in names
