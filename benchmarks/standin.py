"""A stand-in for MVTec AD and for pretrained weights, of which only the speed means anything."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import safetensors.torch
import timm
import torch

from crad.data.demo import DEMO_CLASSES, write_demo
from crad.files import new_folder

N_CLASSES = 15
N_IMAGES = 3629  # to train on, in MVTec AD
_PART = 32  # images that a process makes at a time; a product takes a tenth of a second


@dataclass(frozen=True)
class _Part:
    """Images of a class: made by the demo's generator, with a seed of their own."""

    folder: Path
    demo_class: str
    count: int
    size: int
    seed: int


def write_standin(root: Path, *, n_images: int, size: int, processes: int) -> None:
    """Write normal images of 15 classes, in the layout of MVTec AD, or leave those that are there.

    The demo's generator has six classes; further ones are of the same scenes, by other seeds.

    Args:
        root: the folder to make.
        n_images: of all classes together, at least one for each.
        size: side of the images in pixels.
        processes: how many make them.
    """
    if root.is_dir():
        return
    with new_folder(root) as written:
        parts = list(_parts(written, n_images, size))
        if processes == 1:
            for part in parts:
                _write(part)
            return
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            list(pool.map(_write, parts))


def _parts(root: Path, n_images: int, size: int) -> Iterator[_Part]:
    seed = 0
    for number in range(N_CLASSES):
        demo_class = DEMO_CLASSES[number % len(DEMO_CLASSES)]
        folder = root / f"{demo_class}_{number}" / "train" / "good"
        folder.mkdir(parents=True)
        left = n_images // N_CLASSES + (number < n_images % N_CLASSES)
        while left:
            count = min(left, _PART)
            yield _Part(folder, demo_class, count, size, seed)
            left -= count
            seed += 1


def _write(part: _Part) -> None:
    root = part.folder / f"seed-{part.seed}"
    write_demo(
        root,
        n_train=part.count,
        n_test=0,
        size=part.size,
        classes=[part.demo_class],
        seed=part.seed,
    )
    made = root / part.demo_class / "train" / "good"
    for path in made.iterdir():
        path.rename(part.folder / f"{part.seed:03}-{path.name}")
    for folder in (made, made.parent, root / part.demo_class, root):
        folder.rmdir()


def write_weights(path: Path, name: str) -> None:
    """Write random weights of a timm model, for ``--weights``, or leave those that are there."""
    if not path.exists():
        torch.manual_seed(0)
        safetensors.torch.save_file(timm.create_model(name).state_dict(), path)
