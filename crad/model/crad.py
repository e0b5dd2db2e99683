"""The CRAD model, which reconstructs feature maps from memories of normal ones.

Lee et al., "Continuous Memory Representation for Anomaly Detection", ECCV 2024, section 3.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from crad.model.memories import (
    MEMORIES,
    AddressName,
    InterpolationName,
    Memory,
    MemoryName,
    MemoryOptions,
    create_memory,
)

AbsentName = Literal["drop", "zeros"]

# An entry of vector quantisation is replaced if fewer features of a batch choose it. A batch has
# hundreds of features for each local entry, but about one for each global entry.
_DEAD_BELOW_LOCAL, _DEAD_BELOW_GLOBAL = 2.0, 0.1


class Reconstruction(NamedTuple):
    """What `CRAD` returns for a batch of features.

    Attributes:
        reconstruction: the refined normal feature, ``(B, C, H, W)`` (equation 5).
        anomaly_map: Euclidean distance of the feature from its reconstruction, ``(B, H, W)``, at
            least 0 (equation 8).
        loss: the training loss, 0-d: the mean squared error of the reconstruction (equation 7) plus
            the commitment losses of vector quantisation.
        normal_feature: the feature before refinement, ``(B, C, H, W)`` (equation 4).
        similarity: of the feature and the normal feature, ``(B, H, W)`` (equation 6).
    """

    reconstruction: Tensor
    anomaly_map: Tensor
    loss: Tensor
    normal_feature: Tensor
    similarity: Tensor


class CRAD(nn.Module):
    """Reconstruct features from memories of normal features.

    The local memory recalls a normal feature for each position, from the feature there (equation
    2). The global memory recalls a whole normal feature map, from the mean of the features over
    positions (equation 3). A network fuses the two (equation 4).

    Features are processed in ``torch.channels_last`` memory format: an input in that format is not
    copied, and the results are in it.

    Args:
        channels: channels C of a feature.
        height: height H of a feature map.
        width: width W of a feature map.
        local_memory: ``"grid"``, the continuous memory of the paper; ``"vq"`` or ``"attention"``,
            the discrete ones of its table 1; or ``"none"``, which leaves the branch out.
        global_memory: the same for the global memory.
        local_resolution: entries per axis of the local memory. A grid has one coordinate for each
            axis; a discrete memory has as many entries as the product.
        global_resolution: the same for the global memory.
        interpolation: between the entries of a grid: ``"linear"``, of the 2^D around a point, as in
            the paper, or ``"simplex"``, of D + 1 of them.
        address: what a discrete memory compares with its entries (the paper does not say):
            ``"feature"``, the feature itself (global: its mean over positions), or ``"hidden"``,
            the output of the first layer of a coordinate network.
        shrinkage: of the weights of ``"attention"``, as in `crad.model.memories.MemoryOptions`.
        absent: input of the fusion for a branch that is left out (the paper does not say):
            ``"drop"``, nothing, so that it has C channels instead of 2 C; or ``"zeros"``.
        depth: number of bottlenecks that fuse the two representations.
        expansion: channels inside a bottleneck.
        norm_batch: BatchNorm in training takes statistics of groups of this many images, as in
            `GroupedBatchNorm`; None takes those of the whole batch.
        jitter_std: standard deviation of the noise on the coordinates of a local grid in training,
            in [-1, 1] units (section 3.3).
        jitter_prob: probability that a training batch is jittered; the paper's text has 1.
        mse_weight: lambda_1 of equation 6; with both weights 0 there is no refinement.
        cosine_weight: lambda_2 of equation 6.
        mse_threshold: k of equation 6.

    Raises:
        MissingPackageError: ``"vq"`` needs a package that is not installed.
        TypeError: a resolution is not a sequence.
        ValueError: an argument is out of range, or both memories are left out.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        local_memory: MemoryName = "grid",
        global_memory: MemoryName = "grid",
        local_resolution: Sequence[int] = (8, 8),
        global_resolution: Sequence[int] = (4, 4),
        interpolation: InterpolationName = "linear",
        address: AddressName = "feature",
        shrinkage: float = 0.0,
        absent: AbsentName = "drop",
        depth: int = 11,
        expansion: int = 864,
        norm_batch: int | None = None,
        jitter_std: float = 0.05,
        jitter_prob: float = 0.5,
        mse_weight: float = 0.3,
        cosine_weight: float = 0.7,
        mse_threshold: float = 10.0,
    ) -> None:
        super().__init__()
        for name, value, expected, holds in (
            ("channels", channels, "positive", channels >= 1),
            ("height", height, "positive", height >= 1),
            ("width", width, "positive", width >= 1),
            ("shrinkage", shrinkage, "at least 0 and less than 1", 0 <= shrinkage < 1),
            ("depth", depth, "at least 0", depth >= 0),
            ("expansion", expansion, "positive", expansion >= 1),
            ("norm_batch", norm_batch, "at least 2", norm_batch is None or norm_batch >= 2),
            ("jitter_std", jitter_std, "at least 0 and finite", 0 <= jitter_std < math.inf),
            ("jitter_prob", jitter_prob, "0 to 1", 0 <= jitter_prob <= 1),
        ):
            if not holds:
                raise ValueError(f"CRAD(): expected {name} to be {expected}, but got {value}")
        for name, choice, choices in (
            ("local_memory", local_memory, (*MEMORIES, "none")),
            ("global_memory", global_memory, (*MEMORIES, "none")),
            ("interpolation", interpolation, get_args(InterpolationName)),
            ("address", address, get_args(AddressName)),
            ("absent", absent, get_args(AbsentName)),
        ):
            if choice not in choices:
                raise ValueError(
                    f"CRAD(): expected {name} to be one of {', '.join(choices)}, but got {choice!r}"
                )
        for name, resolution in (("local", local_resolution), ("global", global_resolution)):
            if not isinstance(resolution, Sequence):
                raise TypeError(
                    f"CRAD(): expected {name}_resolution to be a size for each coordinate, such as "
                    f"(8, 8), but got {resolution!r}"
                )
            if not resolution or min(resolution) < 1:
                raise ValueError(
                    f"CRAD(): expected {name}_resolution to be one or more positive sizes, "
                    f"but got {resolution!r}"
                )
        if local_memory == global_memory == "none":
            raise ValueError("CRAD(): expected a local or a global memory, but got none for both")
        self.feature_size = (channels, height, width)
        self.mse_weight = mse_weight
        self.cosine_weight = cosine_weight
        self.mse_threshold = mse_threshold
        self.absent = absent
        self.local_representation = create_memory(
            local_memory,
            channels,
            channels,
            local_resolution,
            MemoryOptions(
                jitter_std=jitter_std,
                jitter_prob=jitter_prob,
                mode=interpolation,
                address=address,
                shrinkage=shrinkage,
                dead_below=_DEAD_BELOW_LOCAL,
            ),
        )
        # An entry holds a feature map in the order (H, W, C), so that it comes out channels last.
        self.global_representation = create_memory(
            global_memory,
            channels,
            height * width * channels,
            global_resolution,
            MemoryOptions(
                mode=interpolation,
                address=address,
                shrinkage=shrinkage,
                dead_below=_DEAD_BELOW_GLOBAL,
            ),
        )
        branches = 2 if absent == "zeros" else len(self.memories())
        self.fusion = nn.Sequential(
            *(Bottleneck(branches * channels, expansion, norm_batch) for _ in range(depth)),
            nn.Conv2d(branches * channels, channels, 1, bias=False),
        )
        self.apply(_initialise)
        self.fusion.to(memory_format=torch.channels_last)

    def forward(self, feature: Tensor) -> Reconstruction:
        """Reconstruct ``feature``.

        Args:
            feature: ``(B, C, H, W)``, floating point; all but the fusion, which follows autocast,
                is computed in float32.

        Raises:
            ValueError: the shape of ``feature`` is not that of the model.
        """
        if feature.shape[1:] != self.feature_size:
            expected = ", ".join(map(str, self.feature_size))
            raise ValueError(
                f"CRAD(): expected a feature of shape (B, {expected}), "
                f"but got {tuple(feature.shape)}"
            )
        with torch.autocast(feature.device.type, enabled=False):
            feature = feature.float().contiguous(memory_format=torch.channels_last)
            represented, loss = self.represent(feature)
        normal_feature = self.fusion(represented)
        with torch.autocast(feature.device.type, enabled=False):
            return self._refine(feature, normal_feature.float(), loss)

    def represent(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Look up a feature ``(B, C, H, W)``, float32 and channels last, in the memories.

        Returns the global and local representations, ``(B, C or 2 C, H, W)``, and the loss.
        """
        channels, height, width = self.feature_size
        whole = local = [torch.zeros_like(feature)] if self.absent == "zeros" else []
        loss = feature.new_zeros(())
        if self.global_representation:
            recalled = self.global_representation(feature.mean(dim=(2, 3)))
            whole = [recalled.entries.view(-1, height, width, channels).permute(0, 3, 1, 2)]
            loss = loss + recalled.loss
        if self.local_representation:
            recalled = self.local_representation(feature.permute(0, 2, 3, 1))
            local = [recalled.entries.permute(0, 3, 1, 2)]
            loss = loss + recalled.loss
        return torch.cat(whole + local, dim=1), loss

    def _refine(self, feature: Tensor, normal_feature: Tensor, loss: Tensor) -> Reconstruction:
        # x - x_hat = (1 - S) (x - f_n), so the loss and the map need only sums over channels, and
        # the backward pass does not run through the reconstruction.
        mse = (feature - normal_feature).square().mean(dim=1)
        similarity = self.mse_weight * (mse < self.mse_threshold).to(mse.dtype)
        similarity = similarity + self.cosine_weight * F.cosine_similarity(feature, normal_feature)
        error = (1 - similarity).square() * mse
        return Reconstruction(
            reconstruction=torch.lerp(normal_feature, feature, similarity[:, None]),
            anomaly_map=(error * feature.shape[1]).sqrt(),
            loss=error.mean() + loss,
            normal_feature=normal_feature,
            similarity=similarity,
        )

    def fold_batch_norm(self) -> "CRAD":
        """Fold every BatchNorm into the convolution before it, for inference only.

        Changes the model in place, puts it into evaluation mode and returns it. The results are
        equal up to float32 rounding; the parameters are no longer those of a checkpoint.
        """
        self.eval()
        for module in self.fusion.modules():
            if isinstance(module, Bottleneck):
                module.fold_batch_norm()
        self.fusion.to(memory_format=torch.channels_last)
        return self

    def memory_parameters(self) -> Iterator[nn.Parameter]:
        """The entries of the memories, which learn at a rate of their own."""
        for memory in self.memories():
            yield from memory.entries()

    def memories(self) -> list[Memory]:
        """The memories of the model: local, global."""
        both = (self.local_representation, self.global_representation)
        return [memory for memory in both if memory]

    def network_parameters(self) -> Iterator[nn.Parameter]:
        """All other parameters."""
        memories = {id(values) for values in self.memory_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in memories)


class Bottleneck(nn.Module):
    """Residual inverted bottleneck ``(B, channels, H, W)`` of ``expansion`` channels inside.

    Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """

    def __init__(self, channels: int, expansion: int, norm_batch: int | None = None) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, expansion, 1, bias=False)
        self.expand_norm = _batch_norm(expansion, norm_batch)
        self.depthwise = nn.Conv2d(expansion, expansion, 3, padding=1, groups=expansion, bias=False)
        self.depthwise_norm = _batch_norm(expansion, norm_batch)
        self.excitation = SqueezeExcitation(expansion)
        self.project = nn.Conv2d(expansion, channels, 1, bias=False)
        self.project_norm = _batch_norm(channels, norm_batch)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, filter depthwise, weight channels, project, add."""
        inner = F.hardswish(self.expand_norm(self.expand(x)))
        inner = F.hardswish(self.excitation(self.depthwise_norm(self.depthwise(inner))))
        change: Tensor = self.project_norm(self.project(inner))
        return x + change

    def fold_batch_norm(self) -> None:
        """Fold every BatchNorm, in evaluation mode, into the convolution before it, in place."""
        for name in ("expand", "depthwise", "project"):
            norm = getattr(self, f"{name}_norm")
            if isinstance(norm, nn.BatchNorm2d):
                setattr(self, name, fuse_conv_bn_eval(getattr(self, name), norm))
                setattr(self, f"{name}_norm", nn.Identity())


class GroupedBatchNorm(nn.BatchNorm2d):
    """BatchNorm with statistics of groups of images of a batch, in training.

    A step moves the running statistics as far as one of `torch.nn.BatchNorm2d` does, towards the
    mean over the groups. "Ghost batch normalization": Hoffer et al., "Train longer, generalize
    better", NeurIPS 2017.

    Args:
        channels: channels of the input.
        group: images in a group, at least 2. The last group may be smaller, but a single image
            joins the group before it.
    """

    def __init__(self, channels: int, group: int) -> None:
        super().__init__(channels)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, channels, H, W)``."""
        if not self.training or len(x) <= self.group + 1:
            return super().forward(x)
        assert self.num_batches_tracked is not None  # running statistics are kept
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        whole, rest = divmod(len(x), self.group)
        sizes = [self.group] * whole + [rest] * (rest > 0)
        if rest == 1:
            sizes[-2:] = [self.group + 1]
        normalised = []
        for to_come, part in zip(reversed(range(len(sizes))), x.split(sizes), strict=True):
            out = F.batch_norm(
                *(part, self.running_mean, self.running_var, self.weight, self.bias),
                training=True,
                # So that all groups weigh the same after the last, `momentum` together.
                momentum=self.momentum / (len(sizes) - self.momentum * to_come),
                eps=self.eps,
            )
            normalised.append(out)
        return torch.cat(normalised)


class SqueezeExcitation(nn.Module):
    """Weight the channels of ``(B, channels, H, W)`` by a function of their means.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 4)
        self.squeeze = nn.Linear(channels, squeezed, bias=False)
        self.excite = nn.Linear(squeezed, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weight the channels of ``x``."""
        weights = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * weights[:, :, None, None]


def _batch_norm(channels: int, group: int | None) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels) if group is None else GroupedBatchNorm(channels, group)


def _initialise(module: nn.Module) -> None:
    # Small weights: at the start of training every coordinate is near the centre of its grid.
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
