"""Who asks, as one number that the controller can tell clients apart by. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from frontend.core.protocol import Brief, InferRequest, RequestRefused
from mesh.codes import ErrorCode

SOURCE_LENGTH_MAX = 64
ASKERS_MAX = 4096  # whose names are known; those that came first are forgotten for others


class Asker(NamedTuple):
    """A client, as controllers tell clients apart."""

    identity: bytes  # of its connection
    source: str | None


@dataclass(slots=True)
class Askers:
    """The numbers of those who asked lately, and whose they are. `seed`: nobody else knows it."""

    seed: int
    _numbers: dict[Asker, int] = field(default_factory=dict)  # {client: its number}, in the order of their coming
    _names: dict[int, Asker] = field(default_factory=dict)  # {number: client}: the later of two with the same number

    def number(self, identity: bytes, request: InferRequest | Brief) -> int:
        """What `asker_of` returns. Raises: RequestRefused."""
        number = self._numbers.get((identity, request.source))  # type: ignore[call-overload]  # an equal tuple
        return self._meet(identity, request) if number is None else number

    def name(self, number: int) -> Asker | None:
        """The client with this number; None if it is not known any more."""
        return self._names.get(number)

    def _meet(self, identity: bytes, request: InferRequest | Brief) -> int:
        number, asker = asker_of(identity, request, self.seed), Asker(identity, request.source)
        if len(self._numbers) >= ASKERS_MAX:
            first = next(iter(self._numbers))
            gone = self._numbers.pop(first)
            if self._names.get(gone) == first:
                del self._names[gone]
        self._numbers[asker] = number
        self._names[number] = asker
        return number


def asker_of(identity: bytes, request: InferRequest | Brief, seed: int) -> int:
    """1 to 2^31 - 1: equal for all requests of a connection with the same `source`, or none. Raises: RequestRefused.

    A source counts only within its connection, so that nobody can ask under the name of another connection's client.
    `seed`: 64 bits that no client knows. Without them a client, who chooses its ROUTING_ID and its sources, could
    find some that have another one's number.
    """
    connection = xxhash.xxh3_64_intdigest(identity, seed)
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
