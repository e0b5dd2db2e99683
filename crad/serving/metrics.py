"""What the server counts, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from crad.predictor import Predictor
from crad.scoring.prediction import Prediction

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_RATIOS = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10)
_P_VALUES = (0.005, 0.01, 0.02, 0.05, *(tenths / 10 for tenths in range(1, 11)))
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters and histograms of one server.

    Args:
        detector: whose classes and decisions begin at zero.
        waiting: the number of images that are being received, wait, or are computed.
    """

    def __init__(self, detector: Predictor, waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._decisions = Counter(
            "crad_images",
            "Images that were scored.",
            ["decision", "class_name"],
            registry=registry,
        )
        self._bad = Counter("crad_bad_images", "Images that could not be read.", registry=registry)
        self._ratios = Histogram(
            "crad_score_ratio",
            "Score of an image divided by the threshold of its class.",
            ["class_name"],
            buckets=_RATIOS,
            registry=registry,
        )
        self._p_values = Histogram(
            "crad_p_value",
            "p-value of an image; those of good images are spread evenly unless scores drift.",
            ["class_name"],
            buckets=_P_VALUES,
            registry=registry,
        )
        self._batches = Histogram(
            "crad_batch_images",
            "Images that were scored together.",
            buckets=_IMAGES,
            registry=registry,
        )
        self._requests = Histogram(
            "crad_request_seconds",
            "Time from the head of a request to the end of its answer.",
            ["route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        Gauge(
            "crad_images_in_progress",
            "Images that are being received, wait, or are computed.",
            registry=registry,
        ).set_function(waiting)
        ProcessCollector(registry=registry)
        for name in detector.classes:
            self._ratios.labels(name)
            self._p_values.labels(name)
            for decision in ("good", "defect"):
                self._decisions.labels(decision, name)

    def add_prediction(self, prediction: Prediction) -> None:
        """Count an image."""
        name = prediction.class_name or "unknown"
        self._decisions.labels(prediction.decision or "none", name).inc()
        if prediction.threshold is not None and prediction.threshold > 0:
            self._ratios.labels(name).observe(prediction.score / prediction.threshold)
        if prediction.p_value is not None:
            self._p_values.labels(name).observe(prediction.p_value)

    def add_bad_image(self) -> None:
        """Count an image that could not be read."""
        self._bad.inc()

    def add_batch(self, size: int) -> None:
        """Count images that were scored together."""
        self._batches.observe(size)

    def add_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, str(status)).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
