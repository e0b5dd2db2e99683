"""Coordinates of features in memories with two axes, which can be drawn on a plane."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.paper.trained_run import TrainedRun
from crad.data import Sample
from crad.errors import UsageError
from crad.model.crad import CRAD
from crad.model.memories import ContinuousMemory
from crad.training.features import Features

PlaneName = Literal["local", "global"]


def plane(model: CRAD, name: PlaneName) -> ContinuousMemory:
    """The local or the global memory of a model, if it is a grid with two axes.

    Raises:
        UsageError: it is not.
    """
    memory = model.local_representation if name == "local" else model.global_representation
    size = tuple(memory.memory.weight.shape[:-1]) if isinstance(memory, ContinuousMemory) else ()
    if not isinstance(memory, ContinuousMemory) or len(size) != 2:
        found = f"a grid of {' x '.join(map(str, size))}" if size else "none or another kind"
        raise UsageError(
            f"figure: expected a {name} memory that is a grid with two axes, but the model has "
            f"{found}"
        )
    return memory


@torch.no_grad()
def local_coords(model: CRAD, feature: Tensor) -> Tensor:
    """The coordinates of every position in the local memory, ``(B, H, W, 2)``, x first.

    Args:
        model: whose local memory is a grid with two axes.
        feature: ``(B, C, H, W)`` float32.

    Raises:
        UsageError: as for `plane`.
    """
    coords: Tensor = plane(model, "local").coordinates(feature.permute(0, 2, 3, 1))
    return coords


@torch.no_grad()
def global_coords(model: CRAD, feature: Tensor) -> Tensor:
    """The coordinates of every image in the global memory, ``(B, 2)``; as for `local_coords`."""
    coords: Tensor = plane(model, "global").coordinates(feature.mean(dim=(2, 3)))
    return coords


def image_coords(run: TrainedRun, features: Features) -> npt.NDArray[np.float32]:
    """The coordinates of images in the global memory of a run, ``(N, 2)``.

    Raises:
        UsageError: as for `plane`.
    """
    batches = torch.arange(len(features)).split(64)
    found = [global_coords(run.model, features.batch(each, run.device)) for each in batches]
    coords: npt.NDArray[np.float32] = torch.cat(found).cpu().numpy()
    return coords


def image_records(
    run: TrainedRun, samples: Sequence[Sample], coords: npt.NDArray[np.float32]
) -> Iterator[dict[str, Any]]:
    """Images and their coordinates ``(N, 2)``, as records."""
    for sample, (x, y) in zip(samples, coords.tolist(), strict=True):
        yield {
            "image": run.name(sample),
            "class": sample.class_name,
            "defect": sample.defect,
            "dim1": x,
            "dim2": y,
        }


def share_on_a_line(coords: npt.NDArray[np.float32]) -> float:
    """The share of the variance of points ``(N, 2)`` along their first principal axis."""
    variances = np.linalg.svd(coords - coords.mean(axis=0), compute_uv=False) ** 2
    return float(variances[0] / max(variances.sum(), 1e-12))
