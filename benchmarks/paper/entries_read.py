"""How many entries of a memory are read: those with a weight in a look-up of normal images."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.choose import evenly
from benchmarks.paper.metrics import Measured, measured_record
from benchmarks.paper.runs import Runs
from benchmarks.paper.trained_run import TrainedRun, load_run
from benchmarks.paper.variants import Variant
from crad.backbones import Backbone
from crad.model.crad import CRAD
from crad.model.memories import ContinuousMemory
from crad.training.features import Features
from crad_kernels import sample

_MOST = 64  # images


def entries_read(runs: Runs, variants: Iterable[Variant]) -> Mapping[Variant, Measured | None]:
    """Count the entries that at most 64 normal test images read.

    Args:
        runs: finished.
        variants: with a grid as their only memory.

    Returns:
        The counts over the seeds; None if there is no normal test image.

    Raises:
        Exception: what `benchmarks.paper.trained_run.load_run` and `TrainedRun.features` raise.
    """
    found: dict[Variant, Measured | None] = {}
    backbone, features = None, None
    for variant in variants:
        counts = []
        for seed in runs.seeds:
            run = load_run(replace(runs, seeds=(seed,)), variant)
            if features is None or backbone is None or not _same(backbone, run.backbone):
                backbone, features = run.backbone, _of_normal_images(run)
            if len(features):
                feature = features.channels_first().to(run.device)
                counts.append(count_read(run.model, feature))
        found[variant] = Measured.of(counts) if counts else None
    return found


def sentence(read: Mapping[Variant, Measured | None]) -> str:
    """The result of `entries_read` as a sentence in Markdown."""
    counts = ", ".join(
        f"{'-' if number is None else number} in `{variant.name}`"
        for variant, number in read.items()
    )
    return f"Entries read by normal test images (at most {_MOST}): {counts}."


def records(read: Mapping[Variant, Measured | None]) -> Iterator[dict[str, Any]]:
    """The result of `entries_read` as records."""
    for variant, number in read.items():
        yield {"detector": variant.name, "metric": "entries read", **measured_record(number)}


def count_read(model: CRAD, feature: Tensor) -> int:
    """Count the entries with a weight above 0 in any look-up.

    Args:
        model: with a grid as its only memory.
        feature: ``(B, C, H, W)``.
    """
    (memory,) = model.memories()
    assert isinstance(memory, ContinuousMemory)
    is_local = model.local_representation is memory
    query = feature.permute(0, 2, 3, 1) if is_local else feature.mean(dim=(2, 3))
    with torch.no_grad():
        coords = memory.coordinates(query)
    # The gradient of the sum of samples with respect to an entry is the sum of its weights.
    values = torch.ones_like(memory.memory.weight[..., :1], requires_grad=True)
    (weights,) = torch.autograd.grad(sample(values, coords).sum(), values)
    return int((weights > 0).sum())


def _of_normal_images(run: TrainedRun) -> Features:
    return run.features(evenly([each for each in run.dataset.test if not each.is_anomaly], _MOST))


def _same(one: Backbone, other: Backbone) -> bool:
    """Whether two backbones give the same features."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )
