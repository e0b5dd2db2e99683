"""CRAD as a model of anomalib, for its `Engine`, its command line, exporters and inferencers."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crad.backbones import PUBLISHED, Backbone, create_backbone
from crad.backbones.scattering import ScatteringBackbone
from crad.config import PRESETS, Config
from crad.data.images import to_rgb
from crad.data.tensors import to_tensor
from crad.errors import CheckpointError, MissingPackageError, UsageError
from crad.exporting.formats import OPSET
from crad.exporting.scattering import MatrixScattering
from crad.scoring.protocols import PROTOCOLS
from crad.training.checkpoint import Checkpoint, read_checkpoint
from crad.training.loop import create_optimizer
from crad.training.network import create_model, restore
from crad.training.schedule import learning_rate_factor

try:
    from anomalib import LearningType
    from anomalib.data import Batch, InferenceBatch
    from anomalib.metrics import Evaluator
    from anomalib.models import AnomalibModule
    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
    from anomalib.visualization import Visualizer
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise MissingPackageError(
        "anomalib: crad.integrations.anomalib needs anomalib, which cannot be imported "
        f"({error}); install it with pip install 'crad[anomalib]'"
    ) from error

# Settings of a run that anomalib has in places of its own, or that are of images it does not read.
_NOT_OURS = {
    "model": {"preset", "backbone", "image_size", "fit", "fitted", "tile", "overlap", "bit_depth"}
    | {"reduced", "masked"},
    "training": {"epochs", "minutes", "epochs_chosen", "keep", "batch_size", "seed"},
}
_DECIDES = "decision_protocol"


class Crad(AnomalibModule):
    """CRAD for anomalib: one model of all normal images, whatever they show.

    Maps and scores are those of `crad` for the same weights. Decisions are anomalib's.

    Args:
        preset: sizes and learning rates, as of ``crad train``.
        backbone: ``"scattering"``, or a timm model, whose weights are looked for when training
            starts.
        image_size: side of a square in pixels, or height and width; None takes that of the preset.
        settings: others that differ from the preset, by their names in `crad.config.ModelConfig`
            and `crad.config.TrainingConfig`, such as ``{"depth": 3, "learning_rate": 0.001}``.
        pre_processor: as of anomalib; True resizes images as ``crad`` does.
        post_processor: as of anomalib; True normalises scores and sets thresholds.
        evaluator: as of anomalib.
        visualizer: as of anomalib.

    Raises:
        BackboneError: there is no such backbone, or it cannot take images of this size.
        MissingPackageError: a memory needs a package that is not installed.
        UsageError: a setting is unknown or out of range.
    """

    model: "_Network"

    def __init__(
        self,
        preset: Literal["crad", "crad-s", "cpu", "tiny"] = "crad",
        backbone: str = PUBLISHED,
        image_size: int | tuple[int, int] | None = None,
        settings: dict[str, Any] | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        config = _configure(preset, backbone, image_size, settings or {})
        if pre_processor is True:
            frame = config.model.frame
            pre_processor = self.configure_pre_processor((frame.height, frame.width))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.config = config
        self.model = _Network(config)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **components: Any) -> "Crad":
        """Make a model of a checkpoint of ``crad train``.

        It gives the scores of ``crad``, not normalised, and decides by the thresholds of the
        checkpoint, of several classes by the highest. ``post_processor=True`` leaves both to
        anomalib instead, which then needs a run of ``validate``.

        Args:
            path: the checkpoint, or the output folder of the run.
            components: ``pre_processor``, ``post_processor``, ``evaluator``, ``visualizer``.

        Raises:
            CheckpointError: it cannot be read, or anomalib cannot bring images to it as crad does.
            MissingPackageError: a memory needs a package that is not installed.
        """
        checkpoint = read_checkpoint(path)
        _check_convertible(checkpoint)
        components.setdefault("post_processor", _decide_by(checkpoint))
        config = checkpoint.config
        image_size = config.model.image_size
        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in _settings(config).items()
        }
        model = cls("crad", config.model.backbone, image_size, settings, **components)
        model.model.backbone, model.model.crad = restore(checkpoint)
        model.model.trained.fill_(True)
        return model

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Make a pre-processor that resizes images as crad does; its backbones normalise them.

        Args:
            image_size: height and width in pixels; None takes 224 x 224.
        """
        return _PreProcessor(_Resize(list(image_size or (224, 224))))

    @property
    def learning_type(self) -> LearningType:
        """It learns from normal images."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """The gradient is clipped as ``crad train`` does; an untrained model is not validated."""
        clip_norm = self.config.training.clip_norm
        return {"gradient_clip_val": clip_norm, "num_sanity_val_steps": 0}

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer and learning rates of ``crad train``, for the epochs of the trainer.

        Raises:
            UsageError: the trainer has no limit.
        """
        self.trainer.fit_loop.setup_data()  # which counts the batches, unless it is done
        n_steps = self.trainer.estimated_stepping_batches
        if not 0 < n_steps < math.inf:
            raise UsageError(
                "max_epochs: the learning rate falls for the last fifth of the epochs; give Engine "
                "their number"
            )
        batches = self.trainer.num_training_batches
        steps_of_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)
        epochs = math.ceil(n_steps / steps_of_epoch)
        optimizer = create_optimizer(self.model.crad, self.config.training)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: learning_rate_factor(epoch, epochs)
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_fit_start(self) -> None:
        """Load the weights of the backbone, and fit what it takes from the training images."""
        if self.model.trained:  # they came with a checkpoint
            return
        backbone = _create_backbone(self.config, pretrained=True).to(self.device)
        backbone.fit(self._training_images())
        self.model.backbone.load_state_dict(backbone.state_dict())
        self.model.trained.fill_(True)

    def _training_images(self) -> Iterator[Tensor]:
        """The training images, batch by batch, as the model gets them."""
        self.trainer.fit_loop.setup_data()  # where the optimizer is another
        for batch in self.trainer.train_dataloader:
            images = batch.image
            if self.pre_processor:
                images = self.pre_processor.transform(images)
            yield images.to(self.device)

    def training_step(self, batch: Batch, *_: Any, **__: Any) -> Tensor:
        """The loss of a batch."""
        loss: Tensor = self.model(batch.image)
        self.log("train_loss", loss, on_epoch=True, prog_bar=True, batch_size=len(batch.image))
        return loss

    def validation_step(self, batch: Batch, *_: Any, **__: Any) -> Batch:
        """Scores and maps, from which the post-processor takes thresholds and range."""
        return batch.update(**self.model(batch.image)._asdict())

    def on_validation_start(self) -> None:
        """Refuse a model that is not trained."""
        self._check_trained()

    def on_test_start(self) -> None:
        """Refuse a model that is not trained."""
        self._check_trained()

    def on_predict_start(self) -> None:
        """Refuse a model that is not trained."""
        self._check_trained()

    def to_onnx(self, *args: Any, **kwargs: Any) -> Path:
        """Export to ONNX, as anomalib does, by default with an opset that has what CRAD needs.

        Raises:
            UsageError: the model is not trained.
        """
        self._check_trained()
        kwargs.setdefault("opset_version", OPSET)
        network, backbone = self.model, self.model.backbone
        try:
            if isinstance(backbone, ScatteringBackbone):
                frame = self.config.model.frame
                network.backbone = MatrixScattering(backbone, frame.height, frame.width)
            path: Path = super().to_onnx(*args, **kwargs)
        finally:
            network.backbone = backbone
        return path

    def _check_trained(self) -> None:
        if not self.model.trained:
            raise UsageError(
                "Crad: this model is not trained; fit it, give ckpt_path, or take "
                "Crad.from_checkpoint() for a checkpoint of crad train"
            )


class _Network(nn.Module):
    """Images ``(B, 3, H, W)`` in [0, 1] to scores and maps; in training to the loss.

    Attributes:
        trained: whether the weights of the backbone, and what is fitted, are there.
    """

    trained: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone: nn.Module = _create_backbone(config, pretrained=False)
        size = _feature_size(self.backbone, config)
        self.crad = create_model(config, size)
        protocol = PROTOCOLS[config.decisions.decision_protocol]
        self.protocol = protocol.prepared(size[1:], config.model.frame)
        self.register_buffer("trained", torch.tensor(False))

    def forward(self, images: Tensor) -> Tensor | InferenceBatch:
        """Maps are ``(B, 1, H, W)``, scores ``(B,)``."""
        found = self.crad(self.backbone(images))
        if self.training:
            loss: Tensor = found.loss
            return loss
        maps, scores = self.protocol(found.anomaly_map)
        return InferenceBatch(pred_score=scores, anomaly_map=maps[:, None])


class _Resize(v2.Resize):
    """Resize images as crad does, to the bit, and masks as anomalib does.

    An exported program does so up to a grey level, as rounding between the two axes is left out.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image or a batch of images in [0, 1], or masks."""
        if isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        if torch.compiler.is_compiling():
            return (v2.functional.resize(inpt * 255, self.size, antialias=True)).round() / 255
        height, width = self.size
        if tuple(inpt.shape[-2:]) == (height, width):
            return inpt
        images = inpt.as_subclass(torch.Tensor).reshape(-1, *inpt.shape[-3:])
        resized = torch.stack([to_tensor(to_rgb(each), (height, width)) for each in images])
        resized = resized.reshape(*inpt.shape[:-3], *resized.shape[1:]).to(inpt)
        return tv_tensors.wrap(resized, like=inpt)


class _PreProcessor(PreProcessor):
    """A pre-processor that needs no settings in a checkpoint, as the model has its size."""

    def checkpoint_config(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_checkpoint_config(self, config: Mapping[str, Any]) -> None:
        """Keep what the constructor made."""


def _configure(
    preset: str,
    backbone: str,
    image_size: int | tuple[int, int] | None,
    settings: Mapping[str, Any],
) -> Config:
    """The settings of a run, as far as they are ours."""
    if preset not in PRESETS:
        raise UsageError(f"preset: expected one of {', '.join(PRESETS)}, but got {preset!r}")
    config = PRESETS[preset]
    known = _settings(config)
    if unknown := [name for name in settings if name not in known]:
        raise UsageError(
            f"settings: there is none called '{unknown[0]}' here; there are "
            f"{', '.join(sorted(known))}. The batch size is the data module's, the epochs and the "
            "seed are those of the trainer"
        )
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    if given.get("weights"):
        given["weights"] = Path(given["weights"])
    given["backbone"] = backbone
    if image_size is not None:
        given["image_size"] = image_size if isinstance(image_size, int) else tuple(image_size)
    groups = {
        group.name: dataclasses.replace(
            getattr(config, group.name),
            **{
                each.name: given[each.name]
                for each in dataclasses.fields(getattr(config, group.name))
                if each.name in given
            },
        )
        for group in dataclasses.fields(config)
    }
    config = Config(**groups)
    config.check()
    if config.decisions.decision_protocol not in PROTOCOLS:
        raise UsageError(
            f"{_DECIDES}: expected one of {', '.join(PROTOCOLS)}, but got "
            f"{config.decisions.decision_protocol!r}"
        )
    return config


def _settings(config: Config) -> dict[str, Any]:
    """Those that are ours, by name; backbone and image size have arguments of their own."""
    found = {
        each.name: getattr(getattr(config, group), each.name)
        for group, left_out in _NOT_OURS.items()
        for each in dataclasses.fields(getattr(config, group))
        if each.name not in left_out
    }
    return {**found, _DECIDES: config.decisions.decision_protocol}


def _create_backbone(config: Config, *, pretrained: bool) -> Backbone:
    model = config.model
    return create_backbone(
        model.backbone,
        weights=model.weights if pretrained else None,
        pretrained=pretrained,
        components=model.components,
        layers=model.layers,
        combine=model.combine,
    )


def _feature_size(backbone: Backbone, config: Config) -> tuple[int, int, int]:
    """(C, H, W) of a feature; one that is yet to be fitted cannot be tried."""
    frame = config.model.frame
    if type(backbone).fit is not Backbone.fit:
        return backbone.channels, frame.height // backbone.stride, frame.width // backbone.stride
    channels, height, width = backbone(torch.zeros(1, 3, frame.height, frame.width)).shape[1:]
    return channels, height, width


def _check_convertible(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose images do not fill the frame, or do not count as a whole."""
    model = checkpoint.config.model
    for option, is_set in (
        ("--tile", model.tile is not None),
        ("--fit", model.fit),
        ("--roi or --ignore", bool(checkpoint.interest)),
    ):
        if is_set:
            raise CheckpointError(
                f"checkpoint: '{checkpoint.file}' was trained with {option}, which anomalib cannot "
                "do; use crad.load(), or train without it"
            )


def _decide_by(checkpoint: Checkpoint) -> PostProcessor:
    """What decides by the thresholds of a checkpoint; it marks nothing if there are none.

    Without normalisation, anomalib compares with 1 - sensitivity.
    """
    score = checkpoint.thresholds.score_of(None)
    pixel = checkpoint.pixel_thresholds.score_of(None)
    if score is None:
        return PostProcessor(enable_normalization=False, enable_thresholding=False)
    return PostProcessor(
        enable_normalization=False,
        image_sensitivity=1 - score,
        pixel_sensitivity=1 - (math.inf if pixel is None else pixel),
    )
