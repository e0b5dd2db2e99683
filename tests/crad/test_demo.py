"""The demo set: its layout, its seeds, and that it is no toy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from crad.data.demo import _VERSION, DEMO_CLASSES, DEMO_NAMES, demo_dataset, write_demo
from crad.data.demo.photos import PHOTOS, crop_photo
from crad.data.demo.products import PRODUCTS
from tests.fixtures import largest_file

Array = NDArray[np.float64]


def read(path: Path) -> Array:
    return np.asarray(Image.open(path), dtype=np.float64) / 255


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default set as `crad train` gets it; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        return demo_dataset("demo")


@pytest.mark.slow
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


@pytest.mark.slow
def test_masks_are_neither_specks_nor_most_of_the_picture(full: Path) -> None:
    for path in full.glob("*/ground_truth/*/*.png"):
        assert 0.0015 < read(path).mean() < 0.2, path


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


def mahalanobis(train: Array, test: Array) -> Array:
    inverse = np.linalg.inv(np.cov(train.T) + 1e-8 * np.eye(train.shape[1]))
    offset = test - train.mean(0)
    return np.einsum("ni,ij,nj->n", offset, inverse, offset)


def nearest(train: Array, test: Array) -> Array:
    return np.linalg.norm(test[:, None] - train[None], axis=2).min(1)


def brightness(train: Array, test: Array) -> Array:
    return np.abs(test.mean(1) - train.mean())


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_set_that_is_there_is_not_written_again(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRAD_CACHE", str(full.parent))
    before = full.stat().st_mtime_ns
    assert demo_dataset("demo") == full
    assert full.stat().st_mtime_ns == before
    assert list(full.parent.iterdir()) == [full]


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
