"""MKD, written from the paper, for any backbone with stages at strides 4, 8, 16.

Salehi et al., "Multiresolution Knowledge Distillation for Anomaly Detection", CVPR 2021.
"""

from collections.abc import Sequence
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
class MKD:
    """A smaller student learns the values and directions of a teacher's maps of normal images.

    Where the gradient of what separates both is large, an image is anomalous. The paper's teacher
    is a VGG-16, and its student one with fewer channels; here the teacher is the backbone, and a
    stage of the student a convolution and a residual block, with the channels of the teacher's. All
    settings are a choice of ours.

    Attributes:
        epochs: of training.
        batch_size: of training.
        learning_rate: of Adam.
    """

    epochs: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-3

    title: ClassVar[str] = "MKD (ours)"
    takes_images: ClassVar[bool] = True

    def settings(self, config: Config) -> dict[str, Any]:
        """The attributes, and the time that training may take."""
        return {**asdict(self), "minutes": config.training.minutes}

    def fit(self, inputs: SetInputs, config: Config, device: torch.device) -> "Distilled":
        """Train the student; the teacher's maps are computed once.

        Raises:
            BackboneError: the teacher's weights cannot be had.
            UsageError: the backbone has no such stages.
        """
        teacher, maps = taught_maps(inputs, config, device)
        n_steps = -(-len(inputs.train) // self.batch_size)

        def training() -> _Training:
            return _Training(self, teacher, maps, inputs, config.training.seed)

        epochs = budget.choose(
            self.epochs, config.training.minutes, lambda: n_steps * budget.pace(training().step)
        )
        trained = training()
        for _ in range(epochs.run * n_steps):
            trained.step()
        student = trained.student.eval().requires_grad_(False)
        return Distilled(teacher, student, trained.weight, device, epochs)


class _Training:
    """The training of a student; a seed sets its weights and the order of the images.

    Attributes:
        weight: of directions, with which they count as much as values before training.
    """

    def __init__(
        self, method: MKD, teacher: Pyramid, maps: list[Tensor], inputs: SetInputs, seed: int
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.student = Student(teacher.channels).to(maps[0].device)
        self.weight = 0.0
        self._teacher, self._maps, self._inputs = teacher, maps, inputs
        self._rows = batches(len(maps[0]), method.batch_size, seed)
        self._optimizer = torch.optim.Adam(self.student.parameters(), lr=method.learning_rate)

    def step(self) -> None:
        """Train on the next batch."""
        rows = next(self._rows)
        samples = [self._inputs.train.samples[row] for row in rows.tolist()]
        device = self._maps[0].device
        images = self._teacher.normalised(self._inputs.pixels.images(samples).to(device))
        taught = [stage[rows.to(device)] for stage in self._maps]
        values, directions = (each.mean() for each in differences(taught, self.student(images)))
        self.weight = self.weight or float(values.detach() / directions.detach())
        self._optimizer.zero_grad()
        (values + self.weight * directions).backward()
        self._optimizer.step()


class Student(nn.Module):
    """Makes maps at strides 4, 8 and 16 of normalised images.

    Args:
        channels: of the maps.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.stem = halve(3, fine)
        self.stages = nn.ModuleList(
            nn.Sequential(halve(before, after), Residual(after))
            for before, after in ((fine, fine), (fine, middle), (middle, coarse))
        )
        self.out = nn.ModuleList(nn.Conv2d(each, each, 1) for each in channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps, the finest first."""
        x, maps = self.stem(images), []
        for stage, out in zip(self.stages, self.out, strict=True):
            x = stage(x)
            maps.append(out(x))
        return maps


def differences(taught: Sequence[Tensor], learned: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """How far the maps of each image are apart, summed over stages.

    Returns:
        The mean squared difference of values ``(B,)``, and one minus the cosine ``(B,)`` of whole
        maps.
    """
    values, directions = [], []
    for one, other in zip(taught, learned, strict=True):
        one, other = one.flatten(1), other[..., : one.shape[2], : one.shape[3]].flatten(1)
        values.append((one - other).square().mean(dim=1))
        directions.append(1 - F.cosine_similarity(one, other, dim=1))
    return torch.stack(values).sum(dim=0), torch.stack(directions).sum(dim=0)


@dataclass(frozen=True)
class Distilled:
    """A trained `MKD`."""

    teacher: Pyramid
    student: Student
    weight: float
    device: torch.device
    epochs: Epochs

    @property
    def n_bytes(self) -> int:
        """Size of the student."""
        return sum(tensor.nbytes for tensor in self.student.state_dict().values())

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the loss by the pixels, smoothed and opened, and the loss."""
        with torch.inference_mode(False), torch.enable_grad():
            pixels = images.to(self.device).clone().requires_grad_()
            normalised = self.teacher.normalised(pixels)
            values, directions = differences(
                self.teacher.maps_of(normalised), self.student(normalised)
            )
            scores = values + self.weight * directions
            (slopes,) = torch.autograd.grad(scores.sum(), pixels)
        maps = opened(smoothed(slopes.abs().mean(dim=1, keepdim=True)))
        return maps[:, 0], scores.detach()


def opened(maps: Tensor) -> Tensor:
    """A morphological opening by 3 x 3 pixels, which takes away peaks that are smaller."""
    eroded = -F.max_pool2d(-maps, 3, 1, 1)
    return F.max_pool2d(eroded, 3, 1, 1)
