"""A server in this process, and a client that knows nothing of it."""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from crad.serving.app import Service
from crad.serving.server import Server, address_of, bind

BOUNDARY = "a-boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A running server."""

    address: str
    service: Service

    def ask(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request: POST if there is a body. An iterator of bytes is sent in chunks."""
        return ask(self.address, path, body, headers)

    def ask_for_several(self, path: str, files: Sequence[tuple[str, bytes]]) -> Answer:
        return self.ask(path, form(files), FORM)


def ask(
    address: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, body, dict(headers or {}))
        got = connection.getresponse()
        return Answer(got.status, got.headers, got.read())
    finally:
        connection.close()


def form(files: Sequence[tuple[str, bytes]]) -> bytes:
    """A body of multipart/form-data."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@contextmanager
def serving(detector: Any, **settings: Any) -> Iterator[Served]:
    """Serve a detector in threads until the block ends."""
    settings = {"batch_size": 16, "queue": 64, "max_bytes": 10**6, **settings}
    service = Service(detector, **settings)
    started = threading.Event()
    server = Server(service.app, started.set)
    bound = bind("127.0.0.1", 0)
    served = Served(address_of(bound), service)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    assert started.wait(60)
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join()
        service.worker.close()
        assert service.places.taken == 0


class Watched:
    """A detector that a test can hold, break and look into.

    Attributes:
        batches: how many images each call got.
        threads: that called it.
        broken: raised by calls that get more than `most` images.
    """

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.go = threading.Event()  # that calls wait for
        self.go.set()
        self.called = threading.Event()
        self.broken: Exception | None = None
        self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let calls wait, until the block ends at the latest."""
        self.go.clear()
        try:
            yield
        finally:
            self.go.set()

    def iterate(self, images: Sequence[Any], **options: Any) -> Iterator[Any]:
        self.batches.append(len(images))
        self.threads.add(threading.get_ident())
        self.called.set()
        assert self.go.wait(60)
        if self.broken and len(images) > self.most:
            raise self.broken
        yield from self._detector.iterate(images, **options)
