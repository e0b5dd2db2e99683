"""Demo classes cut from the photographs of repeating textures that ship inside scikit-image."""

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The photographs are grey; each gets the tone of its material.
_TONES = {"brick": (1.22, 0.92, 0.80), "grass": (0.92, 1.10, 0.62), "gravel": (1.05, 1.00, 0.92)}
PHOTOS = tuple(_TONES)

_CROP = (150, 176)  # side of a crop in pixels of the 512 x 512 photograph
_BORDER = 192  # columns left of it are for testing, the others for training


@functools.cache
def _photograph(name: str) -> NDArray[np.uint8]:
    import skimage.data  # not needed to know of the set

    photograph: NDArray[np.uint8] = getattr(skimage.data, name)()
    return photograph


def crop_photo(name: str, size: int, split: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random crop of a photograph, flipped and turned.

    Args:
        name: one of `PHOTOS`.
        size: side of the result in pixels.
        split: "train" or "test"; their regions of the photograph are disjoint.
        rng: decides everything random.

    Returns:
        (size, size, 3) in [0, 1].
    """
    photograph = _photograph(name)
    region = photograph[:, _BORDER:] if split == "train" else photograph[:, :_BORDER]
    side = int(rng.integers(*_CROP, endpoint=True))
    top, left = (int(rng.integers(0, limit - side, endpoint=True)) for limit in region.shape)
    crop = region[top : top + side, left : left + side]
    # Bricks lie in one direction; grass and gravel have none.
    crop = np.rot90(crop, 2 * int(rng.integers(2)) if name == "brick" else int(rng.integers(4)))
    if rng.integers(2):
        crop = crop[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(crop)).resize(
        (size, size), Image.Resampling.LANCZOS
    )
    grey = np.asarray(image, dtype=np.float32) / np.float32(255)
    tone: NDArray[np.float32] = np.array(_TONES[name], dtype=np.float32)
    return grey[:, :, None] * tone
