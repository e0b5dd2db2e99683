"""What of the check on a GPU needs none: its processes, what is read of them, what is written."""

import json
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks import gpu_check, sanitizer_cases
from benchmarks.cases import CASES, Case
from benchmarks.gpu import report, steps, timings
from benchmarks.gpu.steps import End, Step
from benchmarks.peers import peers
from crad_kernels import backends
from crad_kernels._backends import Backend
from tests import conftest
from tests.cases import JUDGE

ABOUT = {"gpu": "NVIDIA H100 80GB HBM3", "commit": "abc"}


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is named, and nothing else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda commit: {**ABOUT, "commit": commit})


def python(code: str, seconds: float = 60) -> End:
    return steps.run([sys.executable, "-c", code], seconds)


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
    assert gpu_check.run_variants("cuda", 1, {})["reason"] == "nvcc was not found"


@pytest.mark.parametrize(
    ("end", "status"),
    [(End(0, CALLS), "passed"), (End(0, ""), "failed"), (End(1, "AssertionError"), "failed")],
)
def test_calls_that_agree(end: End, status: str) -> None:
    assert gpu_check.calls_report(end)["status"] == status


# ---- steps ----


def step(kind: str, name: str, status: str = "passed") -> Step:
    return Step(kind, name, lambda seconds, earlier: {"status": status})


def test_every_kind_can_be_run_alone() -> None:
    for kind in gpu_check.KINDS:
        assert {each.kind for each in gpu_check.steps([kind], None)} <= {kind}
    names = [each.name for each in gpu_check.steps(gpu_check.KINDS, [JUDGE])]
    assert f"tests, {JUDGE}, alone" in names
    assert "times, F.embedding_bag" in names


@pytest.fixture
def _both_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends that have kernels for one, and nothing else."""
    gpu = {name: Backend(name, ("cuda",), "") for name in gpu_check.COMPILED}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "backends", lambda: gpu)
    names = ("F.embedding_bag", gpu_check.FIRST_PEER, *(f"crad_kernels {name}" for name in gpu))
    monkeypatch.setattr(gpu_check, "peers", lambda device: dict.fromkeys(names))


@pytest.mark.usefixtures("_both_on_a_gpu")
def test_what_tells_most_comes_first() -> None:
    """Whether the kernels run, how fast beside F.grid_sample, and then whether all is right."""
    names = [each.name for each in gpu_check.steps(gpu_check.KINDS, None)]
    assert names[:7] == [
        "calls, cuda",
        "calls, triton",
        "times, crad_kernels cuda",
        "times, crad_kernels triton",
        "times, F.grid_sample, flat",
        "tests, cuda, alone",
        "tests, triton, alone",
    ]
    assert names.index("memcheck, cuda") < names.index("times, F.embedding_bag")
    assert names[-2:] == ["registers, cuda", "registers, triton"]
    assert len(names) == len(set(names))
    chosen = [each.name for each in gpu_check.steps(gpu_check.KINDS, ["triton"])]
    assert chosen == [name for name in names if "cuda" not in name]


def test_a_backend_that_is_missing_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpu_check, "backends", lambda: {"cuda": Backend("cuda", ("cuda",), "build it")}
    )
    (first, *_) = gpu_check.steps(gpu_check.KINDS, ["cuda"])
    assert first.run(1, {}) == {"status": "missing", "reason": "build it"}
    assert "missing" not in steps.FINE


def test_the_parts_are_all_tests() -> None:
    found: list[Any] = []
    for part in range(1, gpu_check.PARTS + 1):
        options = {"--part": f"{part}/{gpu_check.PARTS}"}
        others: list[Any] = []
        hook = SimpleNamespace(pytest_deselected=lambda items, to=others: to.extend(items))
        items: list[Any] = list(range(7))
        conftest.pytest_collection_modifyitems(
            cast(Any, SimpleNamespace(getoption=options.get, hook=hook)), items
        )
        assert sorted(items + others) == list(range(7))
        found += items
    assert sorted(found) == list(range(7))


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
    def broken(seconds: float, earlier: report.Report) -> report.Report:
        raise RuntimeError("out of luck")

    todo = [Step("tests", "first", broken), step("timings", "second")]
    monkeypatch.setattr(gpu_check, "steps", lambda kinds, chosen: todo)
    assert gpu_check.main(["--results", str(tmp_path)]) == 1
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())["steps"]
    assert written["first"]["reason"] == "RuntimeError: out of luck"
    assert written["second"]["status"] == "passed"
    assert "out of luck" in capsys.readouterr().out


@pytest.mark.usefixtures("_gpu")
def test_another_run_goes_on_with_what_has_not_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[tuple[str, report.Report]] = []
    clock = [0.0]

    def named(name: str, *statuses: str) -> Step:
        turns = iter(statuses)

        def run(seconds: float, earlier: report.Report) -> report.Report:
            ran.append((name, earlier))
            clock[0] += 50
            return {"status": next(turns), "number": len(ran)}

        return Step("tests", name, run)

    todo = [
        named("a", *["passed"] * 2),
        named("b", "failed", "passed", "passed"),
        named("c", "passed"),
    ]
    monkeypatch.setattr(gpu_check, "steps", lambda kinds, chosen: todo)
    monkeypatch.setattr(steps.time, "monotonic", lambda: clock[0])
    options = ["--results", str(tmp_path), "--minutes", "1.9"]  # time for two of them
    assert gpu_check.main(options) == 1
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["steps"]["c"]["status"] == "no time"
    assert gpu_check.main(options) == 0
    assert [name for name, _ in ran] == ["a", "b", "b", "c"]
    assert ran[2][1]["number"] == 2  # what was reported of it before
    assert gpu_check.main(options) == 0
    assert len(ran) == 4
    assert gpu_check.main([*options, "--again"]) == 0
    assert [name for name, _ in ran[4:]] == ["a", "b"]


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_there_is_no_other_kind() -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "guesses"])


# ---- what is written ----


def test_a_report_is_named_after_the_day_and_the_gpu(tmp_path: Path) -> None:
    path, fresh = report.open_report(tmp_path, ABOUT)
    assert path.name.endswith("-nvidia-h100-80gb-hbm3.json")
    assert len(path.name.split("-nvidia")[0]) == len("2026-11-24")
    assert fresh == {"machine": ABOUT, "steps": {}}


def test_a_report_goes_on_where_it_is_of_the_same_commit(tmp_path: Path) -> None:
    path, begun = report.open_report(tmp_path, ABOUT)
    begun["steps"]["tests"] = {"status": "passed"}
    report.write_json(path, begun)
    assert report.open_report(tmp_path, ABOUT)[1] == begun
    assert report.open_report(tmp_path, {**ABOUT, "commit": "def"})[1]["steps"] == {}
    path.write_text("{")
    other, fresh = report.open_report(tmp_path, ABOUT)
    assert fresh["steps"] == {}
    assert other.name == f"{path.stem}-2.json"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    report.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        report.write_json(path, {"a": object()})
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
    lines = list(report.table({"machine": ABOUT, "steps": steps}))
    assert lines[0] == "8x8"
    assert "0.500 ms" in lines[1]
    assert "1.2x floor" in lines[1]
    assert "out of memory" in lines[2]
    assert lines[-1].split() == ["failed", "4", "s", "memcheck,", "ours", "3", "errors"]


# ---- the processes themselves, on the CPU ----


def test_times_go_on_where_they_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = [Case(name, (4,), 1) for name in ("a", "b", "c")]
    timed: list[str] = []

    def measure(peer: Any, case: Case, bandwidth: float) -> list[report.Report]:
        if case.name == "b" and timed.count("b") == 0:
            timed.append("b")
            raise RuntimeError("out of luck")
        timed.append(case.name)
        return [{"direction": "forward", "ms": 1.0}]

    monkeypatch.setattr(timings, "CASES", cases)
    monkeypatch.setattr(timings, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(timings, "measure", measure)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    output = tmp_path / "times.json"
    timings.main(f"crad_kernels {JUDGE}", output)
    written = json.loads(output.read_text())
    assert written["finished"]
    assert [t.get("error") for t in written["times"]] == [None, "RuntimeError: out of luck", None]
    timings.main(f"crad_kernels {JUDGE}", output, -1.0)
    assert json.loads(output.read_text()) == written
    timings.main(f"crad_kernels {JUDGE}", output)
    assert timed == ["a", "b", "c", "b"]
    assert not any("error" in t for t in json.loads(output.read_text())["times"])


@pytest.mark.parametrize("name", [name for name in backends() if name != JUDGE])
def test_calls_for_the_sanitizer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "cpu" not in backends()[name].devices or not backends()[name].usable:
        pytest.skip(f"backend {name} does not take the CPU's tensors here")
    sanitizer_cases.main(name, "cpu")
    every = len(list(sanitizer_cases.calls()))
    assert f"{every} calls, forward and backward" in capsys.readouterr().out


def test_the_calls_are_shared_among_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[sanitizer_cases.Call] = []
    threads = SimpleNamespace(Pool=ThreadPool)
    monkeypatch.setattr(sanitizer_cases.multiprocessing, "get_context", lambda method: threads)
    monkeypatch.setattr(sanitizer_cases, "run", lambda call, backend, device: ran.append(call))
    sanitizer_cases.main("cpu", "cpu", "3")
    every = list(sanitizer_cases.calls())
    assert sorted(map(str, ran)) == sorted(map(str, every))
    assert capsys.readouterr().out.startswith(f"{len(every)} calls, ")


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
    monkeypatch.setattr(timings.torch, "cuda", gpu)
    turns: list[int] = []
    assert set(timings.times(turns.append, 3, seconds=0.0)) == {1.0}
    assert turns == [0, 1, 2, 0] + [i % 3 for i in range(10)]


def test_peers_are_those_of_the_device() -> None:
    for device in ("cpu", "cuda"):
        names = [name for name in peers(device) if name.startswith("crad_kernels ")]
        for name in names:
            record = backends()[name.removeprefix("crad_kernels ")]
            assert record.takes(torch.device(device), 2)
        assert f"crad_kernels {JUDGE}" in names
