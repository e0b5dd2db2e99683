"""Pictures of cloth with small dark spots, rendered at any size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Place = tuple[float, float]


def cloth(generator: np.random.Generator, height: int, width: int, level: int = 128) -> npt.NDArray:
    """A woven texture, uneven at two scales and noisy: float32 (H, W) of grey levels."""

    def uneven(cell: int, amplitude: float) -> npt.NDArray:
        coarse = generator.normal(0, amplitude, (height // cell + 2, width // cell + 2))
        image = Image.fromarray(coarse.astype(np.float32))
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))

    y, x = np.mgrid[:height, :width].astype(np.float32)
    phases = generator.uniform(0, 2 * np.pi, 2)
    weave = 6 * np.sin(x * np.pi / 12 + phases[0]) + 6 * np.sin(y * np.pi / 12 + phases[1])
    noise = generator.normal(0, 4, (height, width)).astype(np.float32)
    return level + weave + uneven(48, 8) + uneven(16, 6) + noise


def spot(picture: npt.NDArray, at: Place, diameter: float, depth: float = 40) -> npt.NDArray:
    """Darken a disc around (y, x) in place, and give its mask."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    mask = np.hypot(y + 0.5 - at[0], x + 0.5 - at[1]) <= diameter / 2
    picture[mask] -= depth
    return mask


def to_bytes(picture: npt.NDArray) -> npt.NDArray[np.uint8]:
    """Grey levels as pixels."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def write_cloth(
    folder: Path,
    size: tuple[int, int],
    *,
    n_train: int,
    n_test: int,
    diameters: Sequence[int],
    level: int = 128,
    seed: int = 0,
    suffix: str = ".png",
) -> None:
    """Write a class in the layout of MVTec AD, with a kind of defect for each diameter of a spot.

    Args:
        folder: of the class.
        size: height and width of the images.
        n_train: normal images to train on.
        n_test: test images of each kind.
        diameters: of the spots, in pixels.
        level: mean grey level.
        seed: of everything random.
        suffix: of the images.
    """
    generator = np.random.default_rng(seed)

    def write(name: str, pixels: npt.NDArray[np.uint8]) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)

    def texture() -> npt.NDArray:
        return cloth(generator, *size, level)

    for kind, count in (("train", n_train), ("test", n_test)):
        for number in range(count):
            write(f"{kind}/good/{number:03}{suffix}", to_bytes(texture()))
    for diameter in diameters:
        for number in range(n_test):
            picture = texture()
            at = (generator.uniform(diameter, length - diameter) for length in size)
            mask = spot(picture, (next(at), next(at)), diameter)
            write(f"test/spot{diameter}/{number:03}{suffix}", to_bytes(picture))
            write(f"ground_truth/spot{diameter}/{number:03}_mask.png", 255 * mask.astype(np.uint8))
