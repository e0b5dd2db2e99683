"""Which normal images are held back from training, to set the thresholds with."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch

from crad.data.samples import Dataset, Sample
from crad.errors import DataError

Draws = Literal["class", "run"]
"""Whether each class draws the images to hold back by itself, or one generator does for all."""


def check_share(dataset: Dataset, share: float) -> None:
    """Refuse a class with only one image where a share, or one at least, is to be left out.

    Raises:
        DataError: it has, so that it would have no threshold.
    """
    counts = Counter(sample.class_name for sample in dataset.train)
    if lonely := [name for name, number in counts.items() if share and number == 1]:
        raise no_threshold(str(lonely[0]), "there is only one normal image")


def no_threshold(class_name: str, reason: str) -> DataError:
    """The error of a class without images to set its threshold with."""
    return DataError(
        f"train: class '{class_name}' would have no threshold, as {reason}; add normal images, "
        "leave the class out with --classes, or go without thresholds with --calibration-share 0"
    )


def hold_back(
    dataset: Dataset, share: float, seed: int, draws: Draws = "class"
) -> tuple[list[Sample], list[Sample]]:
    """Split the normal images of each class into those to train on and those for its threshold.

    Args:
        dataset: the images.
        share: to hold back, in [0, 1). Unless it is 0, each part gets an image of every class that
            has two.
        seed: of the choice.
        draws: ``"class"`` makes the choice depend on nothing but the seed and the class; ``"run"``
            is how crad chose up to version 2 of its checkpoints.

    Returns:
        The samples to train on, and those held back, in order.
    """
    generator = torch.Generator().manual_seed(seed)
    train: list[Sample] = []
    held: list[Sample] = []
    for name in dataset.classes:
        if draws == "class":
            generator = _generator(seed, name)
        members = [sample for sample in dataset.train if sample.class_name == name]
        count = min(max(round(share * len(members)), 1), len(members) - 1) if share else 0
        chosen = {*torch.randperm(len(members), generator=generator)[:count].tolist()}
        for index, sample in enumerate(members):
            (held if index in chosen else train).append(sample)
    return train, held


def draw_folds(samples: Sequence[Sample], n_folds: int, seed: int) -> list[list[int]]:
    """Deal the images of each class out to folds, by chance.

    Args:
        samples: the images.
        n_folds: number of folds.
        seed: of the deal, which otherwise depends on the class alone.

    Returns:
        The places of the images of each fold that has some.
    """
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    for name in dict.fromkeys(sample.class_name for sample in samples):
        members = [index for index, sample in enumerate(samples) if sample.class_name == name]
        order = torch.randperm(len(members), generator=_generator(seed, str(name))).tolist()
        for number, place in enumerate(order):
            folds[number % n_folds].append(members[place])
    return [sorted(fold) for fold in folds if fold]


def _generator(seed: int, class_name: str) -> torch.Generator:
    """A random generator for a class, whatever the others."""
    key = hashlib.blake2b(f"{seed} {class_name}".encode("utf-8", "surrogateescape"))
    return torch.Generator().manual_seed(int.from_bytes(key.digest()[:8]))
