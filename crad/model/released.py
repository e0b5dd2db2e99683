"""The state of the authors' released CRAD, read into ours.

What is known of it: the architecture, that the names of its tensors hold ``query``, ``coord``,
``coord_``, ``layer`` (the bottlenecks) and ``recover`` (the last convolution), that grids are
channels first, and that the fusion gets the global representation first. What is not: which names
the tensors have below these. So a tensor's part is told by its shape and by the order in which the
state lists it, and a state that leaves a doubt is refused.

Inferred, not known: that the coordinate network of the local memory is of 1x1 convolutions and that
of the global one of linear layers; that of the BatchNorms of a bottleneck, and of two convolutions
of one shape, the first listed comes first; that BatchNorm has PyTorch's epsilon; that feature maps
are square. No file of the authors has been read with this.
"""

import math
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from crad.errors import CradError
from crad.model.crad import CRAD

_PARTS = ("query", "coord", "coord_", "layer", "recover")
_COUNT = "num_batches_tracked"
_NORM = ("weight", "bias", "running_mean", "running_var", _COUNT)
_BOTTLENECK = (
    *("expand", "expand_norm", "depthwise", "depthwise_norm"),
    *("excitation.squeeze", "excitation.excite", "project", "project_norm"),
)
_SHOWN = 8


class ReleasedStateError(CradError, ValueError):
    """A state that is not known to be one of the released CRAD; the message says why."""


def from_released(state_dict: Mapping[str, Tensor], ignore: Collection[str] = ()) -> CRAD:
    """Make a model of the weights of the released implementation.

    Args:
        state_dict: its tensors by name, with the prefix of DistributedDataParallel or not.
        ignore: what the names to leave out begin with, such as a backbone's, ``["net."]``.

    Returns:
        The model, in training mode as any new one, with the options of the released one.

    Raises:
        ReleasedStateError: a tensor has no place in our model, or a place no tensor.
    """
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    tensors: dict[str, Tensor] = {}
    for full, tensor in state_dict.items():
        name = full.removeprefix("module.")
        if name.startswith(ignored):
            continue
        if name in tensors:
            raise ReleasedStateError(f"'{name}' is there twice, once behind 'module.'")
        tensors[name] = tensor
    tensors = translate(tensors)
    values = tensors["local_representation.memory.values"]
    entries = tensors["global_representation.memory.values"]
    side = math.isqrt(entries.shape[-1] // values.shape[-1])
    depth = sum(name.endswith(".expand.weight") for name in tensors)
    first = tensors.get("fusion.0.expand.weight")
    model = CRAD(
        values.shape[-1],
        side,
        side,
        local_resolution=values.shape[:-1],
        global_resolution=entries.shape[:-1],
        depth=depth,
        expansion=1 if first is None else len(first),
    )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ReleasedStateError(f"its tensors are not those of a CRAD: {reason}") from error
    return model


def translate(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name and lay out tensors of the released model as `crad.CRAD` does.

    Args:
        state_dict: its tensors; those of one kind, such as gradients, will do as well.

    Raises:
        ReleasedStateError: as for `from_released`.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("memories", "layer", "recover")}
    unknown = []
    for name, tensor in state_dict.items():
        part = next((each for each in name.split(".") if each in _PARTS), None)
        if part is None:
            unknown.append(name)
        else:
            _check_tensor(name, tensor)
            parts[part if part in parts else "memories"][name] = tensor
    if unknown:
        raise ReleasedStateError(
            f"the names {_listed(unknown)} are none of the model's parts ({', '.join(_PARTS)}); if "
            "they are the backbone's, leave out what begins as they do (--ignore)"
        )
    if len(parts["recover"]) != 1:
        raise ReleasedStateError(
            f"expected one tensor 'recover', the last convolution, but got "
            f"{_listed(parts['recover']) or 'none'}"
        )
    (last,) = parts["recover"].values()
    channels = len(last)
    if last.shape != (channels, 2 * channels, 1, 1):
        raise ReleasedStateError(
            f"'recover' has the shape {tuple(last.shape)}; expected (C, 2 C, 1, 1)"
        )
    translated = _memories(parts["memories"], channels)
    blocks = _blocks(parts["layer"])
    for index, block in enumerate(blocks):
        for name, tensor in _bottleneck(block, 2 * channels).items():
            translated[f"fusion.{index}.{name}"] = tensor
    translated[f"fusion.{len(blocks)}.weight"] = last
    return translated


def _check_tensor(name: str, tensor: Tensor) -> None:
    """Refuse what is no weight, bias or statistic of any layer, nor a count of batches."""
    is_count = name.endswith(_COUNT)
    if tensor.layout != torch.strided or not (is_count or tensor.is_floating_point()):
        raise ReleasedStateError(
            f"'{name}' is of {tensor.dtype}, {tensor.layout}; expected floating point, not sparse"
        )
    if not tensor.numel() or (tensor.ndim == 0 and not is_count):
        raise ReleasedStateError(
            f"'{name}' has the shape {tuple(tensor.shape)}; expected one or more axes, none empty"
        )
    if not tensor.isfinite().all():
        raise ReleasedStateError(f"'{name}' holds NaN or infinite numbers")


def _memories(tensors: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """The two grids, and the coordinate networks that belong to them."""
    placed: dict[str, Tensor] = {}
    left = dict(tensors)
    for name, tensor in tensors.items():
        if name in left and (role := _role_in_memories(tensor, channels)):
            _place(placed, role, _channels_last(tensor, channels), name)
            del left[name]
            bias = name.removesuffix("weight") + "bias"
            if role.endswith(".weight") and bias in left:
                placed[role.removesuffix("weight") + "bias"] = left.pop(bias)
    layers = [f"coordinates.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    expected = [
        f"{branch}_representation.{name}"
        for branch in ("local", "global")
        for name in ("memory.values", *layers)
    ]
    _check_all_placed(left, placed, expected, "memories")
    return placed


def _role_in_memories(tensor: Tensor, channels: int) -> str | None:
    """Our name for a grid ``(1, C or C H W, R, R)`` or the weight of a layer; None for others."""
    if tensor.ndim not in (2, 4):
        return None
    first, second = tensor.shape[:2]
    if tensor.ndim == 4 and first == 1:
        if second == channels:
            return "local_representation.memory.values"
        square = second % channels == 0 and _is_square(second // channels)
        return "global_representation.memory.values" if square else None
    if second != channels or tensor.shape[2:].numel() != 1:
        return None
    branch = "local" if tensor.ndim == 4 else "global"  # 1x1 convolutions, linear layers
    layer = {channels: 0, 2: 2}.get(first)
    return None if layer is None else f"{branch}_representation.coordinates.{layer}.weight"


def _channels_last(tensor: Tensor, channels: int) -> Tensor:
    """The layout of ours: grids channels last, an entry of the global one too; linear layers."""
    if len(tensor) != 1:
        return tensor.flatten(1)
    side = math.isqrt(tensor.shape[1] // channels)
    entries: Tensor = tensor[0].unflatten(0, (channels, side, side))
    return entries.permute(3, 4, 1, 2, 0).flatten(2).contiguous()


def _blocks(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of each bottleneck, by name."""
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.search(r"(?:^|\.)layer\.(\d+)\.", name)
        if not found:
            raise ReleasedStateError(f"'{name}' names no bottleneck; expected layer.NUMBER.NAME")
        blocks.setdefault(int(found[1]), {})[name] = tensor
    if missing := set(range(max(blocks, default=0) + 1)) - blocks.keys():
        raise ReleasedStateError(f"there is no bottleneck 'layer.{min(missing)}'")
    return [blocks[number] for number in sorted(blocks)]


def _bottleneck(tensors: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """One bottleneck of ``channels`` outside."""
    placed: dict[str, Tensor] = {}
    left = dict(tensors)
    weights = {name: tensor for name, tensor in tensors.items() if name.endswith("weight")}
    inside = next((len(t) for t in weights.values() if t.ndim == 4 and t.shape[-1] > 1), 0)
    if not inside:
        raise ReleasedStateError(f"there is no depthwise convolution among {_listed(tensors)}")
    norms = iter(("expand_norm", "depthwise_norm", "project_norm"))
    for name, tensor in weights.items():
        if tensor.ndim == 1 and (norm := next(norms, None)):
            stem = name.removesuffix("weight")
            for kind in _NORM:
                if stem + kind in left:
                    placed[f"{norm}.{kind}"] = left.pop(stem + kind)
        elif tensor.ndim > 1 and (role := _role_in_bottleneck(tensor, channels, inside, placed)):
            layer = tensor.flatten(1) if role.startswith("excitation") else tensor
            _place(placed, f"{role}.weight", layer, name)
            del left[name]
    expected = [f"{role}.weight" for role in _BOTTLENECK]
    _check_all_placed(left, placed, expected, "bottlenecks 'layer'")
    return placed


def _role_in_bottleneck(
    tensor: Tensor, channels: int, inside: int, placed: Collection[str]
) -> str | None:
    """Our name for a convolution or linear layer; of two of one shape the first listed expands."""
    if tensor.ndim == 4 and tensor.shape[-1] > 1:
        return "depthwise"
    first, second = tensor.shape[0], tensor.shape[1:].numel()
    if (first, second) == (inside, channels) and "expand.weight" not in placed:
        return "expand"
    if (first, second) == (channels, inside):
        return "project"
    if second == inside:
        return "excitation.squeeze"
    return "excitation.excite" if first == inside else None


def _place(placed: dict[str, Tensor], role: str, tensor: Tensor, name: str) -> None:
    if role in placed:
        raise ReleasedStateError(
            f"'{name}' of shape {tuple(tensor.shape)} and a tensor before it both look like {role}"
        )
    placed[role] = tensor


def _check_all_placed(
    left: Collection[str], placed: Collection[str], expected: Collection[str], part: str
) -> None:
    """Refuse names that have no place, and places that have no name."""
    if left:
        raise ReleasedStateError(f"no place in the {part} of CRAD for {_listed(left)}")
    if missing := [role for role in expected if role not in placed]:
        raise ReleasedStateError(f"nothing in the {part} of the file looks like {_listed(missing)}")


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in list(names)[:_SHOWN]) + more
