"""The demo set: its layout, its seeds, and that it is no toy."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from crad.data.demo import _VERSION, DEMO_NAMES, demo_dataset, write_demo
from crad.data.demo.photos import PHOTOS, crop_photo
from tests.fixtures import largest_file

Array = NDArray[np.float64]


def read(path: Path) -> Array:
    return np.asarray(Image.open(path), dtype=np.float64) / 255


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.png"))}


def test_every_defect_changes_its_mask_and_little_else(tmp_path: Path) -> None:
    write_demo(tmp_path / "seen", n_train=0, n_test=10, size=64)  # every kind of defect
    write_demo(tmp_path / "unseen", n_train=0, n_test=10, size=64, contrast=0.0)
    for path in (tmp_path / "seen").glob("*/ground_truth/*/*.png"):
        name, defect, number = path.parts[-4], path.parts[-2], path.name[:3]
        place = Path(name, "test", defect, f"{number}.png")
        change = np.abs(read(tmp_path / "seen" / place) - read(tmp_path / "unseen" / place)).mean(2)
        inside = read(path) > 0
        assert change[inside].mean() > 0.03, place
        assert change[~inside].mean() < 0.1 * change[inside].mean(), place


def test_hard_level_has_the_same_defects_at_a_quarter_of_the_contrast(tmp_path: Path) -> None:
    contrasts = {"none": 0.0, "hard": 0.25, "default": 1.0}
    for folder, contrast in contrasts.items():
        write_demo(tmp_path / folder, n_train=1, n_test=2, size=64, contrast=contrast)
    for path in (tmp_path / "hard").rglob("*.png"):
        place = path.relative_to(tmp_path / "hard")
        none, hard, default = (read(tmp_path / folder / place) for folder in contrasts)
        if "ground_truth" in place.parts or "good" in place.parts:
            assert (hard == default).all()
        else:
            assert np.abs(hard - none).mean() == pytest.approx(
                0.25 * np.abs(default - none).mean(), rel=0.15
            )


def test_pictures_depend_on_the_seed_and_their_place_only(tmp_path: Path) -> None:
    write_demo(tmp_path / "some", n_train=2, n_test=2, size=64, classes=("grass", "gauge"))
    write_demo(tmp_path / "more", n_train=3, n_test=4, size=64)
    write_demo(tmp_path / "other", n_train=2, n_test=2, size=64, classes=("grass", "gauge"), seed=1)
    some, more, other = (files(tmp_path / folder) for folder in ("some", "more", "other"))
    assert some.items() <= more.items()
    assert all(content != other.get(place) for place, content in some.items())


@pytest.mark.parametrize("name", PHOTOS)
def test_training_and_test_crops_share_no_pixel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Columns as grey values: every crop then tells which columns it is from.
    columns = np.tile((np.arange(512) // 2).astype(np.uint8), (512, 1))
    monkeypatch.setattr("crad.data.demo.photos._photograph", lambda _: columns)
    seen: dict[str, list[float]] = {"train": [], "test": []}
    for seed in range(100):
        for split, values in seen.items():
            crop = crop_photo(name, 64, split, np.random.default_rng(seed))[..., 1]
            values += [float(crop.min()), float(crop.max())]
    assert max(seen["test"]) < min(seen["train"]) or max(seen["train"]) < min(seen["test"])


def test_photographs_need_no_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody listens
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert skimage.data.brick().shape == (512, 512)
    write_demo(tmp_path, n_train=1, n_test=0, size=64, classes=PHOTOS)


def test_every_set_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "crad" / f"{name}-v{_VERSION}" for name in DEMO_NAMES]
    for folder in folders:
        folder.mkdir(parents=True)
    monkeypatch.delenv("CRAD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert [demo_dataset(name) for name in DEMO_NAMES] == folders


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAD_CACHE", str(tmp_path))
    with largest_file(1000), pytest.raises(OSError, match="too large"):
        demo_dataset("demo")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"demo, demo-hard.*'demo-easy'"):
        demo_dataset("demo-easy")
    with pytest.raises(ValueError, match=r"brick.*'bottle'"):
        write_demo(tmp_path, classes=("bottle",))
