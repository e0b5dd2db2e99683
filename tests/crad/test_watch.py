"""`crad watch`: every image that arrives is scored, recorded and moved once, whatever happens."""

import csv
import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import crad
from crad.detector import Detector
from crad.errors import OutputError, StorageError
from crad.outputs import locked
from crad.watch import main
from crad.watching.inbox import Inbox
from crad.watching.record import HEAD, Record
from crad.watching.watcher import RECORD, Watcher
from tests.fixtures import largest_file

Command = Callable[..., int]


@pytest.fixture(scope="module")
def detector(trained) -> Detector:
    return crad.load(trained.output, "cpu")


@pytest.fixture(scope="module")
def every_image(trained) -> list[Path]:
    return sorted(trained.data.glob("*/test/*/*.png"))


@pytest.fixture(scope="module")
def images(detector: Detector, every_image: list[Path]) -> list[Path]:
    """Images that are decided to be good."""
    found = [each for each in every_image if detector.predict_one(each).decision == "good"]
    assert len(found) >= 4
    return found


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@contextmanager
def watching(
    detector: Detector, inbox: Path, output: Path, *, interval: float = 0.05, **options: Any
) -> Iterator[None]:
    """Watch in a thread until the block ends."""
    ending = threading.Event()
    failed: list[BaseException] = []
    given = {
        "class_name": None,
        "batch_size": 4,
        "keep": False,
        "heat_maps": False,
        **options,
    }

    def run() -> None:
        try:
            with Record(output / RECORD) as record:
                watcher = Watcher(detector, record, Inbox(inbox, interval), output, **given)
                watcher.recover()
                watcher.run(ending)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
    for error in failed:
        raise error


def put(source: Path | bytes, target: Path) -> None:
    """Let a file arrive whole."""
    hidden = target.with_name(f".{target.name}.part")
    content = source if isinstance(source, bytes) else source.read_bytes()
    hidden.write_bytes(content)
    hidden.rename(target)


def rows_of(output: Path) -> list[dict[str, str]]:
    file = output / RECORD
    if not file.exists():
        return []
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
        return [*csv.DictReader(opened)]


def wait_for(output: Path, n_rows: int) -> None:
    wait_until(lambda: len(rows_of(output)) == n_rows)


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come")


def moved(output: Path) -> dict[str, bytes]:
    """The images that have moved, by their place."""
    found = [path for path in output.glob("*/*") if path.is_file() and path.suffix != ".txt"]
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def test_images_that_arrive_are_scored_recorded_and_sorted(
    detector: Detector, every_image: list[Path], inbox: Path, output: Path
) -> None:
    images = every_image
    for number, image in enumerate(images[:6]):
        put(image, inbox / f"{number}.png")
    (inbox / "notes.txt").write_text("not an image")
    (inbox / "sub").mkdir()
    shutil.copy(images[0], inbox / "sub" / "x.png")
    (inbox / "link.png").symlink_to(images[0])
    with watching(detector, inbox, output, heat_maps=True):
        wait_for(output, 6)
        for number, image in enumerate(images[6:], 6):
            put(image, inbox / f"{number}.png")
        wait_for(output, len(images))
    rows = rows_of(output)
    assert [*rows[0]] == [*HEAD]
    assert len({row["image"] for row in rows}) == len(images)
    for row in rows:
        number = int(Path(row["image"]).stem)
        (expected,) = detector.predict(images[number])
        # A batch of another size may be summed in another order.
        assert float(row["score"]) == pytest.approx(expected.score, rel=2e-6)
        assert (row["decision"], row["class_name"]) == (expected.decision, expected.class_name)
        assert row["moved_to"] == f"{expected.decision}/{number}.png"
        assert (output / row["moved_to"]).read_bytes() == images[number].read_bytes()
        assert row["heat_map"] == f"heat_maps/{row['moved_to']}.png"
        with Image.open(output / row["heat_map"]) as picture, Image.open(images[number]) as image:
            assert picture.size == image.size
    assert sorted(path.name for path in inbox.iterdir()) == ["link.png", "notes.txt", "sub"]


def test_a_file_that_is_still_written_is_left_until_it_is_whole(
    detector: Detector, images: list[Path], inbox: Path, output: Path
) -> None:
    content = images[0].read_bytes()
    part = len(content) // 8
    with watching(detector, inbox, output, interval=0.4):
        with (inbox / "slow.png").open("wb") as file:
            for start in range(0, len(content), part):
                file.write(content[start : start + part])
                file.flush()
                time.sleep(0.1)
                assert not rows_of(output)
        wait_for(output, 1)
    (row,) = rows_of(output)
    assert row["decision"] == "good"
    assert moved(output) == {"good/slow.png": content}


def test_a_file_that_changes_while_it_is_scored_comes_again(
    detector: Detector, images: list[Path], inbox: Path, output: Path
) -> None:
    put(images[0].read_bytes()[:-500], inbox / "x.png")
    arrivals = Inbox(inbox, 0.0).look()
    with Record(output / RECORD) as record:
        watcher = Watcher(
            detector,
            record,
            Inbox(inbox, 0.01),
            output,
            class_name=None,
            batch_size=1,
            keep=False,
            heat_maps=False,
        )
        shutil.copy(images[0], inbox / "x.png")
        watcher._score(arrivals, threading.Event())
    assert rows_of(output) == []
    with watching(detector, inbox, output):
        wait_for(output, 1)
    assert [*moved(output)] == ["good/x.png"]


def test_a_bad_image_is_put_aside_with_the_reason(
    detector: Detector, images: list[Path], inbox: Path, output: Path
) -> None:
    bad = images[0].read_bytes()[:-500]
    (output / "unreadable").mkdir()
    (output / "unreadable" / "bad.png.txt").write_text("of somebody else")
    for name, content in {"a.png": images[0], "bad.png": bad, "c.png": images[1]}.items():
        put(content, inbox / name)
        os.utime(inbox / name, ns=(0, ord(name[0])))
    with watching(detector, inbox, output):
        wait_for(output, 3)
    rows = rows_of(output)
    assert [row["decision"] for row in rows] == ["good", "unreadable", "good"]
    assert rows[1]["score"] == rows[1]["p_value"] == ""
    assert (output / "unreadable" / "bad-2.png").read_bytes() == bad
    assert "cannot read image" in (output / "unreadable" / "bad-2.png.txt").read_text()
    assert (output / "unreadable" / "bad.png.txt").read_text() == "of somebody else"


def test_a_name_that_is_taken_gets_a_number(
    detector: Detector, images: list[Path], inbox: Path, output: Path
) -> None:
    with watching(detector, inbox, output):
        for number, image in enumerate(images[:3], 1):
            put(image, inbox / "x.png")
            wait_for(output, number)
            wait_until(lambda: not (inbox / "x.png").exists())
    assert sorted(moved(output).values()) == sorted(each.read_bytes() for each in images[:3])
    assert [row["moved_to"] for row in rows_of(output)] == [
        *("good/x.png", "good/x-2.png", "good/x-3.png")
    ]


def test_images_may_stay(detector: Detector, images: list[Path], inbox: Path, output: Path) -> None:
    names = ["a.png", 'b "2"\r\n.png', os.fsdecode(b"c\xff.png")]
    for name, image in zip(names, images, strict=False):
        put(image, inbox / name)
    for n_rows in (3, 3, 4):  # the second time, nothing is new
        if n_rows == 4:
            put(images[3], inbox / "a.png")
        with watching(detector, inbox, output, keep=True):
            wait_for(output, n_rows)
            time.sleep(0.3)
        assert sorted(path.name for path in inbox.iterdir()) == sorted(names)
        assert len(rows_of(output)) == n_rows
    assert moved(output) == {}
    assert {Path(row["image"]).name for row in rows_of(output)} == {*names}


@pytest.mark.parametrize("state", ["recorded", "linked", "copied", "taken", "torn"])
def test_what_a_crash_cut_short_is_ended_at_the_next_start(
    detector: Detector, images: list[Path], inbox: Path, output: Path, state: str
) -> None:
    name = 'x "1"\r\n.png'
    put(images[1], inbox / "first.png")
    with watching(detector, inbox, output):
        wait_for(output, 1)
    put(images[0], inbox / name)
    (arrival,) = Inbox(inbox, 0.0).look()
    with Record(output / RECORD) as record:
        row = {**dict.fromkeys(HEAD), "decision": "good", "score": 1.0}
        record.add(arrival, row, moved_to=f"good/{name}")
    content = images[0].read_bytes()
    if state == "linked":
        (output / "good" / name).hardlink_to(inbox / name)
    elif state == "copied":
        shutil.copy2(inbox / name, output / "good" / name)
        (output / "good" / f".{name}.1.tmp").write_bytes(content[:10])
    elif state == "taken":
        (output / "good" / name).write_bytes(b"of somebody else")
    elif state == "torn":
        whole = (output / RECORD).read_bytes()
        (output / RECORD).write_bytes(whole[:-10])
    with watching(detector, inbox, output):
        wait_until(lambda: not (inbox / name).exists())
    rows = rows_of(output)
    assert [Path(row["image"]).name for row in rows] == ["first.png", name]
    assert (rows[1]["score"] == "1.0") == (state != "torn")
    expected = {"good/first.png": images[1].read_bytes(), f"good/{name}": content}
    if state == "taken":
        expected |= {f"good/{name}": b"of somebody else", f"good/{name[:-4]}-2.png": content}
    assert moved(output) == expected
    # The same file may come again, as another one.
    put(images[0], inbox / name)
    with watching(detector, inbox, output):
        wait_for(output, 3)


@pytest.mark.parametrize("reason", ["EXDEV", "EPERM"])
def test_moving_needs_no_links(
    detector: Detector,
    images: list[Path],
    inbox: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    put(images[0], inbox / "x.png")
    before = (inbox / "x.png").stat().st_mtime_ns
    link = os.link

    def refuse(source: Path, target: Path, **options: Any) -> None:
        if Path(source).parent == inbox or reason == "EPERM":
            raise OSError(getattr(errno, reason), "refused")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", refuse)
    with watching(detector, inbox, output):
        wait_for(output, 1)
    assert moved(output) == {"good/x.png": images[0].read_bytes()}
    assert (output / "good" / "x.png").stat().st_mtime_ns == before
    assert not [*inbox.iterdir()]


def test_a_full_disk_loses_nothing(
    detector: Detector, images: list[Path], inbox: Path, output: Path
) -> None:
    put(images[0], inbox / "0.png")
    with watching(detector, inbox, output):
        wait_for(output, 1)
    before = (output / RECORD).read_bytes()
    put(images[1], inbox / "1.png")
    with (
        largest_file(len(before) + 20),
        pytest.raises(StorageError),
        watching(detector, inbox, output),
    ):
        time.sleep(1)
    assert (output / RECORD).read_bytes() == before
    assert (inbox / "1.png").exists()
    with watching(detector, inbox, output):
        wait_for(output, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_image_in_hand(
    trained,
    images: list[Path],
    inbox: Path,
    output: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    for at, image in enumerate(images):
        put(image, inbox / f"{at}.png")

    def stop() -> None:
        wait_until(lambda: len(rows_of(output)) > 0)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    arguments = ["--checkpoint", str(trained.output), "--output", str(output), "--device", "cpu"]
    assert command(main, *arguments, "--interval", "0.05", str(inbox)) == 0
    thread.join()
    n_rows = len(rows_of(output))
    assert n_rows >= 1
    assert len(moved(output)) == n_rows
    assert len([*inbox.glob("*.png")]) == len(images) - n_rows
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1].startswith("stopped; ")
    assert not [*inbox.glob(".crad*"), *output.glob(".crad*")]


@pytest.mark.parametrize("held", ["in", "out"])
def test_a_second_one_is_refused(
    trained,
    tmp_path: Path,
    inbox: Path,
    output: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    held: str,
) -> None:
    arguments = ["--checkpoint", str(trained.output), "--output", str(output), str(inbox)]
    with locked(tmp_path / held):
        assert command(main, *arguments) == 1
    assert f"is writing into '{tmp_path / held}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--interval", "0", "IN"], 2, "--interval: expected a number above 0"),
        (["--class", "boat", "IN"], 2, "no class 'boat'"),
        (["none"], 1, "there is no folder 'none'"),
        (["OUT/good"], 1, "where its images are to go"),
        (["OUT"], 1, "where its images are to go"),
    ],
)
def test_errors(
    trained,
    inbox: Path,
    output: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (output / "good").mkdir()
    given = [each.replace("IN", str(inbox)).replace("OUT", str(output)) for each in arguments]
    whole = ["--checkpoint", str(trained.output), "--output", str(output), *given]
    assert command(main, *whole) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_changed_row_is_named(output: Path) -> None:
    with Record(output / RECORD):
        pass
    with (output / RECORD).open("ab") as file:
        file.write(b"2026-01-01,x.png,1\r\n")
    with Record(output / RECORD) as record, pytest.raises(OutputError, match=r"'x\.png' has no"):
        record.last()


def test_another_table_is_left_alone(output: Path) -> None:
    for content in (b"mine\r\n", b"image,score\r\nx,1\r\n"):
        (output / RECORD).write_bytes(content)
        with pytest.raises(OutputError, match="not the table of an earlier crad watch"):
            Record(output / RECORD)
        assert (output / RECORD).read_bytes() == content
