"""CRAD: anomaly detection with continuous memories of normal features."""

import importlib
from typing import TYPE_CHECKING, Any

from crad.errors import CradError, MissingPackageError
from crad.version import VERSION

if TYPE_CHECKING:
    from crad.detector import Detector
    from crad.edge.detector import load_exported
    from crad.loading import load
    from crad.model.crad import CRAD
    from crad.scoring.prediction import Prediction

__version__ = VERSION
__all__ = ["CRAD", "CradError", "Detector", "Prediction", "__version__", "load", "load_exported"]

# PyTorch, which takes seconds, is imported with the first of these.
_MODULES = {
    "CRAD": "crad.model.crad",
    "Detector": "crad.detector",
    "Prediction": "crad.scoring.prediction",
    "load": "crad.loading",
    "load_exported": "crad.edge.detector",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'crad' has no attribute '{name}'")
    try:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError(
            f"crad.{name} needs PyTorch, which is not installed; install crad instead of crad-edge"
        ) from error
    globals()[name] = value  # the next use of it finds it there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
