"""Loading a detector: of one model, of a separate run, or exported."""

import os

import torch

from crad.data.decoding import MAX_MEGAPIXELS
from crad.detector import Choices, Detector, from_checkpoint
from crad.devices import PrecisionName, select_device
from crad.edge.detector import load_exported
from crad.edge.runtimes import is_exported
from crad.errors import CheckpointError, UsageError
from crad.predictor import Predictor
from crad.separate_detector import from_separate
from crad.training.checkpoint import read_checkpoint
from crad.training.separate_run import find_separate, read_separate


def load(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    precision: PrecisionName = "auto",
    *,
    bit_depth: int | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    false_alarm_rate: float | None = None,
    uncertain_rate: float | None = None,
) -> Detector:
    """Load a trained detector from a checkpoint. Nothing in the file is executed.

    Args:
        path: the checkpoint, or the output folder of the run, which may be a separate one.
        device: where to compute; None takes CUDA if there is a GPU.
        precision: of the fusion network; ``"auto"`` takes bf16 for a large one on a CPU that has
            matrix instructions for it.
        bit_depth: of 16-bit images, also in memory; None takes that of training.
        max_megapixels: images of more million pixels are refused.
        false_alarm_rate: share of normal images that may be taken for defective, in (0, 1); None
            takes that of training. A class without calibration scores keeps its threshold.
        uncertain_rate: images are uncertain whose p-value is above the false alarm rate, but at
            most this; more than that rate, and less than 1. None decides good or defect.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, a newer version wrote it, or it
            cannot decide for another rate.
        DeviceError: there is no such device.
        MissingPackageError: a memory of the model needs a package that is not installed.
        TypeError: an argument is of another type.
        UsageError: ``bit_depth``, ``max_megapixels`` or a rate is out of range, or there is no such
            precision.
    """
    if "\0" in os.fsdecode(path):
        raise CheckpointError(f"checkpoint: no file has a name with a null byte, as {path!r} has")
    selected = select_device(device)
    choices = Choices(bit_depth, max_megapixels, false_alarm_rate, uncertain_rate)
    if record := find_separate(path):
        return from_separate(read_separate(path, record), selected, precision, choices)
    return from_checkpoint(read_checkpoint(path), selected, precision, choices)


def load_any(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    precision: PrecisionName = "auto",
    *,
    bit_depth: int | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    false_alarm_rate: float | None = None,
    uncertain_rate: float | None = None,
) -> Predictor:
    """Load a detector from a checkpoint, as `load` does, or from an exported file.

    Raises:
        UsageError: as for `load`, or an exported file is to be computed on another device than the
            CPU, or in another precision than its own.

    The other errors are those of `load` and of `crad.load_exported`.
    """
    choices = Choices(bit_depth, max_megapixels, false_alarm_rate, uncertain_rate)
    if not is_exported(path):
        return load(path, device, precision, **vars(choices))
    if str(device) not in ("None", "auto", "cpu") or precision != "auto":
        raise UsageError(
            f"exported: '{path}' has a device and a precision of its own; leave --device and "
            "--precision out"
        )
    return load_exported(path, **vars(choices))
