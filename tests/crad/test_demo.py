"""The demo set: its layout, its seeds, and that it is no toy."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from crad.data.demo import DEMO_CLASSES, DEMO_NAMES, demo_dataset, write_demo
from crad.data.demo.photos import PHOTOS, crop_photo
from crad.data.demo.products import PRODUCTS

Array = NDArray[np.float64]


def read(path: Path) -> Array:
    return np.asarray(Image.open(path), dtype=np.float64) / 255


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default set as `crad.train` gets it; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        return demo_dataset("demo")


def test_layout_is_that_of_mvtec_ad(full: Path) -> None:
    assert len(PHOTOS) >= 3
    assert len(PRODUCTS) >= 3
    assert sorted(folder.name for folder in full.iterdir()) == sorted(DEMO_CLASSES)
    for name in DEMO_CLASSES:
        assert len(list((full / name / "train").glob("good/*.png"))) == 60
        good = list((full / name / "test" / "good").glob("*.png"))
        bad = set((full / name / "test").glob("*/*.png")) - set(good)
        assert (len(good), len(bad)) == (10, 10)
        for path in bad:
            mask = full / name / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            with Image.open(mask) as image:
                assert image.mode == "L"
                assert image.size == (128, 128)
                assert set(np.unique(np.asarray(image))) == {0, 255}
        assert len(list((full / name / "ground_truth").glob("*/*.png"))) == len(bad)


def test_masks_are_neither_specks_nor_most_of_the_picture(full: Path) -> None:
    for path in full.glob("*/ground_truth/*/*.png"):
        assert 0.0015 < read(path).mean() < 0.2, path


def test_every_defect_changes_its_mask_and_little_else(tmp_path: Path) -> None:
    write_demo(tmp_path / "seen", n_train=0, size=64)
    write_demo(tmp_path / "unseen", n_train=0, size=64, contrast=0.0)
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
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    assert skimage.data.brick().shape == (512, 512)
    write_demo(tmp_path, n_train=1, n_test=0, size=64, classes=PHOTOS)


def mahalanobis(train: Array, test: Array) -> Array:
    inverse = np.linalg.inv(np.cov(train.T) + 1e-8 * np.eye(train.shape[1]))
    offset = test - train.mean(0)
    return np.einsum("ni,ij,nj->n", offset, inverse, offset)


def nearest(train: Array, test: Array) -> Array:
    return np.linalg.norm(test[:, None] - train[None], axis=2).min(1)


def brightness(train: Array, test: Array) -> Array:
    return np.abs(test.mean(1) - train.mean())


@pytest.mark.parametrize("with_deviation", [False, True], ids=["mean", "mean and deviation"])
@pytest.mark.parametrize("detector", [mahalanobis, nearest, brightness])
def test_mean_colour_gives_no_defect_away(
    full: Path, detector: Callable[[Array, Array], Array], with_deviation: bool
) -> None:
    def describe(path: Path) -> Array:
        pixels = read(path).reshape(-1, 3)
        return np.concatenate([pixels.mean(0), pixels.std(0)]) if with_deviation else pixels.mean(0)

    aurocs = []
    for name in DEMO_CLASSES:
        train = np.stack([describe(p) for p in sorted((full / name / "train").glob("good/*"))])
        paths = sorted((full / name / "test").glob("*/*"))
        test = np.stack([describe(path) for path in paths])
        labels = [path.parent.name != "good" for path in paths]
        aurocs.append(roc_auc_score(labels, detector(train, test)))
    assert np.mean(aurocs) <= 0.75


def test_cached_set_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(root: Path, *, contrast: float) -> None:
        written.append(contrast)
        (root / "brick").mkdir()

    monkeypatch.setattr("crad.data.demo.write_demo", write)
    monkeypatch.delenv("CRAD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    roots = [demo_dataset(name) for name in (*DEMO_NAMES, *DEMO_NAMES)]
    assert written == [1.0, 0.25]
    assert roots[:2] == roots[2:]
    assert all(root.parent == tmp_path / "crad" for root in roots)
    assert sorted((tmp_path / "crad").iterdir()) == sorted(set(roots))


def test_interrupted_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(root: Path, *, contrast: float) -> None:
        (root / "brick").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("crad.data.demo.write_demo", write)
    monkeypatch.setenv("CRAD_CACHE", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        demo_dataset("demo")
    assert list(tmp_path.iterdir()) == []


def write_one_class(root: Path, *, contrast: float) -> None:
    (root / "brick").mkdir()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0o077, 0o700)])
def test_cached_set_can_be_read_as_the_umask_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int, mode: int
) -> None:
    monkeypatch.setattr("crad.data.demo.write_demo", write_one_class)
    monkeypatch.setenv("CRAD_CACHE", str(tmp_path))
    before = os.umask(mask)
    try:
        root = demo_dataset("demo")
    finally:
        os.umask(before)
    assert root.stat().st_mode & 0o777 == mode


def test_what_a_killed_process_left_is_removed_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crad.data.demo.write_demo", write_one_class)
    monkeypatch.setenv("CRAD_CACHE", str(tmp_path))
    for name, days in {".demo-v2-old": 2.0, ".demo-v2-new": 0.1, ".mine": 9.0}.items():
        (tmp_path / name / "demo-v2" / "brick").mkdir(parents=True)
        then = time.time() - days * 24 * 60 * 60
        os.utime(tmp_path / name, (then, then))
    demo_dataset("demo")
    assert {path.name for path in tmp_path.iterdir()} == {".demo-v2-new", ".mine", "demo-v2"}


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"demo, demo-hard.*'demo-easy'"):
        demo_dataset("demo-easy")
    with pytest.raises(ValueError, match=r"brick.*'bottle'"):
        write_demo(tmp_path, classes=("bottle",))
