"""Folders: each is read once, in natural order, and nothing that cannot be read is passed over."""

import os
from pathlib import Path

import pytest

from crad.data.folders import Folder, natural_key, not_used
from crad.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_images_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b 10.PNG", "b 9.png", "ä.jpg", "._b 9.png", "notes.txt", "Thumbs.db")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "b 9.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    folder = Folder(tmp_path)
    found = [path.name for path in folder.images]
    assert found == ["b 9.png", "b 10.PNG", "broken.png", "link.png", "ä.jpg"]
    assert {path.name for path in folder.files} == {*found, "notes.txt", "Thumbs.db"}
    assert [each.path.name for each in folder.folders] == ["folder.png"]


def test_a_missing_folder_is_empty(tmp_path: Path) -> None:
    missing = Folder(tmp_path).at("a", "b")
    assert (missing.exists, missing.files, missing.folders) == (False, [], [])


def test_links_in_circles_end(tmp_path: Path) -> None:
    names = [f"folder {number}" for number in range(12)]
    touch(tmp_path, *(f"{name}/0.png" for name in names))
    for name in names:
        for other in names:
            (tmp_path / name / other).symlink_to(tmp_path / other, target_is_directory=True)
    images = [path for folder in Folder(tmp_path).walk() for path in folder.images]
    assert len(images) == 12
    assert not_used(Folder(tmp_path), images, (), "") == ()


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=r"'.*/link' leads nowhere"):
        _ = Folder(tmp_path).files


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(path: Path) -> None:  # root may read all
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=rf"'{tmp_path}' cannot be read \(Permission denied\)"):
        _ = Folder(tmp_path).images


def test_what_is_not_used_is_counted_by_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a/0.png", "a/1.png", "a/.2.png", "b/0.jp2", "b/1.txt", "b/README", "c/0.tif")
    touch(tmp_path, *(f"{n}\n/0.PNG" for n in range(4)), "passed over/0.png")
    images, others = not_used(
        Folder(tmp_path), [tmp_path / "a/0.png"], {tmp_path / "passed over"}, "good ones"
    )
    assert images.startswith(r"not used: 6 images in 6 folders ('0\n', '1\n', '2\n', ...)")
    assert images.endswith("only good ones are read")
    assert others.startswith("not used: 3 files of other types (")
    for told in ("1 .jp2", "1 .txt", "1 without suffix", "1 folder ('b')"):
        assert told in others


def test_a_file_that_is_used_under_another_name_of_its_folder_is_used(tmp_path: Path) -> None:
    touch(tmp_path, "b/0.png")
    (tmp_path / "a").symlink_to(tmp_path / "b", target_is_directory=True)
    for used in ("a/0.png", "b/0.png"):
        assert not_used(Folder(tmp_path), [tmp_path / used], (), "") == ()


def test_names_are_sorted_as_people_count() -> None:
    names = ["img10.png", "Img2.png", "img1.png", "a", "10", "9", "img²", ""]
    expected = ["", "9", "10", "a", "img1.png", "Img2.png", "img10.png", "img²"]
    assert sorted(names, key=natural_key) == expected
