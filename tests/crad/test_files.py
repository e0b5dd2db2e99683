import errno
import json
import os

import pytest

from crad.errors import StorageError
from crad.files import new_folder, remove_leftovers, replacing, write_atomically, write_json


def test_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new folder" / "naïve name.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": [1.5, None, "é"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1.5, None, "é"]}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("interruption", [ValueError("broken"), KeyboardInterrupt()])
def test_an_interrupted_write_keeps_the_former_file(tmp_path, interruption):
    path = tmp_path / "file"
    path.write_bytes(b"former")

    def writer(file):
        file.write(b"half of the n")
        raise interruption

    with pytest.raises(type(interruption)):
        write_atomically(path, writer)
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file_and_keeps_the_former_one(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b"former")

    def writer(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"results\.json") as caught:
        write_atomically(path, writer)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_really_full(tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(b"former")
    (tmp_path / f".checkpoint.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="checkpoint'") as caught:
        write_atomically(path, lambda file: file.write(b"x" * 100_000))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"former"


def test_a_leftover_of_a_killed_process_is_overwritten(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as temporary:
        temporary.write_bytes(b"killed here, this time without cleaning up")
        leftover = temporary
    leftover.write_bytes(b"a longer leftover than the file that comes")
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_write_under_names_of_their_own(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with replacing(path) as mine:
        mine.write_bytes(b"half of min")
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: 1)
            write_atomically(path, lambda file: file.write(b"theirs"))
        assert path.read_bytes() == b"theirs"
        mine.write_bytes(b"mine")
    assert path.read_bytes() == b"mine"


def test_leftovers_of_other_processes_are_removed_on_demand(tmp_path):
    others = [
        tmp_path / name for name in ("[a]", ".[b].1.tmp", ".a.1.tmp", "[a].1.tmp", ".[a].my.tmp")
    ]
    for path in (*others, tmp_path / ".[a].1.tmp", tmp_path / ".[a].22.tmp"):
        path.touch()
    remove_leftovers([tmp_path / "[a]"])
    assert sorted(tmp_path.iterdir()) == sorted(others)
    remove_leftovers([tmp_path / "missing" / "a"])


def test_the_temporary_file_is_hidden_and_of_no_known_type(tmp_path):
    with replacing(tmp_path / "a.safetensors") as temporary:
        temporary.touch()
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".tmp"
        assert temporary.parent == tmp_path


def test_an_error_about_another_file_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"former")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_folder_or_device_is_not_replaced(tmp_path):
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(OSError, match=f"'{path}'"):
            write_json(path, 1)
    assert tmp_path.is_dir()


def test_a_parent_that_is_a_file_gives_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.json", tmp_path / "file" / "folder" / "x.json"):
        with pytest.raises(StorageError, match=f"'{path.parent}'.*another"):
            write_json(path, 1)


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_json_of_a_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "x.json", [name, "面板"])
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == [name, "面板"]


def test_a_new_folder_is_there_when_it_is_complete(tmp_path):
    path = tmp_path / "above" / "new folder"
    with new_folder(path) as unfinished:
        (unfinished / "file").write_text("content")
        assert not path.exists()
    assert (path / "file").read_text() == "content"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode == path.parent.stat().st_mode


@pytest.mark.parametrize("interruption", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_folder_that_was_not_finished(tmp_path, interruption):
    def write():
        with new_folder(tmp_path / "folder") as unfinished:
            (unfinished / "file").touch()
            raise interruption

    with pytest.raises(type(interruption)):
        write()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_made_first_stays(tmp_path):
    path = tmp_path / "folder"
    with new_folder(path) as unfinished:
        (unfinished / "file").write_text("second")
        path.mkdir()
        (path / "file").write_text("first")
    assert (path / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_replaced_is_an_error_and_not_silence(tmp_path):
    """As it is none."""
    path = tmp_path / "folder"
    path.write_text("a file")
    with pytest.raises(NotADirectoryError, match="folder"), new_folder(path) as unfinished:
        (unfinished / "file").touch()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "a file"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0o077, 0o700)])
def test_a_new_folder_can_be_read_as_the_umask_says(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == mode


def test_what_a_killed_process_left_of_a_folder_is_removed_a_day_later(tmp_path):
    old, young, other = (tmp_path / name for name in (".a[b]-old", ".a[b]-young", ".ab-old"))
    for folder in (old, young, other):
        (folder / "inside").mkdir(parents=True)
    for folder in (old, other):
        os.utime(folder, (0, 0))
    with new_folder(tmp_path / "a[b]"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a[b]", young.name, other.name}
