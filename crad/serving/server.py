"""The server: its socket, and how it begins and ends."""

import contextlib
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from crad.errors import UsageError


def bind(host: str, port: int) -> socket.socket:
    """Open the socket of a server, which refuses connections until the server starts.

    Args:
        host: an address or a name of this machine.
        port: 0 takes any that is free.

    Raises:
        UsageError: that is not possible.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
        except BaseException:
            opened.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen on {host}, port {port}: {reason}; choose another --host or --port"
        ) from None
    return opened


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def address_of(bound: socket.socket) -> str:
    """The address of a socket, as a browser takes it."""
    host, port, *_ = bound.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves until SIGINT or SIGTERM, then answers what it has accepted, and returns.

    Args:
        app: what to serve.
        on_start: called once it answers.
    """

    def __init__(self, app: FastAPI, on_start: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
        )

        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As that of uvicorn.

        Raises:
            UsageError: another program has begun to listen on the port meanwhile.
        """
        try:
            await super().startup(sockets)
        except OSError as error:
            raise UsageError(
                f"cannot listen: {error.strerror}; choose another --host or --port"
            ) from None
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As that of uvicorn, but without raising the signals again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        former = {each: signal.signal(each, self.handle_exit) for each in numbers}
        try:
            yield
        finally:
            for each, handler in former.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal ends at once."""
        if self.should_exit:
            logging.disable()  # of what this cuts short
            raise KeyboardInterrupt
        self.should_exit = True
