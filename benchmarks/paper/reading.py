"""How much of a memory is read: the entries that have a share in what normal images are given."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.measured import Measured, measured_record
from benchmarks.paper.opened import OpenedRun, open_run
from benchmarks.paper.runs import Runs
from benchmarks.paper.variants import Variant
from crad.backbones import Backbone
from crad.model.crad import CRAD
from crad.model.memories import ContinuousMemory
from crad.training.inputs import Images
from crad_kernels import sample

_MOST = 64  # images


def entries_read(runs: Runs, variants: Iterable[Variant]) -> Mapping[Variant, Measured | None]:
    """Count the entries that at most 64 normal test images, evenly chosen, read.

    Args:
        runs: finished.
        variants: with one memory, a grid.

    Returns:
        The numbers over the seeds; None where there is no normal test image.

    Raises:
        Exception: what `benchmarks.paper.opened.open_run` and `OpenedRun.images` raise.
    """
    found: dict[Variant, Measured | None] = {}
    backbone, images = None, None
    for variant in variants:
        counts = []
        for seed in runs.seeds:
            run = open_run(replace(runs, seeds=(seed,)), variant)
            if images is None or backbone is None or not _same(backbone, run.backbone):
                backbone, images = run.backbone, _normal_images(run)
            if images.samples:
                everything = torch.arange(len(images.samples))
                counts.append(count_read(run.model, images.features.batch(everything, run.device)))
        found[variant] = Measured.of(counts) if counts else None
    return found


def sentence(read: Mapping[Variant, Measured | None]) -> str:
    """Say what `entries_read` gave, in Markdown."""
    counts = ", ".join(
        f"{'-' if number is None else number} by `{variant.name}`"
        for variant, number in read.items()
    )
    return f"Entries of the grids that normal test images (at most {_MOST}) read: {counts}."


def records(read: Mapping[Variant, Measured | None]) -> Iterator[dict[str, Any]]:
    """What `benchmarks.paper.files.write_records` takes."""
    for variant, number in read.items():
        yield {"detector": variant.name, "metric": "entries read", **measured_record(number)}


def count_read(model: CRAD, feature: Tensor) -> int:
    """Count the entries that have a share in what a memory gives for features ``(B, C, H, W)``.

    Args:
        model: with one memory, a grid of any number of axes.
        feature: of any images.
    """
    (memory,) = model.memories()
    assert isinstance(memory, ContinuousMemory)
    is_local = model.local_representation is memory
    query = feature.permute(0, 2, 3, 1) if is_local else feature.mean(dim=(2, 3))
    with torch.no_grad():
        coords = memory.coordinates(query)
    # One number of each entry tells: the gradient of the sum of samples is the sum of weights.
    values = torch.ones_like(memory.memory.values[..., :1], requires_grad=True)
    (weights,) = torch.autograd.grad(sample(values, coords).sum(), values)
    return int((weights > 0).sum())


def _normal_images(run: OpenedRun) -> Images:
    """Normal test images of a run, as many as are looked at."""
    normal = [each for each in run.dataset.test if not each.is_anomaly]
    count = min(_MOST, len(normal))
    chosen = torch.linspace(0, len(normal) - 1, count).round().long().tolist()
    return run.images([normal[index] for index in chosen])


def _same(one: Backbone, other: Backbone) -> bool:
    """Whether two backbones give the same features."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )
