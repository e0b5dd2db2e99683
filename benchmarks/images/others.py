"""OpenCV and SciPy on the forward pass of one image, where they are installed."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.images.cases import Case

_GROUPS = ("Channels and modes", "Sizes")
_ORDERS = {"nearest": 0, "bilinear": 1}
"""Of SciPy's splines; that of degree 3 is another interpolation than bicubic."""

Array = npt.NDArray[Any]


def others(case: Case) -> Iterator[tuple[str, Callable[[], Array]]]:
    """Names and steps of what can do this case; their results are ``(H, W, C)``.

    Both take pixels as coordinates, which are computed before.
    """
    if case.group not in _GROUPS or case.channels not in (1, 3) or case.padding != "zeros":
        return
    [(values, grid, _)] = case.tensors()
    height, width = case.sizes[0]
    x = (((grid[0, ..., 0] + 1) * width - 1) / 2).contiguous().numpy()
    y = (((grid[0, ..., 1] + 1) * height - 1) / 2).contiguous().numpy()
    if importlib.util.find_spec("cv2"):
        cv2 = importlib.import_module("cv2")
        cv2.setNumThreads(torch.get_num_threads())
        flag = {
            "nearest": cv2.INTER_NEAREST,
            "bilinear": cv2.INTER_LINEAR,
            "bicubic": cv2.INTER_CUBIC,
        }[case.mode]
        image = values[0].movedim(0, -1).contiguous().numpy()

        def remap() -> Array:
            found: Array = cv2.remap(image, x, y, flag, borderMode=cv2.BORDER_CONSTANT)
            return found.reshape(height, width, -1)

        yield f"cv2.remap, OpenCV {cv2.__version__}", remap
    if importlib.util.find_spec("scipy") and case.mode != "bicubic":
        ndimage = importlib.import_module("scipy.ndimage")
        order = _ORDERS[case.mode]
        planes, places = values[0].numpy(), np.stack([y, x])

        def map_coordinates() -> Array:
            return np.stack(
                [
                    ndimage.map_coordinates(plane, places, order=order, mode="grid-constant")
                    for plane in planes
                ],
                -1,
            )

        version = importlib.import_module("scipy").__version__
        yield f"map_coordinates, SciPy {version}", map_coordinates
