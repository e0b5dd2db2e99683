"""The anomaly maps of the test images of a data set."""

from collections.abc import Sequence

import torch
from tqdm import tqdm

from crad.data.bad_images import BadImages
from crad.data.samples import Sample
from crad.detector import Detector
from crad.errors import DataError
from crad.scoring.maps import Maps, concatenate
from crad.separate_detector import SeparateDetector
from crad.training import processes
from crad.training.feature_cache import FeatureCache
from crad.training.features import extract


def map_test_images(
    detector: Detector,
    samples: Sequence[Sample],
    batch_size: int,
    bad: BadImages,
    cache: FeatureCache | None = None,
) -> tuple[list[Sample], Maps]:
    """Map test images, whose classes are known; each process maps some batches.

    Args:
        detector: where it has a model for each class, that of the image is used.
        samples: the images, grouped by class.
        batch_size: images computed at once.
        bad: what to do with an image that cannot be read.
        cache: where features are found, and kept for other runs.

    Returns:
        The images that can be read, and their maps, before any protocol.

    Raises:
        DataError: there is no model for a class.
        ImageError: an image cannot be read.
    """
    parts: list[tuple[Detector, Sequence[Sample]]] = [(detector, samples)]
    if isinstance(detector, SeparateDetector):
        names = dict.fromkeys(str(sample.class_name) for sample in samples)
        if unknown := [name for name in names if name not in detector.parts]:
            raise DataError(
                f"classes: there is no model for class '{unknown[0]}', but for "
                f"{', '.join(detector.parts)}; leave its folder out of --data"
            )
        parts = [
            (detector.parts[name], [each for each in samples if each.class_name == name])
            for name in names
        ]
    found: list[Sample] = []
    none = torch.empty(0, *detector.model.feature_size[1:], device=detector.device)
    maps: list[Maps] = [] if detector.frame.tiling else [none]
    for part, members in parts:
        if cache:
            readable, own = _map_features(part, members, batch_size, bad, cache)
        else:
            readable, own = _map_images(part, members, batch_size, bad)
        found += readable
        maps.append(own)
    return found, concatenate(maps)


def _map_features(
    detector: Detector,
    samples: Sequence[Sample],
    batch_size: int,
    bad: BadImages,
    cache: FeatureCache,
) -> tuple[list[Sample], Maps]:
    """As `_map_images`, with features that the cache has, or keeps for other runs."""
    with detector.explaining():
        features = extract(
            *(detector.backbone, samples, detector.frame),
            device=detector.device,
            skip=bad,
            cache=cache,
            decoding=detector.decoding,
        )
    rows = processes.share(range(len(features)), batch_size, processes.rank(), processes.count())
    maps = [torch.empty(0, *detector.model.feature_size[1:], device=detector.device)]
    for start in range(0, len(rows), batch_size):
        batch = features.batch(torch.tensor(rows[start : start + batch_size]), detector.device)
        maps.append(detector.map_features(batch))
    together = processes.gather_rows(rows, torch.cat(maps))[1]
    return features.samples, features.stitch(together)


def _map_images(
    detector: Detector, samples: Sequence[Sample], batch_size: int, bad: BadImages
) -> tuple[list[Sample], Maps]:
    """The images that can be read, with their maps; each process makes some batches."""
    tiled = bool(detector.frame.tiling)
    shared = 1 if tiled else batch_size
    mine = processes.share(range(len(samples)), shared, processes.rank(), processes.count())
    numbers = {samples[number].path: number for number in mine}
    found: dict[int, Sample] = {}
    maps = []
    hidden = not processes.is_main()
    with tqdm(total=len(mine), unit="image", leave=False, disable=hidden) as bar:
        for batch, anomaly_maps in detector.map_images(
            [samples[number] for number in mine], batch_size=batch_size, skip=bad
        ):
            found.update({numbers[sample.path]: sample for sample in batch.samples})
            maps.append(anomaly_maps)
            bar.update(len(batch.samples))
    whole: Maps
    if tiled:
        kept, whole = processes.gather_items([*found], [each[0] for each in maps])
    else:
        none = torch.empty(0, *detector.model.feature_size[1:], device=detector.device)
        kept, whole = processes.gather_rows([*found], torch.cat([none, *maps]))
    everywhere = {number: each for part in processes.gather(found) for number, each in part.items()}
    return [everywhere[number] for number in kept], whole
