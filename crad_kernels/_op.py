"""The operation on a backend: the reference, or the operators that all others implement."""

from torch import Tensor

from crad_kernels import _derivatives, _exported, _onnx, _schema, _vmap, reference
from crad_kernels._backends import backends

OPERATORS = {name: _schema.define(name) for name in backends() if name != "reference"}
# Those of exported programs, which pick one of the backends where they run.
OPERATORS[_schema.NEUTRAL] = _exported.define(dict(OPERATORS))
# With their derivatives, their rules for `torch.vmap`, and their way to ONNX.
_CALLS = {name: _derivatives.install(operators) for name, operators in OPERATORS.items()}
for _operators in OPERATORS.values():
    _vmap.install(_operators)
    _onnx.install(_operators)


def sample(
    backend: str,
    values: Tensor,
    coords: Tensor,
    seed: Tensor | None,
    jitter_std: Tensor | None,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    deterministic: bool,
) -> Tensor:
    """Run a backend; shapes as in `crad_kernels.sample`.

    All arguments have been checked but for the tensors, which it refuses where they do not fit.
    """
    if backend == "reference":
        _schema.check_tensors(values, coords)
        return reference.sample(
            values, coords, seed, jitter_std, mode, padding_mode, align_corners, deterministic
        )
    out: Tensor = _CALLS[backend].sample(
        values,
        coords,
        seed,
        jitter_std,
        _schema.pack(mode, padding_mode, align_corners, deterministic),
    )
    return out


def philox(backend: str, counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 on a backend; shapes as in `crad_kernels.reference.philox`."""
    if backend == "reference":
        return reference.philox(counter, key)
    words: Tensor = OPERATORS[backend].philox(counter, key)
    return words


def normals(backend: str, seed: Tensor, points: int, ndim: int) -> Tensor:
    """The jitter's normals; shapes as in `crad_kernels.reference.normals`."""
    if backend == "reference":
        return reference.normals(seed, points, ndim)
    result: Tensor = OPERATORS[backend].normals(seed, points, ndim)
    return result
