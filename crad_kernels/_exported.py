"""The operators of exported programs: they name no backend, and pick one where they run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crad_kernels import _schema, reference
from crad_kernels._backends import choose
from crad_kernels._schema import Operators, lay_out_as

_Function = Callable[[Tensor, Tensor], Tensor]


def define(backends: Mapping[str, Operators]) -> Operators:
    """Define and implement the operators on the given backends and the reference.

    Each picks the backend that `crad_kernels.sample` takes by default. A result lies in memory as
    ``values`` do, whatever the backend: a program relies on what its export was told.
    """
    operators = _schema.define(_schema.NEUTRAL)
    implementations = {**backends, "reference": _REFERENCE}

    def best(device: torch.device, ndim: int) -> Operators:
        return implementations[choose(None, device, ndim).name]

    def sample(values: Tensor, coords: Tensor, *rest: Any) -> Tensor:
        out = best(coords.device, coords.shape[-1]).sample(values, coords, *rest)
        return lay_out_as(out, values, coords)

    def sample_backward(
        grad_output: Tensor, values: Tensor, coords: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        backend = best(coords.device, coords.shape[-1])
        to_values, to_coords = backend.sample_backward(grad_output, values, coords, *rest)
        want_values = rest[-2]
        return lay_out_as(to_values, values, coords) if want_values else to_values, to_coords

    def normals(seed: Tensor, points: int, ndim: int) -> Tensor:
        result: Tensor = best(seed.device, ndim).normals(seed, points, ndim)
        return result

    for operator, kernel in (
        (operators.sample, sample),
        (operators.sample_backward, sample_backward),
        (operators.normals, normals),
    ):
        _schema.library.impl(operator, kernel, "CompositeExplicitAutograd")
    return operators


# ---- the reference in the place of a backend's operators ----


@contextmanager
def _autograd() -> Iterator[None]:
    """PyTorch runs an operator's kernel below autograd and transforms: here they work again."""
    included = torch._C._dispatch_tls_local_include_set()
    nothing = torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined)
    with torch._C._ForceDispatchKeyGuard(included, nothing), torch.enable_grad():
        yield


def _slope(function: _Function, component: int, values: Tensor, coords: Tensor) -> Tensor:
    """The derivative of a sample along a component of its coordinates."""
    along = torch.zeros_like(coords)
    along[..., component] = 1
    # The derivative along a direction in reverse mode, twice: the caller may be in forward mode,
    # which does not nest.
    out, backward = torch.func.vjp(partial(function, values), coords)[:2]
    forward = torch.func.vjp(lambda grad: backward(grad)[0], torch.zeros_like(out))[1]
    slope: Tensor = forward(along)[0]
    return slope


def _reference(
    ndim: int, seed: Tensor | None, jitter_std: Tensor | None, options: int
) -> _Function:
    """From values and coords to the sample, or to the derivative of it that the options ask for."""
    unpacked = _schema.unpack(options, ndim)

    def sample(values: Tensor, coords: Tensor) -> Tensor:
        return reference.sample(values, coords, seed, jitter_std, unpacked)

    function: _Function = sample
    for component in range(ndim):
        for _ in range(unpacked.derivative >> 4 * (ndim - 1 - component) & 15):
            function = partial(_slope, function, component)
    return function


def _sample(values: Tensor, coords: Tensor, *rest: Any) -> Tensor:
    with _autograd():
        return _reference(coords.shape[-1], *rest)(values.detach(), coords.detach())


def _sample_backward(
    grad_output: Tensor,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    options: int,
    want_values: bool,
    want_coords: bool,
) -> tuple[Tensor, Tensor]:
    with _autograd():
        function = _reference(coords.shape[-1], seed, jitter_std, options)
        to_values, to_coords = torch.func.grad(
            lambda values, coords: (function(values, coords) * grad_output.detach()).sum(), (0, 1)
        )(values.detach(), coords.detach())
    return (
        to_values if want_values else values.new_empty(0),
        to_coords if want_coords else coords.new_empty(0),
    )


_REFERENCE = Operators(_sample, _sample_backward, reference.normals)
