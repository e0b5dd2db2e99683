"""Where an image is anomalous: connected regions of its map above a threshold."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crad.errors import MissingPackageError


@dataclass(frozen=True)
class Region:
    """A region, in pixels of the image: x to the right, y down, from 0.

    Attributes:
        box: left, top, right and bottom; the last two are the first pixels beyond it.
        area: number of pixels.
        peak: x and y of the pixel with the highest value of the map.
        peak_score: that value.
        centroid: mean x and y of its pixels.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: tuple[int, int]
    peak_score: float
    centroid: tuple[float, float]


def can_find_regions() -> bool:
    """Whether scikit-image is installed, which `find_regions` needs."""
    try:
        import skimage.measure  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def find_regions(
    anomaly_map: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]
) -> tuple[Region, ...]:
    """Find the connected regions of a mask; pixels at a corner are connected.

    Args:
        anomaly_map: float (H, W).
        mask: bool (H, W), the pixels that are anomalous.

    Returns:
        The regions, that with the highest peak first.

    Raises:
        MissingPackageError: scikit-image is not installed, which an exported model does without.
    """
    if not mask.any():
        return ()
    try:
        from skimage.measure import label, regionprops
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "regions: they need scikit-image, which is not installed; install it with "
            "pip install scikit-image"
        ) from error
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y, x = int(rows[0]), int(columns[0])
    part = slice(y, int(rows[-1]) + 1), slice(x, int(columns[-1]) + 1)
    labels = label(mask[part], connectivity=2)
    found = []
    for each in regionprops(labels, anomaly_map[part]):
        top, left, bottom, right = each.bbox
        values = np.where(each.image, each.image_intensity, -np.inf)
        row, column = divmod(int(values.argmax()), values.shape[1])
        middle_y, middle_x = each.centroid
        found.append(
            Region(
                box=(int(x + left), int(y + top), int(x + right), int(y + bottom)),
                area=int(each.area),
                peak=(int(x + left + column), int(y + top + row)),
                peak_score=float(values.max()),
                centroid=(round(float(x + middle_x), 2), round(float(y + middle_y), 2)),
            )
        )
    return tuple(sorted(found, key=lambda region: -region.peak_score))
