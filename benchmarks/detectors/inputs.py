"""The inputs of one model, taken from those of a whole set, so that features are computed once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.detectors.pixels import Pixels
from crad.config import Config
from crad.data import Dataset
from crad.scoring.held_back import hold_back
from crad.training.features import Features
from crad.training.inputs import Inputs, prepare


@dataclass(frozen=True, kw_only=True)
class SetInputs(Inputs):
    """The inputs of a set, for methods that have another backbone than its features.

    Attributes:
        pixels: of the images.
    """

    pixels: Pixels


def prepare_all(config: Config, device: torch.device) -> SetInputs:
    """Compute the features of a set; ``train`` has all normal images, and none are held back.

    Raises:
        CradError: what `crad.training.inputs.prepare` raises.
    """
    decisions = replace(config.decisions, calibration_share=0.0)
    found = prepare(replace(config, decisions=decisions), None, device)
    return SetInputs(**vars(found), pixels=Pixels(found.frame, found.decoding))


def inputs_of(inputs: SetInputs, config: Config) -> SetInputs:
    """What one model is fitted to: the images that ``crad train`` would take, and no test images.

    Args:
        inputs: of the whole set, from `prepare_all`.
        config: with the classes, the share to hold back, and the seed of that choice.
    """
    classes, seed = config.data.classes, config.training.seed
    normal = Dataset(Path(), classes, tuple(inputs.train.samples), ())
    rows = {sample.path: row for row, sample in enumerate(normal.train)}
    train, held_back = (
        [rows[sample.path] for sample in part]
        for part in hold_back(normal, config.decisions.calibration_share, seed)
    )
    counts = Counter(normal.train[row].class_name for row in train)
    return replace(
        inputs,
        train=select(inputs.train, train),
        held_back=select(inputs.train, held_back),
        test=select(inputs.test, []),
        n_train={name: counts[name] for name in classes},
        digests=inputs.digests[[*train, *held_back]],
        seconds=0.0,
    )


def select(features: Features, rows: Sequence[int]) -> Features:
    """Some of the features, by number."""
    chosen = torch.tensor(rows, dtype=torch.int64)
    return Features(features.values[chosen], [features.samples[row] for row in rows])
