"""What the server refuses, and that nobody else suffers from it."""

import json
import logging
import socket
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import crad
from crad.detector import Detector
from crad.errors import UsageError
from crad.serving import bodies
from crad.serving.access import VARIABLE, read_token
from crad.serving.log import LOGGER, JsonLine
from tests.crad.served import FORM, Served, Watched, form, serving
from tests.crad.test_serving import wait_until

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def detector(trained) -> Detector:
    return crad.load(trained.output, "cpu")


@pytest.fixture(scope="module")
def image(trained) -> bytes:
    return next((trained.data / "brick" / "test" / "good").iterdir()).read_bytes()


@pytest.fixture(scope="module")
def served(detector: Detector) -> Iterator[Served]:
    with serving(detector, max_bytes=100_000, queue=4) as running:
        yield running


@pytest.fixture
def log() -> Iterator[list[dict[str, str]]]:
    """The lines of the log, as they come."""
    lines: list[dict[str, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonLine().format(record)))

    handler = Keep()
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says that it has many pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "there is no image in the body"),
        (b"no image", "not an image in BMP, JPEG, PNG, PNM, TIFF or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image in BMP, JPEG, PNG, PNM, TIFF or WebP"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read: "),
        (bomb(50_000, 50_000), "2500 million pixels, more than the limit of 89.48 million"),
    ],
)
def test_a_bad_image_is_refused_with_the_reason(served: Served, body: bytes, reason: str) -> None:
    answer = served.ask("/predict", body)
    assert answer.status == 422
    assert reason in answer.json["error"]
    assert "/proc" not in answer.json["error"]


def test_a_truncated_image_names_no_path(served: Served, image: bytes) -> None:
    answer = served.ask("/predict", image[:-500])
    assert (answer.status, "/proc" in answer.body.decode()) == (422, False)


def test_a_bad_image_does_not_harm_those_beside_it(
    detector: Detector, image: bytes, log: list[dict[str, str]]
) -> None:
    bad = [b"no image", image[:-500], bomb(50_000, 50_000), b""]
    sent = [("a", image), *((f"bad {n}", each) for n, each in enumerate(bad)), ("b", image)]
    with serving(detector) as served:
        (alone,) = served.ask_for_several("/predict", [("a", image)]).json
        answer = served.ask_for_several("/predict", sent)
        all_bad = served.ask_for_several("/predict", sent[1:-1])
    assert answer.status == 200
    first, *between, last = answer.json
    assert first == alone
    assert last == {**alone, "image": "b"}
    assert [{*each} for each in between] == [{"image", "error"}] * 4
    assert (all_bad.status, all_bad.json["error"][:12]) == (422, "image 'bad 0")
    assert [line["image"] for line in log] == 2 * [f"bad {number}" for number in range(4)]
    assert all("reason" in line for line in log)


def test_too_many_bytes_are_refused(served: Served, image: bytes) -> None:
    large = bytes(200_000)
    for answer in (
        served.ask("/predict", large),
        served.ask("/predict", iter([large[:60_000]] * 3)),  # in chunks, of no stated length
        served.ask_for_several("/predict", [("a", image), ("b", large)]),
    ):
        assert (answer.status, answer.json) == (413, {"error": "an image of more than 0.1 MB"})
    several = served.ask_for_several("/predict", [("a", image)] * 5)
    assert (several.status, several.json) == (413, {"error": "more than 4 images in a request"})
    assert served.ask("/predict", image).status == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "without a boundary"),
        (b"x", FORM, 400, "malformed"),
        (b"", FORM, 400, "ends too early"),
        (form([("a", b"x")])[:-20], FORM, 400, "ends too early"),
        (form([]), FORM, 422, "there is no image in the body"),
        (
            form([("a", b"x")]).replace(b'; filename="a"', b""),
            FORM,
            422,
            "part 'file' has no file name; send images only, and the class as ?class=",
        ),
    ],
)
def test_a_malformed_form_is_refused(
    served: Served, body: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = served.ask("/predict", body, headers)
    assert answer.status == status
    assert reason in answer.json["error"]


def test_a_full_queue_says_when_to_come_again(detector: Detector, image: bytes) -> None:
    watched = Watched(detector)
    with serving(watched, queue=3) as served, ThreadPoolExecutor(3) as pool, watched.held():
        waiting = [pool.submit(served.ask, "/predict", image) for _ in range(3)]
        wait_until(lambda: served.service.places.taken == 3)
        for refused in (
            served.ask("/predict", image),
            served.ask_for_several("/predict", [("a", image)]),
        ):
            assert refused.status == 503
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert served.ask("/health").status == 200
        watched.go.set()
        assert [each.result().status for each in waiting] == [200] * 3
        assert served.ask("/predict", image).status == 200


def test_what_fails_here_is_told_without_a_traceback(
    detector: Detector, image: bytes, log: list[dict[str, str]]
) -> None:
    watched = Watched(detector)
    watched.broken = RuntimeError("a secret")
    with serving(watched) as served:
        watched.most = 1  # so that a batch fails, but each of its images alone does not
        assert served.ask_for_several("/predict", [("a", image)] * 3).status == 200
        watched.most = 0
        for failures in range(3):
            assert served.ask("/health").status == 200, failures
            answer = served.ask("/predict", image)
            told = {"error": "internal error; the log of the server has it"}
            assert (answer.status, answer.json) == (500, told)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert (served.ask("/health").status, served.ask("/health").json) == (
            503,
            {"status": "failing"},
        )
        watched.broken = None
        assert served.ask("/predict", image).status == 200
        assert served.ask("/health").status == 200
    assert len(log) == 3
    for line in log:
        assert (line["level"], line["path"]) == ("error", "/predict")
        assert "a secret" in line["traceback"]


def test_a_client_that_goes_away_leaves_its_place(served: Served) -> None:
    for _ in range(8):  # there are four
        with socket.create_connection(address(served)) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nBM")
            wait_until(lambda: served.service.places.taken == 1)
        wait_until(lambda: served.service.places.taken == 0)


def address(served: Served) -> tuple[str, int]:
    parts = urlsplit(served.address)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def test_a_body_must_arrive_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SECONDS", 0.2)
    with socket.create_connection(address(served), timeout=60) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nBM")
        assert client.recv(9999).startswith(b"HTTP/1.1 408 ")


def test_a_page_of_another_site_is_refused(served: Served, image: bytes) -> None:
    for site, status in {"cross-site": 403, "same-site": 403, "same-origin": 200}.items():
        assert served.ask("/predict", image, {"Sec-Fetch-Site": site}).status == status


def test_a_token_opens_all_but_the_page_and_the_health(detector: Detector, image: bytes) -> None:
    with serving(detector, token=TOKEN) as served:
        assert {served.ask(path).status for path in ("/", "/page.js", "/health")} == {200}
        for path, body in (
            *(("/predict", image), ("/heat-map", image)),
            *(("/model", None), ("/metrics", None)),
        ):
            for wrong in (None, "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xfc"):
                answer = served.ask(path, body, {"Authorization": wrong} if wrong else {})
                assert answer.status == 401, wrong
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert TOKEN not in answer.body.decode()
            right = served.ask(path, body, {"Authorization": f"Bearer {TOKEN}"})
            assert right.status == 200


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN[::-1]}\n")
    assert read_token(file) == TOKEN[::-1]
    for wrong in ("", "short", f"{TOKEN} {TOKEN}", f"{TOKEN}ü"):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(UsageError, match=r"'.*token': expected a token of 16 or more"):
            read_token(file)
    with pytest.raises(UsageError, match="No such file"):
        read_token(tmp_path / "none")
