"""One HTTP connection: what aiohttp's own does not say, and the bounds that it does not have."""

import asyncio
from typing import Any

import structlog
from aiohttp import StreamReader, web
from aiohttp.http_exceptions import ContentEncodingError

from frontend.gateway.admission import bad_encoding
from frontend.gateway.errors import ErrorAnswer, plain_error, refusal
from frontend.gateway.responses import error_response
from mesh.process.descriptors import Shortage

SLICE_BYTES = 1 << 16  # of what arrived, parsed in one go; a bound is looked at after each
IDLE_BYTES_MAX = 1 << 19  # that a body may have come with, but did not hold: chunk headers, empty blocks of gzip
IDLE_SHARE = 8  # and one byte more for so many that it holds
SWALLOW_S, SWALLOW_S_MAX = 0.1, 3.0  # the rest of a refused body is read until it stops for so long; at most so long
NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\nServer: gearmesh\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: 87\r\n\r\n"
    b'{"error":"as many connections are here as this process may have","code":"gateway_full"}'
)
log = structlog.get_logger("gateway")


class IdleBytes(Exception):
    """A body holds much less than it came with."""


class HttpClients:
    """Counts the connections of the gateway."""

    def __init__(self) -> None:
        self.count = 0
        self.shortage = Shortage(log)

    def come(self) -> bool:
        """Counts one more. Returns False if there are as many already as descriptors allow."""
        self.count += 1
        if self.count <= self.shortage.clients_max:
            return True
        self.shortage.refused += 1
        self.shortage.tell("as many clients are here as it allows", self.count)
        return False

    def go(self) -> None:
        """One has ended."""
        self.count -= 1


class HttpConnection(web.RequestHandler):
    """One connection. What is not HTTP is answered like any other error, and logged in one line.

    While a body is read (`reading` is its content), it may not consist of what only takes time to parse.
    """

    __slots__ = ("_clients", "_received", "_settled", "broken", "reading")

    def __init__(self, clients: HttpClients, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._clients = clients
        self.reading: StreamReader | None = None
        self.broken = False  # nothing more is parsed; it is closed after the answer
        self._received = 0  # bytes on this connection
        self._settled = 0  # of those, until the last answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is served; or told at once, and closed, that there is no room for it."""
        super().connection_made(transport)
        if not self._clients.come():
            self.broken = True
            assert self.transport is not None
            self.transport.write(NO_ROOM)
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is no more."""
        self._clients.go()
        super().connection_lost(exc)

    def begin(self, content: StreamReader) -> None:
        """The body in `content` is read from now on."""
        self.reading = content
        self._check(content)

    def settle(self) -> None:
        """A request is answered: what comes now belongs to the next one."""
        self.reading, self._settled = None, self._received

    def data_received(self, data: bytes) -> None:
        """Parses what arrived."""
        if len(data) <= SLICE_BYTES:
            self._parse(data)
            return
        for at in range(0, len(data), SLICE_BYTES):
            self._parse(data[at : at + SLICE_BYTES])

    def _parse(self, data: bytes) -> None:
        self._received += len(data)
        if self.broken:
            return
        super().data_received(data)
        if self.reading is not None:
            self._check(self.reading)

    def _check(self, content: StreamReader) -> None:
        """The body's reader is told if the body holds too little, so far, or cannot go on."""
        if content.is_eof():
            return
        if self._messages:  # before the end of a body that is only the note that its chunks are none
            self.broken = True
            content.set_exception(web.RequestPayloadError("its chunks are not those of HTTP"))
            return
        idle = self._received - self._settled - content.total_bytes
        if self.broken or idle > IDLE_BYTES_MAX + content.total_bytes // IDLE_SHARE:
            self.broken = True
            content.set_exception(IdleBytes())

    async def swallow(self, content: StreamReader) -> None:
        """Nothing of what the client still sends of this body is parsed; it has time to send it, so that it reads the
        answer.
        """
        self.broken = True
        until_s = self._loop.time() + SWALLOW_S_MAX
        received = -1
        while received != self._received and self.transport is not None and self._loop.time() < until_s:
            received = self._received
            self.transport.resume_reading()
            await asyncio.sleep(SWALLOW_S)
        content.feed_eof()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what aiohttp could not read; it closes the connection."""
        if status >= 500:
            log.error("gateway_error", why=repr(exc))
        else:
            log.debug("no_http", why=str(exc)[:200])
        response = error_response(_told(status, exc, message or str(exc)))
        response.force_close()
        return response


def _told(status: int, exc: BaseException | None, message: str) -> ErrorAnswer:
    if status >= 500:
        return plain_error(status, "the gateway itself failed")
    if isinstance(exc, ContentEncodingError):
        return refusal(bad_encoding(message.partition(":")[2].partition(".")[0].strip() or "of the body"))
    return plain_error(status, f"this is no HTTP request: {message.splitlines()[0][:200]}")
