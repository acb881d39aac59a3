"""Who asks, as one number that the controller can tell clients apart by. Pure."""

import xxhash

from frontend.core.protocol import InferRequest, RequestRefused
from mesh.codes import ErrorCode

SOURCE_LENGTH_MAX = 64


def asker_of(identity: bytes, request: InferRequest, secret: int) -> int:
    """1 to 2^31 - 1: equal for all requests of a connection with the same `source`, or none. Raises: RequestRefused.

    A source counts only within its connection, so that nobody can ask under the name of another connection's client.
    `secret`: 64 bits that no client knows. Without them a client, who chooses its ROUTING_ID and its sources, could
    find some that have another one's number.
    """
    connection = xxhash.xxh3_64_intdigest(identity, secret)
    if request.source is None:
        return connection & 0x7FFFFFFF or 1
    if len(request.source) > SOURCE_LENGTH_MAX:
        text = f"source must not be longer than {SOURCE_LENGTH_MAX} characters"
        raise RequestRefused(ErrorCode.BAD_FIELD, text, "source", request.id)
    return xxhash.xxh3_64_intdigest(request.source.encode(), connection) & 0x7FFFFFFF or 1


def source_of(peer: str, forwarded: str) -> str:
    """The `source` that a gateway names for an HTTP request: its peer's address, and whom the peer says it asks for.

    `forwarded`: the header X-Forwarded-For. Its last entry is the peer's own word; those before it are their clients'
    claims, who could otherwise ask under a new name each time.
    """
    behind = forwarded.rpartition(",")[2].strip()
    name = f"{peer} {behind}" if behind else peer
    return name[:SOURCE_LENGTH_MAX].encode("ascii", "replace").decode()
