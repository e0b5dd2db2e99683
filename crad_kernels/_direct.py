"""The shortest way to the CPU backend's kernels: around PyTorch's dispatcher.

To sample one point takes less time than the dispatcher needs for its arguments. So where it would
do nothing but call the kernels, functions of C do that, given tensors of Python. PyTorch converts
these from 2.14 on; with an older one, all calls go by the dispatcher.
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch.autograd import profiler
from torch.nn import Parameter

from crad_kernels._backends import cpu
from crad_kernels._backends.library import path_of


class Kernels(NamedTuple):
    """Functions of C with the arguments of the operators; None is returned where they do not fit.

    Attributes:
        sample: as the operator.
        sample_backward: as the operator.
        grid_sample: `sample` of values with channels first, to a result laid out as torch does.
        grid_sample_backward: `sample_backward` of values with channels first.
    """

    sample: Callable[..., Tensor | None]
    sample_backward: Callable[..., tuple[Tensor, Tensor] | None]
    grid_sample: Callable[..., Tensor | None]
    grid_sample_backward: Callable[..., tuple[Tensor, Tensor] | None]


def _load() -> Kernels | None:
    if cpu.MISSING:
        return None
    # A library that was built from older sources has none.
    function = getattr(ctypes.PyDLL(path_of("_cpu")), "crad_kernels_direct", None)
    if function is None:
        return None
    function.restype = ctypes.py_object
    found = function()
    return None if found is None else Kernels(*found)


CPU = _load()


_TYPES = (Tensor, Parameter)


def try_first(
    kernel: Callable[..., Any] | None, otherwise: Callable[..., Any], tensors: int
) -> Callable[..., Any]:
    """A function that calls a kernel, of so many tensors and other arguments, where it can.

    That is where the dispatcher would call it for tensors on the CPU, and nothing else. Autograd,
    transforms and the compiler are not looked for.
    """
    if kernel is None:
        return otherwise

    def run(*args: Any) -> Any:
        if _len_torch_dispatch_stack() or profiler._is_profiler_enabled:
            return otherwise(*args)
        for tensor in args[:tensors]:
            if tensor is not None and (type(tensor) not in _TYPES or tensor.is_neg()):
                return otherwise(*args)
        result = kernel(*args)
        return otherwise(*args) if result is None else result

    return run
