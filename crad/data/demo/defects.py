"""Defects of the demo set that can strike any surface: pictures in, pictures and masks out."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Picture = NDArray[np.float32]  # (S, S, 3) in [0, 1]
Mask = NDArray[np.float32]  # (S, S) in [0, 1], the share of a pixel that a defect covers

_SUPERSAMPLING = 4
_SPILLS = (
    (0.16, 0.10, 0.07),  # oil
    (0.45, 0.20, 0.08),  # rust
    (0.12, 0.20, 0.42),  # ink
    (0.80, 0.78, 0.70),  # paint
)


def smooth_noise(size: int, cells: int, rng: np.random.Generator) -> Mask:
    """Noise (size, size), mean 0, standard deviation about 1, with `cells` bumps along a side."""
    coarse = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    noise: Mask = np.asarray(image, dtype=np.float32)
    return noise


def _blob(size: int, radius: float, rng: np.random.Generator) -> Mask:
    """A round patch with a wavy outline and soft edges, all of it inside the picture."""
    y, x = rng.uniform(radius + 0.08, 0.92 - radius, 2)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    dy, dx = grid[:, None] - y, grid[None, :] - x
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.4)
    along = (np.cos(angle) * dx + np.sin(angle) * dy) / stretch
    across = (np.cos(angle) * dy - np.sin(angle) * dx) * stretch
    theta = np.arctan2(across, along)
    outline = np.full_like(theta, radius)
    for waves in (2, 3, 5):
        phase, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.12)
        outline += radius * depth * np.cos(waves * theta + phase)
    softness = 0.015
    inside = (outline - np.hypot(along, across)) / softness
    mask: Mask = (1 / (1 + np.exp(-np.clip(inside, -30, 30)))).astype(np.float32)
    return mask


def _blend(picture: Picture, other: Picture, mask: Mask) -> Picture:
    return picture + mask[:, :, None] * (other - picture)


def scratch(picture: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """A thin, slightly bent line, light on one side and dark on the other."""
    size = len(picture)
    scale = size * _SUPERSAMPLING
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.6)
    direction = np.array([np.cos(angle), np.sin(angle)])
    normal = np.array([-direction[1], direction[0]])
    middle, bend = rng.uniform(0.32, 0.68, 2), rng.uniform(-0.08, 0.08)
    t = np.linspace(-0.5, 0.5, 24)[:, None]
    points = middle + t * length * direction + bend * (1 - 4 * t**2) * normal
    width = rng.uniform(0.014, 0.02)

    def line(offset: float, width: float) -> Mask:
        canvas = Image.new("L", (scale, scale))
        path = [tuple(point) for point in (points + offset * normal) * scale]
        ImageDraw.Draw(canvas).line(path, fill=255, width=round(width * scale), joint="curve")
        return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)

    light, dark = line(width / 3, width * 0.75), line(-width / 3, width * 0.75)
    result = _blend(picture, np.clip(picture * 0.3, 0, 1), dark)
    result = _blend(result, np.clip(picture * 0.4 + 0.55, 0, 1), light)
    return result, line(0.0, 2.0 * width)


def stain(picture: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """A translucent spill, uneven and with a darker rim."""
    size = len(picture)
    mask = _blob(size, rng.uniform(0.10, 0.15), rng)
    rim = 4 * mask * (1 - mask)
    colour = np.array(_SPILLS[rng.integers(len(_SPILLS))], dtype=np.float32)
    depth = 0.7 + 0.08 * smooth_noise(size, 8, rng) + 0.2 * rim
    depth = np.clip(depth, 0, 1)[:, :, None]
    return _blend(picture, picture * (1 - depth) + colour * depth, mask), mask


def patch(picture: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """A piece of the same surface, enlarged and turned, with the colour of what it covers."""
    size = len(picture)
    mask = _blob(size, rng.uniform(0.13, 0.18), rng)
    side = round(size / rng.uniform(2.2, 2.8))
    top, left = rng.integers(0, size - side, 2)
    piece = np.rot90(picture[top : top + side, left : left + side])
    image = Image.fromarray((np.ascontiguousarray(piece) * 255).round().astype(np.uint8))
    enlarged = image.resize((size, size), Image.Resampling.BICUBIC)
    other = np.asarray(enlarged, dtype=np.float32) / np.float32(255)
    weight = (mask / mask.sum())[:, :, None]
    other = other + (weight * (picture - other)).sum((0, 1))
    return _blend(picture, np.clip(other, 0, 1), mask), mask


def smear(picture: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """A rubbed spot: all detail is gone, the mean colour stays."""
    mask = _blob(len(picture), rng.uniform(0.13, 0.18), rng)
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    blurred = image.filter(ImageFilter.GaussianBlur(0.035 * len(picture)))
    rubbed = np.asarray(blurred, dtype=np.float32) / np.float32(255)
    return _blend(picture, rubbed, mask), mask


SURFACE_DEFECTS: dict[str, Callable[[Picture, np.random.Generator], tuple[Picture, Mask]]] = {
    "patch": patch,
    "scratch": scratch,
    "smear": smear,
    "stain": stain,
}
