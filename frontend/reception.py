"""Who is connected to the clients' port, whose messages are heard, and which connections are ended."""

import asyncio
import os
import time
from collections.abc import Callable

import structlog
import zmq

from frontend.core.connections import ClientConnection, ClientId, Connections, is_reserved
from frontend.core.unheard import CURVE, PLAIN, Refusal, Unheard
from frontend.descriptors import address_of, close_connection, received_by
from mesh.codes import IdentityRefusal
from mesh.net.channels import Channel
from mesh.net.sockets import Hub
from mesh.process.descriptors import Shortage
from mesh.roles import Holder, Role

DISCONNECTIONS_TOLD_S = 1.0  # between two lines
EXPEL_S = 0.05  # from what is said last to a client that is expelled, to its end
REFUSALS_TOLD = 10  # lines about one look
REFUSALS_UNTOLD = 1000  # of reserved names, or messages that are not read, until the next line
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED
SOURCES = frozenset((Role.FRONTEND, Role.OPERATOR))  # roles of those who may name the clients for whom they ask
log = structlog.get_logger("clients")


def drawn_before(hub: Hub, sock: "zmq.Socket[bytes]") -> bytes:
    """The identity that libzmq drew for the first connection of this new ROUTER, which was made for that."""
    address = f"inproc://{id(sock)}"
    sock.bind(address)
    scout = hub.socket(zmq.DEALER, size_max=-1)
    try:
        scout.connect(address)
        scout.send(b"")
        identity, _ = sock.recv_multipart()
    finally:
        scout.close(0)
        sock.unbind(address)
    return identity


class Reception:
    """Calls `gone(client)` when a client's connection has ended: see `ClientPort`."""

    def __init__(self, hub: Hub, gone: Callable[[ClientId], None]) -> None:
        self._hub = hub
        self._gone = gone
        self._sock: zmq.Socket[bytes] | None = None
        self._channel: Channel | None = None  # of the same
        self._monitor: zmq.Socket[bytes] | None = None
        self._there: Connections
        self.drawn: dict[bytes, ClientConnection] = {}  # as in Connections; others only read
        self.closing: set[bytes] = set()  # identities of connections that are being closed: they are not heard
        self._asks_keys = False  # whether every client has one
        self._shortage = Shortage(log)
        self._told_s = float("-inf")  # when disconnections were last told
        self.connections = 0
        self.disconnections = 0
        self.connections_refused = 0  # because of their ROUTING_ID, key or protocol: `IdentityRefusal`
        self.unreadable = 0  # messages of peers that do not speak ZMTP 3
        self.expelled = 0  # connections that were closed because of what they sent
        self._left: list[ClientId] = []  # that have left; `gone` will be told
        self._surplus: list[tuple[int, int]] = []  # (descriptor, number) of connections that are too many
        self._looking: asyncio.TimerHandle | None = None  # set while connections are there that were not heard

    def watch(self, sock: "zmq.Socket[bytes]", heartbeat_s: float) -> None:
        """Knows of every connection of this ROUTER, which is about to be bound. `heartbeat_s`: its HEARTBEAT_IVL."""
        hub = self._hub
        self._asks_keys = hub.keys is not None and not hub.keys.local
        unheard = Unheard(PLAIN if hub.keys is None or hub.keys.local else CURVE, heartbeat_s)
        self._there = Connections(unheard, drawn_before(hub, sock))
        self.drawn = self._there.drawn
        self._sock = sock
        self._monitor = hub.monitor(sock, EVENTS, self._event)
        hub.on_revoked(self._revoked)

    def open(self, channel: Channel) -> None:
        """Messages are taken from this channel of the ROUTER from now on."""
        self._channel = channel

    def close(self) -> None:
        """Nothing is looked at any more. To be called before the socket is closed."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._monitor is not None and self._sock is not None:
            if not self._sock.closed:  # as it is where it could not be bound
                self._sock.disable_monitor()
            self._hub.drop(self._monitor)
        self._sock = self._monitor = self._channel = None

    @property
    def accept_failed(self) -> int:
        """Connections that were closed as soon as they came, because there are no descriptors for more."""
        return self._shortage.refused

    # -- who speaks ---------------------------------------------------------------------------------------------------

    def client_of(self, identity: bytes, delimited: bool) -> ClientId | None:
        """The client of the message that was taken from the channel last; None: it is not heard.

        Of an identity that libzmq drew, `drawn` tells it quicker, once it has spoken.
        """
        connection = self.drawn.get(identity)
        if connection is None:
            self._learn()
            # while that is there, no other connection is heard by this name
            connection = self._there.chosen.get(identity)
        if connection is None:
            return self._admit(identity, delimited)
        client = connection.clients[0]  # all of one connection are equal but for that:
        return client if client.delimited is delimited else connection.client(delimited)

    def _admit(self, identity: bytes, delimited: bool) -> ClientId | None:
        """The client of this first message, or of one whose connection has ended; None: it is not heard."""
        channel = self._channel
        descriptor = channel.descriptor() if channel is not None else None
        if channel is None or descriptor is None:
            self._too_old()
            return None
        holder = Holder.read(channel.said("User-Id")) if self._asks_keys else None
        if holder is not None and not self._may_speak(holder, descriptor):
            return None
        return self._meet(identity, delimited, descriptor, holder)

    def _meet(self, identity: bytes, delimited: bool, descriptor: int, holder: Holder | None) -> ClientId | None:
        """The client that speaks through this connection, whose holder may; None: its identity is not one to be had."""
        if is_reserved(identity) and not self._there.is_drawn(identity):
            number = self._there.number(descriptor)
            if number is not None:
                told = self.connections_refused % REFUSALS_UNTOLD == 0
                self._refuse(Refusal(descriptor, number, IdentityRefusal.RESERVED), told=told)
            return None
        client, left = self._there.spoke(identity, delimited, descriptor)
        if holder is not None:
            self._there.met(identity, holder)
        if left:
            self._left += left
            self._hub.loop.call_soon(self._farewell)
        return client

    def _may_speak(self, holder: Holder, descriptor: int) -> bool:
        """Whether the connection's key still may call; if not, the connection is ended."""
        if self._hub.admits(holder):
            return True
        number = self._there.number(descriptor)
        if number is not None:
            self._refuse(Refusal(descriptor, number, IdentityRefusal.KEY_REVOKED), told=True)
        return False

    def _revoked(self, keys: set[str]) -> None:
        """The connections of these keys are ended, and what they asked is asked by nobody."""
        self._learn()
        for descriptor, number in self._there.held_by(keys):
            self._refuse(Refusal(descriptor, number, IdentityRefusal.KEY_REVOKED), told=True)

    def _too_old(self) -> None:
        """A peer that does not speak ZMTP 3, or garbage that reads as ZMTP 1, is not heard.

        Nobody knows through which connection it came: a look at those that were not heard finds and ends it.
        """
        self.unreadable += 1
        if self.unreadable % REFUSALS_UNTOLD == 1:
            log.warning("old_protocol", total=self.unreadable)

    # -- who is there -------------------------------------------------------------------------------------------------

    def names_sources(self, identity: bytes) -> bool:
        """Whether this client may say for whom it asks, as a gateway does: where clients have no keys, anybody may."""
        if not self._asks_keys:
            return True
        connection = self._there.of(identity)
        holder = connection.holder if connection is not None else None
        return holder is not None and not SOURCES.isdisjoint(holder.roles)

    def is_drawn(self, identity: bytes) -> bool:
        """Whether ZeroMQ gave the connection its identity: then it says nothing of the client."""
        return self._there.is_drawn(identity)

    def peer_of(self, identity: bytes) -> str:
        """The address of the client with this identity, as host:port; empty if it is not there (any more)."""
        self._learn()
        connection = self._there.of(identity)
        if connection is None:
            return ""
        address = address_of(connection.descriptor)
        self._learn()  # had the connection ended before we looked, ZeroMQ would have said so by now
        return address if self._there.of(identity) is connection else ""

    def has_its_identity(self, client: ClientId) -> bool:
        """Whether ZeroMQ would send to this client, who chose its identity, and not to a later one of that identity.

        ZeroMQ lets the later one in only while it is asked something (here: for the events), and has told of the end
        of the earlier one before.
        """
        if self._channel is not None:
            self._channel.readable()
        self._learn()
        return self._there.is_there(client)

    # -- connections --------------------------------------------------------------------------------------------------

    def expel(self, client: ClientId) -> bool:
        """The client is heard no more, and its connection closed a moment later: what was answered may still leave.

        Returns False if it is not there, or was expelled before.
        """
        connection = self._there.of(client.identity)
        if connection is None or client.identity in self.closing:
            return False
        self.closing.add(client.identity)
        self.expelled += 1
        descriptor, number = connection.descriptor, connection.number
        self._hub.loop.call_later(EXPEL_S, self._end, descriptor, number)
        return True

    def _end(self, descriptor: int, number: int) -> None:
        if self._sock is not None:
            self._close(descriptor, number)

    def _farewell(self) -> None:
        """Tells which clients have left."""
        left, self._left = self._left, []
        for client in left:
            self.closing.discard(client.identity)
            self._gone(client)
        self._hub.schedule_turn()

    def _learn(self) -> None:
        """All that ZeroMQ has told about connections by now is known."""
        if self._monitor is not None:
            self._hub.drain(self._monitor)

    def _event(self, event: int, value: int) -> None:
        """Notes what ZeroMQ says; what follows from it comes a little later, as this may come in the midst of it."""
        match event:
            case zmq.EVENT_ACCEPTED:
                self.connections += 1
                number = self._there.accepted(value, time.monotonic())
                self._look_later()
                if len(self._there) > self._shortage.clients_max:
                    self._surplus.append((value, number))
                    self._hub.loop.call_soon(self._shed)
            case zmq.EVENT_ACCEPT_FAILED:
                self._shortage.tell(os.strerror(value), len(self._there))
            case zmq.EVENT_DISCONNECTED:
                self.disconnections += 1
                self._tell_disconnections(time.monotonic())
                self._left += self._there.ended(value)
                self._hub.loop.call_soon(self._farewell)

    def _tell_disconnections(self, now: float) -> None:
        if now - self._told_s >= DISCONNECTIONS_TOLD_S:
            self._told_s = now
            log.info("client_disconnected", disconnections=self.disconnections, connections=self.connections)

    def _shed(self) -> None:
        """Closes the connections that came when there were as many as descriptors allow.

        What is left over makes ZeroMQ able to accept, and so to turn down, the next one: it would try without end.
        """
        surplus, self._surplus = self._surplus, []
        if self._sock is None:
            return
        for descriptor, number in surplus:
            self._shortage.refused += 1
            self._close(descriptor, number)
        if surplus:
            self._shortage.tell("as many clients are here as it allows", len(self._there))

    def _look_later(self) -> None:
        at = self._there.unheard.wake_at()
        if at is not None and self._looking is None:
            self._looking = self._hub.loop.call_later(max(0.0, at - time.monotonic()), self._look)

    def _look(self) -> None:
        """Closes the connections that can never be heard."""
        self._looking = None
        if self._sock is None:
            return
        self._learn()
        refusals = self._there.unheard.examine(received_by, time.monotonic())
        for i, refusal in enumerate(refusals):
            self._refuse(refusal, told=i < REFUSALS_TOLD)
        if len(refusals) > REFUSALS_TOLD:
            log.warning("connection_refused", more=len(refusals) - REFUSALS_TOLD)
        self._look_later()

    def _refuse(self, refusal: Refusal, *, told: bool) -> None:
        peer = self._close(refusal.descriptor, refusal.number)
        if peer is None:
            return  # it has ended by itself
        self.connections_refused += 1
        if told:
            log.warning("connection_refused", peer=peer, why=str(refusal.why))

    def _close(self, descriptor: int, number: int) -> str | None:
        """Ends the connection, and returns its client's address; None if it has ended by itself."""

        def is_there() -> bool:
            self._learn()
            return self._there.number(descriptor) == number

        return close_connection(descriptor, is_there)
