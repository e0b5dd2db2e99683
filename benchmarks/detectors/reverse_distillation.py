"""Reverse distillation, written from the paper, for any backbone with stages at strides 4, 8, 16.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022. The
one in anomalib is tied to ResNets, whose blocks it has for decoder.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.detectors import budget
from benchmarks.detectors.budget import Epochs
from benchmarks.detectors.inputs import SetInputs
from benchmarks.detectors.order import batches
from benchmarks.detectors.pyramid import Pyramid
from benchmarks.detectors.teaching import Residual, halve, smoothed, taught_maps
from crad.config import Config


@dataclass(frozen=True)
class ReverseDistillation:
    """A student decodes the maps of a teacher, the finest last, from a compact embedding of them.

    The paper mirrors its ResNet for the student. Here a stage of the student is a transposed
    convolution and a residual block, with the channels of the teacher's stage.

    Attributes:
        epochs: of training, as published.
        batch_size: as published.
        learning_rate: of Adam, as published, with betas 0.5 and 0.999.
        embedding: channels of the embedding, at stride 32.
    """

    epochs: int = 200
    batch_size: int = 16
    learning_rate: float = 0.005
    embedding: int = 256

    title: ClassVar[str] = "reverse distillation (ours)"
    takes_images: ClassVar[bool] = True

    def settings(self, config: Config) -> dict[str, Any]:
        """The attributes, and the time that training may take."""
        return {**asdict(self), "minutes": config.training.minutes}

    def fit(self, inputs: SetInputs, config: Config, device: torch.device) -> "TeacherAndStudent":
        """Train the student; the teacher's maps are computed once.

        Raises:
            BackboneError: the teacher's weights cannot be had.
            UsageError: the backbone has no such stages.
        """
        teacher, maps = taught_maps(inputs, config, device)
        minutes, n_steps = config.training.minutes, -(-len(inputs.train) // self.batch_size)
        epochs = budget.choose(
            self.epochs,
            minutes,
            lambda: (
                n_steps * budget.pace(_Training(self, teacher, maps, config.training.seed).step)
            ),
        )
        training = _Training(self, teacher, maps, config.training.seed)
        for _ in range(epochs.run * n_steps):
            training.step()
        return TeacherAndStudent(teacher, training.student.eval(), device, epochs)


class _Training:
    """The training of a student; a seed sets its weights and the order of the images."""

    def __init__(
        self, method: ReverseDistillation, teacher: Pyramid, maps: list[Tensor], seed: int
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.student = Student(teacher.channels, method.embedding).to(maps[0].device)
        self._maps = maps
        self._rows = batches(len(maps[0]), method.batch_size, seed)
        self._optimizer = torch.optim.Adam(
            self.student.parameters(), lr=method.learning_rate, betas=(0.5, 0.999)
        )

    def step(self) -> None:
        """Train on the next batch."""
        rows = next(self._rows).to(self._maps[0].device)
        taught = [stage[rows] for stage in self._maps]
        loss = torch.stack([each.mean() for each in distances(taught, self.student(taught))]).sum()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


class Student(nn.Module):
    """The embedding of a teacher's maps, and the decoder that makes the maps of it.

    Args:
        channels: of the teacher's maps at strides 4, 8 and 16.
        embedding: channels of the embedding.
    """

    def __init__(self, channels: list[int], embedding: int) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.down = nn.ModuleList(  # every map to stride 16
            [
                nn.Sequential(halve(fine, middle), halve(middle, coarse)),
                halve(middle, coarse),
                nn.Identity(),
            ]
        )
        self.embed = nn.Sequential(halve(3 * coarse, embedding), Residual(embedding))
        self.up = nn.ModuleList(
            nn.Sequential(_double(before, after), Residual(after))
            for before, after in ((embedding, coarse), (coarse, middle), (middle, fine))
        )
        self.out = nn.ModuleList(nn.Conv2d(each, each, 1) for each in (coarse, middle, fine))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """What the maps, the finest first, would be in a normal image."""
        fused = torch.cat([down(each) for down, each in zip(self.down, maps, strict=True)], dim=1)
        x, decoded = self.embed(fused), []
        for up, out, like in zip(self.up, self.out, maps[::-1], strict=True):
            x = up(x)[:, :, : like.shape[2], : like.shape[3]]  # of sizes that 32 does not divide
            decoded.append(out(x))
        return decoded[::-1]


def _double(before: int, after: int) -> nn.Module:
    convolution = nn.ConvTranspose2d(before, after, 2, 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def distances(taught: list[Tensor], decoded: list[Tensor]) -> list[Tensor]:
    """One minus the cosine of both features at each position ``(B, h, w)``, for each stage."""
    return [
        1 - F.cosine_similarity(one, other, dim=1)
        for one, other in zip(taught, decoded, strict=True)
    ]


@dataclass(frozen=True)
class TeacherAndStudent:
    """A trained `ReverseDistillation`."""

    teacher: Pyramid
    student: Student
    device: torch.device
    epochs: Epochs

    @property
    def n_bytes(self) -> int:
        """Size of the student."""
        return sum(tensor.nbytes for tensor in self.student.state_dict().values())

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the distances of all stages, smoothed, and its largest value."""
        taught = self.teacher(images.to(self.device))
        resized = [
            F.interpolate(each[:, None], images.shape[2:], mode="bilinear", align_corners=True)
            for each in distances(taught, self.student(taught))
        ]
        maps = smoothed(torch.stack(resized).sum(dim=0))[:, 0]
        return maps, maps.amax(dim=(1, 2))
