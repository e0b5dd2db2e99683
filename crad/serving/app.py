"""The routes of the server."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteError

from crad.errors import ImageError, UsageError
from crad.predictor import Predictor
from crad.serving.about import describe
from crad.serving.access import make_check
from crad.serving.answers import Answers
from crad.serving.bodies import Bodies
from crad.serving.log import warn
from crad.serving.metrics import Metrics
from crad.serving.uploads import Places
from crad.serving.worker import Job, Wanted, Worker

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
        },
    }
}
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}

ClassName = Annotated[str | None, Query(alias="class", description="The class of the images.")]


class Service:
    """A detector, and the routes that lead to it.

    Args:
        detector: that nothing else uses from now on.
        batch_size: images that are scored together at most.
        queue: images that are received, wait, or are computed at most.
        max_bytes: of an image.
        token: that clients must send; None lets everybody in.

    Attributes:
        app: the routes.
        places: of images.
        worker: that computes; to be closed once the app serves no more.
    """

    def __init__(
        self,
        detector: Predictor,
        *,
        batch_size: int,
        queue: int,
        max_bytes: int,
        token: str | None = None,
    ) -> None:
        self._detector = detector
        self._about = describe(detector)
        self.places = Places(queue)
        self._metrics = Metrics(detector, lambda: self.places.taken)
        self._bodies = Bodies(self.places, max_bytes, self._retry_after)
        self.worker = Worker(detector, batch_size=batch_size, metrics=self._metrics)
        self.app = self._make_app(token)

    def _make_app(self, token: str | None) -> FastAPI:
        app = FastAPI(title="crad", docs_url=None, redoc_url=None)
        for path, (name, kind) in _FILES.items():
            app.get(path, include_in_schema=False)(_file(name, kind))
        guarded = [Depends(make_check(token))]
        app.get("/health")(self.health)
        app.get("/model", dependencies=guarded)(self.model)
        app.get("/metrics", dependencies=guarded, response_class=Response)(self.metrics)
        app.post("/predict", dependencies=guarded, openapi_extra=BODY)(self.predict)
        app.post("/heat-map", dependencies=guarded, openapi_extra=BODY, response_class=Response)(
            self.heat_map
        )
        app.add_exception_handler(StarletteError, _refuse)
        app.add_exception_handler(RequestValidationError, _refuse_query)
        app.add_middleware(Answers, metrics=self._metrics)
        return app

    async def health(self) -> JSONResponse:
        """Whether the detector computes."""
        if self.worker.is_well:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "failing"}, 503)

    async def model(self) -> dict[str, Any]:
        """What the detector knows, and how it decides."""
        return self._about

    async def metrics(self) -> Response:
        """Counts, latencies and scores, for Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def predict(
        self,
        request: Request,
        class_: ClassName = None,
        map_: Annotated[
            bool, Query(alias="map", description="Add a picture that lies over the image.")
        ] = False,
    ) -> JSONResponse:
        """Score one image, which is the body, or several as multipart/form-data.

        Of one image the answer is its row; of several, a list of rows, with `error` in that of an
        image that cannot be read.
        """
        found, is_list = await self._score(request, class_, "overlay" if map_ else "row")
        if is_list and not all(isinstance(each, ImageError) for _, each in found):
            rows = [
                {"image": name, "error": str(each)} if isinstance(each, ImageError) else each
                for name, each in found
            ]
            return JSONResponse(rows)
        return JSONResponse(_of_first(found))

    async def heat_map(self, request: Request, class_: ClassName = None) -> Response:
        """Give the heat map of one image, as a PNG of its size."""
        found, _ = await self._score(request, class_, "heat map")
        if len(found) > 1:
            raise HTTPException(422, "a heat map is of one image; send one")
        return Response(_of_first(found), media_type="image/png")

    async def _score(
        self, request: Request, class_name: str | None, wanted: Wanted
    ) -> tuple[list[tuple[str | None, Any]], bool]:
        """The names of the images of a request, each with its answer or its error."""
        if class_name is not None and class_name not in self._detector.classes:
            known = ", ".join(self._detector.classes)
            raise HTTPException(422, f"the model has no class '{class_name}'; it has {known}")
        uploads, is_list = await self._bodies.receive(request)
        jobs = [Job(upload, class_name, wanted) for upload in uploads]
        self.worker.submit(jobs)
        answers = await asyncio.gather(
            *(asyncio.wrap_future(job.answer) for job in jobs), return_exceptions=True
        )
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, ImageError):
                warn("bad image", image=job.upload.name, reason=str(answer))
            elif isinstance(answer, UsageError):
                raise HTTPException(422, str(answer))
            elif isinstance(answer, BaseException):
                raise answer
        names = [upload.name for upload in uploads]
        return [*zip(names, answers, strict=True)], is_list

    def _retry_after(self) -> int:
        """Seconds in which about half of the images that wait will be computed."""
        return min(60, max(1, math.ceil(self.places.count * self.worker.seconds / 2)))


def _file(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    """Give a file of this package."""
    content = Path(__file__).with_name(name).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=kind)

    return send


def _of_first(found: Sequence[tuple[str | None, Any]]) -> Any:
    name, answer = found[0]
    if isinstance(answer, ImageError):
        image = f"image '{name}'" if name else "the image"
        raise HTTPException(422, f"{image} cannot be read: {answer}")
    return answer


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteError)
    if error.status_code not in (404, 405, 422):  # a bad image has a line of its own
        warn("refused", path=request.url.path, status=error.status_code, reason=error.detail)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _refuse_query(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)
