"""What an HTTP request brings: its body, within the limits of the gate, and the model or application it names."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import ClientError, web

from frontend.gateway.admission import Admitted, Gate, check_encoding, chunks_max, too_many_chunks
from frontend.gateway.connection import HttpConnection, IdleBytes
from frontend.gateway.errors import HttpRefusal
from frontend.gateway.pool import Pool
from mesh.codes import ErrorCode, HttpCode

BODY_S_MAX = 60.0  # a body has to arrive within this time; the budget begins after it
TURN_BYTES = 1 << 18  # of a body, read in one go: what is compressed well comes all at once, and takes long to unpack
NAMES_SHOWN = 20


class Bodies:
    """Reads bodies. The gate counts their bytes while they are held."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def whole(self, request: web.Request, admitted: Admitted) -> bytearray:
        """The whole body; refused as soon as it is too long, or in too many pieces. Raises: HttpRefusal."""
        self.gate.announced(request.content_length)
        check_encoding(request.headers.get("Content-Encoding"))
        if not request.body_exists:
            return bytearray()  # all such requests share one reader, which says only once that this is the end
        connection, content = request.protocol, request.content
        assert isinstance(connection, HttpConnection)
        connection.begin(content)
        body = bytearray()
        chunks, turn_at = 0, TURN_BYTES
        try:
            async with asyncio.timeout(BODY_S_MAX):
                async for piece, ends_chunk in content.iter_chunks():
                    admitted.received(len(piece))
                    body += piece
                    chunks += ends_chunk
                    if len(body) >= turn_at:
                        turn_at = len(body) + TURN_BYTES
                        await asyncio.sleep(0)
                    if chunks > chunks_max(len(body)):
                        raise IdleBytes
        except TimeoutError:
            raise HttpRefusal(f"the body did not come within {BODY_S_MAX:g} s", HttpCode.SLOW_BODY) from None
        except IdleBytes:
            await connection.swallow(content)
            raise too_many_chunks() from None
        except (ClientError, ConnectionError, web.RequestPayloadError) as error:
            content.feed_eof()  # the rest of it cannot be read
            connection.broken = True
            text = f"the body broke off, or is not encoded as it says: {' '.join(str(error).split())[:200]}"
            raise HttpRefusal(text, ErrorCode.MALFORMED) from None
        return body

    async def expected(self, request: web.Request) -> None:
        """Answers a client that sends "Expect: 100-continue": if its body is too large, before it is sent."""
        try:
            self.gate.announced(request.content_length)
        except HttpRefusal:
            return  # the handler refuses it, instead of "100 Continue"
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def map_in(self, request: web.Request) -> dict[str, Any]:
        """The JSON map in a small body. Raises: HttpRefusal."""
        with self.gate.admitted() as admitted:
            body = await self.whole(request, admitted)
            try:
                found = msgspec.json.decode(body) if body else {}
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise HttpRefusal(f"the body is not JSON: {error}", ErrorCode.MALFORMED) from None
        if not isinstance(found, dict):
            raise HttpRefusal(f"the body is a JSON map; got {type(found).__name__}", ErrorCode.MALFORMED)
        return found


class PathTargets:
    """Finds models and applications among those that the frontends describe."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def named(self, request: web.Request) -> tuple[str, Mapping[str, Any]]:
        """("models" or "apps", description) of what the path names. Raises: HttpRefusal, RequestError."""
        name = request.match_info["name"]
        only_apps = request.path.startswith("/v2/applications/")
        for kind in ("apps",) if only_apps else ("models", "apps"):
            found = await self._pool.find(kind, name)
            if found is not None:
                return kind, found
        there = sorted(await self._pool.all("apps" if only_apps else "models"))
        shown = ", ".join(there[:NAMES_SHOWN]) + (", ..." if len(there) > NAMES_SHOWN else "") or "none"
        what = "application" if only_apps else "model or application"
        code = ErrorCode.UNKNOWN_APP if only_apps else ErrorCode.UNKNOWN_MODEL
        raise HttpRefusal(f"there is no {what} {name[:64]!r}; there are: {shown}", code, "model")

    async def fresh(self, request: web.Request) -> tuple[str, Mapping[str, Any]]:
        """The target as it is now. Refuses a version that does not exist. Raises: HttpRefusal, RequestError."""
        kind, described = await self.named(request)
        described = (await self._pool.all(kind)).get(described["name"], described)
        version = request.match_info.get("version")
        if version is not None and version not in described.get("versions", ()):
            there = ", ".join(described.get("versions", ())) or "none"
            text = f"{described['name']} has no version {version[:32]!r}; it has: {there}"
            raise HttpRefusal(text, ErrorCode.UNKNOWN_VERSION, "version")
        return kind, described
