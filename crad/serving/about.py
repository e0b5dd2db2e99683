"""What a server says of its detector."""

from typing import Any

from crad.detector import Detector
from crad.predictor import Predictor
from crad.report.environment import environment

_VERSIONS = ("crad", "python", "torch", "numpy", "pillow")


def describe(detector: Predictor) -> dict[str, Any]:
    """Classes, thresholds, rates, sizes and versions, as values for JSON."""
    frame, decoding = detector.frame, detector.decoding
    device, precision = "cpu", "of the exported file"
    if isinstance(detector, Detector):
        device, precision = str(detector.device), detector.precision
    found = environment(device)
    return {
        "classes": [*detector.classes],
        "recognises_class": detector.recognises,
        "thresholds": {name: each.score for name, each in detector.thresholds.items()},
        "threshold_images": {name: each.n_images for name, each in detector.thresholds.items()},
        "uncertain_above": {name: each.score for name, each in detector.uncertain.items()},
        "pixel_thresholds": {name: each.score for name, each in detector.pixel_thresholds.items()},
        "false_alarm_rate": detector.false_alarm_rate,
        "image_size": [frame.height, frame.width],
        "is_tiled": frame.tiling is not None,
        "max_megapixels": decoding.max_megapixels,
        "bit_depth": decoding.bit_depth,
        "device": found["device"],
        "precision": precision,
        "versions": {name: found[name] for name in _VERSIONS},
    }
