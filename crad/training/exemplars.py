"""Features of some normal images, by which a later training remembers the classes of a run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from crad.data.samples import GOOD, Sample
from crad.errors import CheckpointError
from crad.files import write_atomically
from crad.scoring.interest import Interest
from crad.tensor_files import metadata_of
from crad.training.features import Features
from crad.training.inputs import Inputs

EXEMPLARS_NAME = "exemplars.safetensors"

_FORMAT, _VERSION = "crad-exemplars", "1"


@dataclass(frozen=True)
class Exemplars:
    """Some features of the normal images of each class.

    They lie beside the checkpoint, not in it: they are larger, and written once.

    Attributes:
        train: of images that were trained on.
        held_back: of images that were not, which set thresholds.
        pooled: of each class, the mean of the feature of every normal image over its positions,
            ``(N, C)``.
        digests: of the normal images of the run, as in `crad.training.checkpoint.Checkpoint`.
    """

    train: Features
    held_back: Features
    pooled: Mapping[str, Tensor]
    digests: Tensor

    @classmethod
    def of(cls, inputs: Inputs, most: int) -> "Exemplars":
        """Choose from the inputs of a run.

        Args:
            inputs: of the run.
            most: of a class to train on, and as many held back.
        """
        return cls(
            _choose(inputs.train, most),
            _choose(inputs.held_back, most),
            inputs.pooled_by_class(),
            inputs.digests,
        )

    def write(self, folder: Path) -> None:
        """Write them into the folder of the run, in half precision.

        Raises:
            StorageError: they cannot be written.
        """
        parts = {"train": self.train, "held_back": self.held_back}
        tensors = {name: _half(each.values) for name, each in parts.items()}
        tensors["pooled"] = torch.cat([*self.pooled.values()])
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "images": _key(self.digests),
            "pooled": json.dumps({name: len(each) for name, each in self.pooled.items()}),
            **{
                name: json.dumps([[each.class_name, each.size] for each in part.samples])
                for name, part in parts.items()
            },
        }
        data = safetensors.torch.save(tensors, metadata)
        write_atomically(folder / EXEMPLARS_NAME, lambda file: file.write(data))


def read_exemplars(folder: Path, digests: Tensor, interest: Interest) -> Exemplars | None:
    """Read those of a run; None if its folder has none, or those of another run.

    Args:
        folder: of the run.
        digests: of its normal images.
        interest: what part of them counts.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = folder / EXEMPLARS_NAME
    if not has_exemplars(folder, digests):
        return None
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            if metadata["version"] != _VERSION:
                raise ValueError(f"its version is {metadata['version']}")
            train, held_back = (
                _features(opened.get_tensor(name), json.loads(metadata[name]), interest)
                for name in ("train", "held_back")
            )
            counts: dict[str, int] = json.loads(metadata["pooled"])
            pooled = opened.get_tensor("pooled").split([*counts.values()])
        return Exemplars(train, held_back, dict(zip(counts, pooled, strict=True)), digests)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"exemplars: '{file}' is damaged, or a newer crad wrote it ({error}); remove it, and "
            "give the images with --data PATH"
        ) from error


def has_exemplars(folder: Path, digests: Tensor) -> bool:
    """Whether the folder of a run has exemplars of its images, as for `read_exemplars`."""
    return metadata_of(folder / EXEMPLARS_NAME).get("images") == _key(digests)


def is_exemplars(file: Path) -> bool:
    """Whether crad wrote a file as exemplars."""
    return metadata_of(file).get("format") == _FORMAT


def _key(digests: Tensor) -> str:
    """What tells the images of a run from those of another."""
    data = digests.sort().values.numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _choose(features: Features, most: int) -> Features:
    """At most so many of each class, evenly chosen."""
    rows: dict[str | None, list[int]] = {}
    for row, sample in enumerate(features.samples):
        rows.setdefault(sample.class_name, []).append(row)
    chosen = [row for each in rows.values() for row in _even(each, most)]
    samples = [features.samples[row] for row in chosen]
    return Features(features.values[chosen], samples, features.interest)


def _even(rows: Sequence[int], most: int) -> list[int]:
    count = min(most, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def _half(values: Tensor) -> Tensor:
    most = torch.finfo(torch.float16).max
    return values.clamp(-most, most).half()


def _features(values: Tensor, samples: list[list[object]], interest: Interest) -> Features:
    found = [_sample(*each) for each in samples]
    if len(found) != len(values):
        raise ValueError(f"{len(found)} images have {len(values)} features")
    return Features(values.float(), found, interest)


def _sample(class_name: object, size: object) -> Sample:
    known = tuple(size) if isinstance(size, list) else None
    return Sample(class_name=str(class_name), defect=GOOD, size=known)
