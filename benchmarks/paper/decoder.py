"""A small network that decodes features to images, which shows what the features hold."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.paper.choose import evenly
from benchmarks.paper.trained_run import TrainedRun
from crad.data.batches import load_batches
from crad.errors import OutputError
from crad.files import write_atomically
from crad.model.crad import CRAD

DECODERS = "decoders"
"""The folder that decoders are kept in, beside the runs."""

_MOST = 512  # training images
_STEPS = 400
_BATCH_SIZE = 8
_LEARNING_RATE = 4e-3
_WIDTH = 64


class Decoder(nn.Module):
    """Decode features ``(B, C, H, W)`` to images ``(B, 3, 4 H, 4 W)``.

    Args:
        channels: channels C of a feature.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.layers = nn.Sequential(
            _convolution(channels, _WIDTH),
            nn.GELU(),
            _convolution(_WIDTH, _WIDTH),
            nn.GELU(),
            _convolution(_WIDTH, 2 * _WIDTH),
            nn.PixelShuffle(2),
            nn.GELU(),
            _convolution(_WIDTH // 2, _WIDTH // 2),
            nn.GELU(),
            _convolution(_WIDTH // 2, 12),
            nn.PixelShuffle(2),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Decode features; pixels in [0, 1] but for overshoot."""
        decoded: Tensor = self.layers((feature - self.mean) / self.std)
        return decoded + 0.5


class Decoders:
    """The decoders of a run, trained on its training images, kept in files and reused.

    Args:
        run: they are trained on at most 512 of its training images.
        folder: of the files; the name of each holds a digest of what it was trained on.
    """

    def __init__(self, run: TrainedRun, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._inputs: tuple[Tensor, Tensor] | None = None

    def decode(self, kind: str, feature: Tensor) -> npt.NDArray[np.uint8]:
        """Decode features of a kind that `representations` names, to ``(B, 4 H, 4 W, 3)`` uint8.

        Raises:
            ImageError: a training image cannot be read.
            OSError: the decoder cannot be written.
            OutputError: the file of the decoder is damaged.
        """
        run = self._run
        decoder = Decoder(feature.shape[1]).to(run.device)
        states = [run.backbone.state_dict()]
        if kind != "feature":  # all models of a backbone share the decoder of its features
            states.append(run.model.state_dict())
        trained_on = repr([str(sample.path) for sample in run.train])
        path = self._folder / f"{kind}-{_digest(states, trained_on)}.safetensors"
        if path.exists():
            try:
                decoder.load_state_dict(safetensors.torch.load_file(path))
            except (safetensors.SafetensorError, RuntimeError) as error:
                raise OutputError(
                    f"decoder: '{path}' is damaged ({error}); remove it and run the command again"
                ) from error
        else:
            features, images = self._training_images()
            kinds = [representations(run.model, each)[kind] for each in features.split(_MOST // 8)]
            train_decoder(decoder, torch.cat(kinds), images, run.config.training.seed, kind)
            state = {name: each.cpu().contiguous() for name, each in decoder.state_dict().items()}
            data = safetensors.torch.save(state)
            write_atomically(path, lambda file: file.write(data))
        with torch.no_grad():
            decoded = decoder.eval()(feature).clamp(0, 1).mul(255).round().to(torch.uint8)
        pixels: npt.NDArray[np.uint8] = decoded.permute(0, 2, 3, 1).cpu().numpy()
        return pixels

    def _training_images(self) -> tuple[Tensor, Tensor]:
        """Features ``(N, C, H, W)`` of training images, and the images ``(N, 3, 4 H, 4 W)``."""
        if self._inputs is None:
            run = self._run
            features = run.features(evenly(run.train, _MOST))
            height, width = features.values.shape[1:3]
            batches = load_batches(
                features.samples,
                size=(4 * height, 4 * width),
                batch_size=16,
                decoding=run.config.decoding,
            )
            images = torch.cat([batch.images for batch in batches])
            feature = features.channels_first().to(run.device)
            self._inputs = feature, images.to(run.device)
        return self._inputs


@torch.no_grad()
def representations(model: CRAD, feature: Tensor) -> dict[str, Tensor]:
    """The intermediate features of a model, all of the shape ``(B, C, H, W)``.

    ``"feature"`` is the input, ``"local"`` and ``"global"`` are what the memories return for it
    (equations 2 and 3), if the model has them, and ``"normal"`` is their fusion (equation 4).
    """
    feature = feature.contiguous(memory_format=torch.channels_last)
    represented, _ = model.represent(feature)
    found = {"feature": feature}
    names = [name for name in ("global", "local") if getattr(model, f"{name}_representation")]
    if model.absent == "zeros":
        names = ["global", "local"]
    found |= zip(names, represented.split(feature.shape[1], dim=1), strict=True)
    return found | {"normal": model.fusion(represented)}


def train_decoder(
    decoder: Decoder, feature: Tensor, images: Tensor, seed: int, what: str = "feature"
) -> None:
    """Initialize and train a decoder: L1 loss of pixels, Adam, one-cycle learning rate.

    Args:
        decoder: on any device.
        feature: ``(N, C, H, W)``, on the same device.
        images: ``(N, 3, 4 H, 4 W)`` in [0, 1], on the same device.
        seed: of the weights and the order of the images.
        what: the kind of feature, for the progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim > 1:
                nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
            else:
                nn.init.zeros_(weight)
        decoder.mean.copy_(feature.mean(dim=(0, 2, 3))[:, None, None])
        decoder.std.copy_(feature.std(dim=(0, 2, 3)).clamp_min(1e-6)[:, None, None])
    optimizer = torch.optim.Adam(decoder.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_STEPS)
    decoder.train()
    for _ in tqdm(range(_STEPS), desc=f"decoder of {what}", leave=False, mininterval=0.5):
        chosen = torch.randint(len(feature), (_BATCH_SIZE,), generator=generator)
        chosen = chosen.to(feature.device)
        loss = F.l1_loss(decoder(feature[chosen]), images[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _convolution(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, padding=1, padding_mode="replicate")


def _digest(states: Sequence[Mapping[str, Tensor]], more: str) -> str:
    """A short digest of tensors and text."""
    settings = (_MOST, _STEPS, _BATCH_SIZE, _LEARNING_RATE, _WIDTH)
    digest = hashlib.sha256(repr((settings, more)).encode())
    for state in states:
        tensors = {name: each.cpu().contiguous() for name, each in state.items()}
        digest.update(safetensors.torch.save(tensors))
    return digest.hexdigest()[:16]
