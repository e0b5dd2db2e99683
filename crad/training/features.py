"""Features of many images, computed once and kept."""

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from crad.backbones import Backbone
from crad.data.batches import BATCH_SIZE, Batch, OnBad, call_ahead, digest_of, load_batches
from crad.data.decoding import DEFAULT_DECODING, Decoding
from crad.data.frames import ImageSize, frame_of
from crad.data.samples import Sample
from crad.errors import BackboneError, DataError, TrainingError
from crad.files import irregular
from crad.model.crad import CRAD
from crad.scoring.interest import Interest
from crad.training import processes
from crad.training.feature_cache import FeatureCache, recipe
from crad.training.feature_memory import FeatureMemory

_LARGEST = 1e30  # of an anomaly map, so that sums of a window are finite


@dataclass(frozen=True)
class Features:
    """Features, in memory or in a file that is mapped into it.

    Attributes:
        values: ``(N, H, W, C)`` float32, on the CPU.
        samples: the N images they were computed from, with `Sample.digest`.
        interest: what part of these images counts.
    """

    values: Tensor
    samples: list[Sample]
    interest: Interest = field(default_factory=Interest)

    def __len__(self) -> int:
        return len(self.samples)

    def channels_first(self) -> Tensor:
        """All features, ``(N, C, H, W)``, without a copy."""
        return self.values.permute(0, 3, 1, 2)

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """Copy some to a device, ``(B, C, H, W)`` in channels-last memory format."""
        chosen = self.values.index_select(0, indices)
        return chosen.to(device, non_blocking=True).permute(0, 3, 1, 2)

    def some(self, most: int) -> "Features":
        """At most so many of them, evenly chosen."""
        count = min(most, len(self))
        chosen = np.linspace(0, len(self) - 1, count).astype(int)
        samples = [self.samples[index] for index in chosen]
        return Features(self.values[chosen], samples, self.interest)


def fit_backbone(
    backbone: Backbone,
    samples: Sequence[Sample],
    image_size: ImageSize,
    *,
    device: torch.device,
    skip: OnBad | None,
    cache: FeatureCache | None = None,
    decoding: Decoding = DEFAULT_DECODING,
) -> None:
    """Fit the backbone's statistics in the main process, for all; arguments as for `extract`.

    Raises:
        DataError: no image can be read.
        ImageError: an image cannot be read.
        StorageError: there is no space for what was fitted.
    """
    if type(backbone).fit is Backbone.fit:
        return
    settings = recipe(backbone, frame_of(image_size), decoding, device) if cache else ""

    def fitted() -> dict[str, Tensor]:
        how = _fit_recipe(settings, samples, decoding) if cache else ""
        state = cache.read_state(how, backbone.state_dict()) if cache else None
        if state is None:
            with closing(_load(samples, image_size, skip, decoding, "statistics")) as batches:
                first = next(batches, None)
                if first is None:
                    raise DataError("train: none of the training images can be read; replace them")
                backbone.fit(batch.images.to(device) for batch in chain([first], batches))
            state = {name: value.cpu() for name, value in backbone.state_dict().items()}
            # Not if an image was edited meanwhile.
            if cache and how == _fit_recipe(settings, samples, decoding):
                cache.write_state(how, state)
        return state

    backbone.load_state_dict(processes.on_main(fitted))


def _fit_recipe(settings: str, samples: Sequence[Sample], decoding: Decoding) -> str:
    """A hash of all that fitted statistics depend on: settings, and images in their order."""
    found = hashlib.blake2b(settings.encode(), digest_size=16)
    found.update(str(decoding.max_megapixels).encode())  # larger images may be left out
    for digest in call_ahead(_digest, samples, ahead=2 * BATCH_SIZE):
        found.update(digest.result())
    return found.hexdigest()


def _digest(sample: Sample) -> bytes:
    """A hash of the bytes of an image file; empty if they cannot be read."""
    if sample.path and not irregular(sample.path):
        with suppress(OSError):
            return digest_of(sample.path)
    return b""


@torch.no_grad()
def extract(
    backbone: Backbone,
    samples: Sequence[Sample],
    image_size: ImageSize,
    *,
    device: torch.device,
    skip: OnBad | None,
    memory: FeatureMemory | None = None,
    cache: FeatureCache | None = None,
    decoding: Decoding = DEFAULT_DECODING,
) -> Features:
    """Compute the features of images, or read them; each process those of some batches.

    A feature has the same bits whatever other images are computed or read with it.

    Args:
        backbone: fitted, on ``device``.
        samples: the images, whose files are all different.
        image_size: what images are brought to, as for `crad.data.images.to_tensor`.
        device: where to compute.
        skip: what to do with an image that cannot be read; None raises its error.
        memory: where the features are kept; None has a budget of its own.
        cache: where they are found, and stored for other runs.
        decoding: how pixels are read.

    Raises:
        BackboneError: features are not finite.
        ImageError: an image cannot be read; the message names it.
        StorageError: there is no space for the features.
    """
    if not samples:
        return Features(torch.empty(0, 0, 0, 0), [])
    frame = frame_of(image_size)
    folded = backbone.folded(frame.height, frame.width)
    blank = torch.zeros(1, 3, frame.height, frame.width, device=device)
    channels, height, width = folded(blank).shape[1:]
    values = (memory or FeatureMemory()).allocate(len(samples), height, width, channels)
    how = recipe(backbone, frame, decoding, device) if cache else ""
    rows = {sample.path: row for row, sample in enumerate(samples)}
    # Each machine has the features of all images.
    mine = processes.share(samples, BATCH_SIZE, processes.local_rank(), processes.local_count())
    filled: dict[int, Sample] = {}
    digests: dict[int, bytes] = {}
    n_computed = 0

    def is_known(sample: Sample) -> bool:
        """Whether the cache has the feature of an image, which is then in its row."""
        assert cache
        row = rows[sample.path]
        digests[row] = _digest(sample)
        if not digests[row]:
            return False
        found = cache.read(how, replace(sample, digest=digests[row]), values[row])
        if found is None or math.prod(found.size or ()) > 1e6 * decoding.max_megapixels:
            return False
        filled[row] = found
        return True

    known = is_known if cache else None
    with closing(_load(mine, image_size, skip, decoding, "features", known)) as batches:
        for batch in batches:
            chosen = [rows[sample.path] for sample in batch.samples]
            computed = _compute(folded, batch.images.to(device))
            if not computed.isfinite().all():
                raise BackboneError(
                    f"backbone: no finite features of the images from '{batch.samples[0].path}' to "
                    f"'{batch.samples[-1].path}'; use other weights, or replace the images"
                )
            values[chosen] = computed.permute(0, 2, 3, 1).cpu()
            filled.update(zip(chosen, batch.samples, strict=True))
            n_computed += len(chosen)
            for row, sample in zip(chosen, batch.samples, strict=True):
                if cache and sample.digest == digests[row]:  # it was not edited meanwhile
                    cache.write(how, sample, values[row])
    if cache:
        cache.note(read=len(filled) - n_computed, computed=n_computed)
    everywhere = {row: sample for part in processes.gather(filled) for row, sample in part.items()}
    kept = sorted(everywhere)
    if processes.local_rank() == 0:
        for row, source in enumerate(kept):  # close the gaps of images left out
            if row != source:
                values[row] = values[source]
    processes.gather(None)  # the others wait for that
    return Features(values[: len(kept)], [everywhere[row] for row in kept])


def _compute(backbone: Backbone, images: Tensor) -> Tensor:
    """Features with bits that do not depend on the number of images.

    Libraries choose their algorithm, and so the rounding, by the size of the batch.
    """
    count, missing = len(images), BATCH_SIZE - len(images)
    if missing and not (backbone.is_separate and images.device.type == "cpu"):
        images = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
    features: Tensor = backbone(images)
    return features[:count]


@torch.inference_mode()
def map_features(
    model: CRAD, features: Features, device: torch.device, rows: Sequence[int] | None = None
) -> Tensor:
    """Compute anomaly maps ``(N, H, W)``, before any protocol; each process some batches.

    Args:
        model: on ``device``; it is put into evaluation mode.
        features: of the images.
        device: where to compute.
        rows: of which images, in order; None takes all.

    Raises:
        TrainingError: the maps are not finite, or so large that their sums are not.
    """
    model.eval()
    wanted = range(len(features)) if rows is None else rows
    mine = processes.share(range(len(wanted)), BATCH_SIZE, processes.rank(), processes.count())
    maps = [torch.empty(0, *features.values.shape[1:3], device=device)]
    for start in range(0, len(mine), BATCH_SIZE):
        batch = torch.tensor([wanted[place] for place in mine[start : start + BATCH_SIZE]])
        maps.append(model(features.batch(batch, device)).anomaly_map)
    together = processes.gather_rows(mine, torch.cat(maps))[1]
    if not (together.abs() < _LARGEST).all():
        raise TrainingError(
            "training: the model has no finite anomaly maps any more; lower --learning-rate and "
            "--memory-learning-rate"
        )
    samples = [features.samples[row] for row in wanted]
    names = [sample.class_name for sample in samples]
    return features.interest.apply(together, samples, names)


def _load(
    samples: Sequence[Sample],
    image_size: ImageSize,
    skip: OnBad | None,
    decoding: Decoding,
    what: str,
    is_known: Callable[[Sample], bool] | None = None,
) -> Generator[Batch]:
    """Load images behind a progress bar, which is gone once the generator is closed.

    Those that are known, which is asked in threads, are left out.
    """
    hidden = not processes.is_main()
    with tqdm(total=len(samples), desc=what, unit="image", leave=False, disable=hidden) as bar:

        def unknown(is_known: Callable[[Sample], bool]) -> Iterator[Sample]:
            answers = call_ahead(is_known, samples, ahead=2 * BATCH_SIZE)
            for sample, answer in zip(samples, answers, strict=True):
                if answer.result():
                    bar.update()
                else:
                    yield sample

        for batch in load_batches(
            unknown(is_known) if is_known else samples,
            size=image_size,
            batch_size=BATCH_SIZE,
            skip=skip,
            digests=True,
            decoding=decoding,
        ):
            yield batch
            bar.update(len(batch.samples))
