"""What else samples images forward: other libraries, and other ways to call torch's function."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import crad_kernels
from benchmarks.images.cases import Case
from benchmarks.images.steps import torchs

_GROUPS = ("Channels and modes", "Sizes")
_ORDERS = {"nearest": 0, "bilinear": 1}
"""Of splines; that of degree 3 is another interpolation than bicubic."""


@dataclass(frozen=True)
class Other:
    """A way to sample.

    Attributes:
        name: of it.
        call: what is timed.
        result: of what that returns, shaped as the result of `F.grid_sample`.
    """

    name: str
    call: Callable[[], Any]
    result: Callable[[Any], Tensor] = lambda found: found


def others(case: Case) -> Iterator[Other]:
    """What can do this case, as far as it is installed."""
    if case.dtype != torch.float32 or case.jitter_std or len(case.sizes) > 1:
        return
    [(values, grid, _)] = case.tensors()
    yield from _split(case, values, grid)
    if case.group not in _GROUPS or case.channels not in (1, 3) or case.padding != "zeros":
        return
    torch._dynamo.reset()
    compiled = torch.compile(torchs(case), dynamic=False)
    yield Other("F.grid_sample, compiled", lambda: compiled(values, grid))
    if _is_here("cv2"):
        yield _opencv(case, values, grid)
    if _is_here("scipy") and case.mode in _ORDERS:
        yield _scipy(case, values, grid)
    if _is_here("interpol") and case.mode in _ORDERS:
        yield _interpol(case, values, grid)
    if _is_here("kornia"):
        yield from _kornia(case, values, grid)


def _is_here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _named(module: Any, function: str, name: str) -> str:
    return f"{function}, {name} {module.__version__}"


def _split(case: Case, values: Tensor, grid: Tensor) -> Iterator[Other]:
    """`F.grid_sample` of as many views of an image as there are threads, each with its points."""
    threads = torch.get_num_threads()
    first = next((length for length in case.out if length > 1), 1)
    if case.batch > 1 or threads == 1 or first % threads or len(case.sizes[0]) > 3:
        return
    sample = torchs(case)
    views = values.expand(threads, *values.shape[1:])
    ones = next(axis for axis, length in enumerate(case.out) if length > 1)
    places = (*(1,) * ones, first // threads, *case.out[ones + 1 :])
    parts = grid.reshape(threads, *places, grid.shape[-1])
    yield Other(
        "F.grid_sample, split over threads",
        lambda: sample(views, parts),
        lambda found: found.movedim(0, 1).reshape(1, case.channels, *case.out),
    )


def _pixels(case: Case, grid: Tensor) -> Tensor:
    """Coordinates of the points in pixels, ``(D, *out)``, those of the first axis first."""
    length = torch.tensor(case.sizes[0])
    return (((grid[0].flip(-1) + 1) * length - 1) / 2).movedim(-1, 0).contiguous()


def _opencv(case: Case, values: Tensor, grid: Tensor) -> Other:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(torch.get_num_threads())
    flag = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
    }[case.mode]
    image = values[0].movedim(0, -1).contiguous().numpy()
    y, x = _pixels(case, grid).numpy()
    return Other(
        _named(cv2, "cv2.remap", "OpenCV"),
        lambda: cv2.remap(image, x, y, flag, borderMode=cv2.BORDER_CONSTANT),
        lambda found: torch.from_numpy(found).view(1, *case.out, -1).movedim(-1, 1),
    )


def _scipy(case: Case, values: Tensor, grid: Tensor) -> Other:
    scipy, ndimage = map(importlib.import_module, ("scipy", "scipy.ndimage"))
    order = _ORDERS[case.mode]
    planes, places = values[0].numpy(), _pixels(case, grid).numpy()

    def map_coordinates() -> Any:
        return np.stack(
            [
                ndimage.map_coordinates(plane, places, order=order, mode="grid-constant")
                for plane in planes
            ]
        )

    return Other(
        _named(scipy, "map_coordinates", "SciPy"),
        map_coordinates,
        lambda found: torch.from_numpy(found)[None],
    )


def _interpol(case: Case, values: Tensor, grid: Tensor) -> Other:
    interpol = importlib.import_module("interpol")
    places = _pixels(case, grid).movedim(0, -1).contiguous()[None]
    order = _ORDERS[case.mode]
    return Other(
        "interpol.grid_pull, torch-interpol",
        lambda: interpol.grid_pull(
            values, places, interpolation=order, bound="zero", extrapolate=True
        ),
    )


def _kornia(case: Case, values: Tensor, grid: Tensor) -> Iterator[Other]:
    """Its `remap`, which calls `F.grid_sample`, and the same with ours in its place."""
    kornia = importlib.import_module("kornia")
    x, y = grid.unbind(-1)
    arguments = {"mode": case.mode, "align_corners": False, "normalized_coordinates": True}

    def remap() -> Tensor:
        found: Tensor = kornia.geometry.transform.remap(values, x, y, **arguments)
        return found

    def patched() -> Tensor:
        # As under `crad_kernels.patch()`, which looks through all modules, for 40 ms.
        with mock.patch.object(F, "grid_sample", crad_kernels.grid_sample):
            return remap()

    name = _named(kornia, "remap", "kornia")
    yield Other(name, remap)
    yield Other(f"{name}, patched", patched)
