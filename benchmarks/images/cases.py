"""What is timed: images, volumes, tables and few points, in the shapes of `F.grid_sample`."""

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from benchmarks.cases import warp

FORWARD = "forward"
BOTH = "forward + backward"
VALUES = "the same, values alone"
COORDS = "the same, coordinates alone"

MODES = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class Case:
    """A call in the shapes of `F.grid_sample`, or one for each of several inputs.

    Attributes:
        group: the heading that it is shown under.
        channels: of the input.
        sizes: of the axes of each input.
        out: shape of the points of one batch item.
        batch: number of batch items.
        mode: as `F.grid_sample`.
        padding: as `F.grid_sample`.
        flow: where the points lie: ``"identity"``, ``"affine"``, ``"smooth"``, ``"random"``, or
            ``"colours"`` of a smooth picture with noise.
        channels_last: memory format of input and result.
        dtype: of all tensors.
        jitter_std: of the coordinates; torch adds ``jitter_std * torch.randn_like(grid)``.
        steps: what is timed; nearest has no gradient by coordinates to time alone.
        label: what the shape stands for.
    """

    group: str
    channels: int
    sizes: tuple[tuple[int, ...], ...]
    out: tuple[int, ...]
    batch: int = 1
    mode: str = "bilinear"
    padding: str = "zeros"
    flow: str = "smooth"
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    jitter_std: float = 0.0
    steps: tuple[str, ...] = (FORWARD, BOTH)
    label: str = ""

    def __str__(self) -> str:
        sizes = " + ".join("x".join(map(str, size)) for size in self.sizes)
        parts = [f"{self.label + ': ' if self.label else ''}{self.batch}x{self.channels}x{sizes}"]
        if self.out != self.sizes[0]:
            number = prod(self.out)
            parts.append("1 point" if number == 1 else f"{number:,} points")
        parts += [self.mode, self.padding, self.flow]
        parts += ["channels last"] * self.channels_last
        if self.dtype != torch.float32:
            parts.append(str(self.dtype).removeprefix("torch."))
        parts += [f"jitter {self.jitter_std:g}"] * (self.jitter_std > 0)
        return ", ".join(parts)

    @property
    def is_image(self) -> bool:
        """Whether it is a warp of float32 images without jitter, pixel by pixel."""
        plain = self.dtype == torch.float32 and not self.jitter_std
        return plain and len(self.out) == 2 and self.out == self.sizes[0]

    def tensors(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each input: it, the coordinates, and the gradient of the result."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for size in self.sizes:
            values = torch.randint(256, (self.batch, self.channels, *size), generator=generator)
            places = _places(self.flow, self.out, len(size), self.batch, generator)
            grad = torch.randn(self.batch, self.channels, *self.out, generator=generator)
            values, grad = self._laid_out(values / 255), self._laid_out(grad)
            found.append((values, places.to(self.dtype), grad))
        return found

    def _laid_out(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.dtype)
        if self.channels_last:
            tensor = tensor.movedim(1, -1).contiguous().movedim(-1, 1)
        return tensor


def _places(
    flow: str, out: tuple[int, ...], ndim: int, batch: int, generator: torch.Generator
) -> Tensor:
    """Coordinates ``(batch, *out, ndim)``."""
    if flow == "random":
        return torch.rand(batch, *out, ndim, generator=generator) * 2 - 1
    if flow == "smooth":
        one = warp((1, *out))
    else:
        axes = [(torch.arange(length) * 2 + 1) / length - 1 for length in out]
        one = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None]
    if flow == "affine":  # turned by 0.3 rad, and nearer
        turn = torch.eye(ndim)
        cos, sin = 0.9 * torch.tensor(0.3).cos(), 0.9 * torch.tensor(0.3).sin()
        turn[:2, :2] = torch.stack([cos, -sin, sin, cos]).view(2, 2)
        one = one @ turn
    elif flow == "colours":
        x, y, _ = one.unbind(-1)
        one = torch.stack([(3 * x).sin(), (4 * y).cos(), (2 * x + 3 * y).sin()], -1)
        one = (0.9 * one + 0.03 * torch.randn(one.shape, generator=generator)).clamp(-1, 1)
    return one.expand(batch, *one.shape[1:]).contiguous()


def _all(mode: str) -> tuple[str, ...]:
    return (FORWARD, BOTH, VALUES) if mode == "nearest" else (FORWARD, BOTH, VALUES, COORDS)


def _image(group: str, channels: int, side: int = 512) -> Case:
    return Case(group, channels, ((side, side),), (side, side))


def _few(label: str, shape: tuple[int, ...], number: int) -> Case:
    batch, channels, *size = shape
    out = (1,) * (len(size) - 1) + (number,)
    return Case("Few points", channels, (tuple(size),), out, batch, flow="random", label=label)


_LARGE = replace(_image("Sizes", 1), sizes=((3072, 4096),), out=(3072, 4096))
_PHOTO = _image("Half precision", 3)
_TABLE = Case("Tables", 4, ((128, 128, 128),), (1, 1, 1_000_000), flow="random", label="NeRF")
_COLOURS = Case("Tables", 3, ((33, 33, 33),), (1, 2048, 2048), label="colours")
_INKS = Case("Tables", 3, ((17,) * 4,), (1, 1, 1024, 1024), flow="random", label="inks")
_POINT_REND = _few("PointRend", (2, 256, 200, 304), 2048)
_KEY_POINTS = _few("key points", (1, 64, 1024, 1024), 100)

CASES = (
    *(
        replace(_image("Channels and modes", channels), mode=mode, steps=_all(mode))
        for channels in (1, 2, 3, 4)
        for mode in MODES
    ),
    *(
        replace(
            _image("Channels last", channels), mode=mode, steps=_all(mode), channels_last=True
        )
        for channels in (2, 3, 4)
        for mode in MODES
    ),
    *(
        replace(_image("Sizes", channels, side), mode=mode)
        for channels, side in ((3, 256), (1, 1024), (4, 1024))
        for mode in MODES
    ),
    _LARGE,
    replace(_LARGE, mode="bicubic", steps=(FORWARD,)),
    replace(_LARGE, channels=3, mode="nearest"),
    replace(_LARGE, channels=3, padding="border", flow="affine", channels_last=True),
    *(
        replace(_image("Padding", channels), mode=mode, padding=padding, flow="affine")
        for channels in (1, 3)
        for padding in ("border", "reflection")
        for mode in MODES
    ),
    *(
        replace(_image("Flows", channels), mode=mode, flow=flow)
        for channels in (1, 3)
        for flow in ("identity", "affine", "random")
        for mode in MODES
    ),
    *(
        replace(_image("Batches of 32", channels, 224), batch=32, mode=mode, flow="affine")
        for channels in (1, 3)
        for mode in MODES
    ),
    replace(_image("Batches of 32", 3, 224), batch=32, flow="affine", channels_last=True),
    *(
        # torch 2.14's backward pass in bfloat16 writes out of bounds.
        replace(_PHOTO, channels=channels, mode=mode, dtype=dtype, steps=(FORWARD,))
        for dtype in (torch.bfloat16, torch.float16)
        for channels, mode in ((1, "bilinear"), *((3, mode) for mode in MODES))
    ),
    *(
        replace(_image("Jitter", channels), mode=mode, jitter_std=0.01)
        for channels, mode in ((1, "bilinear"), *((3, mode) for mode in MODES))
    ),
    *(
        replace(
            Case("Volumes", channels, ((128,) * 3,), (128,) * 3),
            mode=mode,
            channels_last=last,
            steps=steps,
        )
        for channels, mode, last, steps in (
            (1, "bilinear", False, _all("bilinear")),
            (1, "nearest", False, (FORWARD, BOTH)),
            (2, "bilinear", False, (FORWARD, BOTH)),
            (2, "bilinear", True, (FORWARD, BOTH)),
        )
    ),
    *(
        Case("Volumes", channels, ((256,) * 3,), (256,) * 3, steps=(FORWARD,))
        for channels in (1, 2)
    ),
    *(
        replace(
            _TABLE, channels=channels, sizes=((side,) * 3,), steps=(FORWARD, BOTH, VALUES)[:number]
        )
        for channels, side, number in (
            (2, 16, 2), (4, 16, 2), (2, 64, 2), (4, 128, 3), (2, 256, 2), (4, 256, 1)
        )
    ),
    replace(_INKS, steps=(FORWARD,)),
    replace(_COLOURS, flow="colours", padding="border"),
    replace(_POINT_REND, steps=_all("bilinear")),
    replace(_POINT_REND, channels_last=True),
    replace(_KEY_POINTS, steps=_all("bilinear")),
    replace(_KEY_POINTS, channels_last=True),
    _few("key points", (1, 256, 64, 64), 100),
    _few("key points", (1, 64, 256, 256), 10_000),
    Case(
        "Few points", 32, tuple((side, side) for side in (64, 32, 16, 8)), (300, 4), 64,
        flow="random", label="deformable attention",
    ),
    replace(_few("", (1, 16, 64, 64), 1), steps=_all("bilinear")),
)  # fmt: skip
