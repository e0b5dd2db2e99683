"""A separate run as one model: the checkpoints of its classes, and what names a product."""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from crad.backbones import Backbone
from crad.errors import CheckpointError
from crad.files import write_atomically
from crad.model.products import Products
from crad.scoring.calibration import Calibration, Thresholds
from crad.scoring.interest import Interest
from crad.tensor_files import metadata_of
from crad.training.checkpoint import (
    AGAIN,
    CHECKPOINT_NAME,
    INFERENCE_PARTS,
    Checkpoint,
    checkpoint_path,
    read_checkpoint,
)
from crad.training.run_record import RunRecord, read_record

T = TypeVar("T")

PRODUCTS_NAME = "products.safetensors"

_FORMAT, _VERSION = "crad-products", "1"


@dataclass(frozen=True)
class SeparateRun:
    """The models of a separate run.

    Attributes:
        folder: of the run.
        record: what the folder says of itself.
        parts: the checkpoint of each class, in order.
    """

    folder: Path
    record: RunRecord
    parts: Mapping[str, Checkpoint]

    def share_backbone(self, name: str) -> bool:
        """Whether the backbone of a class has the same state as that of the first one."""
        first, other = next(iter(self.parts.values())).backbone, self.parts[name].backbone
        return first.keys() == other.keys() and all(
            torch.equal(tensor, other[each]) for each, tensor in first.items()
        )

    def check_alike(self) -> None:
        """Refuse classes whose images are read, or whose maps are scored, in other ways.

        Raises:
            CheckpointError: there are such classes.
        """
        first, *others = self.parts
        for name in others:
            for what, one, other in zip(
                ("size of images (--fit)", "backbone", "bit depth", "protocol"),
                _kind(self.parts[first]),
                _kind(self.parts[name]),
                strict=True,
            ):
                if one != other:
                    raise CheckpointError(
                        f"checkpoint: the models in '{self.folder}' cannot be one, as '{first}' "
                        f"and '{name}' differ in the {what}; give the folder of a class, such as "
                        f"'{self.folder / first}'"
                    )

    def merged(self) -> Checkpoint:
        """All that the classes have beside their models and backbones, as of one run."""
        parts = [*self.parts.values()]
        first, names = parts[0], [*self.parts]
        frame = first.config.model.frame
        masks: dict[str, npt.NDArray[np.bool_]] = {}
        for part in parts:
            with part.fitting():
                masks.update(Interest.from_state(part.interest, [*part.n_train], frame).masks)
        data = replace(first.config.data, source=self.record.data, classes=tuple(names))
        return replace(
            first,
            config=replace(first.config, data=data),
            n_train={name: part.n_train[name] for name, part in self.parts.items()},
            colour_scale=(
                min(part.colour_scale[0] for part in parts),
                max(part.colour_scale[1] for part in parts),
            ),
            thresholds=Thresholds({n: t for part in parts for n, t in part.thresholds.items()}),
            pixel_thresholds=Thresholds(
                {n: t for part in parts for n, t in part.pixel_thresholds.items()}
            ),
            calibration=Calibration({n: c for part in parts for n, c in part.calibration.items()}),
            interest=Interest(masks, frame).state(names),
            model={},
            backbone={},
            products={},
            optimizer={},
            random={},
            images={},
            file=self.folder,
        )

    def with_decisions(self, merged: Checkpoint) -> "SeparateRun":
        """The same models with the thresholds of a checkpoint like `merged`."""
        parts = {
            name: replace(
                part,
                config=replace(part.config, decisions=merged.config.decisions),
                thresholds=Thresholds(_only(name, merged.thresholds)),
                pixel_thresholds=Thresholds(_only(name, merged.pixel_thresholds)),
                calibration=Calibration(_only(name, merged.calibration)),
            )
            for name, part in self.parts.items()
        }
        return replace(self, parts=parts)

    def write(self, folder: Path) -> None:
        """Write the models into a folder, whose record comes last.

        Raises:
            StorageError: a file cannot be written.
        """
        for name, part in self.parts.items():
            part.save(folder / name)
        if folder != self.folder:
            if (products := self.folder / PRODUCTS_NAME).exists():
                data = products.read_bytes()
                write_atomically(folder / PRODUCTS_NAME, lambda file: file.write(data))
            self.record.write(folder)

    def write_products(self, pooled: Mapping[str, Tensor], backbone: Backbone | None) -> None:
        """Learn and write what names the class of an image.

        Args:
            pooled: of each class, as `crad.training.inputs.Inputs.pooled_by_class`, all of one
                backbone.
            backbone: that one; None if all classes have it.

        Raises:
            StorageError: the file cannot be written.
        """
        counts = torch.tensor([len(each) for each in pooled.values()])
        classes = torch.arange(len(counts)).repeat_interleave(counts)
        products = Products.fit(torch.cat([*pooled.values()]), classes)
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "run": self.record.id,
            "classes": json.dumps([*pooled]),
        }
        tensors = {f"products.{name}": each for name, each in products.state_dict().items()}
        for name, each in backbone.state_dict().items() if backbone else ():
            tensors[f"backbone.{name}"] = each.cpu().contiguous()
        data = safetensors.torch.save(tensors, metadata)
        write_atomically(self.folder / PRODUCTS_NAME, lambda file: file.write(data))

    def has_products(self) -> bool:
        """Whether there is what names the class of an image, of this run."""
        return find_products(self.folder, self.record)

    def read_products(self) -> tuple[Products | None, dict[str, Tensor]]:
        """Read what names the class of an image; None for a single class.

        Returns:
            It, and the state of the backbone of its features; empty for that of all classes.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        if len(self.parts) == 1:
            return None, {}
        if not self.has_products():
            raise CheckpointError(
                f"checkpoint: nothing in '{self.folder}' recognises products, as the run is not "
                f"finished, or an older crad wrote it; {_finish(self.folder)}"
            )
        first = next(iter(self.parts.values()))
        products = Products(len(self.parts), first.feature_size[0])
        file = self.folder / PRODUCTS_NAME
        try:
            states: dict[str, dict[str, Tensor]] = {"products": {}, "backbone": {}}
            for key, tensor in safetensors.torch.load_file(file).items():
                part, _, name = key.partition(".")
                states[part][name] = tensor
            products.load_state_dict(states["products"])
            if not all(tensor.isfinite().all() for tensor in products.state_dict().values()):
                raise ValueError("the means of classes are not finite")
        except (
            safetensors.SafetensorError,
            OSError,
            LookupError,
            RuntimeError,
            ValueError,
        ) as error:
            raise CheckpointError(
                f"checkpoint: '{file}' is damaged ({' '.join(str(error).split())}); remove it, and "
                f"{_finish(self.folder)}"
            ) from error
        return products, states["backbone"]


def find_separate(path: str | os.PathLike[str]) -> RunRecord | None:
    """The record of a separate run; None if the path is not the folder of one."""
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir() or (folder / CHECKPOINT_NAME).exists():
        return None
    record = read_record(folder)
    return record if record and record.id and record.classes else None


def read_separate(
    path: str | os.PathLike[str], record: RunRecord, parts: Collection[str] = INFERENCE_PARTS
) -> SeparateRun:
    """Read the models of a separate run.

    Args:
        path: its folder.
        record: its `find_separate`.
        parts: as for `crad.training.checkpoint.read_checkpoint`.

    Raises:
        CheckpointError: one is missing or damaged, or of another run.
    """
    folder = Path(os.path.expanduser(path))
    found = {}
    for name in record.classes:
        if not (folder / name / CHECKPOINT_NAME).exists():
            raise CheckpointError(
                f"checkpoint: class '{name}' of the run in '{folder}' is not trained yet; "
                f"{_finish(folder)}"
            )
        try:
            found[name] = read_checkpoint(checkpoint_path(folder / name), parts)
        except CheckpointError as error:
            raise CheckpointError(
                f"{str(error).removesuffix(AGAIN)}, or remove '{folder / name}' so that class "
                f"'{name}' is trained again, and {_finish(folder)}"
            ) from error
        if found[name].part_of not in (None, record.id) or name not in found[name].n_train:
            raise CheckpointError(
                f"checkpoint: '{folder / name}' holds a run that is not a part of the one in "
                f"'{folder}'; give the folder of a class"
            )
    return SeparateRun(folder, record, found)


def find_products(folder: Path, record: RunRecord) -> bool:
    """Whether a folder has what names the class of an image, of this run."""
    found = metadata_of(folder / PRODUCTS_NAME)
    names = json.dumps([*record.classes])
    return len(record.classes) == 1 or (found.get("run"), found.get("classes")) == (
        record.id,
        names,
    )


def is_products(file: Path) -> bool:
    """Whether crad wrote a file as what names the class of an image."""
    return metadata_of(file).get("format") == _FORMAT


def _finish(folder: Path) -> str:
    return f"finish it with crad train --separate --resume --output {folder}"


def _kind(part: Checkpoint) -> tuple[object, ...]:
    model, decisions = part.config.model, part.config.decisions
    features = model.backbone, model.layers, model.combine, part.feature_size
    return model.frame, features, model.bit_depth, decisions.decision_protocol


def _only(name: str, found: Mapping[str, T]) -> dict[str, T]:
    return {each: value for each, value in found.items() if each == name}
