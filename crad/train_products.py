"""What makes one model of a separate run: recognising products, and a page of all classes."""

from dataclasses import replace

import torch
from torch import Tensor

from crad.backbones import Backbone
from crad.data.bad_images import BadImages
from crad.data.samples import Dataset
from crad.data.sources import BATCH_SIZE
from crad.detector import Choices, restore
from crad.mapping import map_test_images
from crad.report.report import report
from crad.report.results import Results
from crad.scoring.evaluation import Evaluation, Truths
from crad.scoring.interest import Interest
from crad.separate_detector import from_separate
from crad.train_options import TrainOptions
from crad.training import processes
from crad.training.checkpoint import INFERENCE_PARTS
from crad.training.exemplars import read_exemplars
from crad.training.feature_memory import FeatureMemory
from crad.training.features import extract, fit_backbone
from crad.training.inputs import open_cache
from crad.training.run_record import RunRecord
from crad.training.separate_run import SeparateRun, read_separate


def join_classes(
    options: TrainOptions,
    record: RunRecord,
    dataset: Dataset,
    results: Results,
    device: torch.device,
) -> None:
    """Learn which product an image shows, and write results, page and sheets of all classes.

    Args:
        options: of the separate run, whose classes are finished.
        record: of its folder.
        dataset: the images.
        results: of all classes.
        device: where to compute.

    Raises:
        CheckpointError: the models of the classes cannot be used as one.
        ImageError: an image cannot be read any more.
        StorageError: a file cannot be written.
    """
    config, folder = options.config, options.run
    run = read_separate(folder.path, record, (*INFERENCE_PARTS, "images"))
    run.check_alike()
    if processes.on_main(lambda: not run.has_products()):
        pooled, backbone = _pool(options, run, dataset, device)
        if processes.is_main():
            run.write_products(pooled, backbone)
        processes.gather(None)  # the others read it
    detector = from_separate(
        run, device, choices=Choices(max_megapixels=config.data.max_megapixels)
    )
    merged = detector.checkpoint
    bad = BadImages(skip=config.data.skip_bad, quiet=True)
    cache = open_cache(config.data.feature_cache, config.data.source)
    samples, maps = map_test_images(detector, dataset.test, BATCH_SIZE, bad, cache)
    maps = detector.interest.apply(maps, samples, [sample.class_name for sample in samples])
    truths = Truths(detector.frame, bad, detector.decoding)
    evaluation = Evaluation(samples, merged.n_train, truths)
    processes.on_main(
        lambda: report(results, evaluation, maps, detector.protocol, folder, checkpoint=merged)
    )


def _pool(
    options: TrainOptions, run: SeparateRun, dataset: Dataset, device: torch.device
) -> tuple[dict[str, Tensor], Backbone | None]:
    """The mean of the feature of each normal image, all of one backbone.

    Where the classes have fitted ones of their own, it is another, which is fitted to all classes:
    by the backbone of one class, products that none has seen are hardly told from known ones.
    """
    data, first = options.config.data, next(iter(run.parts.values()))
    backbone = restore(first)[0].to(device)
    settings = first.config
    decoding = replace(settings.decoding, max_megapixels=data.max_megapixels)
    bad = BadImages(skip=data.skip_bad, quiet=True)
    cache = open_cache(data.feature_cache, data.source)
    is_shared = all(map(run.share_backbone, run.parts))
    if not is_shared:
        fit_backbone(
            *(backbone, dataset.train, settings.model.frame),
            device=device,
            skip=bad,
            cache=cache,
            decoding=decoding,
        )
    found = {}
    for name, part in run.parts.items():
        kept = None
        if is_shared and "digests" in part.images:
            kept = read_exemplars(run.folder / name, part.images["digests"], Interest())
        if kept:
            found[name] = kept.pooled[name]
            continue
        features = extract(
            backbone,
            [sample for sample in dataset.train if sample.class_name == name],
            settings.model.frame,
            device=device,
            skip=bad,
            memory=FeatureMemory(data.feature_memory),
            cache=cache,
            decoding=decoding,
        )
        found[name] = features.pooled()
    return found, None if is_shared else backbone
