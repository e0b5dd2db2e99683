"""What a run has before it trains: the backbone, and the features of all images."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from crad.backbones import Backbone, create_backbone
from crad.config import SMALLEST_SIDE, Config
from crad.data import check_apart
from crad.data.bad_images import BadImages
from crad.data.bit_depth import recognise_bit_depth
from crad.data.decoding import Decoding, displayed_size
from crad.data.frames import Frame, fit_frame, frame_of, show_size
from crad.data.samples import Dataset, Sample, has_more_note
from crad.data.several import find_datasets
from crad.data.sources import BATCH_SIZE
from crad.errors import BackboneError, CradError, DataError, ImageError, UsageError
from crad.model.nearest_neighbour import nearest_neighbour_maps
from crad.model.products import Products
from crad.scoring.evaluation import Truths
from crad.scoring.held_back import Draws, check_share, hold_back, no_threshold
from crad.scoring.interest import Interest, read_interest
from crad.scoring.maps import Maps
from crad.scoring.protocols import choose_protocols
from crad.training import processes
from crad.training.checkpoint import Checkpoint
from crad.training.feature_cache import FeatureCache
from crad.training.feature_memory import FeatureMemory
from crad.training.features import Features, extract, fit_backbone
from crad.words import count, enumerate_some


@dataclass(frozen=True)
class Inputs:
    """What a run has before it trains.

    Attributes:
        backbone: fitted, on the device of the run.
        train: features of the normal images to train on.
        held_back: features of the normal images to set thresholds with.
        test: features of the images to test on.
        n_train: all classes, in order, with their numbers of images to train on.
        truths: where the defects are.
        bad: the images and masks that were left out.
        left_out: as of `crad.data.Dataset`.
        repeated: the files that are there twice where they should not be, a line for each kind.
        digests: of the normal images, as of `Checkpoint.images`.
        draws: as of `Checkpoint`.
        interest: what part of the images counts.
        decoding: how images are read, with the bit depth of the data set.
        frame: what images are brought to.
        seconds: time that the features took.
        pooled: of classes of which only some images are here, the mean of the feature of each
            normal image over its positions, ``(N, C)``.
        rows: of ``train`` in an epoch, some more than once; None takes each once.
    """

    backbone: Backbone
    train: Features
    held_back: Features
    test: Features
    n_train: dict[str, int]
    truths: Truths
    bad: BadImages
    left_out: tuple[str, ...]
    repeated: tuple[str, ...]
    digests: Tensor
    draws: Draws
    interest: Interest
    decoding: Decoding
    frame: Frame
    seconds: float
    pooled: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Tensor | None = None

    @property
    def feature_size(self) -> tuple[int, int, int]:
        """(C, H, W) of a feature."""
        height, width, channels = self.train.values.shape[1:]
        return channels, height, width

    def notes(self) -> list[str | None]:
        """What a reader of the results must know of the images; None says nothing."""
        return [*self.left_out, *self.repeated, self.bad.note()]

    @cached_property
    def products(self) -> Products | None:
        """What names the class of an image, from all normal images; None if there is one class."""
        if len(self.n_train) < 2:
            return None
        by_class = self.pooled_by_class()
        counts = torch.tensor([len(each) for each in by_class.values()])
        classes = torch.arange(len(counts)).repeat_interleave(counts)
        return Products.fit(torch.cat([*by_class.values()]), classes)

    def pooled_by_class(self) -> dict[str, Tensor]:
        """The mean of the feature of each normal image over its positions, by class in order."""
        normal = [each for each in (self.train, self.held_back) if len(each)]
        pooled = torch.cat([each.pooled() for each in normal])
        names = [sample.class_name for each in normal for sample in each.samples]
        found = {
            name: pooled[[row for row, each in enumerate(names) if each == name]]
            for name in self.n_train
        }
        return {**found, **self.pooled}

    @cached_property
    def nearest_neighbour(self) -> Maps:
        """Anomaly maps of the test images by `nearest_neighbour_maps`."""
        train, test = self.train.channels_first(), self.test.channels_first()
        return self.test.stitch(nearest_neighbour_maps(train, test))


def bit_depth_of(dataset: Dataset, config: Config) -> int:
    """Recognise the bit depth of a data set, and print it; 16 if no image has 16 bits."""
    paths = [sample.path for sample in dataset.train + dataset.test if sample.path]
    found = processes.on_main(lambda: recognise_bit_depth(paths, config.decoding))
    if found:
        print(found.note, flush=True)
    return found.bit_depth if found else 16


def choose_frame(dataset: Dataset, config: Config, stride: int) -> Frame:
    """Choose what images are brought to, and print it if they keep their aspect ratio.

    Args:
        dataset: the images.
        config: of the run.
        stride: of the backbone.

    Raises:
        UsageError: cells of the backbone do not fill the frame that is asked for.
    """
    asked = frame_of(config.model.image_size)  # what another run has come to does not count
    if tiling := config.model.tiling:
        _check_cells(asked, config, stride, "--tile")
        frame = Frame(asked.height, asked.width, stride, tiling)
        sizes = processes.on_main(lambda: _displayed_sizes(dataset.train, config.decoding))
        if sizes:
            print(_describe_tiles(frame, sizes), flush=True)
        return frame
    if not config.model.fit:
        return asked
    sizes = processes.on_main(lambda: _displayed_sizes(dataset.train, config.decoding))
    if asked.height == asked.width and sizes:
        frame = fit_frame(asked.height, stride, sizes, least=SMALLEST_SIDE)
    else:
        _check_cells(asked, config, stride, "--fit")
        frame = Frame(asked.height, asked.width, stride)
    whole = frame.height, frame.width
    padded = sum(frame.content(size) != whole for size in sizes)
    print(
        f"fit: height {frame.height}, width {frame.width}; {padded} of "
        f"{count(len(sizes), 'normal image')} have another aspect ratio and are padded",
        flush=True,
    )
    return frame


def _check_cells(asked: Frame, config: Config, stride: int, option: str) -> None:
    """Refuse a frame that cells of the backbone do not fill."""
    if asked.height % stride or asked.width % stride:
        raise UsageError(
            f"--image-size: with {option}, expected multiples of {stride}, the pixels of a cell of "
            f"'{config.model.backbone}', but got {show_size(asked)}"
        )


def _describe_tiles(frame: Frame, sizes: Sequence[tuple[int, int]]) -> str:
    """Say in a line into how many tiles images of some heights and widths are cut."""
    assert frame.tiling
    numbers = sorted(len(frame.grid(size)) for size in sizes)
    few, many = numbers[0], numbers[-1]
    tiles = count(few, "tile") if few == many else f"{few} to {many} tiles"
    side = frame.tiling.side
    line = f"tiles: {side} x {side} pixels, {tiles} an image"
    small = sum(min(size) < side for size in sizes)
    return line + (f"; {count(small, 'image')} smaller than a tile and padded" if small else "")


def _displayed_sizes(samples: Sequence[Sample], decoding: Decoding) -> list[tuple[int, int]]:
    """Height and width of the images whose header can be read; the others are told later."""
    found = []
    for sample in samples:
        if sample.path:
            with suppress(ImageError):
                found.append(displayed_size(sample.path, decoding))
    return found


def open_cache(folder: Path | None, source: str) -> FeatureCache | None:
    """Open the cache of features, if there is to be one.

    Args:
        folder: of the cache.
        source: the data set, as for `crad.data.find_dataset`.

    Raises:
        OutputError: the folder lies among the images.
        StorageError: it is none, and cannot be made.
    """
    if folder is None:
        return None
    check_apart(folder, source, option="--feature-cache")
    return FeatureCache(folder)


def prepare(
    config: Config,
    stored: Checkpoint | None,
    device: torch.device,
    *,
    new_class: str | None = None,
) -> Inputs:
    """Make the backbone and compute the features of all images of a run.

    Args:
        config: the settings of the run.
        stored: the checkpoint to resume from, which has the backbone.
        device: where to compute.
        new_class: a class that the stored run does not have; ``--roi`` and ``--ignore`` are for it.
            All other classes of the run, or none, are to be there with it.

    Raises:
        BackboneError: the backbone cannot be had, or cannot take these images.
        CheckpointError: the stored backbone does not fit.
        DataError: the data are not what they should be, or not those of the stored run.
        ImageError: an image or a mask cannot be read.
        OutputError: the folder of the cache lies among the images.
        StorageError: there is no space for the features, or the folder of the cache is none.
        TrainingError: memory cannot hold a batch of images of this size.
    """
    cache = open_cache(config.data.feature_cache, config.data.source)
    dataset = processes.on_main(
        lambda: find_datasets(config.data.source, config.data.added, classes=config.data.classes)
    )
    share = config.decisions.held_back
    if not stored:
        check_share(dataset, config.decisions.calibrates)
    asked = frame_of(config.model.image_size)
    images = f"{BATCH_SIZE} images of {show_size(asked)} pixels take"
    n_bytes = 4 * 3 * asked.height * asked.width * BATCH_SIZE
    processes.check_memory([(images, n_bytes, "--image-size")])
    backbone = create_backbone(
        config.model.backbone,
        weights=config.model.weights,
        pretrained=stored is None,
        components=config.model.components,
        layers=config.model.layers,
        combine=config.model.combine,
    ).to(device)
    if stored:
        with stored.fitting():
            backbone.load_state_dict(stored.backbone)
    frame = stored.config.model.frame if stored else choose_frame(dataset, config, backbone.stride)
    started = time.perf_counter()
    bad = BadImages(skip=config.data.skip_bad, quiet=not processes.is_main())
    known = stored.config.model.bit_depth if stored else config.model.bit_depth
    decoding = replace(config.decoding, bit_depth=known or bit_depth_of(dataset, config))
    truths = Truths(frame, bad, decoding)
    if processes.is_main():  # a bad mask is found before hours of training, not after
        truths.read(dataset.test, choose_protocols(config.decisions.protocol)[0])

    interest = _interest(config, stored, dataset, frame, decoding, new_class)
    if note := interest.note():
        print(note, flush=True)
    draws = stored.draws if stored else "class"
    train, held_back = hold_back(dataset, share, config.training.seed, draws)
    memory = FeatureMemory(config.data.feature_memory)
    try:
        if not stored:
            fit_backbone(
                *(backbone, train, frame),
                device=device,
                skip=bad,
                cache=cache,
                decoding=decoding,
            )
        features, features_held_back, features_test = (
            replace(
                extract(
                    *(backbone, samples, frame),
                    device=device,
                    skip=bad,
                    memory=memory,
                    cache=cache,
                    decoding=decoding,
                ),
                interest=interest,
            )
            for samples in (train, held_back, dataset.test)
        )
    except CradError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise BackboneError(
            f"backbone: '{config.model.backbone}' cannot use these images at --image-size "
            f"{show_size(frame)}: {error}"
        ) from error
    bad.share(processes.gather)
    if cache:
        print(cache.report(), flush=True)
    if more := has_more_note(
        [*features.samples, *features_held_back.samples, *features_test.samples],
        lambda path: path.relative_to(dataset.root),
    ):
        print(more, flush=True)
    counts = Counter(sample.class_name for sample in features.samples)
    n_train = {name: counts[name] for name in dataset.classes}
    if missing := [name for name, count in n_train.items() if not count]:
        raise DataError(
            f"train: none of the training images of class '{missing[0]}' in '{dataset.root}' can "
            "be read; replace them, or leave the class out with --classes"
        )
    tested = {sample.class_name for sample in features_held_back.samples}
    if held_back and not stored and (missing := [n for n in dataset.classes if n not in tested]):
        raise no_threshold(missing[0], "none of its images held back can be read")
    if dataset.test and not len(features_test):
        raise DataError(
            f"test: none of the test images in '{dataset.root}' can be read; replace or remove them"
        )
    normal = features.samples + features_held_back.samples
    digests = {sample.path: _digest(sample, dataset) for sample in normal}
    former = {name: number for name, number in n_train.items() if name != new_class}
    if stored and former:
        others = {each.path: digests[each.path] for each in normal if each.class_name != new_class}
        _check_unchanged(stored, former, others, dataset.root)
    return Inputs(
        backbone=backbone,
        train=features,
        held_back=features_held_back,
        test=features_test,
        n_train=n_train,
        truths=truths,
        bad=bad,
        left_out=dataset.left_out,
        repeated=tuple(_repeated(normal, features_test.samples, dataset.root)),
        digests=torch.tensor([*digests.values()], dtype=torch.int64),
        draws=draws,
        interest=interest,
        decoding=decoding,
        frame=frame,
        seconds=time.perf_counter() - started,
    )


def _interest(
    config: Config,
    stored: Checkpoint | None,
    dataset: Dataset,
    frame: Frame,
    decoding: Decoding,
    new_class: str | None,
) -> Interest:
    """What part of the images counts: that of the run to resume, or what the options say."""
    roi, ignored = config.data.roi, config.data.ignored
    classes = (new_class,) if new_class else dataset.classes
    asked = processes.on_main(lambda: read_interest(roi, ignored, classes, frame, decoding))
    if stored is None:
        return asked
    with stored.fitting():
        kept = Interest.from_state(stored.interest, [*stored.n_train], frame)
    if new_class:
        return Interest({**kept.masks, **asked.masks}, frame)
    former, new = kept.state(dataset.classes), asked.state(dataset.classes)
    if (roi or ignored) and not (former and former["masks"].equal(new["masks"])):
        raise UsageError(
            f"--roi, --ignore: the run of '{stored.file}' was started with other masks, or none; "
            "leave them out to resume it, or start a new run in another --output"
        )
    return kept


def _digest(sample: Sample, dataset: Dataset) -> int:
    """64 bits that stand for an image: its class, its place in the data set, and its bytes."""
    assert sample.digest  # features have them
    names = (str(sample.class_name), dataset.place(sample))
    key = b"\0".join((*map(os.fsencode, names), sample.digest))
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), signed=True)


def _check_unchanged(
    stored: Checkpoint, n_train: dict[str, int], digests: dict[Path | None, int], root: Path
) -> None:
    """Refuse normal images that are not those of the run to resume."""
    details = []
    if "digests" in stored.images:
        former = {*stored.images["digests"].tolist()}
        if new := [path for path, digest in digests.items() if digest not in former]:
            details.append(f"{len(new)} new or changed, the first is '{new[0]}'")
        if missing := former - {*digests.values()}:
            details.append(f"{len(missing)} missing or changed")
    elif stored.n_train != n_train:
        details.append("their numbers differ")
    if details:
        raise DataError(
            f"data: the training images in '{root}' have changed since the run of '{stored.file}' "
            f"was started ({'; '.join(details)}); restore them, or start again with --overwrite"
        )


def _repeated(normal: list[Sample], test: list[Sample], root: Path) -> Iterator[str]:
    """Name the files that are in training and test, or in training twice, by their bytes."""
    first: dict[bytes | None, Sample] = {}
    twice: list[tuple[Sample, Sample]] = []
    for sample in normal:
        if (former := first.setdefault(sample.digest, sample)) is not sample:
            twice.append((former, sample))
    tested = [(first[sample.digest], sample) for sample in test if sample.digest in first]
    for pairs, problem in (
        (tested, "in training and test, so that what is measured is too good"),
        (twice, "in training twice"),
    ):
        if pairs:
            named = [" = ".join(repr(_place(sample, root)) for sample in pair) for pair in pairs]
            yield f"same file: {count(len(pairs), 'image')} {problem} ({enumerate_some(named)})"


def _place(sample: Sample, root: Path) -> str:
    """The path of an image below the data set."""
    assert sample.path  # features come from files
    return sample.path.relative_to(root).as_posix()
