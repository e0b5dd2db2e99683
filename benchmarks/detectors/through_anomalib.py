"""Rivals by the code of anomalib, which trains and runs them, with the settings of their papers.

Its models get the images that the backbone of crad gets, and the same weights. Their maps and
scores are taken raw: without its normalisation, which leaves all ranks as they are.
"""

import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import metadata
from io import StringIO
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, ClassVar
from unittest.mock import patch

import timm
import torch
from torch import Tensor

from benchmarks.detectors import budget, clock
from benchmarks.detectors.budget import Epochs
from benchmarks.detectors.inputs import SetInputs
from benchmarks.detectors.pyramid import stages
from crad.backbones.weights import read_weights
from crad.config import Config
from crad.errors import MissingPackageError


@dataclass(frozen=True)
class Recipe:
    """How anomalib makes a model, and how its authors train it.

    Attributes:
        title: what the page calls it.
        model: name of the class in `anomalib.models`.
        strides: of the stages of the backbone that it uses.
        layers: the argument that names them: ``layers``, or ``layer`` for one.
        options: other arguments of the class.
        epochs: that the authors train for; 1 for a method that passes over the images once.
        batch_size: of training.
        frozen: names of the parts that are the backbone as it is.
    """

    title: str
    model: str
    strides: tuple[int, ...]
    layers: str = "layers"
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 1
    batch_size: int = 32
    frozen: tuple[str, ...] = ("feature_extractor",)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # Roth et al., CVPR 2022: 1 % is one of the shares in its tables.
        "patchcore": Recipe(
            "PatchCore (anomalib)",
            "Patchcore",
            (8, 16),
            options={"coreset_sampling_ratio": 0.01, "num_neighbors": 9},
        ),
        # Defard et al., ICPR 2021 workshops: 100 channels, as for its smallest network.
        "padim": Recipe("PaDiM (anomalib)", "Padim", (4, 8, 16), options={"n_features": 100}),
        # Ahuja et al., "Probabilistic Modeling of Deep Features for Out-of-Distribution and
        # Adversarial Detection", 2019: what a PCA with 97 % of the variance leaves.
        "dfm": Recipe("DFM", "Dfm", (16,), "layer", {"pca_level": 0.97, "pooling_kernel_size": 4}),
        # Wang et al., "Student-Teacher Feature Pyramid Matching for Anomaly Detection", BMVC 2021.
        "stfpm": Recipe("STFPM", "Stfpm", (4, 8, 16), epochs=100, frozen=("teacher_model",)),
        # Rolih et al., "SuperSimpleNet", ICPR 2024.
        "supersimplenet": Recipe("SuperSimpleNet", "Supersimplenet", (8, 16), epochs=300),
    }
)
"""The rivals by name."""


def check_installed() -> None:
    """Refuse to go on without anomalib.

    Raises:
        MissingPackageError: it is not installed.
    """
    if not importlib.util.find_spec("anomalib"):
        raise MissingPackageError(
            "--methods: those through anomalib need pip install 'crad[anomalib]'"
        )


@dataclass(frozen=True)
class ThroughAnomalib:
    """A rival by the code of anomalib.

    Attributes:
        name: a key of `RECIPES`.
    """

    name: str

    takes_images: ClassVar[bool] = True

    @property
    def recipe(self) -> Recipe:
        """How it is made."""
        return RECIPES[self.name]

    @property
    def title(self) -> str:
        """What the page calls it."""
        return self.recipe.title

    def settings(self, config: Config) -> dict[str, Any]:
        """The arguments of the model, its training, and the version of anomalib."""
        try:
            version = metadata.version("anomalib")
        except metadata.PackageNotFoundError:
            version = "not installed"
        recipe = self.recipe
        trained = {"minutes": config.training.minutes} if recipe.epochs > 1 else {}
        return {
            "anomalib": version,
            "strides": recipe.strides,
            **recipe.options,
            "published_epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            **trained,
        }

    def fit(self, inputs: SetInputs, config: Config, device: torch.device) -> "Fitted":
        """Train by the engine of anomalib; the seed sets all that is random.

        Raises:
            BackboneError: there are no weights.
            UsageError: the backbone has no such stages.
        """
        recipe = self.recipe
        epochs = None
        with _quiet():
            if recipe.epochs > 1:
                epochs = budget.choose(
                    recipe.epochs,
                    config.training.minutes,
                    lambda: _train(recipe, inputs, config, device, None)[1],
                )
            model, _ = _train(recipe, inputs, config, device, epochs.run if epochs else 1)
        return Fitted(model, recipe, device, epochs)


class Fitted:
    """A rival that anomalib has trained.

    Args:
        model: an `AnomalibModule`.
        recipe: how it was made.
        device: where to compute.
        epochs: of its training; None if it has none.
    """

    def __init__(
        self, model: Any, recipe: Recipe, device: torch.device, epochs: Epochs | None
    ) -> None:
        self.model = model.to(device).eval()
        self.recipe, self.device, self.epochs = recipe, device, epochs

    @property
    def n_bytes(self) -> int:
        """Size of all parameters and buffers but those of the frozen backbone."""
        return sum(
            value.nbytes
            for key, value in self.model.model.state_dict().items()
            if not key.startswith(tuple(f"{name}." for name in self.recipe.frozen))
        )

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps, at the size of the images, and scores of the model."""
        found = self.model(images.to(self.device))
        return found.anomaly_map[:, 0], found.pred_score.reshape(len(images))


def _train(
    recipe: Recipe, inputs: SetInputs, config: Config, device: torch.device, epochs: int | None
) -> tuple[Any, float]:
    """Make a model and train it; with ``epochs`` None, only for a few steps.

    Returns:
        The model, and the seconds that an epoch takes.
    """
    from anomalib.data import ImageBatch
    from anomalib.engine import Engine
    from lightning.pytorch import Callback, seed_everything
    from torch.utils.data import DataLoader

    def batch(rows: list[int]) -> ImageBatch:
        samples = [inputs.train.samples[row] for row in rows]
        labels = torch.zeros(len(rows), dtype=torch.bool)
        return ImageBatch(image=inputs.pixels.images(samples), gt_label=labels)

    class Clock(Callback):
        def __init__(self) -> None:
            self.times: list[float] = []  # of the ends of steps

        def on_train_batch_end(self, *_: object, **__: object) -> None:
            self.times.append(clock.now())

    seed_everything(config.training.seed % 2**32, verbose=False)
    model = create(recipe, config.model.backbone)
    timed = Clock()
    rows: Any = range(len(inputs.train))
    loader: Any = DataLoader(
        rows,
        batch_size=recipe.batch_size,
        shuffle=True,
        collate_fn=batch,
    )
    with TemporaryDirectory(prefix="crad-detectors-") as folder:
        engine = Engine(
            default_root_dir=folder,
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1,
            max_epochs=epochs or budget.STEPS,
            max_steps=-1 if epochs else budget.STEPS,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timed],
        )
        engine.fit(model, train_dataloaders=loader)
    steps_of_epoch = math.ceil(len(inputs.train) / recipe.batch_size)
    seconds = timed.times[-1] - timed.times[0]  # the first step warms up
    return model, steps_of_epoch * seconds / max(1, len(timed.times) - 1)


def create(recipe: Recipe, backbone: str) -> Any:
    """Make an untrained model of anomalib, with the weights of the backbone that crad finds.

    Raises:
        BackboneError: there are no weights.
        UsageError: the backbone has no such stages.
    """
    import anomalib.models
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Normalize

    names = stages(backbone)
    layers = [names[stride] for stride in recipe.strides]
    known: Any = timm.get_pretrained_cfg(backbone)
    arguments = {recipe.layers: layers if recipe.layers == "layers" else layers[0]}
    with _weights_of_crad(backbone):
        return getattr(anomalib.models, recipe.model)(
            backbone=backbone,
            **arguments,
            **recipe.options,
            pre_processor=PreProcessor(transform=Normalize([*known.mean], [*known.std])),
            post_processor=False,
            evaluator=False,
            visualizer=False,
        )


@contextmanager
def _weights_of_crad(backbone: str) -> Iterator[None]:
    """Let timm take pretrained weights from where crad has them, and not from the hub."""
    state, _ = read_weights(backbone)
    made = timm.create_model

    def create_model(name: str, *, pretrained: bool = False, **arguments: Any) -> Any:
        if pretrained:
            arguments["pretrained_cfg_overlay"] = {"state_dict": dict(state)}
        return made(name, pretrained=pretrained, **arguments)

    with patch("timm.create_model", create_model):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Lightning and anomalib print, log and warn of from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
