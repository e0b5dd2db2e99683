"""Converting the state of the authors' released CRAD to ours.

What is known of it: the architecture, that the names of its tensors contain ``query``, ``coord``,
``coord_``, ``layer`` (the bottlenecks) and ``recover`` (the last convolution), that grids are
channels first, and that the fusion gets the global representation first. The rest of the names is
not known, so a tensor is recognised by its shape, and of several with one shape the first listed
comes first. A state with a tensor too many or too few is refused.

Inferred, not known: that the coordinate network of the local memory is of 1x1 convolutions and that
of the global one of linear layers; that a state lists the layers of one shape in the order of the
forward pass; that BatchNorm has PyTorch's epsilon; that feature maps are square. No file of the
authors has been read with this.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from crad.errors import CradError
from crad.model.crad import CRAD

_PARTS = {
    "query": "memories",
    "coord": "memories",
    "coord_": "memories",
    "layer": "bottlenecks",
    "recover": "last convolution",
}
_NORM = ("bias", "running_mean", "running_var", "num_batches_tracked")
_SHOWN = 8

_Test = Callable[[Tensor], bool]


class ReleasedStateError(CradError, ValueError):
    """A state that is not known to be one of the released CRAD; the message says why."""


def from_released(state_dict: Mapping[str, Tensor], ignore: Collection[str] = ()) -> CRAD:
    """Make a model with the weights of the released implementation.

    Args:
        state_dict: its tensors by name, with the prefix of DistributedDataParallel or without.
        ignore: prefixes of names to leave out, such as a backbone's, ``["net."]``.

    Returns:
        The model, in training mode as any new one, with the options of the released one.

    Raises:
        ReleasedStateError: a tensor has no place in our model, or a place no tensor.
    """
    ignored = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    released: dict[str, Tensor] = {}
    for full, tensor in state_dict.items():
        name = full.removeprefix("module.")
        if name in released:
            raise ReleasedStateError(f"'{name}' is there twice, once behind 'module.'")
        if not name.startswith(ignored):
            released[name] = tensor
    tensors = translate(released)
    values = tensors["local_representation.memory.weight"]
    entries = tensors["global_representation.memory.weight"]
    side = math.isqrt(entries.shape[-1] // values.shape[-1])
    model = CRAD(
        values.shape[-1],
        side,
        side,
        local_resolution=values.shape[:-1],
        global_resolution=entries.shape[:-1],
        depth=sum(name.endswith(".expand.weight") for name in tensors),
        expansion=len(tensors["fusion.0.expand.weight"]),
    )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ReleasedStateError(f"its tensors are not those of a CRAD: {reason}") from error
    return model


def translate(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and lay out tensors of the released model, or their gradients, as `crad.CRAD` does."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state_dict.items():
        part = next((_PARTS[each] for each in name.split(".") if each in _PARTS), "unknown")
        parts[part][name] = tensor
    if unknown := parts["unknown"]:
        raise ReleasedStateError(
            f"the names {_listed(unknown)} are none of the model's parts ({', '.join(_PARTS)}); if "
            "they are the backbone's, leave out what begins as they do (--ignore)"
        )
    for name, tensor in state_dict.items():
        _check_tensor(name, tensor)
    last = parts["last convolution"]
    shapes = [tuple(tensor.shape) for tensor in last.values()]
    channels = max((shape[0] for shape in shapes if shape), default=0)
    if not channels or shapes != [(channels, 2 * channels, 1, 1)]:
        raise ReleasedStateError(
            "expected one tensor 'recover' of shape (C, 2 C, 1, 1), the last convolution, but got "
            f"{_listed(last) or 'none'} of shapes {shapes}"
        )
    translated = _memories(parts["memories"], channels)
    blocks = _blocks(parts["bottlenecks"])
    for index, block in enumerate(blocks):
        for name, tensor in _bottleneck(block, 2 * channels).items():
            translated[f"fusion.{index}.{name}"] = tensor
    (translated[f"fusion.{len(blocks)}.weight"],) = last.values()
    return translated


def _check_tensor(name: str, tensor: Tensor) -> None:
    is_count = name.endswith("num_batches_tracked")
    if tensor.layout != torch.strided or not (is_count or tensor.is_floating_point()):
        raise ReleasedStateError(
            f"'{name}' is of {tensor.dtype}, {tensor.layout}; expected floating point, not sparse"
        )
    if not tensor.isfinite().all():
        raise ReleasedStateError(f"'{name}' holds NaN or infinite numbers")


def _memories(tensors: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """The two grids and their coordinate networks, channels last and of linear layers as ours."""
    local, whole = "local_representation", "global_representation"
    assigned = _assign(
        tensors,
        {
            f"{local}.memory.weight": lambda grid: _side(grid, channels) == 1,
            f"{whole}.memory.weight": lambda grid: _side(grid, channels) > 1,
            f"{local}.coordinates.0.weight": _has((channels, channels, 1, 1)),
            f"{local}.coordinates.2.weight": _has((2, channels, 1, 1)),
            f"{whole}.coordinates.0.weight": _has((channels, channels)),
            f"{whole}.coordinates.2.weight": _has((2, channels)),
        },
        "memories",
    )
    for name, tensor in assigned.items():
        if name.endswith("memory.weight"):
            side = _side(tensor, channels)
            entries: Tensor = tensor[0].unflatten(0, (channels, side, side))
            assigned[name] = entries.permute(3, 4, 1, 2, 0).flatten(2).contiguous()
        elif tensor.ndim == 4:
            assigned[name] = tensor.flatten(1)
    return assigned


def _side(grid: Tensor, channels: int) -> int:
    """The side S of the maps that a grid ``(1, C S S, R, R)`` holds; 0 for other tensors."""
    if grid.ndim != 4 or len(grid) != 1:
        return 0
    side = math.isqrt(grid.shape[1] // channels)
    return side if grid.shape[1] == channels * side**2 else 0


def _blocks(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of each bottleneck, by name."""
    blocks: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        found = re.search(r"(?:^|\.)layer\.(\d+)\.", name)
        if not found:
            raise ReleasedStateError(f"'{name}' names no bottleneck; expected layer.NUMBER.NAME")
        blocks[int(found[1])][name] = tensor
    if missing := set(range(max(blocks, default=0) + 1)) - blocks.keys():
        raise ReleasedStateError(f"there is no bottleneck 'layer.{min(missing)}'")
    return [blocks[number] for number in sorted(blocks)]


def _bottleneck(tensors: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """One bottleneck of ``channels`` outside."""
    kernels = (t for t in tensors.values() if t.ndim == 4 and t.shape[-1] > 1)
    inside = next(map(len, kernels), 0)
    if not inside:
        raise ReleasedStateError(f"there is no depthwise convolution among {_listed(tensors)}")
    squeezed = max(1, inside // 4)
    assigned = _assign(
        tensors,
        {
            "expand.weight": _has((inside, channels, 1, 1)),
            "expand_norm.weight": _has((inside,)),
            "depthwise.weight": _has((inside, 1, 3, 3)),
            "depthwise_norm.weight": _has((inside,)),
            "excitation.squeeze.weight": _has((squeezed, inside), (squeezed, inside, 1, 1)),
            "excitation.excite.weight": _has((inside, squeezed), (inside, squeezed, 1, 1)),
            "project.weight": _has((channels, inside, 1, 1)),
            "project_norm.weight": _has((channels,)),
        },
        "bottlenecks 'layer'",
    )
    for name in ("excitation.squeeze.weight", "excitation.excite.weight"):
        assigned[name] = assigned[name].flatten(1)
    return assigned


def _has(*shapes: tuple[int, ...]) -> _Test:
    """Whether a tensor has one of the shapes."""
    return lambda tensor: tuple(tensor.shape) in shapes


def _assign(
    tensors: Mapping[str, Tensor], roles: Mapping[str, _Test], part: str
) -> dict[str, Tensor]:
    """Give each weight of ours the first unused tensor that fits, with the bias and so on."""
    left = dict(tensors)
    assigned = {}
    for role, fits in roles.items():
        weights = (name for name in left if name.rpartition(".")[2] not in _NORM)
        name = next((name for name in weights if fits(left[name])), None)
        if name is None:
            raise ReleasedStateError(f"nothing in the {part} of the file looks like '{role}'")
        assigned[role] = left.pop(name)
        kinds = _NORM if "_norm" in role else ("bias",) if "coordinates" in role else ()
        for kind in kinds:
            beside = name.removesuffix("weight") + kind
            if beside in left:
                assigned[role.removesuffix("weight") + kind] = left.pop(beside)
    if left:
        raise ReleasedStateError(f"no place in the {part} of CRAD for {_listed(left)}")
    return assigned


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in list(names)[:_SHOWN]) + more
