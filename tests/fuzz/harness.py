"""What the fuzzers share: a command in a child process, a tree of files, and what must hold."""

import atexit
import csv
import faulthandler
import functools
import gc
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from crad.__main__ import COMMANDS, main
from crad.data.demo import demo_dataset, write_demo
from crad.data.folders import IMAGE_SUFFIXES
from crad.errors import CradError

TINY = {
    "--backbone": ("scattering",),
    "--image-size": ("32",),
    "--batch-size": ("4",),
    "--epochs": ("1",),
    "--expansion": ("8",),
    "--depth": ("1",),
}
"""Options of a training that takes a third of a second."""

TIME_LIMIT = 10.0  # seconds that a command may compute
_IDLE = 4.0  # seconds that it may do nothing: others use this machine too
_GRACE = 3.0  # seconds that it may compute after Ctrl-C
_MEMORY = 3 << 30
_LARGEST_FILE = 1 << 30
_CODES = (0, 1, 2, 129, 130, 141, 143)
_DEVICES = ("/dev/null", "/dev/full")

# Nothing leaves this machine, and no thread outlives a fork.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    **dict.fromkeys(("http_proxy", "https_proxy", "ftp_proxy"), "http://127.0.0.1:9"),
}
torch.set_num_threads(1)
# Once here, rather than in every child; torch's optimizers import the last.
for _module in (*(name for name, _ in COMMANDS.values()), "torch._dynamo"):
    importlib.import_module(_module)


# The demo set takes seconds to make: once, with the first world.
_CACHE = Path(tempfile.mkdtemp(prefix="crad-fuzz-cache-"))
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)


@dataclass(frozen=True)
class Problem:
    """A property that does not hold.

    Attributes:
        key: what two cases of one fault have in common.
        detail: what was seen.
    """

    key: str
    detail: str


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative if a signal ended it.
        out: its standard output.
        err: its standard error.
        stuck: where it was when its time was over; empty if it ended by itself.
        obeyed: whether it then ended by Ctrl-C.
    """

    code: int
    out: str
    err: str
    stuck: str = ""
    obeyed: bool = False

    @property
    def lines(self) -> list[str]:
        """What it said, without progress bars."""
        return _without_bars(self.out) + _without_bars(self.err)

    @property
    def errors(self) -> list[str]:
        """The lines of standard error, without progress bars and what was skipped."""
        return [line for line in _without_bars(self.err) if not line.startswith("skipped: ")]


def _without_bars(text: str) -> list[str]:
    shown = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown)]
    return [line for line in lines if line and not re.search(r"\[\d\d:\d\d|\d%\|", line)]


def call(
    function: Callable[[], object],
    folder: Path,
    *,
    limit: float = TIME_LIMIT,
    during: Callable[[int], object] | None = None,
) -> Ended:
    """Call a function in a child process, in a folder.

    Args:
        function: what to call; what it raises is printed as Python does.
        folder: where.
        limit: seconds that it may take.
        during: called with the number of the process, as soon as it runs.
    """
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryFile() as stack,
    ):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            _be_child(function, folder, out.fileno(), err.fileno(), stack.fileno())
        if during:
            during(child)
        code, stuck, obeyed = _wait(child, limit), "", False
        if code is None:
            os.kill(child, signal.SIGUSR1)
            time.sleep(0.3)
            stack.seek(0)
            stuck = stack.read().decode("utf-8", "replace") or "unknown"
            os.kill(child, signal.SIGINT)
            code = _wait(child, _GRACE)
            obeyed = code is not None
            if code is None:
                os.kill(child, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode("utf-8", "backslashreplace"))
    for device in _DEVICES:
        assert stat.S_ISCHR(os.stat(device).st_mode), f"{device} was replaced"
    return Ended(code, *told, stuck, obeyed)


def crad_command(arguments: Sequence[str], folder: Path, **options: Any) -> Ended:
    """Run ``crad`` in a folder; options are those of `call`."""
    return call(lambda: main(list(arguments)), folder, **options)


def api(function: Callable[[], object], folder: Path) -> Ended:
    """Call the Python API; the errors that it may raise are printed as a command does."""

    def checked() -> None:
        try:
            function()
        except (CradError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)

    return call(checked, folder)


def _be_child(function: Callable[[], object], folder: Path, out: int, err: int, stack: int) -> None:
    """Call the function as if this process had just been started for it; does not return."""
    code: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.callbacks.clear()  # Hypothesis has one, in which an exception would be lost
        os.chdir(folder)
        os.environ.update(_ENVIRONMENT, TMPDIR=str(folder), CRAD_CACHE=str(_CACHE))
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        function()
        code = 0
    except SystemExit as exit_:
        code = exit_.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                traceback.print_exc()
        os._exit(code or 0)


def _wait(child: int, limit: float) -> int | None:
    """The exit code of a child; None if it computed for longer, or did nothing for a while."""
    begun = active = time.monotonic()
    pause, spent = 0.001, 0.0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if now - begun > 1 and (seconds := computed(child)) > spent + 0.02:
            spent, active = seconds, now
        if spent > limit or now - active > _IDLE or now - begun > 20 * limit:
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def computed(process: int) -> float:
    """The seconds that a process and those it waited for have computed."""
    times = psutil.Process(process).cpu_times()
    return times.user + times.system + times.children_user + times.children_system


# A file tree: what lies at each path, and what that holds.
Tree = Mapping[str, tuple[str, str]]


def tree_of(root: Path) -> Tree:
    """Take a picture of a folder: all that is in it, with its kind and content."""
    return dict(_entries(os.fsencode(root), b""))


def _entries(root: bytes, below: bytes) -> Iterator[tuple[str, tuple[str, str]]]:
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            path = os.path.join(below, entry.name)
            name = os.fsdecode(path)
            if entry.is_symlink():
                yield name, ("link", os.fsdecode(os.readlink(entry.path)))
            elif entry.is_dir():
                yield name, ("folder", "")
                yield from _entries(root, path)
            elif entry.is_file():
                with open(entry.path, "rb") as file:
                    yield name, ("file", hashlib.file_digest(file, "blake2b").hexdigest())
            else:
                yield name, ("other", str(stat.S_IFMT(entry.stat().st_mode)))


def changed(before: Tree, after: Tree, what: str = "a file of the user's") -> Iterator[Problem]:
    """Say which entries are gone or changed."""
    for path, entry in before.items():
        if path not in after:
            yield Problem(f"{what} is gone: {_shape(path)}", f"{path!r} is gone")
        elif after[path] != entry:
            yield Problem(
                f"{what} has changed: {_shape(path)}", f"{path!r}: {entry} became {after[path]}"
            )


def added(before: Tree, after: Tree, root: Path, data: str = "data") -> Iterator[Problem]:
    """Say what is wrong with new files: leftovers, broken files, pictures among the images."""
    for path in after.keys() - before.keys():
        kind, name = after[path][0], Path(path).name
        if is_leftover(path):
            yield Problem("a temporary file is left", repr(path))
        elif kind == "file" and is_image(path) and _is_in_class(path, before, data):
            yield Problem("a picture of crad's among the images", repr(path))
        elif kind == "file" and name.endswith((".json", ".csv")):
            yield from broken(root / path)


def _is_in_class(path: str, before: Tree, data: str) -> bool:
    """Whether a file lies in a folder that was in the data set before."""
    place = "/".join(path.split("/")[:2])
    return path.startswith(f"{data}/") and place != path and place in before


def broken(file: Path) -> Iterator[Problem]:
    """Say what is wrong with a file of results or scores."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text("utf-8"), parse_constant=_refuse)
            return
        header, *rows = csv.reader(file.read_text("utf-8").splitlines(keepends=True))
        if short := [row for row in rows if len(row) != len(header)]:
            yield Problem(f"{file.suffix} file with part of a row", f"{str(file)!r}: {short[0]}")
    except ValueError as error:
        yield Problem(f"a broken {file.suffix} file", f"{str(file)!r}: {error}")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def is_leftover(path: str) -> bool:
    """Whether crad calls a file or folder so that is to go."""
    name = Path(path).name
    return bool(re.fullmatch(r"\..*\.\d+\.tmp|crad-features-.*|\..*-[a-z0-9_]{8}", name))


def is_image(path: str) -> bool:
    """Whether a file counts as an image: by its suffix, unless it or its folder is hidden."""
    parts = Path(path).parts
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and Path(path).suffix.lower() in IMAGE_SUFFIXES


def _shape(path: str) -> str:
    """A path without what differs from case to case."""
    return re.sub(r"\d+", "N", path if len(path) < 60 else f"{path[:50]}...")


def wrong_end(ended: Ended, *, may_be_slow: bool = False) -> Iterator[Problem]:
    """Say what is wrong with how a command ended: a traceback, an exit code, what it printed."""
    told = (ended.err or ended.out)[-1500:]
    if ended.stuck:
        if not may_be_slow:
            obeyed = "" if ended.obeyed else ", and does not obey Ctrl-C"
            main_thread = ended.stuck.rpartition("Current thread")[2]
            yield Problem(f"hangs in {_frame(main_thread)}{obeyed}", main_thread[:1500])
        return
    if "Traceback (most recent call last)" in ended.err:
        last = [line for line in ended.err.splitlines() if re.match(r"[\w.]+(: |$)", line)]
        kind = last[-1].partition(":")[0] if last else "unknown"
        frame = _frame(ended.err.split("During handling of the above")[-1], last=True)
        yield Problem(f"traceback: {kind} in {frame}", told)
    elif ended.code not in _CODES:
        yield Problem(f"exit code {ended.code}", told or "nothing was printed")
    elif ended.code in (0, 141):
        if ended.errors:
            yield Problem(f"said in passing: {_start(ended.errors[0])}", told)
    elif ended.code in (1, 2):
        if len(ended.errors) != 1 or not ended.errors[0].startswith("error: "):
            first = next((e for e in ended.errors if not e.startswith("error: ")), "nothing")
            yield Problem(f"exit code {ended.code} not with one error: {_start(first)}", told)
        elif not re.search(r"\w{3}", ended.errors[0][len("error: ") :]):
            yield Problem("an error without words", told)
    elif ended.code == 130 and not (len(ended.errors) == 1 and "interrupted" in ended.errors[0]):
        yield Problem("exit code 130 not with one line", told)


def _frame(text: str, *, last: bool = False) -> str:
    """The function of crad that a stack ends in."""
    frames = re.findall(r'/(crad(?:_kernels)?/[\w/]+\.py)", line \d+,? in (\w+)', text)
    if not frames:
        return "nothing of crad"
    file, function = frames[-1 if last else 0]
    return f"{file}:{function}"


def _start(line: str) -> str:
    """The start of a line, without what differs from case to case."""
    return re.sub(r"/\S+|'[^']*'|\d+", "*", line)[:60]


@contextmanager
def new_root() -> Iterator[Path]:
    """A new folder for a case."""
    folder = Path(tempfile.mkdtemp(prefix="crad-fuzz-"))
    try:
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class World:
    """A folder with a data set and a run on it; every case gets a copy.

    It holds ``data/`` (two classes), ``run/`` (a finished run) and ``user/``: files of the user's
    with names that crad uses too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

        def prepare() -> None:
            sizes = {"n_train": 4, "n_test": 4, "size": 32}
            write_demo(Path("data"), **sizes, classes=("brick", "gauge"))
            demo_dataset("demo")
            main(command("train", {"--data": ("data",), "--output": ("run",), **TINY}))

        ended = call(prepare, folder, limit=60)
        assert ended.code == 0, ended.err
        user = folder / "user"
        (user / "sheets").mkdir(parents=True)
        for name in ("results.json", "run.json", "scores.json"):
            (user / name).write_text('{"of": "the user"}')
        (user / "scores.csv").write_text("a,b\n1,2\n")
        (user / "checkpoint.safetensors").write_bytes(b"of the user")
        for name in ("sheets/notes.txt", "sheets/brick.png", "notes.txt"):
            (user / name).write_text("of the user")
        shutil.copy(folder / "data/brick/train/good/000.png", user / "000.png")
        shutil.copy(folder / "data/brick/train/good/000.png", folder / "image.png")
        (folder / "notes.txt").write_text("of the user")
        (folder / "empty").touch()
        (folder / "empty_folder").mkdir()
        os.symlink("notes.txt", folder / "link")
        os.symlink("image.png", folder / "link.png")
        os.symlink("nowhere", folder / "broken")
        os.symlink("loop", folder / "loop")

    @contextmanager
    def copy(self) -> Iterator[Path]:
        """A copy of the folder, with a FIFO, which cannot be copied."""
        with new_root() as root:
            shutil.copytree(self.folder, root, symlinks=True, dirs_exist_ok=True)
            os.mkfifo(root / "fifo")
            os.mkfifo(root / "fifo.png")
            for name in ("run.json", "results.json"):
                file = root / "run" / name
                if file.exists():
                    values = json.loads(file.read_text())
                    file.write_text(json.dumps(values | {"data": str(root / "data")}))
            yield root


def command(
    name: str, options: Mapping[str, Sequence[str]], positional: Sequence[str] = ()
) -> list[str]:
    """Put a command line together."""
    return [name, *positional, *(word for key in options for word in (key, *options[key]))]


def within(tree: Tree, *folders: str, but: Collection[str] = ()) -> Tree:
    """The part of a tree that lies in some folders, or are these, but for others."""

    def lies_in(path: str, names: Collection[str]) -> bool:
        return any(path == name or path.startswith(f"{name}/") for name in names)

    return {
        path: entry
        for path, entry in tree.items()
        if (not folders or lies_in(path, folders)) and not lies_in(path, but)
    }


@functools.cache
def world() -> World:
    """The folder that cases start from; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="crad-fuzz-world-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return World(folder)
