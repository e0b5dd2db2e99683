"""Reading the weights in a file of any origin; nothing in it is executed."""

import argparse
import codecs
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from crad.files import irregular

# What training scripts wrap weights in; averaged weights come first, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")

# What they often save as well: their arguments, and metrics as NumPy scalars.
_MAKE_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    codecs.encode,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    (_MAKE_SCALAR, "numpy.core.multiarray.scalar"),  # its name in NumPy 1
    (_MAKE_SCALAR, "numpy._core.multiarray.scalar"),
]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the weights in a ``.safetensors`` or PyTorch file, also of a whole training state.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    state: Any
    if kind := irregular(path):
        raise ValueError(f"cannot read '{path}': it is {kind}; give a file of weights")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            with torch.serialization.safe_globals(_HARMLESS):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes unpicklers raise nearly anything
        reason = "it is damaged, of another kind, or holds other objects"
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif names := _other_objects(path):
            reason = f"it holds {', '.join(names)} too, which is not loaded: that could run code"
        raise ValueError(
            f"cannot read '{path}' as a file of tensors and numbers: {reason}; give the weights "
            "alone, as torch.save(model.state_dict(), FILE) writes them"
        ) from error
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not (
        isinstance(state, dict)
        and state
        and all(isinstance(name, str) and torch.is_tensor(each) for name, each in state.items())
    ):
        raise ValueError(f"'{path}' holds no weights: expected a dictionary of tensors by name")
    return state


def _other_objects(path: Path) -> list[str]:
    """Name the first few objects in a PyTorch file that are neither tensors nor harmless."""
    with suppress(Exception), torch.serialization.safe_globals(_HARMLESS):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        return [name.encode("unicode_escape").decode() for name in sorted(names)[:3]]
    return []  # it is damaged


def metadata_of(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty if it has none, or is none."""
    if irregular(file) or not file.exists():
        return {}
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (safetensors.SafetensorError, OSError):
        return {}
