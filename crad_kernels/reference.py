"""The specification of the operation, in plain torch, differentiable by torch itself.

For a point ``p`` with coordinates ``x`` (``x[0]`` moves along the *last* spatial axis of
``values``), the sample is

    out[p, :] = sum over taps of  weight(tap) * values[tap, :]

1. **Jitter.** ``x[d] += jitter_std[d] * n`` with ``n`` a standard normal that depends on
   ``(seed, p, d)`` alone: Philox4x32-10 with the 64-bit seed as key and the counter
   ``(p low, p high, d // 4, 0)``; its words ``(a, b)`` give two normals by Box-Muller in float32,
   ``r cos t`` and ``r sin t`` with ``r = sqrt(-2 log u)``, ``u = (a // 256 + 1) / 2^24``,
   ``t = 2 pi (b // 256) / 2^24``; words 0, 1 serve components 0, 1 of the block, words 2, 3 the
   components 2, 3. ``p`` counts the points over batch and points in row-major order.
2. **Index.** Of normalized coordinates, which are in [-1, 1] inside the grid,
   ``u = ((x + 1) * size - 1) / 2``, or ``(x + 1) / 2 * (size - 1)`` with ``align_corners``, in the
   dtype of ``coords``. Of coordinates that are indices, ``u = x``: entry 0 is at 0, the last one at
   ``size - 1``, and ``align_corners`` only says where 3 mirrors.
3. **Padding.** ``border`` clamps ``u`` to ``[0, size - 1]``; ``reflection`` mirrors it at the
   borders of the outer entries (at their centres with ``align_corners``), then clamps; ``zeros``
   leaves it. Where ``u`` is clamped its derivative is 0. ``circular`` repeats the entries with
   period ``size``, with or without ``align_corners``: it pads the taps of 4 and not ``u``. Each
   axis may have a padding and an alignment of its own, given in the order of the components.
4. **Taps.** ``nearest``: the entry ``u`` rounds to (half to even), weight 1; ``linear``: entries
   ``floor(u)`` and ``floor(u) + 1`` with weights ``1 - t`` and ``t``, ``t = u - floor(u)``;
   ``cubic``: entries ``floor(u) - 1`` to ``floor(u) + 2`` with the weights of Keys' cubic
   convolution, a = -3/4, at their distances from ``u``. ``cubic`` pads its taps and not ``u``, in
   the way of 3. A tap outside the grid contributes nothing; with a fill, its weight times the
   fill, if that weight is not 0 (composed of samples, see ``crad_kernels._fill``). The taps of a
   point are the product over the axes, but for ``simplex``.
5. **Simplex.** ``simplex`` has the taps of ``linear`` along every axis, and of their products the
   D + 1 that a walk reads. It begins at the first taps and goes on to the second one along one
   axis after the other, by descending ``t``. With ``t[1] >= t[2] >= ...`` in that order,
   ``t[0] = 1`` and ``t[D + 1] = 0``, the weight after k steps is ``t[k] - t[k + 1]``: barycentric
   coordinates in a simplex of Kuhn's triangulation (tetrahedral interpolation in 3-D). Where two
   ``t`` are equal, the lower component comes first; but of those with ``t = 0``, the ones whose
   second tap is outside the grid come last. The sample is the same in any such order; its
   derivative is that in the simplex so chosen.

Coordinates may be any float. Under ``zeros``, a non-finite ``u`` makes the sample NaN and its
coordinate gradients NaN (and adds nothing to the gradient of ``values``); under ``border``, NaN
gives the first entry; under ``reflection`` and ``circular``, a non-finite ``u`` or one of
magnitude 2^31 or more gives the first entry. This is what `torch.nn.functional.grid_sample` does
for 2-D float32 on the CPU, as far as it has the padding, save that its ``nearest`` gives 0 for a
non-finite ``u`` under ``zeros``, and its ``bicubic`` NaN for a non-finite ``u`` under any padding.

The sum is taken in float32 (float64 for float64 values), whatever the storage dtype.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from crad_kernels._schema import Options, along_each

# Per point: an entry that can be read (int64), its weight, and whether it lies inside the grid.
_Tap: TypeAlias = tuple[Tensor, Tensor, Tensor]

_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 of Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011).

    Args:
        counter: int64 ``(N, 4)``, each a 32-bit word.
        key: int64 ``(N, 2)``, each a 32-bit word.

    Returns:
        int64 ``(N, 4)``, each a 32-bit word.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        # The int64 product wraps modulo 2^64, which keeps all 64 bits of it.
        product0 = c0 * _PHILOX_MULTIPLIERS[0]
        product1 = c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32) & _WORD ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> 32) & _WORD ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0 = (k0 + _PHILOX_KEY_STEPS[0]) & _WORD
        k1 = (k1 + _PHILOX_KEY_STEPS[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), -1)


def normals(seed: Tensor, points: int, ndim: int) -> Tensor:
    """Standard normals of the jitter.

    Args:
        seed: int64, 0-d.
        points: number of points N.
        ndim: number of coordinate components D.

    Returns:
        float32 ``(N, D)`` on the seed's device.
    """
    index = torch.arange(points, device=seed.device)
    key = torch.stack((seed & _WORD, (seed >> 32) & _WORD)).expand(points, 2)
    blocks = []
    for block in range(math.ceil(ndim / 4)):
        rest = torch.full_like(index, block), torch.zeros_like(index)
        words = philox(torch.stack((index & _WORD, index >> 32, *rest), -1), key)
        mantissa = (words >> 8).to(torch.float32) * 2.0**-24
        radius = torch.sqrt(-2 * torch.log(mantissa[:, 0::2] + 2.0**-24))
        pair = radius[..., None] * _on_circle(mantissa[:, 1::2])
        blocks.append(pair.flatten(1))
    return torch.cat(blocks, 1)[:, :ndim]


def _on_circle(turn: Tensor) -> Tensor:
    """Cosine and sine of 2 pi * turn, for turn in [0, 1) a multiple of 2^-24, in a last axis.

    To float32 rounding without float64, which some devices lack: the reduction to an eighth of a
    turn is exact.
    """
    quarters = torch.floor(turn * 4 + 0.5)
    angle = (turn * 4 - quarters) * (math.pi / 2)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    odd = torch.fmod(quarters, 2) == 1
    x, y = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    x = torch.where((quarters == 1) | (quarters == 2), -x, x)
    y = torch.where((quarters == 2) | (quarters == 3), -y, y)
    return torch.stack((x, y), -1)


def sample(
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    options: Options,
) -> Tensor:
    """Sample ``values`` at ``coords``; see the module's docstring for the meaning.

    Args:
        values: ``(*size, C)``, or ``(B, *size, C)``.
        coords: ``(..., D)``, or ``(B, ..., D)``; float32 or float64.
        seed: int64, 0-d; None without jitter.
        jitter_std: ``(D,)`` of the dtype of ``coords``; None without jitter.
        options: the mode (``"nearest"``, ``"linear"``, ``"cubic"`` or ``"simplex"``), the padding
            (``"zeros"``, ``"border"``, ``"reflection"`` or ``"circular"``), the unit of coordinates
            and of ``jitter_std`` (``"normalized"`` or ``"index"``), whether -1 and 1 are the
            centres of the outer entries or their borders (one of either for all components, or a
            tuple of D in their order), and whether to sum gradients in the same order in every run,
            on any device. Their derivative is left to torch.

    Returns:
        ``(..., C)``, or ``(B, ..., C)``, of the dtype of ``values``.
    """
    mode, padding_mode, align_corners, deterministic, _, unit = options
    ndim = coords.shape[-1]
    size = values.shape[-1 - ndim : -1]
    channels = values.shape[-1]
    points = coords.reshape(-1, ndim)
    if seed is not None and jitter_std is not None:
        points = points + jitter_std * normals(seed, points.shape[0], ndim).to(coords.dtype)

    finite = torch.ones_like(points[:, 0], dtype=torch.bool)
    axes = []
    paddings, alignments = along_each(padding_mode, ndim), along_each(align_corners, ndim)
    for axis in range(ndim):
        component = ndim - 1 - axis
        padding, aligned = paddings[component], alignments[component]
        index = index_of(points[:, component], size[axis], aligned, unit)
        if padding == "zeros":
            finite = finite & index.isfinite()
            index = torch.where(index.isfinite(), index, 0)
        axes.append(_taps(index, size[axis], mode, padding, aligned))

    # One grid per batch item, one after the other; a shared grid is the only one.
    batched = values.ndim == ndim + 2
    batch = values.shape[0] if batched else 1
    compute = torch.float64 if values.dtype == torch.float64 else torch.float32
    entries = values.reshape(batch * math.prod(size), channels).to(compute)
    each = math.prod(coords.shape[1:-1]) if batched else 1
    item = torch.arange(batch, device=coords.device)[:, None].expand(batch, each).flatten()

    out = torch.zeros(points.shape[0], channels, dtype=compute, device=values.device)
    start = item, torch.ones_like(points[:, 0]), finite
    corners = _walk if mode == "simplex" else _products
    for entry, weight, inside in corners(start, list(zip(size, axes, strict=True))):
        # The gradient of `entries[entry]` is summed in order of a stable sort; that of
        # `index_select` is faster, on a GPU by atomic additions.
        value = entries[entry] if deterministic else entries.index_select(0, entry)
        value = torch.where(inside[:, None], value, 0)
        out = out + weight[:, None].to(compute) * value
    # NaN for the sample and the gradient of coords; the inner `where` keeps it off the finite ones.
    poison = (torch.where(finite[:, None], 0, points) * torch.nan).sum(-1)
    out = out + torch.where(finite, 0, poison).to(compute)[:, None]
    return out.to(values.dtype).reshape(*coords.shape[:-1], channels)


def _products(start: _Tap, axes: Sequence[tuple[int, Sequence[_Tap]]]) -> Iterator[_Tap]:
    """The taps of a point: all combinations of a tap of each axis, given with its length."""
    if not axes:
        yield start
        return
    entry, weight, inside = start
    (length, taps), *others = axes
    for tap, tap_weight, tap_inside in taps:
        longer = entry * length + tap, weight * tap_weight, inside & tap_inside
        yield from _products(longer, others)


def _walk(start: _Tap, axes: Sequence[tuple[int, Sequence[_Tap]]]) -> Iterator[_Tap]:
    """The corners of the simplex of a point: of two taps of each axis, given with its length."""
    start_entry, start_weight, start_inside = start
    seconds = [taps[1] for _, taps in reversed(axes)]  # by component
    t = torch.stack([weight for _, weight, _ in seconds], -1)
    leaves = (t <= 0) & ~torch.stack([inside for _, _, inside in seconds], -1)
    key = torch.where(leaves, -1, t)
    # How many steps come before that along a component. (ONNX has no stable sort.)
    number = torch.arange(len(axes), device=t.device)
    equal = (key[:, None] == key[:, :, None]) & (number < number[:, None])
    step = ((key[:, None] > key[:, :, None]) | equal).sum(-1)
    descending = [torch.where(step == k, t, 0).sum(-1) for k in range(len(axes))]
    descending.insert(0, torch.ones_like(t[:, 0]))
    for k, weight in enumerate(descending):
        entry, inside = start_entry, start_inside
        for component, (length, (first, second)) in zip(
            reversed(range(len(axes))), axes, strict=True
        ):
            taken = step[:, component] < k
            entry = entry * length + torch.where(taken, second[0], first[0])
            inside = inside & (second[2] & taken | first[2] & ~taken)  # which ONNX Runtime has
        if k < len(axes):
            weight = weight - descending[k + 1]
        yield entry, start_weight * weight, inside


def index_of(coord: Tensor, size: int, align_corners: bool, unit: str) -> Tensor:
    """Fractional position along an axis of ``size`` entries."""
    if unit == "index":
        return coord
    if align_corners:
        return (coord + 1) / 2 * (size - 1)
    return ((coord + 1) * size - 1) / 2


def _pad(index: Tensor, size: int, padding_mode: str, align_corners: bool) -> Tensor:
    """The index after padding; its derivative is 0 where it is clamped."""
    if padding_mode == "zeros":
        return index
    if padding_mode == "reflection":
        low, span = (0.0, size - 1) if align_corners else (-0.5, size)
        usable = index.abs() < 2.0**31
        index = torch.where(usable, index, 0)
        distance = index - low
        distance = torch.where(distance < 0, -distance, distance)
        if span == 0:
            return index * 0
        extra = torch.fmod(distance, span)
        odd = torch.fmod(torch.floor(distance / span), 2) == 1
        mirrored = torch.where(odd, span - extra, extra) + low
        index = torch.where(usable, mirrored, 0)
    elif padding_mode != "border":
        raise NotImplementedError(f"padding_mode {padding_mode!r}")
    index = torch.where(index > 0, index, 0)
    return torch.where(index < size - 1, index, size - 1)


def _taps(
    index: Tensor, size: int, mode: str, padding_mode: str, align_corners: bool
) -> list[_Tap]:
    """The taps of an axis."""
    pads_taps = mode == "cubic" or padding_mode == "circular"
    if pads_taps:
        index = _keep_near(index, size, padding_mode)
    else:
        index = _pad(index, size, padding_mode, align_corners)
    base = torch.round(index) if mode == "nearest" else torch.floor(index)
    t = index - base
    if mode == "nearest":
        weights = [(0, torch.ones_like(t))]
    elif mode in ("linear", "simplex"):
        weights = [(0, 1 - t), (1, t)]
    elif mode == "cubic":
        weights = [(-1, _outer(t + 1)), (0, _inner(t)), (1, _inner(1 - t)), (2, _outer(2 - t))]
    else:
        raise NotImplementedError(f"mode {mode!r}")
    if padding_mode == "circular":
        base = _wrap(base, size)  # where it is far, a step may round to none
    taps = []
    for step, weight in weights:
        position = base + step
        if padding_mode == "circular":
            position = _wrap(position, size)
        elif pads_taps:
            position = _pad(position, size, padding_mode, align_corners)
        inside = (position >= 0) & (position <= size - 1)
        entry = torch.where(inside, position, 0).to(torch.int64).clamp(max=max(size - 1, 0))
        taps.append((entry, weight, inside))
    return taps


def _wrap(position: Tensor, size: int) -> Tensor:
    """The position in the grid that a whole number of periods leads to."""
    inside = (position >= 0) & (position <= size - 1)
    return torch.where(inside, position, torch.remainder(position, size))


def _keep_near(index: Tensor, size: int, padding_mode: str) -> Tensor:
    """An index that reads the same after its taps are padded; no tap of it is far away."""
    if padding_mode == "zeros":
        return index
    if padding_mode in ("reflection", "circular"):
        return torch.where(index.abs() < 2.0**31, index, 0)
    if padding_mode != "border":
        raise NotImplementedError(f"padding_mode {padding_mode!r}")
    index = torch.where(index.isnan(), 0, index)
    index = torch.where(index < -2, -2, index)
    return torch.where(index > size, size, index)


_A = -0.75


def _inner(x: Tensor) -> Tensor:
    """Keys' cubic convolution (IEEE TASSP 1981) at a distance of 0 to 1 entries."""
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _outer(x: Tensor) -> Tensor:
    """Keys' cubic convolution at a distance of 1 to 2 entries."""
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
