"""Figure 5: image, truth, and the anomaly maps of several detectors side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from benchmarks.paper.choose import evenly, of_class
from benchmarks.paper.files import write_arrays, write_records
from benchmarks.paper.plotting import drawing, save_for_print, show_image
from benchmarks.paper.runs import Runs
from benchmarks.paper.trained_run import TrainedRun, load_run
from benchmarks.paper.variants import CRAD, LOCAL, LOCAL_ATTENTION_64, LOCAL_VQ_64
from crad.data import Sample
from crad.data.frames import Frame
from crad.model.nearest_neighbour import nearest_neighbour_maps
from crad.report.heat_maps import colour_scale
from crad.scoring.maps import stack
from crad.scoring.protocols import Protocol, choose_protocols
from crad.training.features import Features, map_features

_DETECTORS = {
    "CRAD": CRAD,
    "local grid": LOCAL,
    "local VQ": LOCAL_VQ_64,
    "local attention": LOCAL_ATTENTION_64,
}
VARIANTS = tuple(_DETECTORS.values())

_NEAREST = "nearest neighbour"
_MOST_ROWS = 8
_MOST_STORED = 512  # training images whose features the nearest neighbour may choose from


@dataclass(frozen=True)
class Row:
    """An image and what detectors say of it.

    Attributes:
        sample: the image.
        pixels: ``(S, S, 3)`` uint8.
        maps: by detector, ``(H, W)``, before any protocol.
        scored: by detector, ``(S, S)``, as the protocol measures them.
        scales: by detector, (low, high) of the colours.
    """

    sample: Sample
    pixels: npt.NDArray[np.uint8]
    maps: dict[str, npt.NDArray[np.float32]]
    scored: dict[str, npt.NDArray[np.float32]]
    scales: dict[str, tuple[float, float]]


def choose_images(samples: Sequence[Sample]) -> list[Sample]:
    """Choose an image of each class, of eight classes at most: the first that is anomalous.

    No score decides what is shown. A class without anomalous images has its first normal one, but
    only if no class has any.
    """
    anomalous = [sample for sample in samples if sample.is_anomaly]
    firsts: dict[str | None, Sample] = {}
    for sample in anomalous or samples:
        firsts.setdefault(sample.class_name, sample)
    return evenly([*firsts.values()], _MOST_ROWS)


def make(runs: Runs, folder: Path) -> str:
    """Write ``figure5.png``, a PDF of it, and what it shows as data beside it; give it in Markdown.

    The data: ``figure5.csv`` with the images and the scales of the colours, ``figure5.npz`` with
    the maps.

    Raises:
        CheckpointError: a run is missing or damaged.
        ImageError: an image or a mask cannot be read.
        MissingPackageError: matplotlib is not installed, or what a memory needs.
        OSError: a file cannot be written.
    """
    run = load_run(runs, CRAD)
    samples = run.dataset.test or run.train
    chosen = choose_images(samples)
    classes = {sample.class_name for sample in chosen}
    needed = [
        sample
        for sample in samples
        if sample in chosen or (sample.class_name in classes and not sample.is_anomaly)
    ]
    maps = {}
    for name, variant in _DETECTORS.items():
        opened = load_run(runs, variant)
        features = opened.features(needed)
        maps[name] = stack(map_features(opened.model, features, opened.device))
    maps[_NEAREST] = _nearest(opened, features)
    protocol = choose_protocols(run.config.decisions.protocol)[0]
    kept = features.samples
    rows = [_row(run, sample, kept, maps, protocol) for sample in choose_images(kept)]
    write_records(
        folder / "figure5",
        (
            {
                "image": run.name(row.sample),
                "class": row.sample.class_name,
                "defect": row.sample.defect,
                "detector": name,
                "low": low,
                "high": high,
            }
            for row in rows
            for name, (low, high) in row.scales.items()
        ),
    )
    arrays = {name.replace(" ", "_"): np.stack([row.maps[name] for row in rows]) for name in maps}
    write_arrays(folder / "figure5.npz", arrays)
    _draw(rows, run.config.model.frame, folder / "figure5.png")
    return _markdown(protocol)


def _nearest(run: TrainedRun, features: Features) -> Tensor:
    stored = run.features(evenly(run.train, _MOST_STORED))
    return nearest_neighbour_maps(stored.channels_first(), features.channels_first())


def _row(
    run: TrainedRun,
    sample: Sample,
    samples: Sequence[Sample],
    maps: dict[str, Tensor],
    protocol: Protocol,
) -> Row:
    """What is drawn of an image; the scale of a detector is that of normal images of the class."""
    index, frame = samples.index(sample), run.config.model.frame
    normal = of_class(samples, sample.class_name)
    scored = {name: protocol.score(each[[index]], frame)[0] for name, each in maps.items()}
    usual = {name: protocol.score(each[normal or [index]], frame)[0] for name, each in maps.items()}
    return Row(
        sample,
        run.pixels(sample),
        {name: each[index].cpu().numpy() for name, each in maps.items()},
        {name: each[0].cpu().numpy() for name, each in scored.items()},
        {name: colour_scale(each.cpu().numpy()) for name, each in usual.items()},
    )


def _draw(rows: Sequence[Row], frame: Frame, path: Path) -> None:
    detectors = [*rows[0].scales]
    with drawing() as pyplot:
        figure, grid = pyplot.subplots(
            len(rows), 2 + len(detectors), figsize=(7, 0.93 * len(rows) + 0.4), squeeze=False
        )
        for row, axes in zip(rows, grid, strict=True):
            show_image(axes[0], row.pixels)
            axes[0].set_ylabel(f"{row.sample.class_name}\n{row.sample.defect}", fontsize=7)
            truth = row.sample.read_truth((frame.height, frame.width))
            if truth is None:
                show_image(axes[1], np.full((frame.height, frame.width, 3), 235, dtype=np.uint8))
                centre = (0.5, 0.5)
                axes[1].text(
                    *centre, "not known", ha="center", fontsize=7, transform=axes[1].transAxes
                )
            else:
                show_image(
                    axes[1], np.where(truth[..., None], np.uint8(255), np.zeros(3, dtype=np.uint8))
                )
            for axis, name in zip(axes[2:], detectors, strict=True):
                show_image(axis, row.scored[name], row.scales[name])
        for axis, title in zip(grid[0], ["image", "truth", *detectors], strict=True):
            axis.set_title(title.replace(" ", "\n"), fontsize=8)
        save_for_print(figure, path)


def _markdown(protocol: Protocol) -> str:
    return (
        "![Images, truths and anomaly maps of several detectors](figure5.png)\n\n"
        "The first anomalous image of each class, whatever its score, with the anomaly maps of "
        "CRAD, of the local memories of table 1 with 64 entries, and of the distance to the "
        f"nearest of at most 20,000 stored features. The protocol {protocol.name} is applied to "
        "all maps. Each detector has its own colour scale for each class, by one rule: from the "
        "median of its maps of normal images to three times as far above it as their 99.5 % "
        "quantile. Data: `figure5.csv`, and `figure5.npz` with the maps before the protocol."
    )
