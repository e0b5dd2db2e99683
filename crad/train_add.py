"""Adding a class to a trained model, which keeps the classes that it has."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from crad.config import Config, changed_setting
from crad.data import check_apart
from crad.data.bit_depth import recognise_bit_depth
from crad.data.demo import DEMO_NAMES, demo_dataset
from crad.data.folders import natural_key
from crad.data.samples import Dataset
from crad.data.several import find_class, find_datasets
from crad.errors import CheckpointError, DataError, OutputError, UsageError
from crad.files import full_path
from crad.report.results import Results
from crad.scoring.held_back import no_threshold
from crad.scoring.interest import Interest
from crad.train_options import TrainOptions
from crad.training import processes
from crad.training.checkpoint import ALL_PARTS, Checkpoint, read_checkpoint
from crad.training.exemplars import Exemplars, read_exemplars
from crad.training.features import Features
from crad.training.inputs import Inputs, prepare
from crad.words import count, enumerate_some

Prepare = Callable[[Config, Checkpoint | None, torch.device], Inputs]


class TrainOne(Protocol):
    """`crad.train.train_model`, as far as it is used here."""

    def __call__(self, options: TrainOptions, *, prepare: Prepare, base: Checkpoint) -> Results:
        """Train a model on, and measure it."""


def add_class(options: TrainOptions, train_one: TrainOne) -> Results:
    """Train a model on with one more class, and measure it on all.

    The other classes are kept by their normal images, or where these are not at hand, by the
    features that lie beside the checkpoint. The backbone stays as it is, and so does the
    checkpoint.

    Args:
        options: of the new run; the settings are those of the checkpoint.
        train_one: trains the model.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        CradError: what ``train_one`` raises.
        DataError: the folder is not that of a new class, or what keeps the others is missing.
        OutputError: the output is the folder of the checkpoint, or lies among the images.
        UsageError: an option makes no sense here.
    """
    adding, run = options.adding, options.run
    assert adding.add
    assert adding.checkpoint
    base = read_checkpoint(adding.checkpoint, ALL_PARTS)
    assert base.file
    _check_base(base, options)
    if full_path(run.checkpoint) == full_path(base.file):
        raise OutputError(
            f"output: '{run.path}' holds the model that the class is added to, which stays as it "
            "is; choose another folder with --output"
        )
    folder = full_path(adding.add)
    found = processes.on_main(lambda: find_class(folder))
    name = found.classes[0]
    _check_new(found, base, options)
    check_apart(run.path, str(folder))

    data = options.config.data
    added = tuple(each for each in data.added if each != str(folder))
    if not data.source or folder.parent != processes.on_main(lambda: _root(data.source)):
        added += (str(folder),)
    names = tuple(sorted([*base.n_train, name], key=natural_key))
    # The thresholds that are kept belong to the protocol of the model.
    decides = base.config.decisions.decision_protocol
    config = replace(
        options.config,
        data=replace(data, classes=names, added=added),
        decisions=replace(options.config.decisions, decision_protocol=decides),
    )
    print(f"adding: class '{name}' to the {len(base.n_train)} of '{base.file}'", flush=True)

    def prepare_all(config: Config, stored: Checkpoint | None, device: torch.device) -> Inputs:
        inputs = _prepare(config, base, name, folder, device, must=adding.gives_data)
        held_back = {sample.class_name for sample in inputs.held_back.samples}
        if config.decisions.held_back and name not in held_back:
            raise no_threshold(name, "there is only one normal image that can be read")
        for line in _kept_thresholds(base, held_back, config):
            print(line, flush=True)
        if stored and {*stored.images["digests"].tolist()} != {*inputs.digests.tolist()}:
            raise DataError(
                f"data: the training images have changed since the run of '{stored.file}' was "
                "started; restore them, or start again with --overwrite"
            )
        return inputs

    return train_one(replace(options, config=config), prepare=prepare_all, base=base)


def _check_base(base: Checkpoint, options: TrainOptions) -> None:
    """Refuse a checkpoint that nothing can be added to, and settings that are not its own."""
    if not base.optimizer:
        raise CheckpointError(
            f"checkpoint: '{base.file}' was stripped or converted, so that no class can be added; "
            "give the output folder of a training run"
        )
    if base.draws != "class":
        raise CheckpointError(
            f"checkpoint: an older crad wrote '{base.file}', and chose the images that were held "
            "back in another way, so that no class can be added; train all classes again"
        )
    config = options.config
    asked = replace(
        config,
        data=replace(config.data, classes=base.config.data.classes),
        training=replace(base.config.training, seed=config.training.seed),
    )
    if changed := changed_setting(asked, base.config):
        name, value, former = changed
        raise UsageError(
            f"{name}: the model in '{base.file}' was trained with {former}, not {value}; leave "
            f"{name} out to add a class"
        )


def _check_new(found: Dataset, base: Checkpoint, options: TrainOptions) -> None:
    """Refuse a class that the model has, or whose images are of another bit depth."""
    name = found.classes[0]
    if name in base.n_train:
        raise DataError(
            f"--add: the model in '{base.file}' has a class '{name}' already; rename the folder if "
            "it is another one"
        )
    paths = [sample.path for sample in found.train + found.test if sample.path]
    depth = processes.on_main(lambda: recognise_bit_depth(paths, options.config.decoding))
    known = base.config.decoding.bit_depth
    if depth and depth.bit_depth != known and not options.adding.gives_depth:
        raise DataError(
            f"--add: the images of '{name}' have {depth.bit_depth} bits, those of the model in "
            f"'{base.file}' {known}; bring them to one bit depth, or take them for images of "
            f"{known} bits with --bit-depth {known}"
        )


def _root(source: str) -> Path:
    """The folder of a data set, whether it is there or not."""
    return full_path(demo_dataset(source) if source in DEMO_NAMES else source)


def _prepare(
    config: Config,
    base: Checkpoint,
    name: str,
    folder: Path,
    device: torch.device,
    *,
    must: bool,
) -> Inputs:
    """The images of all classes; or those of the new one, with features of the others.

    Args:
        config: of the new run.
        base: the model.
        name: of the new class.
        folder: of its images.
        device: where to compute.
        must: whether the images of the others are to be used, and nothing else.
    """
    problem = processes.on_main(lambda: _missing(config))
    if not problem:
        try:
            inputs = prepare(config, base, device, new_class=name)
        except DataError as error:  # images were changed, say
            if must:
                raise
            problem = _short(error)
        else:
            others = sum(base.n_train.values())
            print(
                f"kept: {count(others, 'normal image')} of the other classes train too, from "
                f"'{config.data.source}'",
                flush=True,
            )
            return inputs
    elif must:
        raise DataError(problem)
    kept = _read_exemplars(base)
    if not kept or config.decisions.calibration_folds:
        why = "its thresholds come from folds, which need all images"
        if not kept:
            why = f"there are no features of them beside '{base.file}'"
        raise DataError(
            f"--add: the images of the other classes cannot be used ({problem}), and {why}; say "
            "where the images are with --data PATH"
        )
    print(
        f"kept: features of {count(len(kept.train), 'normal image')} of the other classes train "
        f"too, as their images cannot be used ({problem})",
        flush=True,
    )
    data = replace(config.data, source=str(folder), classes=(name,), added=())
    return _join(kept, prepare(replace(config, data=data), base, device, new_class=name), base)


def _missing(config: Config) -> str | None:
    """Why the images of the other classes are not at hand; None if they are."""
    data = config.data
    if not data.source:
        return "it is not known where they are"
    try:
        find_datasets(data.source, data.added, classes=data.classes)
    except DataError as error:
        return _short(error)
    return None


def _short(error: DataError) -> str:
    """What is wrong, without the way out."""
    return str(error).partition(";")[0]


def _read_exemplars(base: Checkpoint) -> Exemplars | None:
    """The features that lie beside a checkpoint."""
    assert base.file
    if "digests" not in base.images:
        return None
    frame = base.config.model.frame
    with base.fitting():
        interest = Interest.from_state(base.interest, [*base.n_train], frame)
    return read_exemplars(base.file.parent, base.images["digests"], interest)


def _join(kept: Exemplars, new: Inputs, base: Checkpoint) -> Inputs:
    """The inputs of all classes, of which but one have some features only."""
    known = {**base.n_train, **new.n_train}
    train = _together(kept.train, new.train)
    return replace(
        new,
        train=train,
        rows=_balanced(train, len(new.train)),
        held_back=_together(kept.held_back, new.held_back),
        n_train={name: known[name] for name in sorted(known, key=natural_key)},
        digests=torch.cat([kept.digests, new.digests]),
        pooled=kept.pooled,
    )


def _balanced(features: Features, least: int) -> Tensor:
    """The rows of an epoch that shows all images, and repeats those of a class with fewer."""
    by_class: dict[str | None, list[int]] = {}
    for row, sample in enumerate(features.samples):
        by_class.setdefault(sample.class_name, []).append(row)
    rows: list[int] = []
    for each in by_class.values():
        rows += [each[place % len(each)] for place in range(max(least, len(each)))]
    return torch.tensor(rows)


def _together(first: Features, second: Features) -> Features:
    parts = [each for each in (first, second) if len(each)]
    if not parts:
        return second
    values = torch.cat([each.values for each in parts])
    return Features(values, first.samples + second.samples, second.interest)


def _kept_thresholds(base: Checkpoint, held_back: set[str | None], config: Config) -> Iterator[str]:
    """Say which classes keep the threshold that they had."""
    kept = [name for name in base.thresholds if name not in held_back]
    if kept and not config.decisions.calibration_folds:
        yield (
            f"thresholds kept, though the model changes, as no images of the class are held back: "
            f"{enumerate_some(kept)}; set them anew with crad calibrate --good FOLDER"
        )
