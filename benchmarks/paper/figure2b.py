"""Figure 2b: which entries of the local memory receive gradient in a step, with and without jitter.

Lee et al., ECCV 2024, section 3.3.
"""

import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.paper.coordinates import local_coords, plane
from benchmarks.paper.files import write_arrays
from benchmarks.paper.plotting import draw_plane, drawing, save_for_print
from benchmarks.paper.runs import Runs
from benchmarks.paper.trained_run import load_run
from benchmarks.paper.variants import CRAD as FULL
from crad.detector import create_model
from crad.model.crad import CRAD
from crad.model.memories import Recalled

VARIANTS = (FULL,)
STEPS = 32  # of the mean over steps with jitter

_COLUMNS = ("no jitter, one step", "jitter, one step", f"jitter, mean of {STEPS} steps")
_ROWS = ("one position", "one batch", "one batch, untrained model")


class EntryGradients(NamedTuple):
    """Norms of the gradients of the entries of a local memory in a training step.

    Attributes:
        batch: Euclidean norm of each entry's gradient before clipping, in the memory's shape.
        position: the same for the gradient through a single position of the batch.
    """

    batch: Tensor
    position: Tensor


def entry_gradients(
    model: CRAD, feature: Tensor, position: tuple[int, int, int], *, jitter: bool
) -> EntryGradients:
    """Take the gradient of a training step with respect to the entries of the local memory.

    Args:
        model: whose local memory is a grid with two axes; left as it is.
        feature: the batch ``(B, C, H, W)``.
        position: image, row and column of the single position.
        jitter: whether coordinates are jittered, by as much as the model says; the noise is drawn
            from torch's generator.

    Raises:
        UsageError: as for `benchmarks.paper.coordinates.plane`.
    """
    model = copy.deepcopy(model).train()
    memory = plane(model, "local")
    memory.jitter_prob = float(jitter)
    recalled: list[Tensor] = []

    def keep(_module: object, _arguments: object, output: Recalled) -> None:
        recalled.append(output.entries)

    memory.register_forward_hook(keep)
    loss = model(feature).loss
    values = memory.memory.weight
    (upstream,) = torch.autograd.grad(loss, recalled, retain_graph=True)
    single = torch.zeros_like(upstream)
    single[position] = upstream[position]

    def norms(grad_output: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(recalled, values, grad_output, retain_graph=True)
        norm: Tensor = gradient.norm(dim=-1)
        return norm

    return EntryGradients(norms(upstream), norms(single))


def make(runs: Runs, folder: Path) -> str:
    """Write ``figure2b.png``, a PDF of it, and ``figure2b.npz``; give it in Markdown.

    Raises:
        CheckpointError: the run is missing or damaged.
        ImageError: an image cannot be read.
        MissingPackageError: matplotlib is not installed.
        OSError: a file cannot be written.
        UsageError: the model has no plane.
    """
    run = load_run(runs, FULL)
    settings = run.config.training
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = torch.randperm(len(run.train), generator=generator)[: settings.batch_size]
    features = run.features([run.train[index] for index in chosen.tolist()])
    feature = features.channels_first().to(run.device)
    position = (0, feature.shape[2] // 2, feature.shape[3] // 2)

    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        untrained = create_model(run.config, run.model.feature_size).to(run.device)
        trained, before = (_columns(each, feature, position) for each in (run.model, untrained))
    coords = local_coords(run.model, feature)
    arrays = {
        "gradients": torch.stack([trained.position, trained.batch, before.batch]).numpy(),
        "position_coords": coords[position][None].cpu().numpy(),
        "batch_coords": coords.flatten(0, 2).cpu().numpy(),
        "untrained_batch_coords": local_coords(untrained, feature).flatten(0, 2).cpu().numpy(),
    }
    write_arrays(folder / "figure2b.npz", arrays)
    _draw(arrays, folder / "figure2b.png")
    return _markdown(arrays, len(features), settings.jitter_std)


def _columns(model: CRAD, feature: Tensor, position: tuple[int, int, int]) -> EntryGradients:
    """Both gradients without jitter, with it, and the mean of many steps with it, stacked."""
    plain = entry_gradients(model, feature, position, jitter=False)
    steps = [entry_gradients(model, feature, position, jitter=True) for _ in range(STEPS)]
    together = (
        torch.stack([alone, jittered[0], torch.stack(jittered).mean(dim=0)]).cpu()
        for alone, *jittered in zip(plain, *steps, strict=True)
    )
    return EntryGradients(*together)


def _draw(arrays: dict[str, npt.NDArray[np.float32]], path: Path) -> None:
    gradients, *coords = arrays.values()
    with drawing() as pyplot:
        from matplotlib.colors import LogNorm

        colours = pyplot.get_cmap("viridis").with_extremes(bad="0.92")
        figure, axes = pyplot.subplots(3, 3, figsize=(7, 7.2), sharex=True, sharey=True)
        for row, (points, row_axes) in enumerate(zip(coords, axes, strict=True)):
            found = gradients[row][gradients[row] > 0]
            norm = LogNorm(max(found.min(), found.max() / 1e4), found.max())
            for column, axis in enumerate(row_axes):
                amounts = gradients[row, column]
                draw_plane(axis, amounts.shape)
                mesh = axis.imshow(
                    np.ma.masked_equal(amounts, 0),
                    extent=(-1, 1, -1, 1),
                    origin="lower",
                    cmap=colours,
                    norm=norm,
                )
                axis.scatter(*points.T, s=(36, 0.4, 4)[row], c="#d55e00", linewidths=0)
                axis.set_title(f"{(amounts > 0).sum()} of {amounts.size} entries")
            figure.colorbar(mesh, ax=row_axes, label="gradient norm", fraction=0.05)
            row_axes[0].set_ylabel(f"{_ROWS[row]}\nDim 2")
        for axis, title in zip(axes[0], _COLUMNS, strict=True):
            axis.set_title(f"{title}\n{axis.get_title()}")
        for axis in axes[-1]:
            axis.set_xlabel("Dim 1")
        save_for_print(figure, path)


def _markdown(arrays: dict[str, npt.NDArray[np.float32]], n_images: int, jitter_std: float) -> str:
    counts = (arrays["gradients"] > 0).sum(axis=(2, 3)).tolist()
    n_entries = arrays["gradients"][0, 0].size
    n_points = len(arrays["batch_coords"])
    (one, one_jittered, one_mean), (batch, jittered, _), (before, before_jittered, _) = counts
    return (
        "![Entries of the local memory that receive gradient](figure2b.png)\n\n"
        f"Gradient of the {n_entries} entries of the local memory in a training step (Euclidean "
        f"norm, before clipping; grey: zero), on {n_images} training images. Dots: coordinates "
        f"before jitter, whose standard deviation is {jitter_std:g}. Top: the gradient through one "
        f"position of one image reaches {one} entries without jitter, {one_jittered} with it, "
        f"since a position is jittered once in a step, and {one_mean} over {STEPS} steps. Middle: "
        f"the gradient through all {n_points} positions reaches {batch} entries without jitter, "
        f"{jittered} with it. Bottom: before training, all coordinates are close together; the "
        f"gradient reaches {before} entries without jitter, {before_jittered} with it. Data: "
        "`figure2b.npz`."
    )
