"""Charts as SVG: what scores the images of a class have, and how well they tell defects."""

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

_BINS = 40
_WIDTH, _HEIGHT, _AXIS = 460, 190, 95  # of a histogram, and the height of its axis
_LEFT, _RIGHT = 8, 452
_SIDE, _INSET = 190, 26  # of a ROC curve, and where its axes begin


def histogram(
    good: Sequence[float], defective: Sequence[float], threshold: float | None, name: str
) -> str:
    """Draw the scores of good images upwards and of defective ones downwards, with the threshold.

    The last bar holds all scores beyond it, so that a few high ones leave room for the others.

    Args:
        good: scores.
        defective: scores; of both together, at least one.
        threshold: to mark; None marks none.
        name: of the class.
    """
    scores = np.array([*good, *defective])
    marked = [] if threshold is None else [threshold]
    low = min(float(scores.min()), *marked, np.inf)
    usual = max(float(np.quantile(good or scores, 0.95)), *marked, -np.inf)
    high = min(max(float(scores.max()), usual), low + 2.5 * (usual - low))
    if high <= low:
        high = low + (abs(low) or 1.0)
    edges = np.linspace(low, high, _BINS + 1)
    counts = [np.histogram(np.clip(part, low, high), edges)[0] for part in (good, defective)]
    tallest = max(1, *(int(each.max()) for each in counts))

    def place(score: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (score - low) / (high - low)

    bars = []
    for part, kind in zip(counts, ("good", "defect"), strict=True):
        for index, number in enumerate(part):
            if number:
                length = 72 * number / tallest
                top = _AXIS - length if kind == "good" else _AXIS
                bars.append(
                    f'<rect class="{kind}" x="{place(edges[index]) + 0.5:.1f}" y="{top:.1f}" '
                    f'width="{(_RIGHT - _LEFT) / _BINS - 1:.1f}" height="{length:.1f}">'
                    f"<title>{number} {kind}, {edges[index]:.4g} to {edges[index + 1]:.4g}"
                    "</title></rect>"
                )
    beyond = " and above" if scores.max() > high else ""
    label = f"Scores of {name}: {len(good)} good images upwards, {len(defective)} defects downwards"
    line = ""
    if threshold is not None:
        x = place(threshold)
        anchor, shift = ("end", -5) if x > _WIDTH / 2 else ("start", 5)
        line = (
            f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{_HEIGHT - 20}"/>'
            f'<text x="{x + shift:.1f}" y="12" text-anchor="{anchor}">threshold '
            f"{threshold:.4g}</text>"
        )
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(bars)}'
        f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_AXIS}" y2="{_AXIS}"/>{line}'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{low:.4g}</text>'
        f'<text x="{_RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{high:.4g}{beyond}</text></svg>'
    )


def roc_curve(
    good: Sequence[float], defective: Sequence[float], threshold: float | None, name: str
) -> str:
    """Draw the share of defects found over the share of false alarms, with what is decided.

    Args:
        good: scores, at least one.
        defective: scores, at least one.
        threshold: to mark; None marks none.
        name: of the class.
    """
    normal, anomalous = np.sort(good), np.sort(defective)

    def shares(cuts: npt.ArrayLike) -> list[tuple[float, float]]:
        """The false alarms and the defects found, if what is above a cut is a defect."""
        above = (
            1 - np.searchsorted(part, cuts, side="right") / len(part)
            for part in (normal, anomalous)
        )
        return [*zip(*(each.tolist() for each in above), strict=True)]

    def place(point: tuple[float, float]) -> str:
        length = _SIDE - _INSET - 8
        return f"{_INSET + length * point[0]:.1f},{_SIDE - _INSET - length * point[1]:.1f}"

    cuts = np.unique([*good, *defective])[::-1]
    curve = [*shares(cuts), (1.0, 1.0)]  # equal scores make one slanted step
    corners = [
        point
        for index, point in enumerate(curve)
        if not 0 < index < len(curve) - 1
        or not _on_a_line(curve[index - 1], point, curve[index + 1])
    ]
    dot = ""
    if threshold is not None:
        (decided,) = shares([threshold])
        x, y = place(decided).split(",")
        dot = (
            f'<circle class="threshold" cx="{x}" cy="{y}" r="5"><title>at the threshold: '
            f"{decided[0]:.1%} false alarms, {decided[1]:.1%} of defects found</title></circle>"
        )
    label = f"ROC curve of {name}: defects found over false alarms"
    top, end = place((0, 1)).split(","), place((1, 0)).split(",")
    return (
        f'<svg class="roc" viewBox="0 0 {_SIDE} {_SIDE}" role="img" aria-label="{escape(label)}">'
        f'<polyline class="axis" points="{place((0, 1))} {place((0, 0))} {place((1, 0))}"/>'
        f'<line class="chance" x1="{_INSET}" y1="{end[1]}" x2="{end[0]}" y2="{top[1]}"/>'
        f'<polyline class="curve" points="{" ".join(map(place, corners))}"/>{dot}'
        f'<text x="{_INSET}" y="{_SIDE - 8}">0</text>'
        f'<text x="{(_SIDE + _INSET) / 2:.0f}" y="{_SIDE - 8}" text-anchor="middle">false alarms'
        f'</text><text x="{end[0]}" y="{_SIDE - 8}" text-anchor="end">1</text>'
        f'<text transform="translate(16 {_SIDE / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "defects found</text></svg>"
    )


def _on_a_line(
    before: tuple[float, float], point: tuple[float, float], after: tuple[float, float]
) -> bool:
    """Whether a point lies between two others on a horizontal or vertical line."""
    return any(before[axis] == point[axis] == after[axis] for axis in (0, 1))
