"""A learnable grid as a module."""

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from crad_kernels._backends import find
from crad_kernels.functional import (
    SCRIPT_UNSUPPORTED,
    check_jitter_std,
    check_jitter_tensor,
    check_options,
    sample,
)


def _integer(number: Any) -> int:
    """`operator.index`, which takes bools too, without them."""
    if isinstance(number, bool):
        raise TypeError(f"{number} is no size")
    return operator.index(number)


class GridMemory(nn.Module):
    """A learnable N-dimensional grid: coordinates in, interpolated entries out.

    Equivalent to ``crad_kernels.sample(self.weight, coords, ...)``, with the jitter on in training
    mode only. Parametrizations of ``torch.nn.utils`` find the entries where those of other modules
    are, in ``weight``; a state that holds them as ``values``, their former name, loads as well.

    Args:
        channels: channels C of an entry.
        resolution: entries per axis, an int for all axes or one per axis in size order (the axis
            that the *last* component of a coordinate moves along comes first).
        ndim: number of axes D, by default as many as ``resolution`` has entries, or 2 for an int.
        jitter_std: standard deviation of the Gaussian jitter in ``coords_unit``, a float or one per
            component in coords order. A ``torch.nn.Parameter`` is learned, and another tensor
            becomes a buffer: 0-d or ``(D,)``, as in `crad_kernels.sample`.
        mode: as in `crad_kernels.sample`, and so are the four that follow.
        padding_mode: see ``mode``.
        align_corners: see ``mode``.
        coords_unit: see ``mode``.
        backend: see ``mode``.

    Attributes:
        weight: the entries, ``(*size, C)``, Xavier-normal with the fans of a ``(1, C, *size)``
            tensor (Glorot and Bengio, 2010).

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if ``channels`` or ``resolution`` is not positive, ``ndim`` not its length,
            ``jitter_std`` negative, or a mode or the backend unknown.
    """

    # Standard deviations given as numbers, as `sample` wants them: no tensor is made at a call. No
    # buffer, which DistributedDataParallel would write to between a call and its backward pass.
    _std: Tensor | None

    def __init__(
        self,
        channels: int,
        resolution: int | Sequence[int],
        ndim: int | None = None,
        *,
        jitter_std: float | Sequence[float] | Tensor = 0.0,
        mode: str = "linear",
        padding_mode: str | Sequence[str] = "zeros",
        align_corners: bool | Sequence[bool] = False,
        coords_unit: str = "normalized",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        try:
            if isinstance(resolution, numbers.Integral):
                ndim = 2 if ndim is None else _integer(ndim)
                size = (_integer(resolution),) * ndim
            else:
                size = tuple(map(_integer, cast(Sequence[int], resolution)))
                ndim = len(size) if ndim is None else _integer(ndim)
            channels = _integer(channels)
        except TypeError as error:
            raise TypeError(
                "GridMemory(): expected channels and ndim to be ints, and resolution an int or "
                f"ints, but got channels={channels!r}, ndim={ndim!r}, resolution={resolution!r}"
            ) from error
        if channels < 1 or not size or min(size) < 1:
            raise ValueError(
                "GridMemory(): expected channels and resolution to be positive, but got "
                f"channels={channels} and resolution={resolution} with ndim={ndim}"
            )
        if ndim != len(size):
            raise ValueError(
                f"GridMemory(): expected ndim to be the length of resolution, {len(size)}, but got "
                f"{ndim}; leave it out"
            )
        check_options(mode, padding_mode, align_corners, coords_unit, ndim)
        if isinstance(jitter_std, Tensor):
            check_jitter_tensor(jitter_std, len(size))
        else:
            check_jitter_std(jitter_std, len(size))
        if backend is not None:
            find(backend)
        self.weight = nn.Parameter(torch.empty(*size, channels))
        self._std = None
        if isinstance(jitter_std, Tensor) and not isinstance(jitter_std, nn.Parameter):
            self.register_buffer("jitter_std", jitter_std)
        else:
            self.jitter_std = jitter_std
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = align_corners
        self.coords_unit = coords_unit
        self.backend = backend
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new entries."""
        *size, channels = self.weight.shape
        nn.init.normal_(self.weight, std=math.sqrt(2 / ((1 + channels) * math.prod(size))))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("jitter_std", "padding_mode", "align_corners") and isinstance(value, list):
            value = tuple(value)  # which nobody changes unseen
        super().__setattr__(name, value)
        if name == "jitter_std":
            self._make_std()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._std is not None:
            self._std = fn(self._std)
        self._make_std()
        return self

    def _make_std(self) -> None:
        """Put standard deviations given as numbers where the module is, ready for every call.

        Here and not at a call: there, a tensor may be a compiler's, or a CUDA graph has yet to fill
        it.
        """
        like = self.weight if self._std is None else self._std
        self._std = None
        if isinstance(self.jitter_std, Tensor):
            return
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        stds = check_jitter_std(self.jitter_std, self.weight.ndim - 1, dtype)
        if any(stds):
            self._std = torch.tensor(stds, dtype=dtype, device=like.device)

    def __prepare_scriptable__(self) -> nn.Module:
        """`torch.jit.script` asks for a module that it can compile: there is none."""
        raise RuntimeError(f"GridMemory: {SCRIPT_UNSUPPORTED}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # What was pickled as a whole by a former version:
        if "values" in self._parameters:
            self._parameters["weight"] = self._parameters.pop("values")
        self.__dict__.setdefault("coords_unit", "normalized")
        if "_std" not in self.__dict__:
            self._std = None
            self._make_std()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        former, name = prefix + "values", prefix + "weight"
        if former in state_dict and name not in state_dict:
            state_dict[name] = state_dict.pop(former)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self,
        coords: Tensor,
        seed: int | Tensor | None = None,
        *,
        jitter_std: float | Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        """Sample the entries at ``coords``.

        Args:
            coords: ``(..., D)``, float32 or float64, in ``coords_unit``.
            seed: of the jitter; None draws one from the generator of the device of ``coords``.
            jitter_std: of this call; None takes that of the module in training mode, else 0.

        Returns:
            ``(..., C)``, of the dtype of ``weight``.
        """
        if jitter_std is None:
            jitter_std = self.jitter_std if self.training else 0.0
        return sample(
            self.weight,
            coords,
            mode=self.mode,
            padding_mode=self.padding_mode,
            align_corners=self.align_corners,
            coords_unit=self.coords_unit,
            jitter_std=self._ready(jitter_std, coords),
            seed=seed,
            backend=self.backend,
        )

    def _ready(
        self, jitter_std: float | Sequence[float] | Tensor, coords: Tensor
    ) -> float | Sequence[float] | Tensor:
        """These standard deviations, as `_std` if it holds them where and as ``coords`` are."""
        std = self._std
        if (
            std is not None
            and type(jitter_std) is type(self.jitter_std)
            and jitter_std == self.jitter_std
            and isinstance(coords, Tensor)
            and std.device == coords.device
            and (std.dtype == torch.float64) == (coords.dtype == torch.float64)
        ):
            return std
        return jitter_std

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        *size, channels = self.weight.shape
        std = repr(self.jitter_std)
        if isinstance(self.jitter_std, Tensor):
            std = f"<{type(self.jitter_std).__name__} {tuple(self.jitter_std.shape)}>"
        return (
            f"{channels}, {tuple(size)}, jitter_std={std}, mode={self.mode!r}, "
            f"padding_mode={self.padding_mode!r}, align_corners={self.align_corners}, "
            f"coords_unit={self.coords_unit!r}"
        )
