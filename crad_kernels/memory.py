"""Learnable grids as modules."""

import math
import numbers
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
from crad_kernels.levels import as_integer, check_sizes, sample_levels


class _Jittered(nn.Module):
    """What modules that sample at jittered coordinates have in common."""

    weight: nn.Parameter
    jitter_std: float | Sequence[float] | Tensor
    # Standard deviations given as numbers, as `sample` wants them: no tensor is made at a call. No
    # buffer, which DistributedDataParallel would write to between a call and its backward pass.
    _std: Tensor | None

    @property
    def _ndim(self) -> int:
        """Components of a coordinate."""
        raise NotImplementedError

    def _set_options(
        self,
        jitter_std: float | Sequence[float] | Tensor,
        mode: str,
        padding_mode: str | Sequence[str],
        align_corners: bool | Sequence[bool],
        backend: str | None,
    ) -> None:
        """Take over options that were checked; ``weight`` must be there."""
        self._std = None
        if isinstance(jitter_std, Tensor) and not isinstance(jitter_std, nn.Parameter):
            self.register_buffer("jitter_std", jitter_std)
        else:
            self.jitter_std = jitter_std
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = align_corners
        self.backend = backend

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
        stds = check_jitter_std(self.jitter_std, self._ndim, dtype)
        if any(stds):
            self._std = torch.tensor(stds, dtype=dtype, device=like.device)

    def __prepare_scriptable__(self) -> nn.Module:
        """`torch.jit.script` asks for a module that it can compile: there is none."""
        raise RuntimeError(f"{type(self).__name__}: {SCRIPT_UNSUPPORTED}")

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

    def _repr_of_options(self) -> str:
        std = repr(self.jitter_std)
        if isinstance(self.jitter_std, Tensor):
            std = f"<{type(self.jitter_std).__name__} {tuple(self.jitter_std.shape)}>"
        return (
            f"jitter_std={std}, mode={self.mode!r}, padding_mode={self.padding_mode!r}, "
            f"align_corners={self.align_corners}"
        )


def _check_options(
    jitter_std: float | Sequence[float] | Tensor,
    mode: str,
    padding_mode: str | Sequence[str],
    align_corners: bool | Sequence[bool],
    coords_unit: str,
    backend: str | None,
    ndim: int,
) -> None:
    """Raise unless these are options for coordinates with so many components."""
    check_options(mode, padding_mode, align_corners, coords_unit, ndim)
    if isinstance(jitter_std, Tensor):
        check_jitter_tensor(jitter_std, ndim)
    else:
        check_jitter_std(jitter_std, ndim)
    if backend is not None:
        find(backend)


class GridMemory(_Jittered):
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
                ndim = 2 if ndim is None else as_integer(ndim)
                size = (as_integer(resolution),) * ndim
            else:
                size = tuple(map(as_integer, cast(Sequence[int], resolution)))
                ndim = len(size) if ndim is None else as_integer(ndim)
            channels = as_integer(channels)
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
        _check_options(
            jitter_std, mode, padding_mode, align_corners, coords_unit, backend, len(size)
        )
        self.weight = nn.Parameter(torch.empty(*size, channels))
        self._set_options(jitter_std, mode, padding_mode, align_corners, backend)
        self.coords_unit = coords_unit
        self.reset_parameters()

    @property
    def _ndim(self) -> int:
        return self.weight.ndim - 1

    def reset_parameters(self) -> None:
        """Draw new entries."""
        *size, channels = self.weight.shape
        nn.init.normal_(self.weight, std=math.sqrt(2 / ((1 + channels) * math.prod(size))))

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

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        *size, channels = self.weight.shape
        return (
            f"{channels}, {tuple(size)}, {self._repr_of_options()}, "
            f"coords_unit={self.coords_unit!r}"
        )


class MultiLevelMemory(_Jittered):
    """Learnable grids of several resolutions in one parameter: coordinates in, all entries out.

    Equivalent to ``crad_kernels.sample_levels(self.weight, self.sizes, coords, ...)``, with the
    jitter on in training mode only. These are the dense levels of instant-ngp (Müller et al.,
    2022), and `crad_kernels.level_resolutions` has its resolutions:
    ``MultiLevelMemory(2, level_resolutions(16, 16, 512))``.

    Args:
        channels: channels C of an entry, the same in all levels.
        resolutions: of each level, entries per axis: an int for all axes or one per axis in size
            order (the axis that the *last* component of a coordinate moves along comes first).
        ndim: number of axes D, by default as many as the first of ``resolutions`` has entries, or 2
            for an int.
        jitter_std: standard deviation of the Gaussian jitter of coordinates, as in `GridMemory`.
        mode: as in `crad_kernels.sample`, and so are the three that follow.
        padding_mode: see ``mode``.
        align_corners: see ``mode``.
        backend: see ``mode``.

    Attributes:
        weight: the entries of all levels, one level behind the other, ``(entries, C)``, uniform in
            [-1e-4, 1e-4] as those of instant-ngp.
        sizes: entries per axis of each level.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if ``channels`` or a resolution is not positive, ``ndim`` not the length of
            each, ``jitter_std`` negative, or a mode or the backend unknown.
    """

    def __init__(
        self,
        channels: int,
        resolutions: Sequence[int | Sequence[int]],
        ndim: int | None = None,
        *,
        jitter_std: float | Sequence[float] | Tensor = 0.0,
        mode: str = "linear",
        padding_mode: str | Sequence[str] = "zeros",
        align_corners: bool | Sequence[bool] = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        try:
            each = list(resolutions)
            channels = as_integer(channels)
            if ndim is None:
                first = each[0] if each else 0
                ndim = 2 if isinstance(first, numbers.Integral) else len(cast(Sequence[int], first))
            ndim = as_integer(ndim)
            sizes = [
                (size,) * ndim if isinstance(size, numbers.Integral) else size for size in each
            ]
        except TypeError as error:
            raise TypeError(
                "MultiLevelMemory(): expected channels and ndim to be ints, and resolutions an int "
                f"or ints for each level, but got channels={channels!r}, ndim={ndim!r}, "
                f"resolutions={resolutions!r}"
            ) from error
        self.sizes = tuple(check_sizes("MultiLevelMemory()", "resolutions", cast(Any, sizes)))
        if channels < 1:
            raise ValueError(
                f"MultiLevelMemory(): expected channels to be positive, but got {channels}"
            )
        if ndim != len(self.sizes[0]):
            raise ValueError(
                "MultiLevelMemory(): expected ndim to be the length of each level's size, "
                f"{len(self.sizes[0])}, but got {ndim}; leave it out"
            )
        _check_options(jitter_std, mode, padding_mode, align_corners, "normalized", backend, ndim)
        self.weight = nn.Parameter(torch.empty(sum(map(math.prod, self.sizes)), channels))
        self._set_options(jitter_std, mode, padding_mode, align_corners, backend)
        self.reset_parameters()

    @property
    def _ndim(self) -> int:
        return len(self.sizes[0])

    def reset_parameters(self) -> None:
        """Draw new entries."""
        nn.init.uniform_(self.weight, -1e-4, 1e-4)

    def forward(
        self,
        coords: Tensor,
        seed: int | Tensor | None = None,
        *,
        jitter_std: float | Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        """Sample the entries of all levels at ``coords``.

        Args:
            coords: ``(..., D)``, float32 or float64, normalized.
            seed: of the jitter; None draws one from the generator of the device of ``coords``.
            jitter_std: of this call; None takes that of the module in training mode, else 0.

        Returns:
            ``(..., L * C)``, of the dtype of ``weight``.
        """
        if jitter_std is None:
            jitter_std = self.jitter_std if self.training else 0.0
        return sample_levels(
            self.weight,
            self.sizes,
            coords,
            mode=self.mode,
            padding_mode=self.padding_mode,
            align_corners=self.align_corners,
            jitter_std=self._ready(jitter_std, coords),
            seed=seed,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"{self.weight.shape[-1]}, {self.sizes}, {self._repr_of_options()}"
