"""Clients of closed loops: a number of requests in flight over ZeroMQ or HTTP, by callbacks only."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import zmq

Drive = Callable[[int, float], Awaitable[tuple[list[float], int]]]  # (in flight, seconds) -> latencies, number not ok


class ZmqDriver:
    """Keeps a number of requests in flight on one DEALER socket, by callbacks."""

    def __init__(
        self,
        address: str,
        request: Callable[[int], bytes],
        check: Callable[..., tuple[int, bool]],
        frames: Sequence[bytes] = (),
    ) -> None:
        """`request`: the body of the request of that number; `frames` follow it, and are not copied.

        `check`: (number, whether the answer is right) from an answer's body and, if there are `frames`, its frames.
        """
        self._loop = asyncio.get_running_loop()
        self._request, self._check, self._frames = request, check, tuple(frames)
        self._context = zmq.Context()
        self._sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):  # no limits: the number in flight is one
            self._sock.setsockopt(option, 0)
        self._sock.connect(address)
        self._sent: dict[int, float] = {}
        self._number = 0
        self._ends_s = 0.0
        self._latencies: list[float] = []
        self._not_ok = 0
        self._done: asyncio.Future[None] | None = None
        self._loop.add_reader(int(self._sock.getsockopt(zmq.FD)), self._readable)

    async def drive(self, in_flight: int, seconds: float) -> tuple[list[float], int]:
        """Latencies of all requests that ended within the time, and the number of answers not ok."""
        self._latencies, self._not_ok = [], 0
        self._done = self._loop.create_future()
        self._ends_s = time.perf_counter() + seconds
        for _ in range(in_flight):
            self._ask()
        self._loop.call_soon(self._readable)
        await self._done
        return self._latencies, self._not_ok

    def close(self) -> None:
        """Closes the socket."""
        self._loop.remove_reader(int(self._sock.getsockopt(zmq.FD)))
        self._sock.close(0)
        self._context.term()

    def _ask(self) -> None:
        self._number += 1
        self._sent[self._number] = time.perf_counter()
        if self._frames:
            self._sock.send(self._request(self._number), zmq.NOBLOCK | zmq.SNDMORE)
            self._sock.send_multipart(self._frames, zmq.NOBLOCK, copy=False)
        else:
            self._sock.send(self._request(self._number), zmq.NOBLOCK)

    def _readable(self) -> None:
        while True:
            try:
                body = self._sock.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            frames = []
            while self._frames and self._sock.getsockopt(zmq.RCVMORE):
                frames.append(self._sock.recv(zmq.NOBLOCK, copy=False).buffer)
            now = time.perf_counter()
            number, ok = self._check(body, *frames)
            self._latencies.append(now - self._sent.pop(number))
            self._not_ok += not ok
            if now < self._ends_s:
                self._ask()
        if not self._sent and self._done is not None and not self._done.done():
            self._done.set_result(None)
        if int(self._sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._readable)


class HttpDriver:
    """Keeps a number of requests in flight, each on a kept-alive connection of its own."""

    def __init__(
        self, port: int, body: bytes, *, path: str = "/inference", content: str = "application/msgpack"
    ) -> None:
        head = (
            f"POST {path} HTTP/1.1",
            "Host: b",
            f"Content-Type: {content}",
            f"Content-Length: {len(body)}",
        )
        self._request = "\r\n".join((*head, "", "")).encode() + body
        self._port = port
        self._pool: list[_Http] = []

    async def drive(self, in_flight: int, seconds: float) -> tuple[list[float], int]:
        """Latencies of all requests that ended within the time, and the number of answers not ok."""
        loop = asyncio.get_running_loop()
        self._pool = [connection for connection in self._pool if not connection.closed]
        while len(self._pool) < in_flight:
            _, protocol = await loop.create_connection(lambda: _Http(self._request), "127.0.0.1", self._port)
            self._pool.append(protocol)
        ends_s = time.perf_counter() + seconds
        runs = [connection.run(ends_s) for connection in self._pool[:in_flight]]
        await asyncio.gather(*runs)
        chosen = self._pool[:in_flight]
        return [s for connection in chosen for s in connection.latencies], sum(c.not_ok for c in chosen)


class _Http(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._head = b""  # of the answer, as far as it has come
        self._left: int | None = None  # bytes of the answer's body that are still to come; None: its head is not here
        self._ok = False
        self._transport: Any = None
        self._done: asyncio.Future[None] | None = None
        self._ends_s = self._sent_s = 0.0
        self.latencies: list[float] = []
        self.not_ok = 0
        self.closed = False  # by the server

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._done is not None and not self._done.done():
            self.not_ok += 1
            self.latencies.append(time.perf_counter() - self._sent_s)
            self._done.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def run(self, ends_s: float) -> "asyncio.Future[None]":
        """Sends one request after the other until the time is up."""
        self.latencies, self.not_ok, self._ends_s = [], 0, ends_s
        self._done = asyncio.get_running_loop().create_future()
        self._ask()
        return self._done

    def _ask(self) -> None:
        self._left, self._head, self._sent_s = None, b"", time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._left is None:
            head, found, body = (self._head + data).partition(b"\r\n\r\n")
            if not found:
                self._head += data
                return
            self._left = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]) - len(body)
            self._ok = b" 200 " in head[:16]
        else:
            self._left -= len(data)
        if self._left > 0:
            return
        now = time.perf_counter()
        self.latencies.append(now - self._sent_s)
        self.not_ok += not self._ok
        if now < self._ends_s:
            self._ask()
        elif self._done is not None and not self._done.done():
            self._done.set_result(None)
