"""The other processes of a run: when one fails, all end."""

import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

from torch.distributed.distributed_c10d import Store

from crad.errors import LaunchError
from crad.launch import Launch

_ANSWER = 60.0  # seconds that connecting may take
_KEY = 16  # bytes, by which the processes of a run know each other
_DONE, _FAILED = b"d", b"f"
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A machine that is lost answers nothing for 30 s. For a busy process its kernel answers.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class Peers:
    """Connections between rank 0 and every other rank.

    The system closes a connection when a process ends, however it ends, and whatever the other
    side does meanwhile, so that a busy process is never taken for a lost one. A thread waits for
    that. It gives this process some seconds to end by itself, then ends it.

    Args:
        store: of all processes, to find each other by.
        launch: of this process.
        grace: seconds in which a process may end by itself.

    Raises:
        LaunchError: a process could not be reached.
    """

    def __init__(self, store: Store, launch: Launch, grace: float) -> None:
        self._rank = launch.rank
        self._grace = grace
        self._failed: int | None = None
        self._failure = threading.Event()
        self._first_speaks = False
        self._speech = threading.Lock()  # taken by whoever prints the error, never released
        self._is_done = False
        self._has_failed = False
        self._signals: socket.socket | None = None
        self._connections: dict[socket.socket, int] = {}
        local = launch.local_count == launch.count
        try:
            if launch.rank:
                self._connect(store, "127.0.0.1" if local else launch.address)
            else:
                self._accept(store, launch.count, local)
        except (OSError, RuntimeError) as error:
            raise LaunchError(
                f"processes: rank {launch.rank} of {launch.count} did not find the others "
                f"({error}); start all of them again"
            ) from error
        if threading.current_thread() is threading.main_thread():
            self._signals, sender = socket.socketpair()
            sender.setblocking(False)
            self._sender = sender  # kept open
            signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="crad-peers", daemon=True).start()

    def done(self) -> None:
        """Tell the others that this process has finished its work."""
        self._is_done = True
        self._send(_DONE)
        if self._signals:
            signal.set_wakeup_fd(-1)

    def fail(self) -> None:
        """Tell the others that this process is about to end with an error."""
        if not self._has_failed:
            self._has_failed = True
            self._send(_FAILED)

    def failure(self, seconds: float) -> str | None:
        """Wait for another process to fail, and say which did; None if none does."""
        return f"rank {self._failed}" if self._failure.wait(seconds) else None

    def may_print_error(self) -> bool:
        """Whether this process is to print its error: once, and not if the first one prints its."""
        return not self._first_speaks and self._speech.acquire(blocking=False)

    def _accept(self, store: Store, count: int, local: bool) -> None:
        key = secrets.token_bytes(_KEY)
        with socket.create_server(("127.0.0.1", 0)) if local else _listen_everywhere() as listener:
            listener.settimeout(_ANSWER)
            store.set("crad-peers", f"{listener.getsockname()[1]} {key.hex()}")
            while len(self._connections) < count - 1:
                connection, _ = listener.accept()
                connection.settimeout(_ANSWER)
                with suppress(OSError):  # of a stranger
                    greeting = _receive(connection, _KEY + 4)
                    if secrets.compare_digest(greeting[:_KEY], key):
                        connection.sendall(key)
                        self._connections[connection] = int.from_bytes(greeting[_KEY:], "big")

    def _connect(self, store: Store, address: str) -> None:
        port, key = store.get("crad-peers").decode().split()
        connection = socket.create_connection((address, int(port)), timeout=_ANSWER)
        connection.sendall(bytes.fromhex(key) + self._rank.to_bytes(4, "big"))
        _receive(connection, _KEY)
        self._connections[connection] = 0

    def _watch(self) -> None:
        """Wait for a word of the others, for the end of one, and for a signal to this process."""
        with selectors.DefaultSelector() as selector:
            for connection in self._connections:
                connection.settimeout(None)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for name, value in _KEEPALIVE.items():
                    if hasattr(socket, name):
                        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
                selector.register(connection, selectors.EVENT_READ)
            if self._signals:
                selector.register(self._signals, selectors.EVENT_READ)
            while not self._is_done:
                for key, _ in selector.select(timeout=5.0):
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    if source is self._signals:
                        self._stop(source.recv(1)[0])
                    else:
                        selector.unregister(source)
                        self._hear(source)

    def _hear(self, connection: socket.socket) -> None:
        try:
            word = connection.recv(1)
        except OSError:  # the machine is lost
            word = b""
        if word == _DONE or self._is_done or self._failed is not None:
            return
        self._failed = self._connections[connection]
        self._first_speaks = self._failed == 0 and word == _FAILED
        if not self._rank:  # the others have no connection to the one that failed
            self._has_failed = True
            self._send(_FAILED, but=connection)
        self._failure.set()
        self._end_later(1)

    def _stop(self, number: int) -> None:
        """End this process if a signal finds it in a call that does not return."""
        if number in _STOPS:
            self._end_later(128 + number)

    def _end_later(self, code: int) -> None:
        def end() -> None:
            time.sleep(self._grace)
            if not self._is_done:
                if self._failed is not None and self.may_print_error():
                    print(f"error: another process failed (rank {self._failed})", file=sys.stderr)
                os._exit(code)

        threading.Thread(target=end, name="crad-end", daemon=True).start()

    def _send(self, word: bytes, but: socket.socket | None = None) -> None:
        for connection in self._connections:
            if connection is not but:
                with suppress(OSError):  # that process has ended
                    connection.sendall(word)


def _listen_everywhere() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _receive(connection: socket.socket, count: int) -> bytes:
    """Read so many bytes; a connection that ends before is an OSError."""
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("the connection was closed")
        data += part
    return data
