"""CRAD: anomaly detection with continuous memories of normal features."""

from crad.detector import Detector, load
from crad.errors import CradError
from crad.model.crad import CRAD
from crad.scoring.prediction import Prediction

__version__ = "0.1.0"
__all__ = ["CRAD", "CradError", "Detector", "Prediction", "__version__", "load"]
