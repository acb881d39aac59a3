"""Connections that can never be heard: whose ROUTING_ID another one had as they came, or who speak no ZMTP 3. Pure.

A ROUTER ignores a connection whose identity is in use, for good: it is not told of it, and does not look again when
the other one has ended (libzmq, router.cpp, `identify_peer`). ROUTER_HANDOVER would give the newcomer the answers to
what the other one asked. So such a connection is closed, which its client sees; ZeroMQ connects again by itself.

What tells them from clients that are only quiet is how much the system has received from them: the handshake of a
client without a ROUTING_ID is of known length, and one with a ROUTING_ID is longer by that. What comes in addition
was asked; if nothing of it came through, it never will.

A peer that speaks ZMTP 1 or 2, or garbage that reads like it, sends what it likes after a few bytes, and none of it
says which connection it came through. It is told by the greeting of ZMTP 3, which it was not sent.
"""

import heapq
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from mesh.codes import IdentityRefusal

LOOK_S = 0.5  # between two looks at the connections that were not heard
LOOKS_MAX = 256  # connections in one look; the others have their turn in the next ones
FIRST_LOOK_S = 0.5  # after it was accepted: most clients have spoken by then
FREE_S = 0.5  # after it was seen to have asked: then it is closed, if the identity may have been given up since it came
IN_USE_S, IN_USE_S_MAX = 2.0, 60.0  # the same, if the identity is in use; doubles when the same host is refused again
LARGE_BYTES = 4096  # what has sent more may be in the middle of a message: then the time counts from when it stopped
LARGE_FREE_S, LARGE_IN_USE_S = 2.0, 10.0  # in place of FREE_S and IN_USE_S
MOVING_BYTES = 1024  # more than these between two looks are no heartbeats
HOSTS_MAX = 1024  # whose refusals are remembered, for IN_USE_S_FORGOTTEN
IN_USE_S_FORGOTTEN = 2 * IN_USE_S_MAX
NAME_BYTES_MAX = 255  # longest ROUTING_ID
GREETING_BYTES = 64  # of ZMTP 3, either way: who sends more, and is not sent as many, speaks another version. Source:
# ZeroMQ RFC 23; libzmq 4.3.5, zmtp_engine.cpp
REQ_LESS = 3  # the handshake of a REQ socket is shorter by so many bytes than that of a DEALER


class Wire(NamedTuple):
    """Bytes that a connection costs without a message. Source: measured by tests/frontend/test_identities.py."""

    handshake: int  # of a DEALER without a ROUTING_ID
    heartbeat: int  # answer to one


PLAIN = Wire(107, 7)
CURVE = Wire(567, 40)


class Received(NamedTuple):
    """What the system knows of a connection."""

    bytes: int  # received so far
    host: str
    sent: int | None = None  # bytes that it was sent so far, each counted once; None: the system does not say


class Refusal(NamedTuple):
    """A connection that is to be closed."""

    descriptor: int
    number: int
    why: IdentityRefusal


@dataclass(slots=True)
class UnheardConnection:
    """A connection of which nothing has come through."""

    number: int
    since_s: float  # when it was accepted
    host: str = ""
    bytes: int = 0  # received by the last look; 0: there was none since its handshake
    name_bytes: int = 0  # the most that its identity can have, by the first look
    asked_s: float | None = None  # since when it is seen to have asked; later, where a large message still comes
    given_up: int = NAME_BYTES_MAX + 1  # length of the shortest identity that was given up since it came; 256: none was


class Unheard:
    """Which connections were not heard, and which of them are to be closed."""

    def __init__(self, wire: Wire, heartbeat_s: float) -> None:
        self._wire = wire
        self._heartbeat_s = heartbeat_s
        self._connections: OrderedDict[int, UnheardConnection] = OrderedDict()  # {file descriptor: connection}, longest
        # unseen first
        self.names: list[int] = []  # lengths of the identities in use that clients chose, ascending
        self._pauses: OrderedDict[str, tuple[float, float]] = OrderedDict()  # {host: (last refusal, pause)}, by refusal
        self._look_at: float | None = None  # None: there is nothing to look at

    @property
    def descriptors(self) -> set[int]:
        """File descriptors of the connections that may have to be closed."""
        return set(self._connections)

    def add(self, descriptor: int, number: int, now: float) -> None:
        """The connection was accepted."""
        self._connections[descriptor] = UnheardConnection(number, now)
        if self._look_at is None:
            self._look_at = now + FIRST_LOOK_S

    def heard(self, descriptor: int) -> None:
        """A message of it has come through."""
        self._connections.pop(descriptor, None)

    def ended(self, descriptor: int) -> None:
        """It is no more. If it may have had an identity of its own, the others may have that now."""
        gone = self._connections.pop(descriptor, None)
        if gone is not None and gone.bytes:
            self._free(gone.name_bytes)

    def taken(self, identity: bytes) -> None:
        """A client has spoken whose identity is its own choice."""
        insort(self.names, len(identity))

    def given_up(self, identity: bytes) -> None:
        """Its connection has ended."""
        self.names.remove(len(identity))
        self._free(len(identity))

    def wake_at(self) -> float | None:
        """When `examine` next has work."""
        return self._look_at

    def examine(self, look: Callable[[int], Received | None], now: float) -> list[Refusal]:
        """Looks at connections that have had time to speak. Returns those that are to be closed.

        `look(descriptor)`: what was received; None if the system does not say.
        """
        old: list[Refusal] = []
        for descriptor in list(islice(self._connections, LOOKS_MAX)):
            connection = self._connections[descriptor]
            if now - connection.since_s < FIRST_LOOK_S:
                continue
            received = look(descriptor)
            if received is not None and received.sent is not None and received.sent < GREETING_BYTES < received.bytes:
                self._connections.move_to_end(descriptor)
                old.append(Refusal(descriptor, connection.number, IdentityRefusal.OLD_PROTOCOL))
            else:
                self._look(descriptor, received)
        self._look_at = now + LOOK_S if self._connections else None
        return [*old, *self._to_close(now)]

    def _look(self, descriptor: int, received: Received | None) -> None:
        connection = self._connections.pop(descriptor)
        if received is None:
            return
        shortest = self._wire.handshake - REQ_LESS
        if not connection.bytes and received.bytes in (self._wire.handshake, shortest):
            return  # it has no identity that could be in use, and is only quiet
        self._connections[descriptor] = connection
        if received.bytes < shortest:
            return  # libzmq ends what takes too long to greet
        if not connection.bytes:
            connection.name_bytes = min(NAME_BYTES_MAX, received.bytes - shortest)
        if received.bytes - connection.bytes > MOVING_BYTES:
            connection.asked_s = None
        connection.bytes, connection.host = received.bytes, received.host

    def _to_close(self, now: float) -> Iterator[Refusal]:
        seen = {descriptor: connection for descriptor, connection in self._connections.items() if connection.bytes}
        shortest = heapq.nsmallest(2, ((each.name_bytes, descriptor) for descriptor, each in seen.items()))
        pauses = {each.host: self._pause(each.host, now) for each in seen.values()}
        for descriptor, connection in seen.items():
            free = connection.given_up <= NAME_BYTES_MAX
            others = self.names[-1:] or [length for length, other in shortest if other != descriptor]
            if not free and not others:
                continue  # nobody else can have its identity
            if connection.asked_s is None:
                if not self._has_asked(connection, connection.given_up if free else others[0], now):
                    continue
                connection.asked_s = now
            waited_s, large = now - connection.asked_s, connection.bytes > LARGE_BYTES
            if free:
                if waited_s >= (LARGE_FREE_S if large else FREE_S):
                    yield Refusal(descriptor, connection.number, IdentityRefusal.FREE_AGAIN)
                continue
            pause_s = pauses[connection.host]
            if waited_s >= (max(pause_s, LARGE_IN_USE_S) if large else pause_s):
                self._refused(connection.host, pause_s, now)
                yield Refusal(descriptor, connection.number, IdentityRefusal.IN_USE)

    def _has_asked(self, connection: UnheardConnection, name_bytes: int, now: float) -> bool:
        """Whether it has sent more than heartbeats, and the handshake with an identity of this length."""
        beats = int((now - connection.since_s) / self._heartbeat_s) + 1
        return connection.bytes > self._wire.handshake + name_bytes + beats * self._wire.heartbeat

    def _free(self, name_bytes: int) -> None:
        for connection in self._connections.values():
            connection.given_up = min(connection.given_up, name_bytes)

    def _pause(self, host: str, now: float) -> float:
        """How long a connection of this host has to be still until it is refused, while its identity is in use."""
        last_s, pause_s = self._pauses.get(host, (now, IN_USE_S))
        return IN_USE_S if now - last_s > IN_USE_S_FORGOTTEN else pause_s

    def _refused(self, host: str, pause_s: float, now: float) -> None:
        self._pauses[host] = now, min(2 * pause_s, IN_USE_S_MAX)
        self._pauses.move_to_end(host)
        if len(self._pauses) > HOSTS_MAX:
            self._pauses.popitem(last=False)
