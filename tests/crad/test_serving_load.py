"""The server under load: nothing is lost, memory stays, and a restart costs patience only."""

import http.client
import random
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import crad
from tests.crad.served import Answer, ask
from tests.crad.test_serving_command import metric, process

_CLIENTS = 16


def insist(address: str, image: bytes) -> tuple[Answer, float]:
    """Ask until there is an answer, as a client should; also the seconds that the last try took."""
    for _ in range(300):
        started = time.perf_counter()
        try:
            answer = ask(address, "/predict", image)
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
            continue
        if answer.status != 503:
            return answer, time.perf_counter() - started
        time.sleep(random.uniform(0.5, 1) * int(answer.headers["Retry-After"]))
    raise AssertionError("no answer")


@pytest.mark.thorough
def test_two_thousand_images_of_sixteen_clients(
    trained, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(trained.data.glob("*/*/*/*.png"))
    images = [file.read_bytes() for file in files]
    expected = [each.score for each in crad.load(trained.output, "cpu").predict(files)]
    resident: dict[int, float] = {}
    with process(trained.output) as (running, address), ThreadPoolExecutor(_CLIENTS) as pool:

        def score(number: int) -> float:
            answer, seconds = insist(address, images[number % len(images)])
            assert answer.json["score"] == pytest.approx(expected[number % len(images)], rel=2e-6)
            if number in (500, 1999):
                resident[number] = metric(address, "process_resident_memory_bytes")
            return seconds

        started = time.perf_counter()
        times = sorted(pool.map(score, range(2000)))
        seconds = time.perf_counter() - started
        assert metric(address, 'crad_request_seconds_count{route="/predict",status="200"}') == 2000
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    with capsys.disabled():
        p50, p99 = statistics.median(times), times[round(0.99 * len(times))]
        print(
            f"\n2,000 images of {_CLIENTS} clients: {2000 / seconds:.0f} a second, latency p50 "
            f"{1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms; resident memory after 500 and 2,000: "
            f"{resident[500] / 2**20:.0f} and {resident[1999] / 2**20:.0f} MiB"
        )
    assert resident[1999] < 1.05 * resident[500]


@pytest.mark.thorough
def test_clients_that_try_again_lose_nothing_when_it_is_killed(trained) -> None:
    files = sorted(trained.data.glob("*/*/*/*.png"))
    images = [file.read_bytes() for file in files]
    expected = [each.score for each in crad.load(trained.output, "cpu").predict(files)]
    with ThreadPoolExecutor(_CLIENTS) as pool:
        with process(trained.output) as (running, address):
            futures = [
                pool.submit(insist, address, images[number % len(images)]) for number in range(300)
            ]
            wait_until(lambda: sum(each.done() for each in futures) > 50)
            running.kill()
        port = address.rpartition(":")[2]
        with process(trained.output, "--port", port) as (_, again):
            assert again == address
            answers = [each.result()[0] for each in futures]
    for number, answer in enumerate(answers):
        assert answer.status == 200
        assert answer.json["score"] == pytest.approx(expected[number % len(images)], rel=2e-6)


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come")
