"""Several grids of different resolution, sampled at the same points in one call."""

import math
import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, are_deterministic_algorithms_enabled, compiler, is_autocast_enabled
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from crad_kernels import _level_operators, _schema
from crad_kernels._backends import choose, default
from crad_kernels._op import CALLS, LEVEL_CALLS
from crad_kernels.functional import HALVES, SCRIPT_UNSUPPORTED, check_options, noise_of


def sample_levels(
    values: Tensor,
    sizes: Sequence[Sequence[int]],
    coords: Tensor,
    *,
    mode: str = "linear",
    padding_mode: str | Sequence[str] = "zeros",
    align_corners: bool | Sequence[bool] = False,
    jitter_std: float | Sequence[float] | Tensor = 0.0,
    seed: int | Tensor | None = None,
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Sample several grids of different resolution at the same coordinates.

    Equivalent to, with one seed for all levels::

        levels = values.split([math.prod(size) for size in sizes])
        torch.cat([sample(level.view(*size, -1), coords, ...)
                   for level, size in zip(levels, sizes)], -1)

    These are the dense levels of instant-ngp (Müller et al., 2022, section 3), in one parameter.

    The backends cpu, cuda and triton take float32 values of 1 to 8 channels at float32 coordinates
    of 1 to 4 components at once, if the mode is linear, no padding is circular, every axis has 2 to
    2^24 entries, every level at most 2^30 elements, and cuda and triton are given at most 32
    levels: the CPU in one pass over the points, forward and backward, and a GPU in one launch each.
    On a GPU the gradient of ``values`` is added to atomically, or taken level by level if it is to
    be deterministic; triton compiles its kernels for the sizes of the levels. All else is composed
    as above, of a sample for each level: by the reference, in exported programs, in forward mode,
    under vmap, and in derivatives of second and higher order.

    Args:
        values: ``(entries, C)``: the entries of all levels, one level behind the other, and each in
            row-major order; float64, float32, bfloat16 or float16.
        sizes: entries per axis of each level, a tuple of D ints in the order of the axes.
        coords: ``(..., D)``; float32 or float64; normalized, so that each grid is [-1, 1].
            Component 0 moves along the *last* axis.
        mode: as `sample`.
        padding_mode: as `sample`.
        align_corners: as `sample`.
        jitter_std: as `sample`. A point is moved once, and read at the same place in all levels.
        seed: as `sample`, whose noise this is for the same seed.
        deterministic: as `sample`.
        backend: as `sample`.

    Returns:
        ``(..., L * C)``, of the dtype of ``values``: the channels of the first level, those of the
        second, and so on.

    Raises:
        TypeError: if an argument is of the wrong type or dtype.
        ValueError: if a shape, a device, a mode or the backend does not fit.

    Derivatives are of any order, in reverse and forward mode, as those of `sample`. On the CPU,
    results are equal bit for bit for any number of threads; a level's share of the gradient of
    ``values`` is summed by one of them.
    """
    if has_torch_function_variadic(values, coords, jitter_std, seed) and not is_compiling():
        overridden: Tensor = handle_torch_function(
            sample_levels,
            (values, coords, jitter_std, seed),
            values,
            sizes,
            coords,
            mode=mode,
            padding_mode=padding_mode,
            align_corners=align_corners,
            jitter_std=jitter_std,
            seed=seed,
            deterministic=deterministic,
            backend=backend,
        )
        return overridden
    sizes = check_sizes("sample_levels()", "sizes", sizes)
    _check_tensors(values, sizes, coords)
    ndim = len(sizes[0])
    check_options(mode, padding_mode, align_corners, "normalized", ndim)
    if deterministic is None:
        deterministic = are_deterministic_algorithms_enabled()
    elif not isinstance(deterministic, bool):
        raise TypeError(
            f"sample_levels(): expected deterministic to be a bool or None, but got "
            f"{deterministic!r}"
        )
    device = coords.device
    if coords.dtype in HALVES and is_autocast_enabled(device.type):
        coords = coords.float()
    _schema.check_tensors(_level_operators.split(values, sizes)[0], coords)
    options = _schema.pack(mode, padding_mode, align_corners, deterministic)
    noise = noise_of(jitter_std, seed, coords)
    flat = [number for size in sizes for number in size]
    if backend is None and getattr(compiler, "_is_exporting_flag", False):
        name = _schema.NEUTRAL  # as `sample`
    else:
        name = (default(device, ndim) if backend is None else choose(backend, device, ndim)).name
    out: Tensor
    if _level_operators.fits(name, values, coords, sizes, mode, padding_mode):
        out = LEVEL_CALLS[name].sample_levels(values, coords, *noise, flat, options)
    else:
        out = _level_operators.compose(CALLS[name].sample, values, coords, *noise, flat, options)
    return out


setattr(sample_levels, "__script_unsupported", SCRIPT_UNSUPPORTED)


def level_resolutions(levels: int, coarsest: int, finest: int) -> list[int]:
    """Resolutions that grow by the same factor from level to level, as those of instant-ngp.

    Equivalent to ``floor(coarsest * (finest / coarsest) ** (level / (levels - 1)))`` (Müller et
    al., 2022, equations 2 and 3); ``[coarsest]`` for one level.

    Args:
        levels: how many; at least 1, and at least 2 unless ``coarsest`` is ``finest``.
        coarsest: of the first level, at least 1.
        finest: of the last level, at least ``coarsest``.

    Returns:
        One int for each level.

    Raises:
        TypeError: if an argument is no int.
        ValueError: if one is out of range.
    """
    try:
        levels, coarsest, finest = (as_integer(number) for number in (levels, coarsest, finest))
    except TypeError as error:
        raise TypeError(
            f"level_resolutions(): expected three ints, but got {levels!r}, {coarsest!r} and "
            f"{finest!r}"
        ) from error
    if levels < 1 or not 1 <= coarsest <= finest or (levels == 1 and coarsest != finest):
        raise ValueError(
            "level_resolutions(): expected at least 1 level, and 1 <= coarsest <= finest, equal if "
            f"there is one level, but got levels={levels}, coarsest={coarsest}, finest={finest}"
        )
    growth = math.log(finest / coarsest) / max(1, levels - 1)
    # A whole number, such as the last, must not be rounded down by an error of rounding.
    exact = 1 + 1e-12
    return [math.floor(coarsest * math.exp(growth * level) * exact) for level in range(levels)]


def as_integer(number: Any) -> int:
    """`operator.index`, which takes bools too, without them."""
    if isinstance(number, bool):
        raise TypeError(f"{number} is no size")
    return operator.index(number)


def check_sizes(function: str, name: str, sizes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The sizes of levels, of as many axes each; raise unless they are such."""
    try:
        each = [tuple(map(as_integer, size)) for size in sizes]
    except TypeError as error:
        raise TypeError(
            f"{function}: expected {name} to be a tuple of ints for each level, such as "
            f"[(16, 16), (32, 32)], but got {sizes!r}"
        ) from error
    if not each or not each[0] or len(set(map(len, each))) > 1 or min(map(min, each)) < 1:
        raise ValueError(
            f"{function}: expected {name} to have at least 1 level, and of each level as many "
            f"axes, all of at least 1 entry, but got {sizes!r}"
        )
    return each


def _check_tensors(values: Tensor, sizes: list[tuple[int, ...]], coords: Tensor) -> None:
    """Raise unless these are the entries of the levels, and coordinates of as many components."""
    _schema.check_dense("sample_levels()", "values", values)
    _schema.check_dense("sample_levels()", "coords", coords)
    if coords.ndim == 0 or coords.shape[-1] != len(sizes[0]):
        raise ValueError(
            f"sample_levels(): expected coords to have {len(sizes[0])} components in their last "
            "axis, as many as each level has axes, but got coords of shape "
            f"{tuple(coords.shape)} and sizes={sizes}"
        )
    entries = sum(map(math.prod, sizes))
    if values.ndim != 2 or values.shape[0] != entries:
        raise ValueError(
            f"sample_levels(): expected values of shape ({entries}, C), the entries of all levels "
            f"of sizes={sizes} one behind the other, but got values of shape {tuple(values.shape)}"
        )
