"""Drives a server over HTTP with closed and open loops."""

import asyncio
from collections import deque
from typing import Any

from scripts.peers.drivers import Driver

CONNECTIONS_MAX = 2000  # beyond it requests wait in the client; the wait is part of their latency


class HttpDriver(Driver):
    """Drives a server over kept-alive connections, one request at a time on each; as many as needed."""

    def __init__(self, port: int, path: str, content_type: str, *bodies: bytes) -> None:
        """`bodies`: of the requests, in turn."""
        super().__init__()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {content_type}\r\nContent-Length: "
        self._requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
        self._port = port
        self._idle: list[_Connection] = []
        self._waiting: deque[int] = deque()  # numbers of requests without a connection
        self._connections: set[_Connection] = set()
        self._opening = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, number: int) -> None:
        """Sends the request of that number on a free connection, or queues it."""
        while self._idle:
            connection = self._idle.pop()
            if connection.ask(number):
                return
        self._waiting.append(number)
        if len(self._connections) + self._opening < CONNECTIONS_MAX and self._opening < len(self._waiting):
            self._opening += 1
            task = self.loop.create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Closes all connections."""
        for connection in list(self._connections):
            connection.abort()

    async def _open(self) -> None:
        try:
            await self.loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError:
            while self._waiting:
                self.answered(self._waiting.popleft(), "failed")
        finally:
            self._opening -= 1

    def request(self, number: int) -> bytes:
        """The request of that number, as it goes over a connection."""
        return self._requests[number % len(self._requests)]

    def joined(self, connection: "_Connection") -> None:
        """The connection is open."""
        self._connections.add(connection)
        self.free(connection)

    def left(self, connection: "_Connection", number: int | None) -> None:
        """The connection is lost, and with it the request on it."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if number is not None:
            self.answered(number, "failed")

    def free(self, connection: "_Connection") -> None:
        """The connection can take a request."""
        while self._waiting:
            number = self._waiting.popleft()
            if self.wanted(number):
                connection.ask(number)
                return
        self._idle.append(connection)


class _Connection(asyncio.Protocol):
    def __init__(self, driver: HttpDriver) -> None:
        self._driver = driver
        self._buffer = b""
        self._transport: Any = None
        self._number: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._driver.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        number, self._number = self._number, None
        self._driver.left(self, number)

    def ask(self, number: int) -> bool:
        """Sends the request. Returns False if the connection is closing."""
        if self._transport.is_closing():
            return False
        self._number = number
        self._transport.write(self._driver.request(number))
        return True

    def abort(self) -> None:
        """Closes the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            if not rest.endswith(b"0\r\n\r\n"):
                return
            body = _unchunked(rest)
        else:
            length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(rest) < length:
                return
            body = rest
        self._buffer = b""
        number, self._number = self._number, None
        code = head[9:12]
        if self._driver.on_body is not None and code == b"200":
            self._driver.on_body(body)
        if not self._transport.is_closing():
            self._driver.free(self)
        if number is not None:
            self._driver.answered(number, "ok" if code == b"200" else "rejected" if code in REFUSALS else "failed")


REFUSALS = (b"429", b"503")


def _unchunked(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        parts.append(data[:length])
        data = data[length + 2 :]
    return b"".join(parts)
