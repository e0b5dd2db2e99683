"""Bodies of requests: one image as it is, or several as ``multipart/form-data``."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from crad.serving.uploads import Places, Upload

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_SECONDS = 60.0  # in which a body must arrive
_LONGEST_NAME = 255


class Bodies:
    """Receives images within limits.

    Args:
        places: of images.
        max_bytes: of an image.
        retry_after: seconds after which a refused client may try again.
    """

    def __init__(self, places: Places, max_bytes: int, retry_after: Callable[[], int]) -> None:
        self._places = places
        self._max_bytes = max_bytes
        self._retry_after = retry_after

    async def receive(self, request: Request) -> tuple[list[Upload], bool]:
        """Receive the images of a request.

        Returns:
            The images, which are the caller's to close, and whether they are a list, which may be
            one of a single image.

        Raises:
            HTTPException: 400 the body is malformed, 408 it comes too slowly, 413 it is too large,
                422 there is no image in it, 503 there is no place.
        """
        uploads: list[Upload] = []
        kind, options = parse_options_header(request.headers.get("content-type"))
        is_list = kind == b"multipart/form-data"
        try:
            async with asyncio.timeout(_SECONDS):
                if is_list:
                    await self._several(request, options.get(b"boundary", b""), uploads)
                else:
                    await self._one(request, uploads)
        except BaseException as error:
            for upload in uploads:
                upload.close()
            if isinstance(error, TimeoutError):
                raise HTTPException(
                    408, f"the body did not arrive within {_SECONDS:.0f} s", {"Connection": "close"}
                ) from None
            raise
        return uploads, is_list

    async def _one(self, request: Request, uploads: list[Upload]) -> None:
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()
        upload = self._new(None, uploads)
        async for data in request.stream():
            self._write(upload, data)
        if not upload.size:
            raise HTTPException(422, "there is no image in the body")

    async def _several(self, request: Request, boundary: bytes, uploads: list[Upload]) -> None:
        if not boundary:
            raise HTTPException(400, "multipart/form-data without a boundary")
        parts = _Parts(lambda name: self._new(name, uploads), self._write)
        try:
            parser = MultipartParser(boundary, parts.callbacks())
            async for data in request.stream():
                parser.write(data)
        except FormParserError as error:
            raise HTTPException(400, f"malformed multipart/form-data: {error}") from None
        if not parts.ended:
            raise HTTPException(400, "malformed multipart/form-data: it ends too early")
        if not uploads:
            raise HTTPException(422, "there is no image in the body")

    def _new(self, name: str | None, uploads: list[Upload]) -> Upload:
        if len(uploads) >= self._places.count:
            raise HTTPException(413, f"more than {self._places.count} images in a request")
        if not self._places.take():
            after = self._retry_after()
            raise HTTPException(
                503, f"too many images wait; try again in {after} s", {"Retry-After": str(after)}
            )
        uploads.append(Upload(name, self._places))
        return uploads[-1]

    def _write(self, upload: Upload, data: bytes) -> None:
        if upload.size + len(data) > self._max_bytes:
            raise self._too_large()
        upload.write(data)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"an image of more than {self._max_bytes / 1e6:g} MB")


class _Parts:
    """Makes an image of each part of a form, as the parser comes to it.

    Args:
        begin: makes an image of a name.
        write: adds to an image.
    """

    def __init__(
        self, begin: Callable[[str], Upload], write: Callable[[Upload, bytes], None]
    ) -> None:
        self._begin = begin
        self._write = write
        self._headers: dict[bytes, bytes] = {}
        self._field, self._value = b"", b""
        self._upload: Upload | None = None
        self.ended = False

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._add_to_field,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_part,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _begin_part(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"").decode("latin-1")
        _, options = parse_options_header(disposition)
        if b"filename" not in options:
            field = options.get(b"name", b"").decode(errors="replace")
            raise HTTPException(
                422, f"part '{field}' has no file name; send images only, and the class as ?class="
            )
        name = options[b"filename"].decode(errors="replace")
        self._upload = self._begin(name[:_LONGEST_NAME])

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        assert self._upload
        self._write(self._upload, data[start:end])

    def _end(self) -> None:
        self.ended = True
