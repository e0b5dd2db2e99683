"""A value for what lies outside the grid: `fill` of `crad_kernels.sample`.

It is a composition, and so has every derivative: the sample in which taps outside count 0, and the
fill times their weight. This is by how much the weights of the taps inside, a sample of ones, fall
short of all weights, a sample of ones with border padding. Where no tap is outside, both are the
same sum of the same numbers, and their difference is 0 to the last bit.
"""

import math

import torch
from torch import Tensor

from crad_kernels._op import CALLS, normals
from crad_kernels._schema import Options, along_each, pack


def sample(
    backend: str,
    channels_first: bool,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    options: Options,
    fill: float | Tensor,
) -> Tensor:
    """The sample of which taps outside read `fill`, a number or a tensor of ``()`` or ``(C,)``.

    Along axes whose padding is zeros. All else is as the operators take it. Half precision is
    rounded once, in the end.
    """
    calls = CALLS[backend]
    ndim = coords.shape[-1]
    if seed is not None and jitter_std is not None:
        noise = normals(backend, seed, coords.numel() // ndim, ndim).to(coords.dtype)
        coords = coords + jitter_std * noise.view(coords.shape)
    half = values.dtype in (torch.float16, torch.bfloat16)
    wide = values.float() if half else values
    take = calls.grid_sample if channels_first else calls.sample
    out = take(wide, coords, None, None, pack(*options))

    size = values.shape[2:] if channels_first else values.shape[-1 - ndim : -1]
    # Dense: where entries are apart, or one, the kernels for images take up to 1.7 times as long.
    ones = torch.ones(*size, 1, dtype=wide.dtype, device=wide.device)
    paddings = along_each(options.padding_mode, ndim)
    clamped = tuple("border" if padding == "zeros" else padding for padding in paddings)
    inside = calls.sample(ones, coords, None, None, pack(*options))
    whole = calls.sample(
        ones, coords.detach(), None, None, pack(*options._replace(padding_mode=clamped))
    )
    outside = whole - inside
    if channels_first:
        outside = outside.movedim(-1, 1)
        if isinstance(fill, Tensor):
            fill = fill.reshape(-1, *(1,) * ndim)
    if not isinstance(fill, Tensor) and math.isfinite(fill):
        filled = torch.add(out, outside, alpha=fill)
    else:
        filled = _added(out, outside, fill)
    return filled.to(values.dtype) if half else filled


def _added(out: Tensor, outside: Tensor, fill: float | Tensor) -> Tensor:
    """The sum of which 0 times a fill that is not finite is no part, nor of its derivatives."""
    takes_part = outside != 0
    if isinstance(fill, Tensor):
        fill = fill.to(out.dtype)
        takes_part = takes_part | fill.isfinite().all()
    weight = torch.where(takes_part, outside, 0)
    return torch.where(takes_part, out + weight * fill, out)
