"""Demo classes that are rendered: products whose parts stand in the same places every time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from crad.data.demo.defects import Picture, smooth_noise

Colour = tuple[float, float, float]
Points = NDArray[np.float64]  # (n, 2): x, y in the unit square

_SUPERSAMPLING = 4


class Canvas:
    """Draws polygons in the unit square, antialiased, in a pose that varies slightly."""

    def __init__(self, size: int, background: Colour, rng: np.random.Generator) -> None:
        self.size = size
        self._image = Image.new("RGB", (size * _SUPERSAMPLING,) * 2, _bytes(background))
        self._draw = ImageDraw.Draw(self._image)
        angle, zoom = rng.normal(0, 0.012), 1 + rng.normal(0, 0.008)
        self._turn = zoom * np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        self._shift = 0.5 + rng.normal(0, 0.008, 2)

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        placed = ((points - 0.5) @ self._turn + self._shift) * self.size * _SUPERSAMPLING
        return [(float(x), float(y)) for x, y in placed]

    def polygon(self, points: Points, colour: Colour) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._pixels(points), fill=_bytes(colour))

    def shadow(self, points: Points, offset: float = 0.012, depth: float = 0.45) -> None:
        """Darken what a raised polygon will shade, softly, down and right of it."""
        veil = Image.new("L", self._image.size)
        ImageDraw.Draw(veil).polygon(self._pixels(points + offset), fill=round(255 * depth))
        veil = veil.filter(ImageFilter.BoxBlur(0.008 * self.size * _SUPERSAMPLING))
        self._image.paste((0, 0, 0), mask=veil)

    def picture(self) -> Picture:
        """The picture (size, size, 3) in [0, 1]."""
        return np.asarray(self._image.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def _bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (round(255 * min(max(value, 0.0), 1.0)) for value in colour)
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return red * factor, green * factor, blue * factor


def _disc(x: float, y: float, radius: float) -> Points:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return np.stack([x + radius * np.cos(t), y + radius * np.sin(t)], axis=1)


def _box(width: float, height: float, radius: float = 0.0) -> Points:
    """A rectangle around the origin with rounded corners."""
    corners = []
    for k, (sx, sy) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        t = (k + np.linspace(0, 1, 8 if radius else 1)) * math.pi / 2
        centre = np.array([sx * (width / 2 - radius), sy * (height / 2 - radius)])
        corners.append(centre + radius * np.stack([np.cos(t), np.sin(t)], axis=1))
    return np.concatenate(corners)


@dataclass(frozen=True)
class Part:
    """A part of a product: what it is, where its middle is and how it is turned (radians)."""

    kind: str
    x: float
    y: float
    angle: float = 0.0

    def place(self, points: Points, x: float = 0.0, y: float = 0.0) -> Points:
        """Move points from the part's frame, shifted by (x, y) in it, to the product's."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        turned = (points + np.array([x, y])) @ np.array([[cos, sin], [-sin, cos]])
        placed: Points = turned + np.array([self.x, self.y])
        return placed


@dataclass(frozen=True)
class Product:
    """A rendered class: a base with parts on it.

    `wrong` names for each kind the kind that is mounted by mistake in its place; `turn` (radians)
    and `shift` are the ranges by which a misplaced part is turned and moved.
    """

    colour: Colour
    base: Callable[[Canvas], None]
    parts: tuple[Part, ...]
    draw: dict[str, Callable[[Canvas, Part], None]]
    wrong: dict[str, str]
    turn: tuple[float, float]
    shift: tuple[float, float]
    grain: float

    def defective(self, defect: str, rng: np.random.Generator) -> tuple[Part | None, ...]:
        """The parts with one of them "misplaced", "wrong" or "missing", which leaves None."""
        # Kinds first, so that four equal screws are not four times as likely to fail.
        kind = rng.choice(sorted({part.kind for part in self.parts} & set(self.wrong)))
        i = int(rng.choice([i for i, part in enumerate(self.parts) if part.kind == kind]))
        part: Part | None = None
        if defect == "wrong":
            part = replace(self.parts[i], kind=self.wrong[kind])
        elif defect == "misplaced":
            direction, distance = rng.uniform(0, 2 * math.pi), rng.uniform(*self.shift)
            turn = rng.uniform(*self.turn) * rng.choice((-1, 1))
            part = replace(
                self.parts[i],
                x=self.parts[i].x + distance * math.cos(direction),
                y=self.parts[i].y + distance * math.sin(direction),
                angle=self.parts[i].angle + turn,
            )
        return (*self.parts[:i], part, *self.parts[i + 1 :])

    def render(
        self, parts: tuple[Part | None, ...], size: int, rng: np.random.Generator
    ) -> Picture:
        """Draw the product (size, size, 3); `rng` decides the pose, the play and the grain."""
        canvas = Canvas(size, self.colour, rng)
        play = rng.normal(0, 1, (len(parts), 3)) * (0.002, 0.002, 0.02)
        grain = smooth_noise(size, size // 3, rng) + smooth_noise(size, 6, rng)
        self.base(canvas)
        for part, (dx, dy, turn) in zip(parts, play, strict=True):
            if part is not None:
                moved = replace(part, x=part.x + dx, y=part.y + dy, angle=part.angle + turn)
                self.draw[part.kind](canvas, moved)
        return np.clip(canvas.picture() * (1 + self.grain * grain[:, :, None]), 0, 1)


# Circuit board

_COPPER, _SOLDER = (0.16, 0.47, 0.30), (0.78, 0.78, 0.74)


def _trace(canvas: Canvas, *corners: tuple[float, float]) -> None:
    for (x0, y0), (x1, y1) in pairwise(corners):
        along = np.array([x1 - x0, y1 - y0])
        across = 0.008 * np.array([-along[1], along[0]]) / np.hypot(*along)
        start, end = np.array([x0, y0]), np.array([x1, y1])
        canvas.polygon(
            np.stack([start - across, start + across, end + across, end - across]), _COPPER
        )
        canvas.polygon(_disc(x1, y1, 0.008), _COPPER)


def _board(canvas: Canvas) -> None:
    for k in range(6):
        y = 0.30 + 0.045 * k
        _trace(canvas, (0.40, y), (0.29 - 0.012 * k, y), (0.29 - 0.012 * k, 0.06), (0.05, 0.06))
        _trace(canvas, (0.60, y), (0.68 + 0.014 * k, y), (0.68 + 0.014 * k, 0.92), (0.95, 0.92))
    for x in (0.20, 0.36, 0.52):
        _trace(canvas, (x, 0.72), (x, 0.62), (x + 0.05, 0.57))
    for x, y in ((0.07, 0.07), (0.93, 0.07), (0.07, 0.93), (0.93, 0.93)):
        canvas.polygon(_disc(x, y, 0.042), (0.80, 0.68, 0.35))
        canvas.polygon(_disc(x, y, 0.024), (0.05, 0.05, 0.05))
    for x, y in ((0.62, 0.12), (0.88, 0.55), (0.10, 0.45), (0.10, 0.60), (0.45, 0.92)):
        canvas.polygon(_disc(x, y, 0.014), _SOLDER)
        canvas.polygon(_disc(x, y, 0.006), (0.08, 0.1, 0.08))
    for part in _BOARD_PARTS:
        reach = {"chip": 0.0, "capacitor": 0.05, "diode": 0.065}.get(part.kind, 0.065)
        for side in (-reach, reach) if reach else ():
            canvas.polygon(part.place(_box(0.05, 0.07), side), _SOLDER)
        if part.kind == "chip":
            for k in range(6):
                for side in (-1, 1):
                    pad = part.place(_box(0.045, 0.026), side * 0.118, 0.045 * (k - 2.5))
                    canvas.polygon(pad, _SOLDER)


def _chip(canvas: Canvas, part: Part) -> None:
    for k in range(6):
        for side in (-1, 1):
            pin = part.place(_box(0.04, 0.016), side * 0.105, 0.045 * (k - 2.5))
            canvas.polygon(pin, (0.93, 0.93, 0.92))
    body = part.place(_box(0.19, 0.29, 0.008))
    canvas.shadow(body)
    canvas.polygon(body, (0.10, 0.10, 0.11))
    canvas.polygon(part.place(_box(0.165, 0.265, 0.005)), (0.15, 0.15, 0.16))
    canvas.polygon(part.place(_disc(-0.055, -0.10, 0.014)), (0.30, 0.30, 0.32))
    for k in range(3):
        line = part.place(_box(0.09 - 0.02 * k, 0.012), 0.0, -0.02 + 0.035 * k)
        canvas.polygon(line, (0.55, 0.55, 0.56))


def _resistor(canvas: Canvas, part: Part) -> None:
    body = part.place(_box(0.13, 0.062))
    canvas.shadow(body, 0.008)
    canvas.polygon(body, (0.86, 0.86, 0.84))
    canvas.polygon(part.place(_box(0.09, 0.062)), (0.12, 0.12, 0.13))
    canvas.polygon(part.place(_box(0.045, 0.02)), (0.72, 0.72, 0.72))


def _ceramic(canvas: Canvas, part: Part) -> None:
    body = part.place(_box(0.13, 0.062))
    canvas.shadow(body, 0.008)
    canvas.polygon(body, (0.86, 0.86, 0.84))
    canvas.polygon(part.place(_box(0.085, 0.062)), (0.74, 0.56, 0.36))


def _diode(canvas: Canvas, part: Part) -> None:
    body = part.place(_box(0.14, 0.06, 0.028))
    canvas.shadow(body, 0.008)
    canvas.polygon(body, (0.80, 0.38, 0.22))
    canvas.polygon(part.place(_box(0.02, 0.06), 0.035), (0.08, 0.08, 0.08))
    canvas.polygon(part.place(_box(0.09, 0.010), -0.01, -0.016), (0.93, 0.66, 0.52))


def _capacitor(canvas: Canvas, part: Part) -> None:
    canvas.shadow(_disc(part.x, part.y, 0.085), 0.018)
    canvas.polygon(_disc(part.x, part.y, 0.085), (0.16, 0.17, 0.24))
    canvas.polygon(_disc(part.x, part.y, 0.074), (0.80, 0.81, 0.83))
    t = np.linspace(-0.9, 0.9, 12)
    stripe = 0.074 * np.stack([np.cos(t), np.sin(t)], axis=1)
    canvas.polygon(part.place(stripe), (0.18, 0.19, 0.26))
    for angle in (0.0, math.pi / 2):
        cross = replace(part, angle=part.angle + angle + math.pi / 4)
        canvas.polygon(cross.place(_box(0.09, 0.006)), (0.62, 0.63, 0.66))


_BOARD_PARTS = (
    Part("chip", 0.50, 0.415),
    Part("capacitor", 0.82, 0.27, math.pi / 2),
    Part("capacitor", 0.82, 0.68, math.pi / 2),
    Part("resistor", 0.20, 0.76, math.pi / 2),
    Part("resistor", 0.36, 0.76, math.pi / 2),
    Part("ceramic", 0.52, 0.76, math.pi / 2),
    Part("diode", 0.40, 0.13),
    Part("resistor", 0.14, 0.27, math.pi / 2),
    Part("ceramic", 0.66, 0.20, math.pi / 2),
)

# Blister pack


def _foil(canvas: Canvas) -> None:
    for k in range(-20, 41):
        for way in (-1, 1):
            x = 0.05 * k
            ends = np.array([[x, 0.0], [x + way * 1.0, 1.0]])
            line = np.array([[-0.003, 0.0], [0.003, 0.0]])
            quad = np.concatenate([ends[0] + line, ends[1] - line])
            canvas.polygon(quad, (0.67, 0.69, 0.72) if way > 0 else (0.80, 0.82, 0.84))
    for part in _PILLS:
        canvas.polygon(_disc(part.x, part.y, 0.118), (0.84, 0.86, 0.88))
        canvas.polygon(_disc(part.x + 0.006, part.y + 0.006, 0.108), (0.50, 0.52, 0.55))
        canvas.polygon(_disc(part.x, part.y, 0.104), (0.66, 0.68, 0.71))
        canvas.polygon(_disc(part.x + 0.016, part.y + 0.016, 0.072), (0.72, 0.74, 0.77))


def _dome(canvas: Canvas, part: Part) -> None:
    """The glint on the clear dome over a pill."""
    t = np.linspace(math.pi * 1.05, math.pi * 1.45, 10)
    arc = np.stack([np.cos(t), np.sin(t)], axis=1)
    glint = np.array([part.x, part.y]) + np.concatenate([0.098 * arc, 0.090 * arc[::-1]])
    canvas.polygon(glint, (0.98, 0.98, 0.99))


def _capsule_in(cap: Colour, body: Colour) -> Callable[[Canvas, Part], None]:
    def draw(canvas: Canvas, part: Part) -> None:
        whole = part.place(_box(0.18, 0.086, 0.042))
        canvas.shadow(whole, 0.010)
        canvas.polygon(whole, _shade(body, 0.86))
        canvas.polygon(part.place(_box(0.172, 0.070, 0.034), 0, -0.004), body)
        half = _box(0.18, 0.086, 0.042)
        half[:, 0] = np.minimum(half[:, 0], 0.0)
        canvas.polygon(part.place(half), _shade(cap, 0.82))
        half = _box(0.172, 0.070, 0.034)
        half[:, 0] = np.minimum(half[:, 0], 0.0)
        canvas.polygon(part.place(half, 0, -0.004), cap)
        canvas.polygon(part.place(_box(0.12, 0.010, 0.004), 0, -0.022), (0.98, 0.96, 0.94))
        _dome(canvas, part)

    return draw


def _tablet(canvas: Canvas, part: Part) -> None:
    canvas.shadow(_disc(part.x, part.y, 0.068), 0.010)
    canvas.polygon(_disc(part.x, part.y, 0.068), (0.80, 0.79, 0.76))
    canvas.polygon(_disc(part.x - 0.002, part.y - 0.002, 0.060), (0.93, 0.92, 0.89))
    canvas.polygon(part.place(_box(0.10, 0.010)), (0.74, 0.73, 0.70))
    _dome(canvas, part)


_PILLS = tuple(
    Part("capsule" if (row + column) % 2 else "tablet", x, y, -math.pi / 4)
    for row, y in enumerate((0.17, 0.50, 0.83))
    for column, x in enumerate((0.17, 0.50, 0.83))
)

# Pressure gauge


def _face(canvas: Canvas) -> None:
    canvas.shadow(_disc(0.5, 0.5, 0.46), 0.02)
    for radius, colour in (
        (0.46, (0.30, 0.31, 0.33)),
        (0.445, (0.62, 0.63, 0.66)),
        (0.415, (0.38, 0.39, 0.41)),
        (0.395, (0.94, 0.93, 0.89)),
    ):
        canvas.polygon(_disc(0.5, 0.5, radius), colour)
    for start, end, colour in (
        (0.75, 1.55, (0.20, 0.55, 0.30)),
        (1.55, 1.95, (0.90, 0.72, 0.15)),
        (1.95, 2.25, (0.78, 0.17, 0.15)),
    ):
        t = np.linspace(start * math.pi, end * math.pi, 40)
        arc = np.stack([np.cos(t), np.sin(t)], axis=1)
        canvas.polygon(0.5 + np.concatenate([0.345 * arc, 0.315 * arc[::-1]]), colour)
    for k in range(31):
        angle = math.pi * (0.75 + 1.5 * k / 30)
        length, width = (0.05, 0.010) if k % 5 == 0 else (0.025, 0.005)
        tick = Part("tick", 0.5, 0.5, angle).place(_box(length, width), 0.38 - length / 2)
        canvas.polygon(tick, (0.10, 0.10, 0.12))


def _needle_of(length: float, colour: Colour) -> Callable[[Canvas, Part], None]:
    corners = [(-0.10, -0.016), (0.0, -0.016), (length, -0.003), (length, 0.003), (0.0, 0.016)]
    outline = np.array([*corners, (-0.10, 0.016)])

    def draw(canvas: Canvas, part: Part) -> None:
        canvas.shadow(part.place(outline), 0.014, 0.3)
        canvas.polygon(part.place(outline), colour)

    return draw


def _hub(canvas: Canvas, part: Part) -> None:
    canvas.polygon(_disc(part.x, part.y, 0.045), (0.34, 0.35, 0.37))
    canvas.polygon(_disc(part.x - 0.004, part.y - 0.004, 0.034), (0.70, 0.71, 0.73))
    canvas.polygon(part.place(_box(0.05, 0.008)), (0.25, 0.25, 0.27))


def _screw(canvas: Canvas, part: Part) -> None:
    canvas.shadow(_disc(part.x, part.y, 0.045), 0.008)
    canvas.polygon(_disc(part.x, part.y, 0.045), (0.50, 0.51, 0.53))
    canvas.polygon(_disc(part.x - 0.003, part.y - 0.003, 0.037), (0.76, 0.77, 0.79))
    canvas.polygon(part.place(_box(0.06, 0.012)), (0.22, 0.22, 0.24))


def _hex_bolt(canvas: Canvas, part: Part) -> None:
    canvas.shadow(_disc(part.x, part.y, 0.045), 0.008)
    canvas.polygon(_disc(part.x, part.y, 0.045), (0.42, 0.34, 0.22))
    t = np.linspace(0, 2 * math.pi, 6, endpoint=False)
    hexagon = 0.038 * np.stack([np.cos(t), np.sin(t)], axis=1)
    canvas.polygon(part.place(hexagon), (0.80, 0.66, 0.38))


def _seal(canvas: Canvas, part: Part) -> None:
    canvas.polygon(part.place(_box(0.17, 0.075, 0.01)), (0.16, 0.30, 0.58))
    canvas.polygon(part.place(_box(0.13, 0.014), 0, -0.014), (0.90, 0.92, 0.96))
    canvas.polygon(part.place(_box(0.09, 0.010), 0, 0.014), (0.90, 0.92, 0.96))


def _blank_seal(canvas: Canvas, part: Part) -> None:
    canvas.polygon(part.place(_box(0.17, 0.075, 0.01)), (0.62, 0.30, 0.20))
    canvas.polygon(part.place(_box(0.11, 0.022)), (0.93, 0.86, 0.80))


PRODUCTS = {
    "blister_pack": Product(
        colour=(0.74, 0.76, 0.79),
        base=_foil,
        parts=_PILLS,
        draw={
            "capsule": _capsule_in((0.80, 0.20, 0.18), (0.93, 0.86, 0.70)),
            "tablet": _tablet,
        },
        wrong={"capsule": "tablet", "tablet": "capsule"},
        turn=(0.9, 1.5),
        shift=(0.03, 0.045),
        grain=0.012,
    ),
    "circuit_board": Product(
        colour=(0.10, 0.36, 0.22),
        base=_board,
        parts=_BOARD_PARTS,
        draw={
            "chip": _chip,
            "capacitor": _capacitor,
            "resistor": _resistor,
            "ceramic": _ceramic,
            "diode": _diode,
        },
        wrong={
            "resistor": "ceramic",
            "ceramic": "diode",
            "diode": "resistor",
            "capacitor": "resistor",
        },
        turn=(0.4, 0.9),
        shift=(0.03, 0.05),
        grain=0.02,
    ),
    "gauge": Product(
        colour=(0.36, 0.40, 0.46),
        base=_face,
        parts=(
            Part("seal", 0.5, 0.70),
            Part("needle", 0.5, 0.5, 1.30 * math.pi),
            Part("hub", 0.5, 0.5),
            Part("screw", 0.09, 0.09, 0.6),
            Part("screw", 0.91, 0.09, 0.6),
            Part("screw", 0.09, 0.91, 0.6),
            Part("screw", 0.91, 0.91, 0.6),
        ),
        draw={
            "needle": _needle_of(0.31, (0.12, 0.12, 0.13)),
            "short_needle": _needle_of(0.18, (0.70, 0.14, 0.12)),
            "hub": _hub,
            "screw": _screw,
            "hex_bolt": _hex_bolt,
            "seal": _seal,
            "blank_seal": _blank_seal,
        },
        wrong={"needle": "short_needle", "screw": "hex_bolt", "seal": "blank_seal"},
        turn=(0.5, 0.9),
        shift=(0.03, 0.05),
        grain=0.015,
    ),
}
