"""The one thread that computes: it takes the images that wait, together, and scores them."""

import base64
import io
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from crad.data.images import open_image
from crad.errors import ImageError
from crad.predictor import Predictor
from crad.report.heat_maps import heat_map, overlay
from crad.report.scores import row_of
from crad.scoring.prediction import Prediction
from crad.serving.metrics import Metrics
from crad.serving.uploads import Upload

Wanted = Literal["row", "overlay", "heat map"]

_FAILING = 3  # batches in a row


@dataclass(frozen=True, eq=False)
class Job:
    """An image to score, whose upload is closed once that is done.

    Attributes:
        upload: the image.
        class_name: its class; None recognises it.
        wanted: what the answer is: the row, as in ``scores.json``; the row with the picture of the
            map that lies over the image; or a heat map as a PNG.
        answer: set by the worker; an `ImageError` if the image cannot be read.
    """

    upload: Upload
    class_name: str | None = None
    wanted: Wanted = "row"
    answer: "Future[Any]" = field(default_factory=Future)


class Worker:
    """Scores images in one thread, which owns the detector.

    Args:
        detector: that nothing else uses from now on.
        batch_size: images that are scored together at most.
        metrics: what to count in.

    Attributes:
        seconds: that an image has taken lately.
    """

    def __init__(self, detector: Predictor, *, batch_size: int, metrics: Metrics) -> None:
        self.detector = detector
        self.seconds = 0.1
        self._batch_size = batch_size
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="crad-detector", daemon=True)
        self._thread.start()

    @property
    def is_well(self) -> bool:
        """Whether it runs, and one of the last few batches was computed."""
        return self._thread.is_alive() and self._failures < _FAILING

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let images wait to be scored, in order."""
        with self._changed:
            if self._closing:
                raise RuntimeError("the worker is closed")
            self._waiting += jobs
            self._changed.notify()

    def close(self) -> None:
        """Score what waits, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._next():
            started = time.perf_counter()
            running = []
            for job in jobs:
                if job.answer.set_running_or_notify_cancel():
                    running.append(job)
                else:
                    job.upload.close()
            if not running:
                continue
            self._score(running)
            seconds = time.perf_counter() - started
            self.seconds += 0.2 * (seconds / len(running) - self.seconds)
            self._metrics.add_batch(len(running))

    def _next(self) -> list[Job]:
        """The next images of one class, up to a batch; none once it is closed."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return []
                self._changed.wait()
            name = self._waiting[0].class_name
            taken = [job for job in self._waiting if job.class_name == name][: self._batch_size]
            for job in taken:
                self._waiting.remove(job)
            return taken

    def _score(self, jobs: Sequence[Job]) -> None:
        """Set the answers of images of one class.

        Predictions and errors come in the order of the images. If the whole batch fails, each image
        is tried alone, so that only what cannot be scored has an error.
        """
        left: dict[Path, Job] = {}
        for job in jobs:
            try:
                job.upload.check()
            except ImageError as error:
                self._end(job, error=error)
            else:
                left[job.upload.path] = job
        bad: list[ImageError] = []
        try:
            found = self.detector.iterate(
                [*left],
                batch_size=self._batch_size,
                skip=bad.append,
                class_name=jobs[0].class_name,
            )
            for prediction in found:
                self._failures = 0
                assert prediction.path
                self._answer(left.pop(prediction.path), prediction)
            if len(bad) != len(left):
                raise RuntimeError(f"{len(left)} images have no prediction, {len(bad)} are bad")
            for job, cause in zip(left.values(), bad, strict=True):
                self._end(job, error=ImageError(job.upload.reason(cause)))
        except Exception as error:
            if len(jobs) > 1:
                for job in left.values():
                    self._score([job])
                return
            self._failures += 1
            for job in left.values():
                self._end(job, error=error)

    def _answer(self, job: Job, prediction: Prediction) -> None:
        try:
            value = self._make(job, prediction)
        except Exception as error:
            self._end(job, error=error)
        else:
            self._metrics.add_prediction(prediction)
            self._end(job, value)

    def _end(self, job: Job, value: Any = None, *, error: Exception | None = None) -> None:
        job.upload.close()
        if error is None:
            job.answer.set_result(value)
        else:
            if isinstance(error, ImageError):
                self._metrics.add_bad_image()
            job.answer.set_exception(error)

    def _make(self, job: Job, prediction: Prediction) -> Any:
        scale = self.detector.colour_scale
        if job.wanted == "heat map":
            image = open_image(job.upload.path, self.detector.decoding)
            return _png(heat_map(image, prediction.anomaly_map, *scale))
        row = {**row_of(prediction), "image": job.upload.name}
        if job.wanted == "row":
            return row
        assert prediction.size
        png = base64.b64encode(_png(overlay(prediction.scored_map, *scale))).decode()
        height, width = prediction.size
        return {**row, "map": {"width": width, "height": height, "png": png}}


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
