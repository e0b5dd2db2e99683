"""The demo data set: photographs of textures and rendered products with seeded defects.

A stand-in that gives training, scoring and the tests input without a download; not a benchmark.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from crad.data.demo.defects import SURFACE_DEFECTS, Mask, Picture, smooth_noise
from crad.data.demo.photos import PHOTOS, crop_photo
from crad.data.demo.products import PRODUCTS
from crad.errors import StorageError
from crad.files import full_path, new_folder

DEMO_NAMES = ("demo", "demo-hard")
DEMO_CLASSES = (*PHOTOS, *PRODUCTS)

DEMO_CALIBRATION_SHARE = 1 / 3
"""Share of its normal images that sets thresholds: 20 of a class; the other 40 are trained on."""

_VERSION = 2  # of the pictures: another one gets a folder of its own
_CONTRAST = {"demo": 1.0, "demo-hard": 0.25}
_PHOTO_DEFECTS = ("patch", "scratch", "smear", "stain")
_PRODUCT_DEFECTS = ("misplaced", "missing", "scratch", "stain", "wrong")
_VISIBLE = 0.06  # a pixel that a part defect changes by more belongs to the mask


def demo_dataset(name: str) -> Path:
    """The folder of a demo data set, written on the first call.

    It lies in the folder named by the environment variable CRAD_CACHE, else in `crad` below
    XDG_CACHE_HOME, else in `~/.cache/crad`.

    Args:
        name: "demo", or "demo-hard": the same with the defects at a quarter of their contrast.

    Returns:
        The root of a data set in the MVTec AD layout: 6 classes of 60 training and 20 test images.

    Raises:
        StorageError: it cannot be written.
        ValueError: there is no demo data set of this name.
    """
    if name not in DEMO_NAMES:
        raise ValueError(f"demo_dataset: expected one of {', '.join(DEMO_NAMES)}, but got '{name}'")
    folder = _cache_folder() / f"{name}-v{_VERSION}"
    if folder.is_dir():
        return folder
    try:
        with new_folder(folder) as written:
            write_demo(written, contrast=_CONTRAST[name])
    except OSError as error:
        raise StorageError(
            f"data: the generated set cannot be written to '{folder}' ({error.strerror or error}); "
            "set the environment variable CRAD_CACHE to a folder with 20 MB of space"
        ) from error
    return folder


def is_demo(source: str) -> bool:
    """Whether a data set is a generated one: by its name, its folder, or the folder of a class."""
    if source in DEMO_NAMES:
        return True
    path = full_path(source)
    folders = [full_path(_cache_folder() / f"{name}-v{_VERSION}") for name in DEMO_NAMES]
    return path in folders or path.parent in folders


def _cache_folder() -> Path:
    if folder := os.environ.get("CRAD_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "crad"
    try:
        return Path.home() / ".cache" / "crad"
    except RuntimeError as error:  # there is no home
        raise StorageError(
            f"data: there is no folder for the generated set ({error}); set the environment "
            "variable CRAD_CACHE to one"
        ) from error


def write_demo(
    root: str | Path,
    *,
    contrast: float = 1.0,
    n_train: int = 60,
    n_test: int = 20,
    size: int = 128,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> None:
    """Write a demo data set in the MVTec AD layout, as PNG files.

    Args:
        root: the folder to fill; created if it does not exist.
        contrast: of the defects, from 0 (invisible) to 1.
        n_train: training images a class.
        n_test: test images a class; every second one has a defect.
        size: side of the images in pixels.
        classes: some of `DEMO_CLASSES`, or None for all.
        seed: of everything random. An image depends on it and on its place, not on the counts.

    Raises:
        ValueError: a class is unknown.
    """
    root = Path(root)
    for name in DEMO_CLASSES if classes is None else classes:
        if name not in DEMO_CLASSES:
            raise ValueError(
                f"write_demo: expected classes among {', '.join(DEMO_CLASSES)}, but got '{name}'"
            )
        for index in range(n_train):
            picture, _ = _example(name, "train", "good", index, size, contrast, seed)
            _save(picture, root / name / "train" / "good" / f"{index:03}.png")
        defects = _PHOTO_DEFECTS if name in PHOTOS else _PRODUCT_DEFECTS
        for index in range(n_test):
            number = index // 2
            defect = defects[number % len(defects)] if index % 2 else "good"
            picture, mask = _example(name, "test", defect, index, size, contrast, seed)
            _save(picture, root / name / "test" / defect / f"{number:03}.png")
            if defect != "good":
                path = root / name / "ground_truth" / defect / f"{number:03}_mask.png"
                _save(mask > 0.5, path)


def _save(picture: Picture | NDArray[np.bool_], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255.0).round().astype(np.uint8)).save(path)


def _example(
    name: str, split: str, defect: str, index: int, size: int, contrast: float, seed: int
) -> tuple[Picture, Mask]:
    """One picture and the mask of its defect."""
    key = (seed, DEMO_CLASSES.index(name), split == "test", index)
    scene, flaw, camera = (np.random.default_rng(s) for s in np.random.SeedSequence(key).spawn(3))
    if name in PHOTOS:
        good = crop_photo(name, size, split, scene)
    else:
        product, state = PRODUCTS[name], scene.bit_generator.state
        good = product.render(product.parts, size, scene)
    bad, mask = good, np.zeros((size, size), dtype=np.float32)
    if defect in SURFACE_DEFECTS:
        bad, mask = SURFACE_DEFECTS[defect](good, flaw)
    elif defect != "good":
        scene.bit_generator.state = state
        bad = product.render(product.defective(defect, flaw), size, scene)
        mask = _changed(good, bad)
    return _photograph(good + contrast * (bad - good), camera), mask


def _changed(good: Picture, bad: Picture) -> Mask:
    """Where two pictures differ visibly, with small gaps closed."""
    difference = Image.fromarray((np.abs(bad - good).max(axis=2) > _VISIBLE).astype(np.uint8))
    closed = difference.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.MinFilter(5))
    return np.asarray(closed, dtype=np.float32)


def _photograph(scene: Picture, rng: np.random.Generator) -> Picture:
    """A camera's picture of a scene: uneven light, exposure, white balance, tone curve, noise."""
    size = len(scene)
    light = 1 + 0.03 * smooth_noise(size, 1, rng)
    exposure = np.exp(rng.normal(0, 0.04) + rng.normal(0, 0.012, 3))
    noise = rng.normal(0, 0.01, scene.shape)
    gamma, saturation = np.exp(rng.normal(0, 0.04, 2))
    grey = scene.mean(axis=2, keepdims=True)
    seen = np.clip(grey + saturation * (scene - grey), 0, 1) ** gamma
    picture: Picture = np.clip(seen * light[:, :, None] * exposure + noise, 0, 1).astype(np.float32)
    return picture
