"""Images as tensors for a backbone."""

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from crad.data.frames import Frame, ImageSize
from crad.data.images import tile_to_frame, to_frame
from crad.data.tiles import TileGrid


def to_tensor(image: Image.Image, size: ImageSize) -> Tensor:
    """Bring an RGB image to a frame, as `crad.data.images.to_frame` does, as a tensor.

    Returns:
        Float32 tensor (3, H, W) in [0, 1], contiguous.
    """
    return _tensor(to_frame(image, size))


def to_tile(image: Image.Image, frame: Frame, grid: TileGrid, place: tuple[int, int]) -> Tensor:
    """Bring a tile to a frame, as `crad.data.images.tile_to_frame` does, as a tensor.

    Returns:
        Float32 tensor (3, H, W) in [0, 1], contiguous.
    """
    return _tensor(tile_to_frame(image, frame, grid, place))


def _tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255
