"""Figure 4: the space of a global memory alone, with images decoded at classes and between them.

Lee et al., ECCV 2024, section 4.2.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.paper.choose import of_class
from benchmarks.paper.coordinates import (
    image_coords,
    image_records,
    plane,
    share_on_a_line,
)
from benchmarks.paper.decoder import DECODERS, Decoders
from benchmarks.paper.files import write_arrays, write_records
from benchmarks.paper.plotting import (
    draw_images,
    draw_legend,
    draw_plane,
    drawing,
    outline,
    save_for_print,
    show_image,
)
from benchmarks.paper.runs import Runs
from benchmarks.paper.trained_run import TrainedRun, load_run
from benchmarks.paper.variants import GLOBAL
from crad.data import Sample
from crad.model.crad import CRAD

VARIANTS = (GLOBAL,)

_MOST_LINES = 5
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way along a line


@dataclass(frozen=True)
class Line:
    """A line through the space, with images decoded along it.

    Attributes:
        letter: that it is marked with.
        ends: what lies at its two ends.
        coords: points along it, ``(P, 2)``.
        decoded: images made of the normal features there, ``(P, 4 H, 4 W, 3)``
            uint8.
    """

    letter: str
    ends: tuple[str, str]
    coords: npt.NDArray[np.float32]
    decoded: npt.NDArray[np.uint8]


def neighbours(centres: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """The shortest lines that join all points: a minimum spanning tree, shortest line first.

    Args:
        centres: ``(N, 2)``.

    Returns:
        Pairs of indices.
    """
    lengths = {
        (i, j): float(np.linalg.norm(centres[i] - centres[j]))
        for i, j in combinations(range(len(centres)), 2)
    }
    group = list(range(len(centres)))
    found = []
    for i, j in sorted(lengths, key=lambda pair: lengths[pair]):
        if group[i] != group[j]:
            found.append((i, j))
            group = [group[i] if each == group[j] else each for each in group]
    return found


@torch.no_grad()
def normal_features(model: CRAD, coords: Tensor) -> Tensor:
    """The normal features (equation 4) that a model has at points of its global memory.

    Args:
        model: with a global memory alone, a grid with two axes.
        coords: ``(P, 2)``.

    Returns:
        ``(P, C, H, W)``.
    """
    channels, height, width = model.feature_size
    entries = plane(model, "global").memory(coords)
    represented = entries.view(-1, height, width, channels).permute(0, 3, 1, 2)
    if model.absent == "zeros":
        represented = torch.cat([represented, torch.zeros_like(represented)], dim=1)
    feature: Tensor = model.fusion(represented)
    return feature


def make(runs: Runs, folder: Path) -> str:
    """Write ``figure4.png``, a PDF of it, and what it shows as data beside it; give it in Markdown.

    The data: ``figure4.csv`` with the coordinates of images, ``figure4.npz`` with the lines.

    Raises:
        CheckpointError: the run is missing or damaged.
        ImageError: an image cannot be read.
        MissingPackageError: matplotlib is not installed.
        OSError: a file cannot be written.
        UsageError: the memory of the model has no plane.
    """
    run = load_run(runs, GLOBAL)
    features = run.features(run.dataset.test or run.train)
    samples, coords = features.samples, image_coords(run, features)
    lines = _lines(run, samples, coords, Decoders(run, folder / DECODERS))
    write_records(folder / "figure4", image_records(run, samples, coords))
    write_arrays(
        folder / "figure4.npz",
        {
            f"{line.letter}_{name}": array
            for line in lines
            for name, array in (("coords", line.coords), ("decoded", line.decoded))
        },
    )
    _draw(run, samples, coords, lines, folder / "figure4.png")
    return _markdown(coords, lines)


def _lines(
    run: TrainedRun,
    samples: Sequence[Sample],
    coords: npt.NDArray[np.float32],
    decoders: Decoders,
) -> list[Line]:
    """The lines between neighbouring classes, the shortest first."""
    classes = [
        name for name in run.dataset.classes if name in {sample.class_name for sample in samples}
    ]
    centres = [_centre(samples, coords, name) for name in classes]
    if len(classes) == 1:  # between its images that are farthest apart
        distances = np.linalg.norm(coords[:, None] - coords, axis=-1)
        centres = [coords[index] for index in np.unravel_index(distances.argmax(), distances.shape)]
        classes *= 2
    found: list[Line] = []
    shares = np.array(_SHARES, dtype=np.float32)[:, None]
    for letter, (i, j) in zip(string.ascii_uppercase, neighbours(np.stack(centres)), strict=False):
        if len(found) == _MOST_LINES:
            break
        points = (1 - shares) * centres[i] + shares * centres[j]
        feature = normal_features(run.model, torch.from_numpy(points).to(run.device))
        decoded = decoders.decode("normal", feature)
        found.append(Line(letter, (classes[i], classes[j]), points, decoded))
    return found


def _centre(
    samples: Sequence[Sample], coords: npt.NDArray[np.float32], name: str
) -> npt.NDArray[np.float32]:
    """The median of the normal images of a class; of all, if none is normal."""
    members = of_class(samples, name) or of_class(samples, name, anomalous=True)
    centre: npt.NDArray[np.float32] = np.median(coords[members], axis=0)
    return centre


def _draw(
    run: TrainedRun,
    samples: Sequence[Sample],
    coords: npt.NDArray[np.float32],
    lines: Sequence[Line],
    path: Path,
) -> None:
    with drawing() as pyplot:
        figure = pyplot.figure(figsize=(7, 4.4))
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
        axis = left.subplots()
        draw_plane(axis, plane(run.model, "global").memory.weight.shape[:-1])
        draw_images(axis, coords, samples, run.dataset.classes)
        for line in lines:
            axis.plot(*line.coords.T, color="black", marker=".", markersize=4, linewidth=0.8)
            middle = line.coords[len(line.coords) // 2]
            axis.annotate(
                line.letter,
                middle,
                xytext=(3, 3),
                textcoords="offset points",
                weight="bold",
                path_effects=outline(),
            )
        axis.set(xlabel="Dim 1", ylabel="Dim 2")
        draw_legend(left, run.dataset.classes, "outside lower center")
        grid = right.subplots(max(1, len(lines)), len(_SHARES), squeeze=False)
        for line, row in zip(lines, grid, strict=True):
            for each, decoded in zip(row, line.decoded, strict=True):
                show_image(each, decoded)
            row[0].set_ylabel(line.letter, rotation=0, weight="bold", va="center", labelpad=8)
            row[0].set_title(line.ends[0], fontsize=8, loc="left")
            row[-1].set_title(line.ends[1], fontsize=8, loc="right")
        save_for_print(figure, path)


def _markdown(coords: npt.NDArray[np.float32], lines: Sequence[Line]) -> str:
    between = "; ".join(f"{line.letter}: {line.ends[0]} to {line.ends[1]}" for line in lines)
    return (
        "![Global coordinates, and images decoded between classes](figure4.png)\n\n"
        f"Left: global coordinates of {len(coords)} images in a model with a global memory only, "
        "as in the paper (circles: normal; triangles: anomalous; crosses: entries of the memory). "
        f"{share_on_a_line(coords):.1%} of their variance lies along one line. Black lines join "
        "the medians of neighbouring classes: the shortest edges of their minimum spanning tree, "
        f"at most {_MOST_LINES}. Right: the normal features at five points of each line, ends "
        f"included ({between}), decoded to images. The decoder was trained on normal features of "
        "training images and has seen none from between two classes. Data: `figure4.csv`, "
        "`figure4.npz`."
    )
