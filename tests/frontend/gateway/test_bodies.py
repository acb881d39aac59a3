"""frontend/gateway/connection.py and requests.py: bodies over real connections, and what they may not consist of."""

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from aiohttp import web

from frontend.gateway.admission import CHUNK_BYTES_MIN, CHUNKS_FREE, Gate
from frontend.gateway.connection import IDLE_BYTES_MAX, SLICE_BYTES, HttpClients, HttpConnection
from frontend.gateway.errors import HttpRefusal, refusal
from frontend.gateway.requests import TURN_BYTES, Bodies
from frontend.gateway.responses import error_response
from tests.loops import on_loop

SIZE_MAX = 1 << 24
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"
EXPECT = b"Expect: 100-continue\r\n"  # answered when the body is read


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[int]:
    """A port that tells of each body how long it is."""
    bodies = Bodies(Gate(100, SIZE_MAX, 4 * SIZE_MAX))

    async def handle(request: web.Request) -> web.Response:
        try:
            with bodies.gate.admitted() as admitted:
                return web.json_response(len(await bodies.whole(request, admitted)))
        except HttpRefusal as refused:
            return error_response(refusal(refused))

    @web.middleware
    async def settle(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        connection = request.protocol
        assert isinstance(connection, HttpConnection)
        connection.settle()
        if connection.broken:
            response.force_close()
        return response

    app = web.Application(middlewares=[settle])
    app.router.add_post("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    loop, clients = asyncio.get_running_loop(), HttpClients()
    server = await loop.create_server(
        lambda: HttpConnection(clients, runner.server, loop=loop, access_log=None), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await runner.cleanup()
        assert bodies.gate.held_bytes == bodies.gate.requests == 0


async def ask(port: int, *parts: bytes) -> tuple[int, Any, bool]:
    """(status, JSON, whether the connection was closed after it) of a request sent as it stands."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
        return await response(reader)
    finally:
        writer.close()
        await writer.wait_closed()


async def response(reader: asyncio.StreamReader) -> tuple[int, Any, bool]:
    """(status, JSON, whether the connection is closed after it) of the next response."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    body = json.loads(await reader.readexactly(length))
    return int(head.split()[1]), body, b"connection: close" in head.lower()


def chunks(each: Iterable[bytes]) -> bytes:
    """The body in these chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in each) + b"0\r\n\r\n"


MOST = CHUNKS_FREE + CHUNKS_FREE // CHUNK_BYTES_MIN  # of one byte each


@pytest.mark.parametrize(
    ("count", "size"), [(CHUNKS_FREE, 1), (MOST, 1), (3 * CHUNKS_FREE, CHUNK_BYTES_MIN), (64, 1 << 16)]
)
@on_loop
async def test_a_body_may_come_in_this_many_chunks(count: int, size: int) -> None:
    async with served() as port:
        assert await ask(port, CHUNKED + b"\r\n", chunks([b"x" * size] * count)) == (200, count * size, False)


@pytest.mark.parametrize("count", [MOST + 1, 2 * CHUNKS_FREE, 300_000])
@on_loop
async def test_more_are_refused_and_the_connection_is_closed(count: int) -> None:
    async with served() as port:
        status, told, closed = await ask(port, CHUNKED + b"\r\n", chunks([b"x"] * count))
        assert (status, told["code"], closed) == (400, "malformed", True)
        assert str(CHUNKS_FREE) in told["error"]
        assert await ask(port, HEAD + b"Content-Length: 2\r\n\r\n", b"{}") == (200, 2, False)


def empty_blocks(count: int) -> bytes:
    """A gzip body of so many blocks that hold nothing, and one byte."""
    made = zlib.compressobj(wbits=31)
    flushed = b"".join(made.flush(zlib.Z_SYNC_FLUSH) for _ in range(2))
    return flushed + b"\x00\x00\x00\xff\xff" * count + made.compress(b"x") + made.flush()


@pytest.mark.parametrize("size", [1, 5])
@on_loop
async def test_a_body_may_not_consist_of_what_holds_nothing(size: int) -> None:
    body = empty_blocks(size * 3 * IDLE_BYTES_MAX // 5)  # more than arrives before its reader begins
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    async with served() as port:
        status, told, closed = await ask(port, CHUNKED + b"Content-Encoding: gzip\r\n\r\n", chunks(parts))
        assert (status, told["code"], closed) == (400, "malformed", True)


@pytest.mark.parametrize("how", ["length", "chunks", "gzip", "gzip in chunks"])
@pytest.mark.parametrize("size", [1, 100_000, SIZE_MAX])
@on_loop
async def test_every_usual_body_is_read(how: str, size: int) -> None:
    body = bytes(size)
    sent = gzip.compress(body) if "gzip" in how else body
    head = (CHUNKED if "chunks" in how else HEAD + b"Content-Length: %d\r\n" % len(sent)) + (
        b"Content-Encoding: gzip\r\n" if "gzip" in how else b""
    )
    parts = chunks(sent[at : at + 9999] for at in range(0, len(sent), 9999)) if "chunks" in how else sent
    async with served() as port:
        assert await ask(port, head + b"\r\n", parts) == (200, size, False)


@on_loop
async def test_requests_behind_one_another_are_not_counted_together() -> None:
    async with served() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        one = HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(100_000)
        writer.write(CHUNKED + b"\r\n" + chunks([b"x"] * 2000) + 20 * one)
        told = [(await response(reader))[:2] for _ in range(21)]
        assert told == [(200, 2000), *[(200, 100_000)] * 20]
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("announced", [b"", b"Content-Length: 0\r\n"])
@on_loop
async def test_requests_without_a_body_have_an_empty_one_each_time(announced: bytes) -> None:
    async with served() as port:
        for _ in range(3):
            assert await ask(port, HEAD + announced + b"\r\n") == (200, 0, False)


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"compress"])
@on_loop
async def test_an_encoding_that_is_not_read_is_told_as_that(encoding: bytes) -> None:
    async with served() as port:
        head = HEAD + b"Content-Encoding: " + encoding + b"\r\nContent-Length: 2\r\n\r\n"
        status, told, _ = await ask(port, head, b"{}")
        assert (status, told["code"], told["field"]) == (415, "bad_encoding", "Content-Encoding")
        assert "gzip" in told["error"]
        assert "install" not in told["error"]


@on_loop
async def test_others_have_their_turns_while_a_body_that_is_compressed_well_is_read() -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with served() as port:
        body = gzip.compress(bytes(SIZE_MAX))
        assert len(body) < SLICE_BYTES
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + EXPECT + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body))
        await reader.readuntil(b"100 Continue\r\n\r\n")
        others = asyncio.create_task(take_turns())
        await asyncio.sleep(0)
        turns = 0
        writer.write(body)
        assert await response(reader) == (200, SIZE_MAX, False)
        assert turns >= SIZE_MAX // TURN_BYTES
        others.cancel()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("rest", [b"zz\r\n", b"-1\r\n", b"POST / HTTP/1.1\r\n\r\n", b"2\r\nabcdef\r\n"])
@on_loop
async def test_chunks_that_are_none_are_told_at_once_also_if_they_come_later(rest: bytes) -> None:
    async with served() as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED + EXPECT + b"\r\n1\r\na\r\n")
        await reader.readuntil(b"100 Continue\r\n\r\n")
        writer.write(rest)
        status, told, closed = await response(reader)
        assert (status, told["code"], closed) == (400, "malformed", True)
        writer.close()
        await writer.wait_closed()
