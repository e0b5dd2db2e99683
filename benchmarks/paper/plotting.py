"""One style for all figures, readable in print and by the colour-blind."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.paper.choose import of_class
from crad.data import Sample
from crad.errors import MissingPackageError
from crad.files import write_atomically

# Okabe and Ito, "Color Universal Design", 2008, without yellow, which is faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_SIX_BITS = [round(round(level / 255 * 63) / 63 * 255) for level in range(256)] * 3

_STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "crad",
}


def check_drawing() -> None:
    """Check that matplotlib is there, before anything is trained for a figure.

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
    """Yield ``matplotlib.pyplot`` in the common style, and close all figures at the end.

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
    """Save a figure in the format of its suffix, atomically and reproducibly to the byte.

    A PNG keeps 6 bits of each colour, which makes it much smaller without a visible change.

    Raises:
        OSError: the file cannot be written.
    """
    kind = path.suffix[1:]
    date = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, metadata={date: None} if date else None, dpi=144)
    if kind == "png":
        picture = Image.open(drawn).convert("RGB").point(_SIX_BITS)
        drawn = io.BytesIO()
        picture.save(drawn, format="PNG", optimize=True)
    write_atomically(path, lambda file: file.write(drawn.getbuffer()))


def save_for_print(figure: Any, path: Path) -> None:
    """Save a figure as PNG, and as PDF in the folder ``print`` beside it.

    Raises:
        OSError: a file cannot be written.
    """
    save(figure, path)
    save(figure, path.parent / "print" / path.with_suffix(".pdf").name)


def draw_plane(axis: Any, size: tuple[int, ...]) -> None:
    """Set up an axis for the coordinates of a memory, with a faint cross at every entry.

    Args:
        axis: of matplotlib.
        size: of the memory, (rows, columns); the first coordinate moves along a row.
    """
    rows, columns = ([(2 * index + 1) / count - 1 for index in range(count)] for count in size)
    crosses = [(x, y) for y in rows for x in columns]
    axis.scatter(*zip(*crosses, strict=True), s=10, c="0.75", marker="+", linewidths=0.6)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))


def draw_images(
    axis: Any,
    coords: npt.NDArray[np.float32],
    samples: Sequence[Sample],
    classes: Sequence[str],
) -> None:
    """Draw the coordinates of images: circles are normal, triangles anomalous.

    A class has the same colour and filling in every figure; they repeat after 21 classes.

    Args:
        axis: of matplotlib.
        coords: ``(N, 2)``.
        samples: the images, N.
        classes: of the data set, in order.
    """
    for number, name in enumerate(classes):
        for anomalous in (False, True):
            members = of_class(samples, name, anomalous=anomalous)
            axis.plot(*coords[members].T, **class_style(number, anomalous=anomalous))


def class_style(number: int, *, anomalous: bool) -> dict[str, Any]:
    """The markers of the images of a class, as arguments of ``plot``.

    Args:
        number: of the class, in the order of the data set.
        anomalous: whether the images are.
    """
    return {
        "color": COLOURS[number % len(COLOURS)],
        "fillstyle": ("full", "none", "left")[number // len(COLOURS) % 3],
        "marker": "^" if anomalous else "o",
        "markersize": 5,
        "markeredgewidth": 0.8,
        "linestyle": "none",
        "alpha": 0.8,
    }


def draw_legend(figure: Any, classes: Sequence[str], place: str = "center") -> None:
    """Draw the legend of `draw_images`; ``place`` is a location that matplotlib knows."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=name, **class_style(number, anomalous=False))
        for number, name in enumerate(classes)
    ]
    handles += [
        Line2D([], [], color="0.4", marker=marker, linestyle="none", markersize=5, label=label)
        for marker, label in (("o", "normal"), ("^", "anomalous"))
    ]
    figure.legend(handles=handles, loc=place, ncols=3, fontsize=8, handletextpad=0.2)


def show_image(
    axis: Any,
    pixels: npt.NDArray[Any],
    scale: tuple[float, float] | None = None,
) -> None:
    """Show an image, without ticks.

    Args:
        axis: of matplotlib.
        pixels: ``(H, W, 3)`` uint8, or an anomaly map ``(H, W)``.
        scale: the values of the first and the last colour of a map.
    """
    low, high = scale or (0.0, 1.0)
    axis.imshow(pixels, cmap="inferno", vmin=low, vmax=high)
    axis.set(xticks=(), yticks=())
    axis.spines[:].set_visible(False)


def outline() -> list[Any]:
    """A white outline, so that text can be read on an image."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=1.8, foreground="white")]
