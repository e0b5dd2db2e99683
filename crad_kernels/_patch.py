"""`torch.nn.functional.grid_sample` by this package, for programs that call torch's."""

import sys
import threading
import warnings
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from crad_kernels import _schema
from crad_kernels._backends import default
from crad_kernels.functional import grid_sample

_torch_grid_sample: Callable[..., Tensor] = torch.nn.functional.grid_sample

_PADDING_MODES = ("zeros", "border", "reflection")
_MODES = {4: ("bilinear", "nearest", "bicubic"), 5: ("bilinear", "nearest")}


def _takes(input: Tensor, grid: Tensor, mode: str, padding_mode: str, corners: bool | None) -> bool:
    """Whether torch takes this call and so do compiled kernels of this package."""
    if not isinstance(input, Tensor) or not isinstance(grid, Tensor):
        return False
    ndim = input.ndim
    return (
        mode in _MODES.get(ndim, ())
        and padding_mode in _PADDING_MODES
        and corners in (None, False, True)
        and grid.ndim == ndim
        and grid.shape[-1] == ndim - 2
        and grid.shape[0] == input.shape[0]
        and 0 not in input.shape[1:]
        and input.dtype == grid.dtype
        and input.dtype in _schema.VALUE_DTYPES
        and input.layout == grid.layout == torch.strided
        and input.device == grid.device
        and default(input.device, ndim - 2).name != "reference"
    )


def _grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """As `torch.nn.functional.grid_sample`; what torch refuses, it refuses in its own words."""
    if has_torch_function_variadic(input, grid):
        # They look for what to do by torch's function.
        overridden: Tensor = handle_torch_function(
            _torch_grid_sample,
            (input, grid),
            input,
            grid,
            mode=mode,
            padding_mode=padding_mode,
            align_corners=align_corners,
        )
        return overridden
    if not _takes(input, grid, mode, padding_mode, align_corners):
        return _torch_grid_sample(input, grid, mode, padding_mode, align_corners)
    if align_corners is None:
        warnings.warn(
            "grid_sample(): align_corners is not given, and False is taken; pass "
            "align_corners=False to say so",
            stacklevel=2,
        )
    return grid_sample(input, grid, mode, padding_mode, align_corners)


_lock = threading.Lock()
_patches: set["Patch"] = set()


class Patch:
    """What `patch` has done; `undo` it, or leave the ``with`` block that it began."""

    def undo(self) -> None:
        """Put torch's function back, unless another patch is still there."""
        with _lock:
            if self in _patches:
                _patches.remove(self)
                if not _patches:
                    _replace(_grid_sample, _torch_grid_sample)

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def patch() -> Patch:
    """Put `grid_sample` in place of `torch.nn.functional.grid_sample` for the whole program.

    Modules that have imported torch's function by name get it, too; functions that keep it
    elsewhere, such as in a default argument or a class, do not. Calls that torch takes and the
    compiled kernels do not (other devices and dtypes, subclasses of tensors), and calls that torch
    refuses, go to torch. Results are torch's up to rounding.

    Returns:
        the patch; leave it for the rest of the program, call its `Patch.undo`, or use it in a
        ``with`` block. Patches nest: torch's function is back when the last one is undone.
    """
    with _lock:
        added = Patch()
        if not _patches:
            _replace(_torch_grid_sample, _grid_sample)
        _patches.add(added)
        return added


def _replace(old: Callable[..., Tensor], new: Callable[..., Tensor]) -> None:
    """In every module that has it as an attribute, but this one."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if not isinstance(names, dict) or names is globals():
            continue
        for name in [name for name, value in list(names.items()) if value is old]:
            names[name] = new
