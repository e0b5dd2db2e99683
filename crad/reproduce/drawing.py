"""How figures are drawn: one style, readable in print and for the colour-blind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crad.files import replacing
from crad.memories import MissingPackageError

# Okabe and Ito, "Color Universal Design", 2008, without yellow, which is faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "crad",
}


def check_drawing() -> None:
    """Check that figures can be drawn, before hours are spent on what they show.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackageError(
            "figures: matplotlib is not installed; install it with pip install 'crad[report]'"
        ) from error
    matplotlib.use("agg")


@contextmanager
def drawing() -> Iterator[Any]:
    """Yield ``matplotlib.pyplot`` in the style of all figures, and close what was drawn.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib import pyplot

    with pyplot.rc_context(_STYLE):
        try:
            yield pyplot
        finally:
            pyplot.close("all")


def save(figure: Any, path: Path) -> None:
    """Save a figure by the suffix of its name, atomically; an SVG always with the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else None
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata, dpi=200)


def draw_plane(axis: Any, size: tuple[int, ...]) -> None:
    """Prepare an axis for the coordinates of a memory, with a faint cross at every entry.

    Args:
        axis: of matplotlib.
        size: of the memory, (rows, columns); the first coordinate moves along a row.
    """
    rows, columns = ([(2 * index + 1) / count - 1 for index in range(count)] for count in size)
    crosses = [(x, y) for y in rows for x in columns]
    axis.scatter(*zip(*crosses, strict=True), s=10, c="0.75", marker="+", linewidths=0.6)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
