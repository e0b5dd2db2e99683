"""What a server says of its detector."""

from typing import Any

from crad.detector import Detector
from crad.report.environment import environment

_VERSIONS = ("crad", "python", "torch", "numpy", "pillow")


def describe(detector: Detector) -> dict[str, Any]:
    """Classes, thresholds, rates, sizes and versions, as values for JSON."""
    frame, decoding = detector.frame, detector.decoding
    found = environment(detector.device)
    return {
        "classes": [*detector.classes],
        "recognises_class": detector.products is not None or len(detector.classes) == 1,
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
        "precision": detector.precision,
        "versions": {name: found[name] for name in _VERSIONS},
    }
