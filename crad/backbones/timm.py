"""Features from the layers of any timm model: stages of a convolutional one, blocks of another."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from crad.backbones.base import Backbone, CombineName
from crad.backbones.weights import read_weights, summary
from crad.errors import BackboneError
from crad.memory import is_out_of_memory

_SEED = 20240924  # of random weights, which no file holds
_FOLDING_ERROR = 1e-5  # relative; rounding makes a third of it
_STRIDES = range(8, 17)  # finer stages have little context, coarser ones cannot localise

# How timm is asked for a model that takes images of any size; which of them it knows, or neither,
# depends on the architecture. Of former versions, Swin knows the first and ignores the second.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False},
    {"dynamic_img_size": True},
    {},
)


class TimmBackbone(Backbone):
    """Layers of a timm model, concatenated or averaged at the resolution of the finest.

    Coarser maps are upsampled bilinearly (corners aligned). Of a transformer, the features are the
    patch tokens as a block leaves them: without class and register tokens, and without the norm
    after the last block, whose weights were not trained for other blocks. Its position embeddings
    are resampled, as timm does it, so that images may have any size that is a multiple of the
    patch; architectures that are tied to one size take no other.

    By default, the last layer of each stride from 8 to 16 is used: EfficientNet-B4 has 56 + 160
    channels at stride 8, as in the paper. A model whose layers all have the same stride and number
    of channels, such as ViT and DINO, has the middle two thirds of its blocks averaged instead: 2
    to 9 of 12, and every second from 4 to 18 of 24, the blocks of Dinomaly (Guo et al., CVPR 2025),
    which averages them in two groups. The first blocks have little context, and the last ones lose
    detail to the objective of the training.

    For the arguments and errors see `crad.backbones.create_backbone`.

    Attributes:
        layers: that give the features, in order, counted from 0.
        combine: how they are combined.
    """

    model: Any
    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        name: str,
        *,
        weights: Path | None = None,
        pretrained: bool = True,
        layers: Sequence[int] | None = None,
        combine: CombineName | None = None,
    ) -> None:
        super().__init__()
        network = _load(name, weights) if pretrained else _create(name)
        if not hasattr(network, "forward_intermediates"):
            raise BackboneError(
                f"backbone: timm cannot take '{name}' apart into stages; choose another --backbone"
            )
        self.name = name
        sizes = [(layer["num_chs"], layer["reduction"]) for layer in network.feature_info]
        is_uniform = len(set(sizes)) == 1
        if layers:
            self.layers = _resolve(name, layers, len(sizes))
        elif layers is None and is_uniform and sizes[0][1] in _STRIDES:
            self.layers = _middle(len(sizes))
        else:
            self.layers = _last_of_each_stride(name, [stride for _, stride in sizes])
        self.combine = combine or ("mean" if is_uniform else "concat")
        used = {i: sizes[i] for i in self.layers}
        self.stride = min(stride for _, stride in used.values())
        self.channels = sum(channels for channels, _ in used.values())
        if self.combine == "mean":
            _check_mean(name, used)
            self.channels //= len(used)
        self._patch = self.stride if is_uniform else _patch_of(network)
        network.prune_intermediate_layers(self.layers, prune_norm=True)
        network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.model = nn.ModuleDict({"model": network})  # as checkpoints name its weights
        for key in ("mean", "std"):
            value = torch.tensor(network.pretrained_cfg[key])
            self.register_buffer(f"image_{key}", value[:, None, None])
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Raises:
            BackboneError: the model cannot take images of this size.
        """
        normalised = (images - self.image_mean) / self.image_std
        try:
            maps = self.model.model.forward_intermediates(
                normalised.contiguous(memory_format=torch.channels_last),
                indices=self.layers,
                intermediates_only=True,
            )
        except (AssertionError, RuntimeError) as error:
            height, width = images.shape[2:]
            if is_out_of_memory(error) or (height, width) == self._usual_size:
                raise
            raise self._misfit(height, width, error) from error
        if self.combine == "mean":
            return torch.stack(maps).mean(dim=0)
        size = max(tuple(each.shape[2:]) for each in maps)
        return torch.cat(
            [F.interpolate(each, size, mode="bilinear", align_corners=True) for each in maps], dim=1
        )

    @torch.no_grad()
    def folded(self, height: int, width: int) -> Backbone:
        """Give a copy for the CPU whose BatchNorms and paddings are folded into convolutions.

        They are 40 % of the time of an EfficientNet. The copy is tried on noise: where a model
        calls its modules in another order, it is the backbone itself.
        """
        if self.image_mean.device.type != "cpu" or not any(map(_has_statistics, self.modules())):
            return self
        copy = deepcopy(self)
        _fold_batch_norm(copy.model)
        _fold_padding(copy.model)
        noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(_SEED))
        try:
            expected, got = self(noise), copy(noise)
        except (BackboneError, RuntimeError):
            return self  # whose use says what is wrong
        return copy if (got - expected).norm() <= _FOLDING_ERROR * expected.norm() else self

    @property
    def _usual_size(self) -> tuple[int, int]:
        """The height and width of the images that the model was trained on."""
        _, height, width = self.model.model.pretrained_cfg["input_size"]
        return height, width

    def _misfit(self, height: int, width: int, error: Exception) -> BackboneError:
        """What to do about images that the model cannot take, for it failed with `error`."""
        got = f"backbone: '{self.name}' cannot take images of {height} x {width} pixels"
        patch = self._patch
        if height % patch == width % patch == 0:
            usual = "{} x {}".format(*self._usual_size)
            return BackboneError(
                f"{got} ({summary(error)}); choose another --image-size: it was trained at {usual}"
            )
        fitting = [
            "{} x {}".format(
                *(max(patch, (side + more) // patch * patch) for side in (height, width))
            )
            for more in (0, patch - 1)
        ]
        nearest = " or ".join(dict.fromkeys(fitting))
        return BackboneError(
            f"{got}, which are no multiple of its patch of {patch} pixels; choose another "
            f"--image-size: the nearest that fit are {nearest}"
        )


def _has_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm that a convolution can take in."""
    is_plain = type(module) is nn.BatchNorm2d or isinstance(module, BatchNormAct2d)
    return is_plain and module.running_mean is not None


def _fold_batch_norm(network: nn.Module) -> None:
    """Fold each BatchNorm into the convolution that stands before it, in place."""
    for parent in [*network.modules()]:
        for (name, convolution), (norm_name, norm) in pairwise([*parent.named_children()]):
            if (
                isinstance(convolution, nn.Conv2d)
                and isinstance(norm, nn.BatchNorm2d)
                and _has_statistics(norm)
                and convolution.out_channels == norm.num_features
            ):
                exact = fuse_conv_bn_eval(convolution.double(), norm.double())
                setattr(parent, name, exact.float())
                rest = (norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else ()
                setattr(parent, norm_name, nn.Sequential(*rest).float())


class _HalvingConvolution(nn.Module):
    """A convolution of stride 2 with TensorFlow's padding, which copies no even image for it.

    That padding has a row and a column less before the image than after it. A kernel that begins
    with zeros makes up for them, so that the convolution can pad on its own.
    """

    def __init__(self, convolution: Conv2dSame) -> None:
        super().__init__()
        self.convolution = convolution
        weight = F.pad(convolution.weight, (1, 0, 1, 0))
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] % 2 or images.shape[3] % 2:
            odd: Tensor = self.convolution(images)
            return odd
        plain = self.convolution
        padding = [size // 2 for size in plain.kernel_size]
        return F.conv2d(images, self.weight, plain.bias, 2, padding, groups=plain.groups)


def _fold_padding(network: nn.Module) -> None:
    """Replace each convolution that `_HalvingConvolution` can stand for, in place."""
    for parent in [*network.modules()]:
        for name, module in [*parent.named_children()]:
            if (
                type(module) is Conv2dSame
                and (module.stride, module.dilation) == ((2, 2), (1, 1))
                and all(size % 2 for size in module.kernel_size)
            ):
                setattr(parent, name, _HalvingConvolution(module))


def create(
    name: str,
    weights: Path | None,
    pretrained: bool,
    *,
    components: int,
    layers: Sequence[int] | None,
    combine: CombineName | None,
) -> TimmBackbone:
    """Make the backbone of a timm model, for `crad.backbones.create_backbone`."""
    return TimmBackbone(
        name, weights=weights, pretrained=pretrained, layers=layers, combine=combine
    )


def _resolve(name: str, layers: Sequence[int], count: int) -> list[int]:
    """The layers in order, counted from 0."""
    if wrong := [layer for layer in layers if not -count <= layer < count]:
        raise BackboneError(
            f"--layers: '{name}' has the layers 0 to {count - 1}, or -{count} to -1 from the end, "
            f"but got {wrong[0]}"
        )
    resolved = sorted({layer % count for layer in layers})
    if len(resolved) < len(layers):
        raise BackboneError(
            f"--layers: a layer of '{name}' is named twice in {' '.join(map(str, layers))}; name "
            "each once"
        )
    return resolved


def _middle(count: int) -> list[int]:
    """The middle two thirds of the blocks, or as many of them, evenly, as of twelve."""
    return list(range(count // 6, count - count // 6, max(1, count // 12)))


def _last_of_each_stride(name: str, strides: Sequence[int]) -> list[int]:
    last = {stride: i for i, stride in enumerate(strides) if stride in _STRIDES}
    if not last:
        raise BackboneError(
            f"backbone: '{name}' has layers at strides {sorted(set(strides))}, and none from 8 to "
            f"16; name some of its layers 0 to {len(strides) - 1} with --layers, or choose another "
            "--backbone"
        )
    return sorted(last.values())


def _check_mean(name: str, used: Mapping[int, tuple[int, int]]) -> None:
    """Refuse to average layers, given with channels and stride, that are not all alike."""
    if len(set(used.values())) > 1:
        found = ", ".join(
            f"{i} has {channels} at {stride}" for i, (channels, stride) in used.items()
        )
        raise BackboneError(
            f"--combine: the layers of '{name}' differ in channels or stride ({found}), so that "
            "they have no mean; name other --layers, or take --combine concat"
        )


def _patch_of(network: Any) -> int:
    """The side of the patches that a model cuts images into; 1 if it cuts none."""
    size = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    return int(max(size) if isinstance(size, tuple) else size)


def _create(name: str, state: dict[str, Tensor] | None = None, **classes: Any) -> Any:
    """The whole model, with the weights of `state` or the same random ones in every call.

    It takes images of any size, if its architecture can.
    """
    for sizes in _ANY_SIZE:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED)
                network: Any = timm.create_model(
                    name,
                    pretrained=state is not None,  # timm renames and resizes weights, and loads
                    pretrained_cfg_overlay=classes | {"state_dict": state},
                    **sizes,
                    **classes,
                )
            break
        except TypeError as error:
            if not any(argument in str(error) for argument in sizes):
                raise
    network.pretrained_cfg.pop("state_dict", None)  # frees the memory
    return network


def _create_loaded(name: str, state: dict[str, Tensor], **classes: Any) -> Any:
    """The whole model with all weights of `state`; timm itself lets some models lack a few.

    Raises:
        Exception: a weight is missing or too many; timm raises nearly anything.
    """
    network, blank = _create(name, state, **classes), _create(name, **classes)
    random = dict(blank.named_parameters())
    for key, weight in network.named_parameters():
        if weight.ndim > 1 and weight.std() > 0 and torch.equal(weight, random[key]):
            raise ValueError(f"the file lacks '{key}'")
    return network


def _load(name: str, path: Path | None) -> Any:
    """The whole model with the weights of a file, or those found, of any number of classes."""
    state, path = read_weights(name, path)
    config: Any = timm.get_pretrained_cfg(name)
    try:
        return _create_loaded(name, dict(state))
    except Exception:  # timm raises nearly anything for weights that do not fit
        heads = [config.classifier] if isinstance(config.classifier, str) else config.classifier
        state = {k: v for k, v in state.items() if k.rpartition(".")[0] not in (heads or ())}
    try:  # with other classes, or none
        return _create_loaded(name, state, num_classes=0)
    except Exception as error:
        raise BackboneError(
            f"weights: '{path}' does not fit '{name}' ({summary(error)}); give the weights of this "
            "model, or name theirs with --backbone"
        ) from error
