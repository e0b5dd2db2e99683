"""Which epoch a detector is of, judged by the normal images held back."""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from crad.training.checkpoint import Checkpoint, Kept


def held_back_error(anomaly_maps: Iterable[Tensor], channels: int) -> float:
    """Mean squared error of the reconstructions of images, from their maps ``(H, W)``, one or more.

    It is the loss of training (equation 7), but on images that are not trained on: it rises as soon
    as a model learns its training images by heart.
    """
    sums = [(float(each.double().square().sum()), each.numel()) for each in anomaly_maps]
    return sum(total for total, _ in sums) / sum(number for _, number in sums) / channels


def keep_best(former: Checkpoint | None, new: Checkpoint, error: float) -> Checkpoint:
    """Choose the epoch with the smaller error; the first if equal. Training goes on from the new.

    Args:
        former: the run after the epoch before, with the best epoch so far; None if there is none.
        new: the run after the new epoch, whose model may still be in training.
        error: of the new epoch, from `held_back_error`.
    """
    if former is None or former.kept is None or error < former.kept.error:
        model = {name: tensor.clone() for name, tensor in new.model.items()}
        return replace(new, model=model, kept=Kept(new.epoch, error))
    return replace(
        former,
        epoch=new.epoch,
        seconds=new.seconds,
        latest=new.model,
        optimizer=new.optimizer,
        random=new.random,
    )


def kept_note(checkpoint: Checkpoint) -> str | None:
    """Say which epoch the detector of a run is of; None if it is the last."""
    if checkpoint.kept is None or checkpoint.kept.epoch == checkpoint.epoch:
        return None
    return (
        f"the detector is that of epoch {checkpoint.kept.epoch} of {checkpoint.epoch}, which "
        "reconstructs the images held back best (--keep last takes the last)"
    )
