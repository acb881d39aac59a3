"""Which clients speak through which connection of the clients' port, and which of them have left. Pure.

libzmq names a message's connection by its file descriptor, which the system gives to another connection as soon as
this one has ended. So what ended and what was accepted has to be told before a message that came later.

A client without a ROUTING_ID of its own has an identity that libzmq drew, which is never used again: a zero and a
number, one more for each such connection. An identity that a client chose may come back on another connection: that is
another client here, so that no answer can reach it that was asked for by somebody else. One that has the form of those
that libzmq draws is not served: once libzmq draws the same, it ends the process.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from frontend.core.unheard import Unheard
from mesh.roles import Holder

DRAWN_BYTES = 5  # length of an identity that libzmq draws; its first byte is 0 (source: libzmq, router.cpp)
LEFT = -1  # in place of a connection's number: it has ended


class ClientId(NamedTuple):
    """One client of one connection."""

    identity: bytes
    delimited: bool  # a REQ socket: an empty frame precedes every message
    connection: int = 0  # its number, where the client chose the identity; 0: libzmq drew it, for this connection


@dataclass(slots=True, eq=False)
class ClientConnection:
    """One connection that is there."""

    number: int  # from 1 on, in the order of their coming
    descriptor: int
    identity: bytes = b""  # of its last message; empty: none has come through
    told: int = 0  # its number in the ClientIds of its clients
    clients: list[ClientId] = field(default_factory=list)  # that spoke through it, each once
    holder: Holder | None = None  # whose key it has; None: it has not spoken, or the port asks for none

    def client(self, delimited: bool) -> ClientId:
        """The one that speaks now, which is among `clients` from now on."""
        client = ClientId(self.identity, delimited, self.told)
        if client not in self.clients:
            self.clients.append(client)
        return client


def is_reserved(identity: bytes) -> bool:
    """Whether the identity has the form of those that libzmq draws for clients without a ROUTING_ID."""
    return len(identity) == DRAWN_BYTES and identity[0] == 0


class Connections:
    """Every connection of the port. `unheard`: those of which no message has come through.

    `before`: an identity that libzmq drew before the first of them came.
    """

    def __init__(self, unheard: Unheard, before: bytes) -> None:
        self.unheard = unheard
        self._before = int.from_bytes(before[1:])
        self._there: dict[int, ClientConnection] = {}  # {file descriptor: connection}
        self.chosen: dict[bytes, ClientConnection] = {}  # {identity that a client chose: who has it}
        self.drawn: dict[bytes, ClientConnection] = {}  # {identity that libzmq drew: its connection, which spoke}
        self._number = 0

    def __len__(self) -> int:
        return len(self._there)

    def accepted(self, descriptor: int, now: float) -> int:
        """One more connection is there. Returns its number."""
        self._number += 1
        self._there[descriptor] = ClientConnection(self._number, descriptor)
        self.unheard.add(descriptor, self._number, now)
        return self._number

    def number(self, descriptor: int) -> int | None:
        """The number of the connection that has the descriptor; None: none has."""
        connection = self._there.get(descriptor)
        return connection.number if connection is not None else None

    def of(self, identity: bytes) -> ClientConnection | None:
        """The connection that has the identity, and spoke; None: none has."""
        return self.drawn.get(identity) or self.chosen.get(identity)

    def is_drawn(self, identity: bytes) -> bool:
        """Whether libzmq drew the identity for one of the connections so far."""
        return is_reserved(identity) and 0 < (int.from_bytes(identity[1:]) - self._before) % (1 << 32) <= self._number

    def ended(self, descriptor: int) -> list[ClientId]:
        """The connection is no more. Returns its clients, which have left."""
        connection = self._there.pop(descriptor, None)
        if connection is None:
            return []
        self.unheard.ended(descriptor)
        return self._leave(connection)

    def spoke(self, identity: bytes, delimited: bool, descriptor: int) -> tuple[ClientId, list[ClientId]]:
        """(client of the message, clients that are known to have left by it).

        The client itself is among those if its connection has ended.
        """
        drawn = self.is_drawn(identity)
        connection = self._there.get(descriptor)
        if connection is None:
            client = ClientId(identity, delimited, 0 if drawn else LEFT)
            return client, [client]
        left: list[ClientId] = []
        if connection.identity != identity:
            left = self._leave(connection)  # a message of an earlier connection with this descriptor had come late
            connection.identity, connection.told = identity, 0 if drawn else connection.number
            self.unheard.heard(descriptor)
            if drawn:
                self.drawn[identity] = connection
            else:
                earlier = self.chosen.get(identity)
                left += self._leave(earlier) if earlier is not None else []
                self.chosen[identity] = connection
                self.unheard.taken(identity)
        return connection.client(delimited), left

    def met(self, identity: bytes, holder: Holder) -> None:
        """The connection with this identity, if it is there, has this holder's key."""
        connection = self.of(identity)
        if connection is not None:
            connection.holder = holder

    def held_by(self, keys: set[str]) -> list[tuple[int, int]]:
        """(descriptor, number) of the connections that have one of these keys."""
        there = self._there.values()
        return [(each.descriptor, each.number) for each in there if each.holder is not None and each.holder.key in keys]

    def is_there(self, client: ClientId) -> bool:
        """Whether an answer to this identity would reach this client, and not another one of the same identity."""
        if not client.connection:
            return True
        holder = self.chosen.get(client.identity)
        return holder is not None and holder.number == client.connection

    def _leave(self, connection: ClientConnection) -> list[ClientId]:
        """Forgets the connection's clients, and returns them."""
        identity, clients = connection.identity, connection.clients
        connection.identity, connection.clients = b"", []
        if self.drawn.get(identity) is connection:
            del self.drawn[identity]
        if self.chosen.get(identity) is connection:
            del self.chosen[identity]
            self.unheard.given_up(identity)
        return clients

    def check(self) -> None:
        """Asserts that each identity belongs to one connection that is there."""
        there = set(map(id, self._there.values()))
        for table in (self.drawn, self.chosen):
            assert all(connection.identity == identity for identity, connection in table.items())
            assert all(id(connection) in there for connection in table.values())
        assert all(self.is_drawn(identity) for identity in self.drawn)
        assert not any(self.is_drawn(identity) for identity in self.chosen)
        assert self.unheard.names == sorted(map(len, self.chosen))
        heard = {descriptor for descriptor, connection in self._there.items() if connection.identity}
        assert self.unheard.descriptors <= self._there.keys() - heard
