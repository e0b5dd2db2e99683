"""`crad serve`: its options, what it prints, and how it ends."""

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI

from crad.serve import main
from crad.serving.access import VARIABLE
from crad.serving.server import Server
from tests.crad.served import ask

Command = Callable[..., int]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--port", "65536"], 2, "--port: expected 0 to 65535"),
        (["--queue", "0"], 2, "--queue: expected at least 1"),
        (["--max-megabytes", "0"], 2, "--max-megabytes: expected a number above 0"),
        (["--batch-size", "0"], 2, "--batch-size: expected at least 1"),
        (["--host", "no.such.host.invalid"], 2, "choose another --host"),
        (["--token-file", "none"], 2, "--token-file: 'none' cannot be read"),
        (["--port", "TAKEN"], 2, "in use"),
    ],
)
def test_errors(
    trained,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = [port if each == "TAKEN" else each for each in arguments]
        first = [] if "--port" in given else ["--port", "0"]
        assert command(main, "--checkpoint", str(trained.output), *first, *given) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("host", "token", "warns"),
    [("127.0.0.1", "", False), ("0.0.0.0", "", True), ("0.0.0.0", "0123456789abcdef", False)],
)
def test_without_a_token_it_warns_unless_only_this_machine_reaches_it(
    trained,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host: str,
    token: str,
    warns: bool,
) -> None:
    monkeypatch.setattr(Server, "run", lambda self, _: self._on_start())
    monkeypatch.delenv(VARIABLE, raising=False)
    if token:
        monkeypatch.setenv(VARIABLE, token)
    arguments = ["--checkpoint", str(trained.output), "--port", "0", "--host", host]
    assert command(main, *arguments) == 0
    captured = capsys.readouterr()
    assert re.search(rf"serving \S+ at http://{host}:\d+\n", captured.out)
    assert ("warning: " in captured.err) == warns


def test_a_package_that_is_missing_is_named(
    trained,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [each for each in sys.modules if each.startswith("crad.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert command(main, "--checkpoint", str(trained.output)) == 1
    assert "fastapi is not installed; install it with pip install 'crad[serve]'" in (
        capsys.readouterr().err
    )


def test_the_command_needs_no_package_of_the_server_to_be_imported() -> None:
    assert "fastapi" not in vars(importlib.import_module("crad.serve"))


@contextmanager
def process(checkpoint: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "crad", "serve", "--checkpoint", str(checkpoint)]
    running = subprocess.Popen(
        [*command, "--device", "cpu", "--port", "0", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout
        for line in running.stdout:
            if found := re.search(r"serving .* at (http\S+)", line):
                yield running, found[1]
                break
        else:
            raise AssertionError(running.communicate()[1])
    finally:
        running.kill()
        running.communicate()


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logging.disable", lambda: None)
    server = Server(FastAPI(), lambda: None)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    with pytest.raises(KeyboardInterrupt):
        server.handle_exit(signal.SIGINT, None)


@pytest.mark.slow
def test_a_signal_lets_it_answer_what_it_has_accepted(trained) -> None:
    """And it says what went wrong in lines of JSON."""
    image = next((trained.data / "brick" / "test" / "good").iterdir()).read_bytes()
    host = "127.0.0.1"
    with process(trained.output) as (running, address), ThreadPoolExecutor(8) as pool:
        assert ask(address, "/predict", b"no image").status == 422
        port = int(address.rpartition(":")[2])
        # Requests whose head has arrived are accepted.
        begun = [socket.create_connection((host, port), timeout=60) for _ in range(8)]
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n"
        for client in begun:
            client.sendall(head.encode() + image[:10])
        while metric(address, "crad_images_in_progress") < 8:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        while is_open(host, port):
            time.sleep(0.05)

        def finish(client: socket.socket) -> bytes:
            with client:
                client.sendall(image[10:])
                return b"".join(iter(lambda: client.recv(65536), b""))

        answers = [*pool.map(finish, begun)]
        assert running.wait(60) == 0
        assert running.stdout
        assert "all that was accepted is answered" in running.stdout.read()
        assert running.stderr
        (line,) = running.stderr.read().splitlines()
    for answer in answers:
        top, _, body = answer.partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body)["decision"] in ("good", "defect")
    assert json.loads(line)["message"] == "bad image"


def metric(address: str, name: str) -> float:
    text = ask(address, "/metrics").body.decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1])


def is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True
