"""The gateway's admission: bounds on open requests and their bytes, the check of the origin, and its headers. Pure."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from frontend.gateway.errors import HttpRefusal
from mesh.codes import ErrorCode, HttpCode
from mesh.net.keys import LOOPBACK

RETRY_AFTER_MS = 50.0
SMALL_BYTES = 1 << 16  # so small a body has room also where large ones fill what they may hold: all but a share of
RESERVE_SHARE = 8  # the whole, this being its divisor
CHUNKS_FREE, CHUNK_BYTES_MIN = 4096, 1024  # of one body: so many chunks, and one more for each so many bytes
ENCODINGS = ("", "identity", "gzip", "deflate")  # of a body, which aiohttp decodes


class Gate:
    """Counts open requests and the bytes that they hold.

    A request that does not fit is refused at once, never queued.
    """

    def __init__(self, requests_max: int, body_bytes_max: int, held_bytes_max: int) -> None:
        self.requests_max = requests_max
        self.body_bytes_max = body_bytes_max
        self.held_bytes_max = held_bytes_max
        self.requests = 0
        self.held_bytes = 0

    def enter(self) -> None:
        """Counts one more request. Raises: HttpRefusal."""
        if self.requests >= self.requests_max:
            text = f"{self.requests} requests are in this gateway, which is its limit (GEARMESH_IN_FLIGHT_MAX)"
            raise HttpRefusal(text, HttpCode.GATEWAY_FULL, retry_after_ms=RETRY_AFTER_MS)
        self.requests += 1

    def leave(self, held_bytes: int) -> None:
        """Ends a request and frees the bytes that it held."""
        self.requests -= 1
        self.held_bytes -= held_bytes

    @contextlib.contextmanager
    def admitted(self) -> Iterator["Admitted"]:
        """Counts one request until the block ends, with the bytes that it holds. Raises: HttpRefusal."""
        self.enter()
        request = Admitted(self)
        try:
            yield request
        finally:
            self.leave(request.body_bytes)

    def announced(self, body_bytes: int | None) -> None:
        """Checks the announced size of a body; None: not announced. Raises: HttpRefusal."""
        if body_bytes is not None and body_bytes > self.body_bytes_max:
            raise self.too_large(body_bytes)

    def hold(self, had_bytes: int, more_bytes: int) -> int:
        """Adds `more_bytes` to a body that holds `had_bytes`. Returns the sum. Raises: HttpRefusal."""
        body_bytes = had_bytes + more_bytes
        if body_bytes > self.body_bytes_max:
            raise self.too_large(body_bytes)
        reserve = 0 if body_bytes <= SMALL_BYTES else self.held_bytes_max // RESERVE_SHARE
        if self.held_bytes + more_bytes > self.held_bytes_max - reserve:
            text = f"{self.held_bytes} bytes of bodies are in this gateway, as many as it holds at once"
            raise HttpRefusal(text, HttpCode.GATEWAY_FULL, retry_after_ms=RETRY_AFTER_MS)
        self.held_bytes += more_bytes
        return body_bytes

    def too_large(self, size_bytes: int) -> HttpRefusal:
        """The refusal of a body of this size."""
        text = f"a request has at most {self.body_bytes_max} bytes (GEARMESH_REQUEST_BYTES_MAX); this has {size_bytes}"
        return HttpRefusal(text, ErrorCode.TOO_LARGE)


@dataclass(slots=True)
class Admitted:
    """An admitted request."""

    gate: Gate
    body_bytes: int = 0  # received so far

    def received(self, more_bytes: int) -> None:
        """Counts bytes of its body that arrived. Raises: HttpRefusal."""
        self.body_bytes = self.gate.hold(self.body_bytes, more_bytes)


def chunks_max(body_bytes: int) -> int:
    """The most HTTP chunks that a body of this length comes in: parsing them takes time from every other client."""
    return CHUNKS_FREE + body_bytes // CHUNK_BYTES_MIN


def too_many_chunks() -> HttpRefusal:
    """The refusal of a body in more chunks than that."""
    text = (
        f"the body comes in too many small chunks: there are at most {CHUNKS_FREE}, and one more for each "
        f"{CHUNK_BYTES_MIN} bytes; send larger ones, or Content-Length"
    )
    return HttpRefusal(text, ErrorCode.MALFORMED)


def check_encoding(encoding: str | None) -> None:
    """Checks that the body's Content-Encoding is one that is read here. Raises: HttpRefusal."""
    if encoding is not None and encoding.strip().lower() not in ENCODINGS:
        raise bad_encoding(repr(encoding[:32]))


def bad_encoding(encoding: str) -> HttpRefusal:
    """The refusal of a body in this encoding."""
    text = f"Content-Encoding {encoding[:64]} is not read here; send gzip, deflate, or the body as it is"
    return HttpRefusal(text, HttpCode.BAD_ENCODING, "Content-Encoding")


def check_origin(headers: Mapping[str, str]) -> None:
    """Refuses requests from web pages of other origins, which could use a visitor's access to the mesh.

    Raises: HttpRefusal.
    """
    origin = headers.get("Origin")
    if origin is None:
        return
    try:
        host = urlsplit(origin).hostname
    except ValueError:
        host = None
    if host not in LOOPBACK:
        text = f"a page of {origin[:80]!r} may not ask this mesh; only pages of this machine may"
        raise HttpRefusal(text, HttpCode.FOREIGN_ORIGIN, "Origin")


def budget_of(header: str | None) -> float | None:
    """The budget in X-Gearmesh-Slo-Ms; None without that header. Raises: HttpRefusal."""
    if header is None:
        return None
    try:
        return float(header)
    except ValueError:
        text = f"X-Gearmesh-Slo-Ms is a number of milliseconds; got {header[:32]!r}"
        raise HttpRefusal(text, ErrorCode.BAD_SLO, "X-Gearmesh-Slo-Ms") from None


def json_length(header: str | None) -> int | None:
    """The number in Inference-Header-Content-Length; None without that header. Raises: HttpRefusal."""
    if header is None:
        return None
    if not (header.isascii() and header.isdigit() and len(header) < 20):
        text = f"Inference-Header-Content-Length is a number of bytes; got {header[:32]!r}"
        raise HttpRefusal(text, ErrorCode.MALFORMED, "Inference-Header-Content-Length")
    return int(header)
