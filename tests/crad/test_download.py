"""Getting a data set from a server that does what servers do, and from archives that are not."""

import hashlib
import io
import lzma
import os
import re
import shutil
import signal
import tarfile
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

import crad.data.download
from crad.data import find_dataset
from crad.data.__main__ import main
from crad.data.download import ARCHIVES, get
from crad.errors import DataError
from tests.fixtures import largest_file

NAMES = [
    "bottle/train/good/000.png",
    "bottle/test/good/000.png",
    "bottle/test/bent/000.png",
    "bottle/ground_truth/bent/000_mask.png",
]


def member(name, content=b"", **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def pack(*members, mode="w:xz"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def png():
    """Noise, so that the archive is not small."""
    file = io.BytesIO()
    Image.frombytes("RGB", (64, 64), os.urandom(3 * 64 * 64)).save(file, "PNG")
    return file.getvalue()


PICTURES = {name: png() for name in NAMES}
# Folders and files that may not be written, as those in the archive of MVTec AD.
READ_ONLY = [
    member("bottle", type=tarfile.DIRTYPE, mode=0o555),
    *(member(name, content, mode=0o444) for name, content in PICTURES.items()),
]


@dataclass
class Server:
    """What the server has, and how it behaves.

    Attributes:
        content: what is at every address.
        ranges: whether it can send a part.
        break_after: the bytes of an answer after which it closes the connection; None for never.
        announce: whether it says how much it sends.
        interrupt: whether it interrupts the one who asked, like a user, before it ends its answer.
        asked: the Range of every request so far.
    """

    url: str = ""
    content: bytes = b""
    ranges: bool = True
    break_after: int | None = None
    announce: bool = True
    interrupt: bool = False
    status: int = 200
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server():
    state = Server(content=pack(*READ_ONLY))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Range"]
            state.asked.append(asked)
            begun = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            part = state.content[begun:]
            self.send_response(206 if begun else state.status)
            if state.announce:
                self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[: state.break_after])
            if state.interrupt:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/archive.tar.xz"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def publish(server, monkeypatch):
    """Publish what the server has as MVTec AD; call it again after a change."""

    def publish(size=None):
        archive = replace(
            ARCHIVES["mvtec"],
            url=server.url,
            sha256=hashlib.sha256(server.content).hexdigest(),
            size=len(server.content) if size is None else size,
        )
        monkeypatch.setattr(crad.data.download, "ARCHIVES", {"mvtec": archive})

    publish()
    return publish


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_published():
    assert ARCHIVES["mvtec"].file_name == "mvtec_anomaly_detection.tar.xz"
    assert ARCHIVES["visa"].file_name == "VisA_20220922.tar"
    for archive in ARCHIVES.values():
        assert archive.url.startswith("https://")
        assert len(archive.sha256) == 64


def test_a_data_set_is_downloaded_and_extracted(server, tmp_path):
    target = get("mvtec", tmp_path / "data")
    assert target == tmp_path / "data" / "mvtec"
    assert files(target) == PICTURES
    assert find_dataset(target).classes == ("bottle",)
    assert {path.name for path in target.parent.iterdir()} == {"mvtec", "archive.tar.xz"}
    shutil.rmtree(target)  # nothing in it is read-only
    get("mvtec", tmp_path / "data")  # from the archive, which is there
    assert server.asked == [None]
    assert files(target) == PICTURES


def test_what_is_extracted_is_not_touched(server, tmp_path):
    (tmp_path / "mvtec" / "bottle").mkdir(parents=True)
    assert get("mvtec", tmp_path) == tmp_path / "mvtec"
    assert server.asked == []
    assert list(tmp_path.iterdir()) == [tmp_path / "mvtec"]
    assert files(tmp_path / "mvtec") == {}


@pytest.mark.parametrize("kind", ["folder", "link", "link to nothing yet"])
def test_an_empty_folder_is_filled(tmp_path, kind):
    disk, data = tmp_path / "disk", tmp_path / "data"
    disk.mkdir()
    data.mkdir()
    if kind == "folder":
        (data / "mvtec").mkdir()
    else:
        (data / "mvtec").symlink_to(disk / "mvtec", target_is_directory=True)
    if kind == "link":
        (disk / "mvtec").mkdir()
    assert files(get("mvtec", data)) == PICTURES
    assert {path.name for path in data.iterdir()} == {"mvtec", "archive.tar.xz"}
    assert [path.name for path in disk.iterdir()] == ["mvtec"] * (kind != "folder")


@pytest.mark.parametrize("announce", [True, False])
def test_a_broken_download_goes_on(server, tmp_path, announce):
    server.break_after, server.announce = 10_000, announce
    with pytest.raises(DataError, match=r"10000 of \d+ bytes.*again.*--url.*--archive"):
        get("mvtec", tmp_path)
    assert (tmp_path / "archive.tar.xz.part").read_bytes() == server.content[:10_000]
    server.break_after = None
    assert files(get("mvtec", tmp_path)) == PICTURES
    assert server.asked == [None, "bytes=10000-"]


def test_a_server_that_cannot_send_a_part(server, tmp_path):
    server.ranges = False
    (tmp_path / "archive.tar.xz.part").write_bytes(b"of a former archive")
    assert files(get("mvtec", tmp_path)) == PICTURES
    assert server.asked == ["bytes=19-"]


def test_a_download_that_was_complete_but_not_checked(server, tmp_path):
    (tmp_path / "archive.tar.xz.part").write_bytes(server.content)
    assert files(get("mvtec", tmp_path)) == PICTURES
    assert server.asked == []


def test_a_wrong_checksum(server, tmp_path):
    content = bytearray(server.content)
    content[5000] ^= 1
    server.content = bytes(content)
    with pytest.raises(DataError, match=r"archive\.tar\.xz\.part'.*SHA-256.*removed.*--url"):
        get("mvtec", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_part_of_another_archive(server, tmp_path):
    """It cannot be told from the right one before the end; then the download begins anew."""
    (tmp_path / "archive.tar.xz.part").write_bytes(b"of a former archive")
    with pytest.raises(DataError, match="removed"):
        get("mvtec", tmp_path)
    assert files(get("mvtec", tmp_path)) == PICTURES


def test_a_page_instead_of_the_archive_costs_no_part(server, tmp_path):
    part = tmp_path / "archive.tar.xz.part"
    part.write_bytes(server.content[:10_000])
    server.content, server.ranges = b"<html>Log in to the network", False
    with pytest.raises(DataError, match=r"27 bytes.*archive\.tar\.xz.*\d+.*--url"):
        get("mvtec", tmp_path)
    assert len(part.read_bytes()) == 10_000


def test_a_wrong_archive_that_somebody_put_there_is_kept(server, tmp_path):
    (tmp_path / "archive.tar.xz").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"archive\.tar\.xz'.*remove it"):
        get("mvtec", tmp_path)
    assert (tmp_path / "archive.tar.xz").read_bytes() == b"something else"
    assert server.asked == []


def test_an_archive_from_elsewhere(server, tmp_path):
    archive = tmp_path / "elsewhere.bin"
    archive.write_bytes(server.content)
    assert files(get("mvtec", tmp_path / "data", archive_file=archive)) == PICTURES
    archive.write_bytes(b"")
    with pytest.raises(DataError, match=r"elsewhere\.bin'.*another --archive"):
        get("mvtec", tmp_path / "other", archive_file=archive)
    assert server.asked == []
    assert archive.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "https://x.invalid/x", "x", "http://:x/"])
def test_an_address_that_cannot_be_read(tmp_path, url):
    with pytest.raises(DataError, match=r"'.*https://www\.mvtec\.com.*--archive"):
        get("mvtec", tmp_path / "data", url=url)
    assert not list((tmp_path / "data").iterdir())


def test_an_answer_that_is_an_error(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError, match="404"):
        get("mvtec", tmp_path)


def test_a_server_that_falls_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(crad.data.download, "_SECONDS", 0.1)
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http,  # accepts nothing
        pytest.raises(DataError, match="timed out"),
    ):
        get("mvtec", tmp_path, url=f"http://127.0.0.1:{http.server_port}/")


def test_too_little_space(server, publish, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    publish(free * 3 // 4)  # the archive has room, but not what is extracted of it too
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "data"))) as caught:
        get("mvtec", tmp_path / "data")
    needed, there = map(float, re.findall(r"(\d+\.\d) GB", str(caught.value)))
    assert needed == pytest.approx(1.5 * free / 1e9, abs=0.1)
    assert there == pytest.approx(free / 1e9, rel=0.2)  # others write to the disk
    assert server.asked == []
    assert not list(tmp_path.iterdir())
    publish()
    get("mvtec", tmp_path / "data")


def test_a_disk_that_fills_while_extracting(server, tmp_path):
    (tmp_path / "archive.tar.xz").write_bytes(server.content)
    with largest_file(len(PICTURES[NAMES[0]]) - 1), pytest.raises(OSError, match="too large"):
        get("mvtec", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["archive.tar.xz"]
    assert files(get("mvtec", tmp_path)) == PICTURES


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside.txt", b"x"),
        member("bottle/../../outside.txt", b"x"),
        member("link", type=tarfile.SYMTYPE, linkname="../outside.txt"),
        member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", type=tarfile.LNKTYPE, linkname="../outside.txt"),
        member("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("pipe", type=tarfile.FIFOTYPE),
    ],
    ids=["parent", "detour", "link out", "absolute link", "hard link", "device", "pipe"],
)
def test_a_member_that_leads_outside(server, publish, tmp_path, bad):
    outside = tmp_path / "outside.txt"
    outside.write_text("untouched")
    server.content = pack(*READ_ONLY, bad)
    publish()
    with pytest.raises(DataError, match=r"archive\.tar\.xz'"):
        get("mvtec", tmp_path / "data")
    assert outside.read_text() == "untouched"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["archive.tar.xz"]


def test_an_absolute_member_is_extracted_below_the_folder(server, publish, tmp_path):
    outside = tmp_path / "outside.txt"
    server.content = pack(*READ_ONLY, member(str(outside), b"x"))
    publish()
    target = get("mvtec", tmp_path / "data")
    assert not outside.exists()
    assert (target / str(outside).lstrip("/")).exists()


@pytest.mark.parametrize(
    "content",
    [b"no archive at all", lzma.compress(b"no tar in it"), pack(*READ_ONLY)[:-8000]],
    ids=["text", "no tar", "truncated"],
)
def test_an_archive_that_is_none(server, publish, tmp_path, content):
    server.content = content
    publish()
    with pytest.raises(DataError, match="cannot extract"):
        get("mvtec", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["archive.tar.xz"]


def test_an_archive_without_compression(server, publish, tmp_path):
    server.content = pack(*READ_ONLY, mode="w:")
    publish()
    assert files(get("mvtec", tmp_path)) == PICTURES


def test_a_python_that_cannot_extract_safely(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(DataError, match=r"3\.11\.4.*tar -xf"):
        get("mvtec", tmp_path)


def test_the_command(server, command, tmp_path, capsys):
    assert command(main, "get", "mvtec", str(tmp_path)) == 0
    licence, summary, train = capsys.readouterr().out.splitlines()
    assert licence.startswith("MVTec AD | licence CC BY-NC-SA 4.0")
    assert summary == f"1 classes, 1 training and 2 test images in {tmp_path / 'mvtec'}"
    assert train.endswith(f"crad train --data {tmp_path / 'mvtec'}")
    assert command(main, "get", "mvtec", str(tmp_path)) == 0  # again does no harm
    assert len(server.asked) == 1


def test_the_licence_comes_first(server, command, tmp_path, capsys):
    server.status = 404
    assert command(main, "get", "mvtec", str(tmp_path)) == 1
    captured = capsys.readouterr()
    assert "CC BY-NC-SA 4.0" in captured.out
    assert captured.err.startswith("error: download: cannot read")


# A signal may come between opening a file and entering its block.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_says_how_to_go_on(server, command, tmp_path, capsys):
    server.break_after, server.interrupt = 10_000, True
    assert command(main, "get", "mvtec", str(tmp_path)) == 130
    assert "same command" in capsys.readouterr().err.splitlines()[-1]
    server.break_after, server.interrupt = None, False
    assert command(main, "get", "mvtec", str(tmp_path)) == 0
    assert files(tmp_path / "mvtec") == PICTURES


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["get", "mnist", "data"], 2),
        (["get", "mvtec"], 2),
        (["get", "mvtec", "data", "--url", "http://x", "--archive", "x"], 2),
        (["get", "mvtec", "data", "--archive", "missing"], 1),
        (["get", "mvtec", __file__], 1),
    ],
)
def test_wrong_command_lines(command, tmp_path, monkeypatch, arguments, code):
    monkeypatch.chdir(tmp_path)
    assert command(main, *arguments) == code
    assert not list(tmp_path.iterdir())
