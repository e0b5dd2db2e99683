"""Figure 3: where patches and images lie in the memories, and what the memories have for them.

Lee et al., ECCV 2024, section 4.2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.paper.choose import of_class
from benchmarks.paper.coordinates import (
    global_coords,
    image_coords,
    image_records,
    local_coords,
    plane,
    share_on_a_line,
)
from benchmarks.paper.decoder import DECODERS, Decoders, representations
from benchmarks.paper.files import write_arrays, write_records
from benchmarks.paper.plotting import (
    COLOURS,
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
from benchmarks.paper.variants import CRAD
from crad.data import Sample

VARIANTS = (CRAD,)
_IN_DEFECT, _PATCHES = 3, 6
_KINDS = {"feature": "input feature", "local": "local", "global": "global", "normal": "fused"}


@dataclass(frozen=True)
class Shown:
    """An image whose patches are shown.

    Attributes:
        sample: the image.
        pixels: ``(S, S, 3)`` uint8.
        coords: of every position in the local memory, ``(H, W, 2)``.
        global_coords: of the image in the global memory, ``(2,)``.
        decoded: images made of its features, ``(4 H, 4 W, 3)`` uint8, by kind.
    """

    sample: Sample
    pixels: npt.NDArray[np.uint8]
    coords: npt.NDArray[np.float32]
    global_coords: npt.NDArray[np.float32]
    decoded: dict[str, npt.NDArray[np.uint8]]

    @property
    def label(self) -> str:
        """What kind of image it is."""
        return "anomalous" if self.sample.is_anomaly else "normal"

    @property
    def marker(self) -> str:
        """A circle for a normal image, a triangle for an anomalous one."""
        return "^" if self.sample.is_anomaly else "o"


def choose_images(test: Sequence[Sample], train: Sequence[Sample]) -> list[Sample]:
    """Choose a normal image, and an anomalous one of its class if there are any.

    The class is the first that has anomalous images, the images are its first ones: no score
    decides what is shown.

    Args:
        test: images to choose from.
        train: where a normal image is taken from if there is none to test on.
    """
    anomalous = next((sample for sample in test if sample.is_anomaly), None)
    name = (anomalous or [*test, *train][0]).class_name
    normal = next(
        sample for sample in [*test, *train] if sample.class_name == name and not sample.is_anomaly
    )
    return [normal, anomalous] if anomalous else [normal]


def choose_patches(covered: Tensor) -> list[tuple[int, int]]:
    """Choose six patches: up to three in a defect, the others off it, far from each other.

    Args:
        covered: share of each patch that is defective, ``(H, W)``.

    Returns:
        Their rows and columns.
    """
    rows, columns = covered.shape
    most = float(covered.max())
    defective = (covered > min(0.5, 0.99 * most)) & (most > 0)
    inner = torch.zeros_like(defective)
    inner[1 : rows - 1, 1 : columns - 1] = True
    chosen: list[tuple[int, int]] = []
    for allowed, count in ((defective, _IN_DEFECT), (inner & (covered == 0), _PATCHES)):
        candidates = allowed.nonzero().float()
        while len(candidates) and len(chosen) < count:
            taken = torch.tensor(chosen or [(rows / 2, columns / 2)], dtype=torch.float32)
            distances = torch.cdist(candidates, taken).amin(dim=1)
            best = candidates[(distances if chosen else -distances).argmax()]
            chosen.append((int(best[0]), int(best[1])))
            candidates = candidates[(candidates != best).any(dim=1)]
    return chosen


def make(runs: Runs, folder: Path) -> str:
    """Write ``figure3.png``, a PDF of it, and what it shows as data beside it; give it in Markdown.

    The data: ``figure3-local.csv`` and ``figure3-global.csv`` with the coordinates, and
    ``figure3.npz`` with the decoded images.

    Raises:
        CheckpointError: the run is missing or damaged.
        ImageError: an image cannot be read.
        MissingPackageError: matplotlib is not installed.
        OSError: a file cannot be written.
        UsageError: a memory of the model has no plane.
    """
    run = load_run(runs, CRAD)
    features = run.features(run.dataset.test or run.train)
    samples, coords = features.samples, image_coords(run, features)
    shown = _look(run, choose_images(samples, run.train), folder / DECODERS)
    covered = _covered(shown[-1], run)
    patches = choose_patches(covered)

    names = [run.name(each.sample) for each in shown]
    write_records(folder / "figure3-local", _local_records(shown, names, patches, covered))
    write_records(folder / "figure3-global", image_records(run, samples, coords))
    write_arrays(
        folder / "figure3.npz",
        {
            f"{each.label}_{kind}": decoded
            for each in shown
            for kind, decoded in {"image": each.pixels, **each.decoded}.items()
        },
    )
    _draw(shown, patches, coords, samples, run, folder / "figure3.png")
    return _markdown(shown, names, covered, coords, samples)


def _look(run: TrainedRun, samples: Sequence[Sample], folder: Path) -> list[Shown]:
    feature = run.features(samples).channels_first().to(run.device)
    decoders = Decoders(run, folder)
    decoded = {
        kind: decoders.decode(kind, each)
        for kind, each in representations(run.model, feature).items()
    }
    coords = local_coords(run.model, feature).cpu().numpy()
    placed = global_coords(run.model, feature).cpu().numpy()
    return [
        Shown(
            sample,
            run.pixels(sample),
            coords[index],
            placed[index],
            {kind: each[index] for kind, each in decoded.items()},
        )
        for index, sample in enumerate(samples)
    ]


def _covered(shown: Shown, run: TrainedRun) -> Tensor:
    """The share of each patch that is defective, ``(H, W)``; 0 where that is not known."""
    frame = run.config.model.frame
    truth = shown.sample.read_truth((frame.height, frame.width))
    size = shown.coords.shape[:2]
    if truth is None:
        return torch.zeros(size)
    return F.adaptive_avg_pool2d(torch.tensor(truth, dtype=torch.float32)[None], size)[0]


def _local_records(
    shown: Sequence[Shown],
    names: Sequence[str],
    patches: Sequence[tuple[int, int]],
    covered: Tensor,
) -> Iterator[dict[str, Any]]:
    for each, name in zip(shown, names, strict=True):
        for number, (row, column) in enumerate(patches, 1):
            share = float(covered[row, column]) if each.sample.is_anomaly else 0.0
            x, y = each.coords[row, column].tolist()
            yield {
                "image": name,
                "defect": each.sample.defect,
                "patch": number,
                "row": row,
                "column": column,
                "defective_share": round(share, 3),
                "dim1": x,
                "dim2": y,
            }


def _draw(
    shown: Sequence[Shown],
    patches: Sequence[tuple[int, int]],
    coords: npt.NDArray[np.float32],
    samples: Sequence[Sample],
    run: TrainedRun,
    path: Path,
) -> None:
    with drawing() as pyplot:
        figure = pyplot.figure(figsize=(7, 6.5))
        above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1.25))
        left, right = below.subfigures(1, 2, width_ratios=(1, 1.3))
        decoded, legend = right.subfigures(2, 1, height_ratios=(3.4, 1))
        ratios = [1.0] * len(shown) + [1.15]
        *image_axes, axis = above.subplots(1, len(ratios), width_ratios=ratios)
        for each, image_axis in zip(shown, image_axes, strict=True):
            show_image(image_axis, each.pixels)
            image_axis.set_title(each.label)
            frame = run.config.model.frame
            scale = np.array([frame.width, frame.height]) / np.array(each.coords.shape[1::-1])
            places = (np.array(patches).reshape(-1, 2)[:, ::-1] + 0.5) * scale - 0.5
            _mark(image_axis, places, each.marker, [(0.7, 0.7)] * len(patches))
        _draw_local(axis, shown, patches, run)
        axis = left.subplots()
        draw_plane(axis, plane(run.model, "global").memory.weight.shape[:-1])
        draw_images(axis, coords, samples, run.dataset.classes)
        axis.set(title="(b) global coordinates", xlabel="Dim 1", ylabel="Dim 2")
        draw_legend(legend, run.dataset.classes)
        _draw_decoded(decoded, shown)
        save_for_print(figure, path)


def _draw_local(
    axis: Any, shown: Sequence[Shown], patches: Sequence[tuple[int, int]], run: TrainedRun
) -> None:
    """The local coordinates of all patches, as near as they fill the axis."""
    from matplotlib.ticker import MaxNLocator

    draw_plane(axis, plane(run.model, "local").memory.weight.shape[:-1])
    for each, colour in zip(shown, ("0.55", "0.8"), strict=False):
        axis.scatter(*each.coords.reshape(-1, 2).T, s=3, c=colour, linewidths=0)
    everything = np.concatenate([each.coords.reshape(-1, 2) for each in shown])
    low, high = everything.min(axis=0), everything.max(axis=0)
    middle, half = (low + high) / 2, 0.55 * float((high - low).max()) + 1e-3
    points = np.array([each.coords[patch] for each in shown for patch in patches])
    offsets = _free_directions(points.reshape(-1, 2) / half, 0.1)
    for index, each in enumerate(shown):
        some = slice(index * len(patches), (index + 1) * len(patches))
        _mark(axis, points[some], each.marker, offsets[some])
    axis.set(
        title="(a) local coordinates",
        xlabel="Dim 1",
        ylabel="Dim 2",
        xlim=(middle[0] - half, middle[0] + half),
        ylim=(middle[1] - half, middle[1] + half),
    )
    for each_axis in (axis.xaxis, axis.yaxis):
        each_axis.set_major_locator(MaxNLocator(4))


def _draw_decoded(figure: Any, shown: Sequence[Shown]) -> None:
    """The decoded features, with the outline of the defect."""
    grid = figure.subplots(len(shown), len(_KINDS), squeeze=False)
    for each, row in zip(shown, grid, strict=True):
        for axis, kind in zip(row, _KINDS, strict=True):
            show_image(axis, each.decoded[kind])
            truth = each.sample.read_truth(each.decoded[kind].shape[:2])
            if truth is not None and truth.any():
                axis.contour(truth, levels=[0.5], colors="black", linewidths=0.8)
        row[0].set_ylabel(each.label)
    for axis, title in zip(grid[0], _KINDS.values(), strict=True):
        axis.set_title(title, fontsize=8)
    figure.suptitle("(c) decoded features", fontsize=10)


def _mark(
    axis: Any,
    points: npt.NDArray[np.floating[Any]],
    marker: str,
    directions: Sequence[tuple[float, float]],
) -> None:
    """Mark patches at points ``(P, 2)`` with their numbers, each to one side of its point."""
    for number, (point, (x, y)) in enumerate(zip(points, directions, strict=True), 1):
        colour = COLOURS[number - 1]
        axis.scatter(*point, s=36, marker=marker, c=colour, edgecolors="white", linewidths=0.7)
        axis.annotate(
            str(number),
            point,
            xytext=(8 * x, 8 * y),
            textcoords="offset points",
            ha="center",
            va="center",
            color=colour,
            weight="bold",
            fontsize=8,
            path_effects=outline(),
            zorder=4,
        )


def _free_directions(
    points: npt.NDArray[np.floating[Any]], distance: float
) -> list[tuple[float, float]]:
    """Where there is room for a number: of eight directions, the farthest from all others.

    Args:
        points: ``(P, 2)``.
        distance: of a number from its point.
    """
    angles = np.arange(8) * np.pi / 4
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found: list[tuple[float, float]] = []
    taken = points
    for index, point in enumerate(points):
        others = np.delete(taken, index, axis=0)
        places = point + distance * directions
        gaps = np.linalg.norm(places[:, None] - others, axis=-1).min(axis=1, initial=np.inf)
        best = int(gaps.argmax())
        found.append((float(directions[best, 0]), float(directions[best, 1])))
        taken = np.concatenate([taken, places[best : best + 1]])
    return found


def _markdown(
    shown: Sequence[Shown],
    names: Sequence[str],
    covered: Tensor,
    coords: npt.NDArray[np.float32],
    samples: Sequence[Sample],
) -> str:
    return (
        "![Coordinates of patches and images, and decoded features](figure3.png)\n\n"
        f"Images: {' and '.join(f'`{name}`' for name in names)}. (a) Local coordinates of six "
        "numbered patches, at the same places of both images (circles: normal; triangles: "
        "anomalous; dots: all other patches, dark grey for the normal image, light grey for the "
        f"anomalous one).{_local_distances(shown, covered)} (b) Global coordinates of "
        f"{len(samples)} images. {share_on_a_line(coords):.1%} of their variance lies along one "
        f"line.{_global_distances(shown, coords, samples)} (c) The input feature, what each memory "
        "returns for it, and their fusion, decoded to images by four decoders, each trained on "
        "that kind of feature of normal training images. The first column is the control: it "
        "shows how much of an image, and of a defect (outlined), survives decoding at all. Data: "
        "`figure3-local.csv`, `figure3-global.csv`, `figure3.npz`."
    )


def _local_distances(shown: Sequence[Shown], covered: Tensor) -> str:
    """How far the coordinates of the two images are apart, in the defect and off it."""
    defective, normal = (covered > 0.5).numpy(), (covered == 0).numpy()
    if len(shown) < 2 or not defective.any() or not normal.any():
        return ""
    distances = np.linalg.norm(shown[0].coords - shown[1].coords, axis=-1)
    return (
        " From the normal image to the anomalous one, the coordinates of a patch move by "
        f"{distances[defective].mean():.3f} on average where more than half of the patch is "
        f"defective, and by {distances[normal].mean():.3f} where none of it is."
    )


def _global_distances(
    shown: Sequence[Shown], coords: npt.NDArray[np.float32], samples: Sequence[Sample]
) -> str:
    """How far the two images are apart, beside the normal images of their class."""
    name = shown[0].sample.class_name
    members = of_class(samples, name)
    if len(shown) < 2 or len(members) < 2:
        return ""
    apart = np.linalg.norm(shown[0].global_coords - shown[1].global_coords)
    pairs = np.linalg.norm(coords[members][:, None] - coords[members], axis=-1)
    mean = pairs.sum() / (len(members) * (len(members) - 1))
    return (
        f" The two images shown are {apart:.3f} apart; two normal images of {name} are {mean:.3f} "
        "apart on average."
    )
