"""Features of many images, computed once and kept."""

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from crad.backbones import Backbone
from crad.data.batches import load_batches
from crad.data.decoding import DEFAULT_DECODING, Decoding, displayed_size
from crad.data.frames import Frame, ImageSize, frame_of
from crad.data.samples import Sample
from crad.data.sources import BATCH_SIZE, OnBad, call_ahead, digest_of
from crad.data.tile_batches import TileBatch, load_tiles
from crad.errors import BackboneError, DataError, ImageError, TrainingError
from crad.files import irregular
from crad.model.crad import CRAD
from crad.scoring.interest import Interest
from crad.scoring.maps import Maps
from crad.training import processes
from crad.training.feature_cache import FeatureCache, recipe
from crad.training.feature_memory import FeatureMemory

_LARGEST = 1e30  # of an anomaly map, so that sums of a window are finite


@dataclass(frozen=True)
class Features:
    """Features, in memory or in a file that is mapped into it.

    Attributes:
        values: ``(N, H, W, C)`` float32, on the CPU: a row for each image or, of tiled images, for
            each tile, in order.
        samples: the images they were computed from, with `Sample.digest`.
        interest: what part of these images counts.
        tiled: what tiles were brought to; None if images are not tiled.
    """

    values: Tensor
    samples: list[Sample]
    interest: Interest = field(default_factory=Interest)
    tiled: Frame | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.values) if self.tiled else len(self.samples)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each image, and where the last one ends."""
        return [0, *accumulate(_count_rows(sample, self.tiled) for sample in self.samples)]

    def rows_of(self, images: Iterable[int]) -> Tensor:
        """The rows of some images, in order."""
        rows = [range(self.starts[image], self.starts[image + 1]) for image in images]
        return torch.tensor([*chain(*rows)], dtype=torch.int64)

    def channels_first(self) -> Tensor:
        """All features, ``(N, C, H, W)``, without a copy."""
        return self.values.permute(0, 3, 1, 2)

    def pooled(self) -> Tensor:
        """The mean of the feature of each image over its positions and tiles ``(images, C)``."""
        rows = self.values.mean(dim=(1, 2))
        if not self.tiled:
            return rows
        parts = zip(self.starts, self.starts[1:], strict=False)
        return torch.stack([rows[start:end].mean(dim=0) for start, end in parts])

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """Copy some rows to a device, ``(B, C, H, W)`` in channels-last memory format."""
        chosen = self.values.index_select(0, indices)
        return chosen.to(device, non_blocking=True).permute(0, 3, 1, 2)

    def some(self, most: int) -> list[int]:
        """At most so many of the images, evenly chosen."""
        count = min(most, len(self.samples))
        return [int(each) for each in np.linspace(0, len(self.samples) - 1, count)]

    def stitch(self, maps: Tensor) -> Maps:
        """Maps of the images, given those of all rows ``(N, h, w)``."""
        if not self.tiled:
            return maps
        return [
            _stitch(self.tiled, sample, maps[start:end])
            for sample, start, end in zip(self.samples, self.starts, self.starts[1:], strict=False)
        ]


def _count_rows(sample: Sample, tiled: Frame | None) -> int:
    if tiled is None:
        return 1
    assert sample.size
    return len(tiled.grid(sample.size))


def _stitch(tiled: Frame, sample: Sample, maps: Tensor) -> Tensor:
    assert sample.size
    return tiled.grid(sample.size).stitch(maps)


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
    frame = frame_of(image_size)
    settings = recipe(backbone, frame, decoding, device) if cache else ""

    def fitted() -> dict[str, Tensor]:
        how = _fit_recipe(settings, samples, decoding) if cache else ""
        state = cache.read_state(how, backbone.state_dict()) if cache else None
        if state is None:
            with closing(_load(samples, frame, skip, decoding, "statistics")) as batches:
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
        image_size: what images are brought to, as for `crad.data.tensors.to_tensor`.
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
    frame = frame_of(image_size)
    tiled = frame if frame.tiling else None
    if not samples:
        return Features(torch.empty(0, 0, 0, 0), [], tiled=tiled)
    folded = backbone.folded(frame.height, frame.width)
    blank = torch.zeros(1, 3, frame.height, frame.width, device=device)
    channels, height, width = folded(blank).shape[1:]
    starts = [0, *accumulate(_look_up_rows(samples, tiled, decoding))]
    values = (memory or FeatureMemory()).allocate(starts[-1], height, width, channels)
    how = recipe(backbone, frame, decoding, device) if cache else ""
    images = {sample.path: image for image, sample in enumerate(samples)}
    # Each machine has the features of all images.
    batch_size = 1 if tiled else BATCH_SIZE
    mine = processes.share(samples, batch_size, processes.local_rank(), processes.local_count())
    filled: dict[int, Sample] = {}
    digests: dict[int, bytes] = {}
    n_computed = 0

    def is_known(sample: Sample) -> bool:
        """Whether the cache has the feature of an image, which is then in its rows."""
        assert cache
        image = images[sample.path]
        digests[image] = _digest(sample)
        into = values[starts[image] : starts[image + 1]]
        if not digests[image] or not len(into):
            return False
        found = cache.read(how, replace(sample, digest=digests[image]), into)
        if found is None or math.prod(found.size or ()) > 1e6 * decoding.max_megapixels:
            return False
        filled[image] = found
        return True

    known = is_known if cache else None
    with closing(_load(mine, frame, skip, decoding, "features", known)) as batches:
        for batch in batches:
            first, last = batch.samples[0], batch.samples[-1]
            for sample in batch.samples:
                image = images[sample.path]
                if _count_rows(sample, tiled) != starts[image + 1] - starts[image]:
                    raise ImageError(f"cannot read image '{sample.path}': it is being changed")
            computed = _compute(folded, batch.images.to(device))
            if not computed.isfinite().all():
                raise BackboneError(
                    f"backbone: no finite features of the images from '{first.path}' to "
                    f"'{last.path}'; use other weights, or replace the images"
                )
            rows = [
                starts[images[sample.path]] + number
                for sample, number in zip(batch.samples, batch.numbers, strict=True)
            ]
            values[rows] = computed.permute(0, 2, 3, 1).cpu()
            for sample, row in zip(batch.samples, rows, strict=True):
                image = images[sample.path]
                if row != starts[image + 1] - 1:  # it has further tiles
                    continue
                filled[image] = sample
                n_computed += 1
                if cache and sample.digest == digests[image]:  # it was not edited meanwhile
                    cache.write(how, sample, values[starts[image] : starts[image + 1]])
    if cache:
        cache.note(read=len(filled) - n_computed, computed=n_computed)
    parts = processes.gather(filled)
    everywhere = {image: sample for part in parts for image, sample in part.items()}
    kept = sorted(everywhere)
    rows = [row for image in kept for row in range(starts[image], starts[image + 1])]
    if processes.local_rank() == 0:
        for row, source in enumerate(rows):  # close the gaps of images left out
            if row != source:
                values[row] = values[source]
    processes.gather(None)  # the others wait for that
    return Features(values[: len(rows)], [everywhere[image] for image in kept], tiled=tiled)


def _look_up_rows(
    samples: Sequence[Sample], tiled: Frame | None, decoding: Decoding
) -> Iterator[int]:
    """How many rows each image takes; none if its header cannot be read, which is told later."""
    for sample in samples:
        if tiled is None:
            yield 1
            continue
        assert sample.path
        n_tiles = 0
        with suppress(ImageError):
            n_tiles = len(tiled.grid(displayed_size(sample.path, decoding)))
        yield n_tiles


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
    model: CRAD, features: Features, device: torch.device, images: Sequence[int] | None = None
) -> Maps:
    """Compute anomaly maps of images, before any protocol; each process some batches.

    Args:
        model: on ``device``; it is put into evaluation mode.
        features: of the images.
        device: where to compute.
        images: which, in order; None takes all.

    Raises:
        TrainingError: the maps are not finite, or so large that their sums are not.
    """
    model.eval()
    wanted = range(len(features.samples)) if images is None else images
    batch_size = 1 if features.tiled else BATCH_SIZE
    mine = processes.share(range(len(wanted)), batch_size, processes.rank(), processes.count())
    together: Maps
    if features.tiled:
        own = [_map_tiled(model, features, device, wanted[place]) for place in mine]
        together = processes.gather_items(mine, own)[1]
        is_finite = all(bool((each.abs() < _LARGEST).all()) for each in together)
    else:
        maps = [torch.empty(0, *features.values.shape[1:3], device=device)]
        for start in range(0, len(mine), BATCH_SIZE):
            batch = torch.tensor([wanted[place] for place in mine[start : start + BATCH_SIZE]])
            maps.append(model(features.batch(batch, device)).anomaly_map)
        together = processes.gather_rows(mine, torch.cat(maps))[1]
        is_finite = bool((together.abs() < _LARGEST).all())
    if not is_finite:
        raise TrainingError(
            "training: the model has no finite anomaly maps any more; lower --learning-rate and "
            "--memory-learning-rate"
        )
    samples = [features.samples[image] for image in wanted]
    names = [sample.class_name for sample in samples]
    return features.interest.apply(together, samples, names)


def _map_tiled(model: CRAD, features: Features, device: torch.device, image: int) -> Tensor:
    """The map of a tiled image."""
    assert features.tiled
    parts = features.rows_of([image]).split(BATCH_SIZE)
    maps = torch.cat([model(features.batch(part, device)).anomaly_map for part in parts])
    return _stitch(features.tiled, features.samples[image], maps)


def _load(
    samples: Sequence[Sample],
    frame: Frame,
    skip: OnBad | None,
    decoding: Decoding,
    what: str,
    is_known: Callable[[Sample], bool] | None = None,
) -> Generator[TileBatch]:
    """Load images, or their tiles, behind a progress bar, which is gone once this is closed.

    An image that is not tiled is a tile of its own. Those that are known, which is asked in
    threads, are left out.
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

        sources = unknown(is_known) if is_known else samples
        if frame.tiling:
            for tiles in load_tiles(
                sources,
                frame=frame,
                batch_size=BATCH_SIZE,
                mixed=True,
                skip=skip,
                digests=True,
                decoding=decoding,
            ):
                yield tiles
                bar.update(tiles.numbers.count(0))
            return
        for batch in load_batches(
            sources,
            size=frame,
            batch_size=BATCH_SIZE,
            skip=skip,
            digests=True,
            decoding=decoding,
        ):
            yield TileBatch(batch.images, batch.samples, [0] * len(batch.samples))
            bar.update(len(batch.samples))
