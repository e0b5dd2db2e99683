"""CRAD: anomaly detection with continuous memories of normal features."""

from crad.detector import Detector, Prediction, load
from crad.model.crad import CRAD

__version__ = "0.1.0"
__all__ = ["CRAD", "Detector", "Prediction", "__version__", "load"]
