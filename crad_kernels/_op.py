"""The operation on a backend: the reference, or the operators that all others implement."""

from typing import Any

from torch import Tensor

from crad_kernels import (
    _derivatives,
    _direct,
    _exported,
    _level_operators,
    _onnx,
    _schema,
    _vmap,
    reference,
)
from crad_kernels._backends import backends
from crad_kernels._layout import as_torch

OPERATORS = {name: _schema.define(name) for name in backends() if name != "reference"}
# Those of exported programs, which pick one of the backends where they run.
OPERATORS[_schema.NEUTRAL] = _exported.define(dict(OPERATORS))
for _operators in OPERATORS.values():
    _vmap.install(_operators)
    _onnx.install(_operators)


class _Reference:
    """The reference, called as the others are."""

    @staticmethod
    def sample(
        values: Tensor,
        coords: Tensor,
        seed: Tensor | None,
        jitter_std: Tensor | None,
        options: int,
    ) -> Tensor:
        _schema.check_tensors(values, coords)
        return reference.sample(
            values, coords, seed, jitter_std, _schema.unpack(options, coords.shape[-1])
        )

    @staticmethod
    def grid_sample(input: Tensor, *rest: Any) -> Tensor:
        values = input.movedim(1, -1)
        return as_torch(_Reference.sample(values, *rest), values, input)


# The shortest ways to call the backends, with derivatives: `sample` of the operator's arguments,
# and `grid_sample` of the same but for values and a result with channels first, laid out as torch
# does. All arguments must have been checked but for the tensors that are sampled, which each
# refuses where they do not fit.
CALLS: dict[str, Any] = {
    name: _derivatives.install(operators, _direct.CPU if name == "cpu" else None)
    for name, operators in OPERATORS.items()
}
CALLS["reference"] = _Reference

# The operators of several levels, of the backends that have them, and the shortest ways to call
# them.
LEVEL_OPERATORS: dict[str, _level_operators.Levels] = {}
LEVEL_CALLS: dict[str, _level_operators.Levels] = {}
for _name in _level_operators.MOST_LEVELS:
    LEVEL_OPERATORS[_name], LEVEL_CALLS[_name] = _level_operators.install(
        _name, OPERATORS[_name], CALLS[_name]
    )


def normals(backend: str, seed: Tensor, points: int, ndim: int) -> Tensor:
    """The jitter's normals; shapes as in `crad_kernels.reference.normals`."""
    if backend == "reference":
        return reference.normals(seed, points, ndim)
    result: Tensor = OPERATORS[backend].normals(seed, points, ndim)
    return result
