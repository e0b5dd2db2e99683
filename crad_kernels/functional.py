"""The public functions: what they mean, and the one check of their arguments."""

import numbers
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, are_deterministic_algorithms_enabled, compiler, is_autocast_enabled
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from crad_kernels import _fill, _schema
from crad_kernels._backends import choose, default
from crad_kernels._op import CALLS

HALVES = (torch.float16, torch.bfloat16)
_TORCH_MODES = {
    "bilinear": "linear",
    "nearest": "nearest",
    "bicubic": "cubic",
    "simplex": "simplex",  # which torch does not have
}


def sample(
    values: Tensor,
    coords: Tensor,
    *,
    mode: str = "linear",
    padding_mode: str | Sequence[str] = "zeros",
    align_corners: bool | Sequence[bool] = False,
    coords_unit: str = "normalized",
    fill: float | Tensor = 0.0,
    jitter_std: float | Sequence[float] | Tensor = 0.0,
    seed: int | Tensor | None = None,
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Sample an N-dimensional grid of values at continuous coordinates, jittered if asked.

    Equivalent to, for a shared 2-D grid and without jitter::

        F.grid_sample(values.movedim(-1, 0)[None], coords[None, None], "bilinear",
                      padding_mode, align_corners)[0, :, 0].T

    for ``coords`` of shape (N, 2). D is 1 to 8; a larger one takes the ``reference`` backend.

    Args:
        values: ``(*size, C)``, one grid shared by all points, or ``(B, *size, C)``, one per batch
            item; float64, float32, bfloat16 or float16.
        coords: ``(..., D)``, or ``(B, ..., D)`` with one grid per batch item; float32 or float64;
            in ``coords_unit``, any float is legal. Component 0 moves along the *last* axis of
            ``size``, as in `torch.nn.functional.grid_sample`. Half precision tells few places
            apart: it is refused, but under autocast, where it is what layers compute, converted to
            float32; values keep their dtype there.
        mode: ``"linear"``, ``"nearest"``, ``"cubic"`` (Keys' convolution with a = -3/4, torch's
            ``"bicubic"`` in any D) or ``"simplex"``: linear between the D + 1 corners of a simplex
            and not the 2^D of a cell, exact for affine functions and continuous, as linear is; in
            3-D it is the tetrahedral interpolation of colour tables (Kasson et al., 1995).
        padding_mode: what lies outside: ``"zeros"``, ``"border"``, ``"reflection"`` or
            ``"circular"``. By the last, the grid repeats itself: after ``size`` entries, which are
            2 as a coordinate unless corners are aligned. This is `torch.nn.functional.pad` with
            that mode before the sample, and SciPy's ``"grid-wrap"``. Or a tuple of D of them, one
            for each component of ``coords``: ``("circular", "border")`` is for panoramas, which
            repeat themselves along the last axis alone.
        align_corners: whether -1 and 1 are the centres of the outer entries, or their borders; and
            so, whether reflection mirrors at these centres or borders. A bool, or a tuple of D.
        coords_unit: ``"normalized"``, in which the grid is [-1, 1], or ``"index"``: 0 is the first
            entry of an axis and ``size - 1`` the last, as in SciPy's ``map_coordinates`` (whose
            coordinates come in the reverse order). Whether corners are aligned then matters to
            reflection alone: SciPy's ``"mirror"`` if they are, or else ``"reflect"``.
        fill: what taps outside the grid read along axes with padding ``"zeros"``: a float, or a
            real tensor of shape () or (C,) on the device of ``values``, with derivatives of any
            order. The sample then is what `torch.nn.functional.grid_sample` gives of an image with
            a margin of this value. A point all of whose weight is inside is sampled as without it,
            to the last bit, and so a fill of NaN marks all other points.
        jitter_std: standard deviation of the Gaussian noise added to ``coords``, in their unit; a
            float, or D floats in the order of the components. At least 0.
            Or a real 0-d or (D,) tensor on the device of ``coords``, with derivatives as any other
            argument: to learn it, or to change it without another graph of the compiler, which
            makes one for every float. Its values are not checked, as that would wait for the
            device; a negative one mirrors the noise.
        seed: of the noise, which depends on (seed, point, component) alone: an int, or an int64 0-d
            tensor on the device of ``coords``; None draws one from that device's generator.
        deterministic: never sum in an order that varies from run to run; None follows
            `torch.are_deterministic_algorithms_enabled`. On the CPU no backend ever does.
        backend: a name from `crad_kernels.backends`; None takes the best usable one.

    Returns:
        ``(..., C)``, or ``(B, ..., C)``, of the dtype of ``values``. The sum over taps is in
        float32, for float64 values in float64.

    Raises:
        TypeError: if an argument is of the wrong type or dtype.
        ValueError: if a shape, a device, a mode or the backend does not fit.

    The meaning in full, non-finite coordinates included: `crad_kernels.reference`.
    Gradients are those of `torch.nn.functional.grid_sample`, of any order, in reverse and forward
    mode. Under `torch.vmap` every slice has the noise of the same call alone.
    """
    if has_torch_function_variadic(values, coords, jitter_std, seed, fill) and not is_compiling():
        out: Tensor = handle_torch_function(
            sample,
            (values, coords, jitter_std, seed, fill),
            values,
            coords,
            mode=mode,
            padding_mode=padding_mode,
            align_corners=align_corners,
            coords_unit=coords_unit,
            fill=fill,
            jitter_std=jitter_std,
            seed=seed,
            deterministic=deterministic,
            backend=backend,
        )
        return out
    try:
        return _run(
            False,
            values,
            coords,
            coords.shape[-1],
            mode,
            padding_mode,
            align_corners,
            coords_unit,
            fill,
            jitter_std,
            seed,
            deterministic,
            backend,
        )
    except Exception:
        # Operators refuse tensors that do not fit. To look at them before takes 0.8 us of 5.
        try:
            _schema.check_tensors(values, coords)
            check_options(mode, padding_mode, align_corners, coords_unit, coords.shape[-1])
        except (TypeError, ValueError) as misfit:
            raise misfit from None
        raise


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str | Sequence[str] = "zeros",
    align_corners: bool | Sequence[bool] | None = False,
    *,
    coords_unit: str = "normalized",
    fill: float | Tensor = 0.0,
    jitter_std: float | Sequence[float] | Tensor = 0.0,
    seed: int | Tensor | None = None,
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Drop-in for `torch.nn.functional.grid_sample` in any number of dimensions.

    Equivalent to ``F.grid_sample(input, grid, mode, padding_mode, align_corners)`` for D = 2 and 3.
    The result is contiguous, or in channels-last memory format if ``input`` is; what can be taken
    for either, of one channel or one place, is contiguous.

    Args:
        input: ``(N, C, *size)``; dtypes as `sample`.
        grid: ``(N, *out, D)``, D the number of axes in ``size``; float32 or float64; half-precision
            coordinates are converted to float32.
        mode: ``"bilinear"`` (linear in any D), ``"nearest"``, ``"bicubic"`` (cubic in any D) or
            ``"simplex"``, which torch does not have; as `sample`.
        padding_mode: as `sample`; torch has no ``"circular"``.
        align_corners: as `sample`; None means False.
        coords_unit: as `sample`.
        fill: as `sample`.
        jitter_std: as `sample`.
        seed: as `sample`.
        deterministic: as `sample`.
        backend: as `sample`.

    Returns:
        ``(N, C, *out)``, of the dtype of ``input``.

    Raises:
        TypeError: if an argument is of the wrong type or dtype.
        ValueError: if a shape, a device, a mode or the backend does not fit.
    """
    if has_torch_function_variadic(input, grid, jitter_std, seed, fill) and not is_compiling():
        overridden: Tensor = handle_torch_function(
            grid_sample,
            (input, grid, jitter_std, seed, fill),
            input,
            grid,
            mode,
            padding_mode,
            align_corners,
            coords_unit=coords_unit,
            fill=fill,
            jitter_std=jitter_std,
            seed=seed,
            deterministic=deterministic,
            backend=backend,
        )
        return overridden
    try:
        ndim = input.ndim - 2
        if grid.shape[-1] != ndim or grid.ndim != ndim + 2:
            # A sample without a batch, or of other points: the operators would take it.
            _check_grid(input, grid, mode)
        return _run(
            True,
            input,
            grid,
            ndim,
            _TORCH_MODES[mode],
            padding_mode,
            False if align_corners is None else align_corners,
            coords_unit,
            fill,
            jitter_std,
            seed,
            deterministic,
            backend,
        )
    except Exception:
        try:
            _check_grid(input, grid, mode)
            align_corners = False if align_corners is None else align_corners
            check_options(_TORCH_MODES[mode], padding_mode, align_corners, coords_unit, ndim)
        except (TypeError, ValueError) as misfit:
            raise misfit from None
        raise


SCRIPT_UNSUPPORTED = "crad_kernels is not for torch.jit.script; use torch.compile or torch.export"
# Where `torch.jit.script` looks for what to say of a function, in the functions that call it too.
for _function in (sample, grid_sample):
    setattr(_function, "__script_unsupported", SCRIPT_UNSUPPORTED)


def _run(
    channels_first: bool,
    values: Tensor,
    coords: Tensor,
    ndim: int,
    mode: str,
    padding_mode: str | Sequence[str],
    align_corners: bool | Sequence[bool],
    coords_unit: str,
    fill: float | Tensor,
    jitter_std: float | Sequence[float] | Tensor,
    seed: int | Tensor | None,
    deterministic: bool | None,
    backend: str | None,
) -> Tensor:
    """What `sample` does, and `grid_sample` with channels first.

    Raises whatever it is for tensors and modes that do not fit: they are looked at only then.
    """
    if deterministic is None:
        deterministic = are_deterministic_algorithms_enabled()
    elif not isinstance(deterministic, bool):
        raise TypeError(
            f"sample(): expected deterministic to be a bool or None, but got {deterministic!r}"
        )
    if not (isinstance(padding_mode, str) and isinstance(align_corners, bool)):
        check_options(mode, padding_mode, align_corners, coords_unit, ndim)
    options = _schema.pack(mode, padding_mode, align_corners, deterministic, 0, coords_unit)
    device = coords.device
    if coords.dtype in HALVES and (channels_first or is_autocast_enabled(device.type)):
        coords = coords.float()
    # What `is_exporting` returns; the compiler of torch 2.11 takes that to be always true.
    if backend is None and getattr(compiler, "_is_exporting_flag", False):
        name = _schema.NEUTRAL  # the program picks one where it runs
    else:
        name = (default(device, ndim) if backend is None else choose(backend, device, ndim)).name
    if seed is None and isinstance(jitter_std, float) and jitter_std == 0:
        of_noise: tuple[Tensor | None, Tensor | None] = None, None  # 0.2 us faster than to ask
    else:
        of_noise = noise_of(jitter_std, seed, coords)
    if not (isinstance(fill, float) and fill == 0):
        fill = _check_fill(fill, padding_mode, values, ndim, 1 if channels_first else -1)
        unpacked = _schema.unpack(options, ndim)
        return _fill.sample(name, channels_first, values, coords, *of_noise, unpacked, fill)
    calls = CALLS[name]
    out: Tensor = (calls.grid_sample if channels_first else calls.sample)(
        values, coords, *of_noise, options
    )
    return out


def noise_of(
    jitter_std: float | Sequence[float] | Tensor, seed: int | Tensor | None, coords: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Seed and standard deviations as the operators take them; None and None without jitter."""
    if isinstance(jitter_std, float) and jitter_std == 0:
        std = None
    else:
        std = _jitter_std(jitter_std, coords)
    if seed is not None:
        _check_seed(seed, coords.device)
    return None if std is None else _seed(seed, coords.device), std


def _check_grid(input: Tensor, grid: Tensor, mode: str) -> None:
    """Raise unless these are arguments of `grid_sample`."""
    if mode not in tuple(_TORCH_MODES):
        raise ValueError(
            f"grid_sample(): expected mode to be one of {tuple(_TORCH_MODES)}, but got {mode!r}"
        )
    _schema.check_dense("grid_sample()", "input", input)
    _schema.check_dense("grid_sample()", "grid", grid)
    if input.ndim < 3 or grid.ndim != input.ndim or grid.shape[-1] != input.ndim - 2:
        raise ValueError(
            "grid_sample(): expected input of shape (N, C, *size) and grid of shape (N, *out, D), "
            "D the number of axes in size and in out, but got input of shape "
            f"{_shape(input)} and grid of shape {_shape(grid)}"
        )
    if input.dtype not in _schema.VALUE_DTYPES or not grid.is_floating_point():
        raise TypeError(
            "grid_sample(): expected input to be float64, float32, bfloat16 or float16, and grid "
            f"to be floating point, but got {input.dtype} and {grid.dtype}"
        )
    if input.device != grid.device:
        raise ValueError(
            "grid_sample(): expected input and grid on one device, but got "
            f"{input.device} and {grid.device}"
        )
    if 0 in input.shape[2:]:
        raise ValueError(
            "grid_sample(): expected input to have at least 1 entry along every spatial axis, but "
            f"got input of shape {_shape(input)}"
        )
    if grid.shape[0] != input.shape[0]:
        raise ValueError(
            "grid_sample(): expected input and grid to have the same batch size, but got input of "
            f"shape {_shape(input)} and grid of shape {_shape(grid)}"
        )


def check_options(
    mode: str,
    padding_mode: str | Sequence[str],
    align_corners: bool | Sequence[bool],
    coords_unit: str,
    ndim: int,
) -> None:
    """Raise unless these are options of `sample` for coordinates with so many components."""
    if mode not in _schema.MODES:
        raise ValueError(f"sample(): expected mode to be one of {_schema.MODES}, but got {mode!r}")
    paddings = _along_each("padding_mode", padding_mode, str, ndim)
    if paddings is None or not all(padding in _schema.PADDING_MODES for padding in paddings):
        raise ValueError(
            f"sample(): expected padding_mode to be one of {_schema.PADDING_MODES}, or a tuple of "
            f"{ndim} of them, one for each component of coords, but got {padding_mode!r}"
        )
    if _along_each("align_corners", align_corners, bool, ndim) is None:
        raise TypeError(
            f"sample(): expected align_corners to be a bool, or a tuple of {ndim} of them, one for "
            f"each component of coords, but got {align_corners!r}"
        )
    if coords_unit not in _schema.COORDS_UNITS:
        raise ValueError(
            f"sample(): expected coords_unit to be one of {_schema.COORDS_UNITS}, "
            f"but got {coords_unit!r}"
        )


def _along_each(
    name: str, option: object, kind: type[str | bool], ndim: int
) -> Sequence[Any] | None:
    """One of them for each component; None unless there is one for all, or one for each."""
    if isinstance(option, kind):
        return (option,) * ndim
    if not isinstance(option, list | tuple) or len(option) != ndim:
        return None
    if not all(isinstance(each, kind) for each in option):
        return None
    if ndim > _schema.MOST_MIXED and len(set(option)) > 1:
        raise ValueError(
            f"sample(): expected {name} to be the same for all of the {ndim} components of coords, "
            f"as there are more than {_schema.MOST_MIXED}, but got {option!r}"
        )
    return option


def check_jitter_std(
    jitter_std: float | Sequence[float], ndim: int, dtype: torch.dtype = torch.float32
) -> tuple[float, ...]:
    """Each component's standard deviation; raise unless they are numbers that ``dtype`` holds."""
    if _is_real(jitter_std):
        stds = (float(jitter_std),) * ndim
    elif isinstance(jitter_std, list | tuple) and all(map(_is_real, jitter_std)):
        stds = tuple(map(float, jitter_std))
    else:
        raise TypeError(
            f"sample(): expected jitter_std to be a float or {ndim} floats, but got {jitter_std!r}"
        )
    most = torch.finfo(dtype).max
    if len(stds) != ndim or not all(0 <= std <= most for std in stds):
        raise ValueError(
            f"sample(): expected jitter_std to be a float or {ndim} floats, at least 0 and finite "
            f"in {dtype}, but got {jitter_std}"
        )
    return stds


def check_jitter_tensor(jitter_std: Tensor, ndim: int) -> None:
    """Raise unless each component can have its standard deviation from this tensor."""
    _schema.check_dense("sample()", "jitter_std", jitter_std)
    if jitter_std.is_complex() or jitter_std.is_quantized or jitter_std.dtype == torch.bool:
        raise TypeError(
            "sample(): expected jitter_std as a tensor to be of real numbers, but got "
            f"{jitter_std.dtype}"
        )
    if _shape(jitter_std) not in ((), (ndim,)):
        raise ValueError(
            f"sample(): expected jitter_std as a tensor to have shape () or ({ndim},), but got "
            f"shape {_shape(jitter_std)}"
        )


def _check_fill(
    fill: float | Tensor,
    padding_mode: str | Sequence[str],
    values: Tensor,
    ndim: int,
    channels_axis: int,
) -> float | Tensor:
    """The fill, a number as a float; raise unless this is one for these values."""
    if isinstance(fill, Tensor):
        _schema.check_dense("sample()", "fill", fill)
    elif not _is_real(fill):
        raise TypeError(f"sample(): expected fill to be a float or a tensor, but got {fill!r}")
    if "zeros" not in _schema.along_each(padding_mode, ndim):
        raise ValueError(
            "sample(): fill is what lies outside where padding_mode is 'zeros', but got "
            f"padding_mode={padding_mode!r}; leave fill out"
        )
    if not isinstance(fill, Tensor):
        return float(fill)
    if fill.is_complex() or fill.is_quantized or fill.dtype == torch.bool:
        raise TypeError(
            f"sample(): expected fill as a tensor to be of real numbers, but got {fill.dtype}"
        )
    channels = values.shape[channels_axis]
    if _shape(fill) not in ((), (channels,)):
        raise ValueError(
            f"sample(): expected fill as a tensor to have shape () or ({channels},), but got shape "
            f"{_shape(fill)}"
        )
    if fill.device != values.device:
        raise ValueError(
            f"sample(): expected fill as a tensor to be on {values.device}, but got one on "
            f"{fill.device}"
        )
    return fill


def _is_real(number: object) -> TypeGuard[float]:
    # In this order: 0.25 us faster.
    return isinstance(number, (float, numbers.Real)) and not isinstance(number, bool)


def _jitter_std(jitter_std: float | Sequence[float] | Tensor, coords: Tensor) -> Tensor | None:
    """The standard deviations as ``(D,)`` on the device of ``coords``; None if all are 0."""
    ndim = coords.shape[-1]
    if isinstance(jitter_std, Tensor):
        check_jitter_tensor(jitter_std, ndim)
        if jitter_std.device != coords.device:
            raise ValueError(
                f"sample(): expected jitter_std as a tensor to be on {coords.device}, but got one "
                f"on {jitter_std.device}"
            )
        return jitter_std.to(coords.dtype).expand(ndim)
    stds = check_jitter_std(jitter_std, ndim, coords.dtype)
    if not any(stds):
        return None
    # `full` fills on the device: no copy from the host, so a CUDA graph can capture it.
    if len(set(stds)) == 1:
        return torch.full((ndim,), stds[0], dtype=coords.dtype, device=coords.device)
    return torch.stack(
        [torch.full((), std, dtype=coords.dtype, device=coords.device) for std in stds]
    )


def _check_seed(seed: int | Tensor | None, device: torch.device) -> None:
    """Raise unless this is a seed that `sample` takes."""
    if isinstance(seed, Tensor):
        _schema.check_dense("sample()", "seed", seed)
        if seed.dtype != torch.int64 or seed.ndim != 0 or seed.device != device:
            raise TypeError(
                f"sample(): expected seed to be an int, or an int64 0-d tensor on {device}, but "
                f"got {seed.dtype} of shape {_shape(seed)} on {seed.device}"
            )
    elif seed is not None:
        if not isinstance(seed, (int, numbers.Integral)) or isinstance(seed, bool):
            raise TypeError(
                f"sample(): expected seed to be an int, or an int64 0-d tensor, but got {seed!r}"
            )
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"sample(): expected seed to fit in 64 bits, but got {seed}")


def _seed(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed as an int64 0-d tensor on ``device``."""
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        return seed
    number = seed if isinstance(seed, int) else int(seed)  # of NumPy
    wrapped = number - 2**64 if number >= 2**63 else number
    return torch.full((), wrapped, dtype=torch.int64, device=device)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
