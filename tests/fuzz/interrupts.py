"""Commands that are stopped at any moment: what was there stays whole, and the next one goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from crad.errors import CradError
from crad.training.checkpoint import CHECKPOINT_NAME, read_checkpoint
from tests.fuzz.harness import (
    TINY,
    Ended,
    Problem,
    added,
    broken,
    changed,
    command,
    computed,
    crad_command,
    is_leftover,
    tree_of,
    within,
    world,
    wrong_end,
)
from tests.fuzz.search import Fuzzer

Name = Literal["new", "overwrite", "resume", "separate", "evaluate", "predict", "files"]
Signal = Literal["SIGINT", "SIGTERM", "SIGKILL"]


@dataclass(frozen=True)
class Case:
    """A command, and when it is stopped.

    Attributes:
        name: what it does; ``files`` is a prediction with ``--csv`` and ``--json``.
        signal: what stops it.
        delay: seconds until then, that it has computed unless it is fresh.
        again: whether it is stopped a second time, when it goes on.
        fresh: whether it is a new Python process, which first imports for seconds.
    """

    name: Name
    signal: Signal
    delay: float
    again: bool = False
    fresh: bool = False


_RUN = {"--data": ("data",), "--output": ("run",)}
_OTHER = {**TINY, "--seed": ("7",), "--epochs": ("3",)}
_COMMANDS: Mapping[Name, list[str]] = {
    "new": command("train", {"--data": ("data",), "--output": ("out",), **_OTHER}),
    "overwrite": command("train", {**_RUN, **_OTHER, "--overwrite": ()}),
    "resume": command("train", {"--data": ("data",), "--output": ("out",), **_OTHER}),
    "separate": command(
        "train", {"--data": ("data",), "--output": ("out",), **_OTHER, "--separate": ()}
    ),
    "evaluate": command(
        "evaluate",
        {
            "--checkpoint": ("run",),
            "--output": ("run",),
            "--overwrite": (),
            "--protocol": ("ader",),
        },
    ),
    "predict": command("predict", {"--checkpoint": ("run",), "--output": ("scored",)}, ["data"]),
    "files": command(
        "predict",
        {
            "--checkpoint": ("run",),
            "--csv": ("s.csv",),
            "--json": ("s.json",),
            "--batch-size": ("1",),
        },
        ["data"],
    ),
}


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    name: Name = draw(st.sampled_from(list(_COMMANDS)))
    fresh = draw(st.integers(0, 11)) == 11
    longest = 6.0 if fresh else 0.6 if name in ("evaluate", "predict", "files") else 1.0
    return Case(
        name,
        draw(st.sampled_from(("SIGINT", "SIGTERM", "SIGKILL"))),
        round(draw(st.floats(0.01, longest)), 3),
        again=not fresh and draw(st.booleans()),
        fresh=fresh,
    )


def _stopped(case: Case, arguments: list[str], root: Path) -> Ended:
    """Run a command, and stop it."""
    number = getattr(signal, case.signal)
    if not case.fresh:

        def stop(child: int) -> None:
            while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                if computed(child) >= case.delay:
                    os.kill(child, number)
                    return
                time.sleep(0.001)

        return crad_command(arguments, root, during=stop)
    process = subprocess.Popen(
        [sys.executable, "-m", "crad", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(case.delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


def check(case: Case) -> Iterator[Problem]:
    """Say what is wrong after the stop, and after what goes on."""
    with world().copy() as root:
        (root / "run" / "notes.txt").write_text("of the user")
        before = tree_of(root)
        users = {**within(before, but=("run",)), **within(before, "run/notes.txt")}
        ended = _stopped(case, _COMMANDS[case.name], root)
        yield from _wrong_stop(case, ended)
        yield from _state(case, root, before, users)
        if case.again:
            ended = _stopped(case, _next(case, root), root)
            yield from _wrong_stop(case, ended)
            yield from _state(case, root, before, users)
        ended = crad_command(_next(case, root), root)
        yield from wrong_end(ended)
        if ended.code:
            yield Problem(f"{case.name}: cannot go on after {case.signal}", ended.err[-1500:])
            return
        after = tree_of(root)
        yield from changed(users, after)
        yield from added(before, after, root)
        if case.name not in ("predict", "files"):
            yield from _incomplete(case, root)


def _wrong_stop(case: Case, ended: Ended) -> Iterator[Problem]:
    """Say what is wrong with how the command ended."""
    if ended.code == -getattr(signal, case.signal) and case.signal != "SIGINT":
        return
    problems = list(wrong_end(ended))
    early = "KeyboardInterrupt" in ended.err and "crad/command_line.py" not in ended.err
    if early and case.fresh and "/crad/" in ended.err:
        yield Problem("a traceback after Ctrl-C while modules are imported", ended.err[-1500:])
    elif not early and problems:
        yield from problems
    elif not early and ended.code not in (0, 130, 143):
        yield Problem(f"{case.name}: exit code {ended.code} after {case.signal}", ended.err[-1500:])


def _next(case: Case, root: Path) -> list[str]:
    """The command that goes on."""
    if case.name in ("evaluate", "predict", "files"):
        return _COMMANDS[case.name]
    output = root / ("run" if case.name == "overwrite" else "out")
    line = [each for each in _COMMANDS[case.name] if each != "--overwrite"]
    if case.name == "overwrite" and (output / "checkpoint.safetensors").exists():
        line = command("train", _RUN)  # with the settings of the run that is there
    return [*line, "--resume"]


def _state(case: Case, root: Path, before: Any, users: Any) -> Iterator[Problem]:
    """Say what is wrong with the files once a command was stopped."""
    now = tree_of(root)
    yield from changed(users, now)
    for path, (kind, _) in now.items():
        if kind == "file" and now[path] != before.get(path) and not is_leftover(path):
            if path.endswith((".json", ".csv")):
                yield from broken(root / path)
            if path.endswith(".csv"):
                yield from _short(root / path, case)
            if path.endswith(".safetensors"):
                yield from _unreadable(root / path)
    if case.name == "overwrite":
        yield from _mixed(root / "run", within(before, "run"), within(now, "run"))
    if case.name == "evaluate":
        same = ("run/checkpoint.safetensors", "run/run.json")
        yield from changed(within(before, *same), now, "evaluate: a file of the run")
        if "run/results.json" not in now:
            yield Problem("evaluate: the results are gone before there are others", repr(case))


def _short(file: Path, case: Case) -> Iterator[Problem]:
    with file.open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            try:
                float(row["score"])
            except (TypeError, ValueError, KeyError):
                yield Problem(f"{case.name}: part of a row", repr(row))


def _unreadable(file: Path) -> Iterator[Problem]:
    """Say whether a file of tensors is not whole."""
    try:
        if file.name == CHECKPOINT_NAME:
            read_checkpoint(file)
        else:  # what lies beside a checkpoint
            load_file(file)
    except (CradError, SafetensorError) as error:
        yield Problem("a broken checkpoint", f"{file}: {error}")


def _mixed(run: Path, before: Any, now: Any) -> Iterator[Problem]:
    """Say what is wrong with a run that was to be replaced: is it the old or the new one?"""
    if not (run / "checkpoint.safetensors").exists():
        yield Problem("overwrite: the former run is gone before there is another", repr([*now]))
        return
    former = now["run/checkpoint.safetensors"] == before["run/checkpoint.safetensors"]
    if former:
        yield from changed(before, now, "overwrite: a file of the former run")
        return
    seed = read_checkpoint(run, ()).config.training.seed
    results = run / "results.json"
    if results.exists() and json.loads(results.read_text())["seed"] != seed:
        yield Problem("overwrite: results of the former run, but another checkpoint", repr([*now]))
    for path, entry in within(now, "run/sheets").items():
        if entry[0] == "file" and before.get(path) == entry:
            yield Problem("overwrite: a sheet of the former run beside another checkpoint", path)


def _incomplete(case: Case, root: Path) -> Iterator[Problem]:
    """Say what a run that is finished lacks."""
    run = root / ("run" if case.name in ("overwrite", "evaluate") else "out")
    folders = [run / "brick", run / "gauge"] if case.name == "separate" else [run]
    for folder in folders:
        sheets = (len(folders) == 1 and 2) or 1
        if not (folder / "results.json").exists():
            yield Problem(f"{case.name}: no results in the end", str(folder))
        if len([*folder.glob("sheets/*.png")]) != sheets:
            yield Problem(f"{case.name}: no sheets in the end", str(folder))


_EXAMPLES = (
    Case("separate", "SIGKILL", 0.4),
    Case("separate", "SIGINT", 0.7, again=True),
    Case("overwrite", "SIGKILL", 0.3),
    Case("predict", "SIGKILL", 0.3),
    Case("files", "SIGTERM", 0.2),
)

FUZZER = Fuzzer(_cases(), check, _EXAMPLES, shrink_seconds=0)
