"""The clients' socket: a plain ROUTER, which has to withstand any client."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence

import structlog
import zmq

from frontend.awake import AwakeTime
from frontend.backlog import Backlog, QueuedAnswer
from frontend.core.connections import ClientId as ClientId
from frontend.core.connections import Connections, is_reserved
from frontend.core.inbox import TARGET_S, Inbox
from frontend.core.unheard import CURVE, PLAIN, Refusal, Unheard
from frontend.descriptors import address_of, close_connection, received_by
from mesh.codes import IdentityRefusal
from mesh.net.frames import FRAME_BYTES_ZERO_COPY, MORE, NOBLOCK
from mesh.net.sockets import MESSAGES_PER_DRAIN_MAX, Hub
from mesh.process.descriptors import Shortage
from mesh.roles import Holder, PortKind, Role
from mesh.wire import Buffer

ANSWERS_QUEUED_MAX = 2_000  # in ZeroMQ, per client; further ones wait here, as the client may only be slow for a moment
REQUESTS_QUEUED_MAX = 256  # in ZeroMQ, per client, until they are read, which goes before all else; never changed:
# where the mark is lowered, libzmq 4.3.5 may wait for room that it has already, and reads the connection no more
SLICE_S = 0.004  # messages are processed for so long; then other sockets and timers get a turn
READ_S, WORK_S = 0.004, 0.0015  # the same where they wait: for reading, or refusing; then for processing
REST_S = 0.002  # from one reading to the next, while services need the processors to serve what was let in
CHARGED_S = 0.015  # what may have waited for less, before it was read, is taken for new: an answer may be 20 ms late
LOOK_EVERY = 32  # messages that are read between two looks at the clock
INFINITE = float("inf")
INBOX_MAX = 8192  # messages of all clients that were read and wait
UNSEEN_S = 0.005  # if it is so long ago that the socket was seen empty, it is looked at again at the end of a turn
LAST_MAX = 2 * INBOX_MAX  # messages that are read at the end, to be refused
NEWS_S = 0.001  # what is known of the time that this thread has not slept may be so old
CLIENT_BYTES_MAX = 32 << 20  # waiting here for one client; what exceeds it is dropped, and counted
BYTES_MAX = 256 << 20  # waiting here for all clients
FLUSH_S, FLUSH_S_MAX = 0.001, 0.1  # pause before the next try; doubles as long as nothing can be sent
FLUSHED_MAX = 2_000  # answers sent in one go; then other work gets its turn
HEARTBEAT_S = 2.0  # ZeroMQ asks each client so often whether it is there
SILENCE_S_MAX = 4.0  # a client that has not answered for so long is gone: 6 s after its host froze, at most
CLIENTS_PATIENCE_S = 6.0  # a client that hears nothing of this frontend for so long connects anew
DISCONNECTIONS_TOLD_S = 1.0  # between two lines
EXPEL_S = 0.05  # from what is said last to a client that is expelled, to its end
REFUSALS_TOLD = 10  # lines about one look
REFUSALS_UNTOLD = 1000  # of reserved names, or messages that are not read, until the next line
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED
Message = tuple[ClientId, bytes, list[Buffer]]
Received = Callable[[ClientId, bytes, list[Buffer], float], None]
Worth = Callable[[ClientId, bytes, float, float], bool]
SOURCES = frozenset((Role.FRONTEND, Role.OPERATOR))  # roles of those who may name the clients for whom they ask
SRCFD, SOCKET_EVENTS, POLLIN, RCVMORE = (
    zmq.SRCFD,
    zmq.EVENTS,
    int(zmq.POLLIN),
    int(zmq.RCVMORE),
)  # an attribute of an enum is slow to look up
log = structlog.get_logger("clients")


def _descriptor_of(frame: zmq.Frame) -> int | None:
    """The file descriptor of the connection that the frame came through; None: ZeroMQ says it only from ZMTP 3 on."""
    try:
        return int(frame.get(SRCFD))
    except zmq.ZMQError:
        return None


def _drawn_before(hub: Hub, sock: "zmq.Socket[bytes]") -> bytes:
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


class ClientPort:
    """Listens for clients. Calls `received(client, header, frames, arrived_s)` with every message. If it has to wait,
    calls `worth(client, header, arrived_s, more_s)` before: it will wait for so much longer (infinite: there is no room
    to wait), or has waited. Returns that False, it was refused there, and no more becomes of it.

    `arrived_s`: it did not come before. Messages that wait take `inbox_bytes_max` at most.

    Calls `gone(client)` when a client's connection has ended, after its last message. A message that was still on its
    way comes later; then so does another `gone`.
    """

    def __init__(
        self,
        hub: Hub,
        received: Received,
        worth: Worth,
        gone: Callable[[ClientId], None] | None = None,
        *,
        inbox_bytes_max: int = 64 << 20,
    ) -> None:
        self._hub = hub
        self._received = received
        self._gone = gone
        self._worth = worth
        self._inbox: Inbox[ClientId] = Inbox(INBOX_MAX, inbox_bytes_max)
        self._awake = AwakeTime()
        self._empty_s = 0.0  # when the socket was last seen empty
        self._read_s = (
            0.0  # when it was last begun to read all that is there: what one connection has sent since is new,
        )
        # unless it sends faster than it is read; then up to REQUESTS_QUEUED_MAX of its messages are older
        self._awake_s, self._awake_at_s = 0.0, 0.0  # how long the thread had not slept at an instant not after that
        self._has_read = False  # the last time; then what waits is worked off, the next time
        self.strained = (
            False  # services are behind: more is read, and refused, only after a rest; TCP holds senders back
        )
        self._resting: asyncio.TimerHandle | None = None  # set while nothing is read
        self._closing: set[bytes] = set()  # identities of connections that are being closed: they are not heard
        self._told_s = float("-inf")  # when disconnections were last told
        self.expelled = 0  # connections that were closed because of what they sent
        self.unheard = 0  # messages dropped because their client had left, or was being closed, when their turn came
        self._sock: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._connections: Connections
        self._asks_keys = False  # whether every client has one
        self._shortage = Shortage(log)
        self.connections = 0
        self.disconnections = 0
        self.connections_refused = 0  # because their ROUTING_ID was another one's
        self.unreadable = 0  # messages of peers that do not speak ZMTP 3
        self.answers_dropped = 0  # because the client was gone, or did not read for long
        self._backlog: Backlog[ClientId] = Backlog(CLIENT_BYTES_MAX, BYTES_MAX)
        self._flushing: asyncio.TimerHandle | None = None  # set while answers wait
        self._flush_s = FLUSH_S  # the next pause
        self._left: list[ClientId] = []  # that have left; `gone` will be told
        self._surplus: list[tuple[int, int]] = []  # (descriptor, number) of connections that are too many
        self._looking: asyncio.TimerHandle | None = None  # set while connections are there that were not heard

    def listen(self, host: str, port: int, size_max: int) -> str:
        """Opens the port and returns its address. Raises: AddressInUse."""
        hub = self._hub
        self._asks_keys = hub.keys is not None and not hub.keys.local
        hub.on_revoked(self._revoked)
        sock = hub.socket(zmq.ROUTER, size_max=size_max, high_water_mark=ANSWERS_QUEUED_MAX)
        sock.setsockopt(zmq.RCVHWM, REQUESTS_QUEUED_MAX)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.HEARTBEAT_IVL, int(HEARTBEAT_S * 1e3))
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(SILENCE_S_MAX * 1e3))
        sock.setsockopt(zmq.HEARTBEAT_TTL, int(CLIENTS_PATIENCE_S * 1e3))
        unheard = Unheard(PLAIN if hub.keys is None or hub.keys.local else CURVE, HEARTBEAT_S)
        self._connections = Connections(unheard, _drawn_before(hub, sock))
        self._monitor = hub.monitor(sock, EVENTS, self._event)
        address = hub.bind(sock, host, port, "GEARMESH_FRONTEND_PORT", PortKind.CLIENTS)
        self._sock = sock
        self._emptied()
        hub.on_turn(self._turn)
        hub.read(sock, self._drain)
        return address

    def answer(self, client: ClientId, header: bytes, frames: Sequence[Buffer] = ()) -> None:
        """Sends the answer now, or once the client has read the earlier ones.

        A client that is gone, or does not read for long, loses its own answers and no others.
        """
        sock = self._sock
        if sock is None:
            return
        if client in self._backlog or not self._send(sock, client, header, frames):
            self._keep(client, QueuedAnswer(header, frames))
        self._hub.sent(sock)

    def expel(self, client: ClientId) -> None:
        """The client is heard no more, and its connection closed a moment later: what was answered may still leave."""
        connection = self._connections.of(client.identity)
        if connection is None or client.identity in self._closing:
            return
        self._closing.add(client.identity)
        self.unheard += self._inbox.drop(client)
        self.expelled += 1
        descriptor, number = connection.descriptor, connection.number
        self._hub.loop.call_later(EXPEL_S, self._end, descriptor, number)

    def _end(self, descriptor: int, number: int) -> None:
        if self._sock is not None:
            self._close(descriptor, number)

    @property
    def accept_failed(self) -> int:
        """Connections that were closed as soon as they came, because there are no descriptors for more."""
        return self._shortage.refused

    @property
    def answers_waiting(self) -> int:
        """The number of answers that wait for room in their clients' connections."""
        return self._backlog.count

    @property
    def requests_waiting(self) -> int:
        """The number of messages that were read and wait for their turn."""
        return len(self._inbox)

    @property
    def bytes_waiting(self) -> int:
        """What these take in memory."""
        return self._inbox.bytes_held

    def waiting(self) -> Iterator[tuple[ClientId, bytes]]:
        """(client, header) of all messages that wait, for their turn or to be read, in the order of each client's.

        Each waits no more once it is given. What comes as fast as it is read ends after LAST_MAX.
        """
        while (taken := self._inbox.take()) is not None:
            client, message = taken
            yield client, message.header
        for _ in range(LAST_MAX):
            unread = None if self._sock is None else self._next(self._sock)
            if unread is None:
                return
            yield unread[0], unread[1]

    def is_drawn(self, identity: bytes) -> bool:
        """Whether ZeroMQ gave the connection its identity: then it says nothing of the client."""
        return self._connections.is_drawn(identity)

    def peer_of(self, identity: bytes) -> str:
        """The address of the client with this identity, as host:port; empty if it is not there (any more)."""
        self._learn()
        connection = self._connections.of(identity)
        if connection is None:
            return ""
        address = address_of(connection.descriptor)
        self._learn()  # had the connection ended before we looked, ZeroMQ would have said so by now
        return address if self._connections.of(identity) is connection else ""

    def _send(self, sock: "zmq.Socket[bytes]", client: ClientId, header: bytes, frames: Sequence[Buffer]) -> bool:
        """Sends the answer, or drops it if the client is gone.

        Returns False if the client has no room for it at present.
        """
        if client.connection and not self._has_its_identity(sock, client):
            self._dropped("the client's connection has ended")
            return True
        try:
            sock.send(client.identity, NOBLOCK | MORE)
            if client.delimited:
                sock.send(b"", MORE)
            sock.send(header, MORE if frames else 0)
            last = len(frames) - 1
            for i, frame in enumerate(frames):
                sock.send(frame, MORE if i < last else 0, copy=len(frame) < FRAME_BYTES_ZERO_COPY)
        except zmq.Again:
            return False  # only the first frame can be refused
        except zmq.ZMQError as error:
            self._dropped(str(error))
        return True

    def _has_its_identity(self, sock: "zmq.Socket[bytes]", client: ClientId) -> bool:
        """Whether ZeroMQ would send to this client, who chose its identity, and not to a later one of that identity.

        ZeroMQ lets the later one in only while it is asked something (here: for the events), and has told of the end
        of the earlier one before.
        """
        sock.getsockopt(SOCKET_EVENTS)
        self._learn()
        return self._connections.is_there(client)

    def _keep(self, client: ClientId, answer: QueuedAnswer) -> None:
        if not self._backlog.put(client, answer):
            self._dropped("the client does not read")
        if self._flushing is None:
            self._flush_s = FLUSH_S
            self._flushing = self._hub.loop.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        """Sends waiting answers while there is room, and comes back later for the rest."""
        self._flushing = None
        sock = self._sock
        if sock is None:
            return
        sent = self._backlog.flush(lambda client, answer: self._send(sock, client, *answer), FLUSHED_MAX)
        self._hub.sent(sock)
        self._hub.schedule_turn()
        if self._backlog.count:
            self._flush_s = FLUSH_S if sent else min(2 * self._flush_s, FLUSH_S_MAX)
            self._flushing = self._hub.loop.call_later(self._flush_s, self._flush)

    def _dropped(self, why: str) -> None:
        self.answers_dropped += 1
        if self.answers_dropped % 1000 == 1:
            log.warning("answers_dropped", total=self.answers_dropped, why=why)

    def close(self) -> None:
        """Closes the port; answers on their way still get their linger time."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self._flushing is not None:
            self._flushing.cancel()
            self._flush()
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
            log.warning("answers_dropped", waiting=self._backlog.count, why="the frontend stops")
        if self._monitor is not None and self._sock is not None:
            self._sock.disable_monitor()
            self._hub.drop(self._monitor)
        if self._sock is not None:
            self._hub.drop(self._sock, linger_ms=200)
        self._awake.close()
        self._sock = self._monitor = None

    # -- messages -----------------------------------------------------------------------------------------------------

    def _drain(self) -> bool:
        """Takes in messages for a while. Returns True if there may be more."""
        sock = self._sock
        if sock is None:
            return False
        now = time.monotonic()
        arrived_s = self._arrived_s(now)
        if self._resting is not None:
            if self._inbox:
                self._work_off()
            return bool(self._inbox)
        if not self._inbox:
            ends_s = now + SLICE_S
            began_s, old = now, now - arrived_s > TARGET_S
            count = 0
            while count < MESSAGES_PER_DRAIN_MAX:
                count += 1
                message = self._next(sock)
                if message is None:
                    self._emptied()
                    return False
                client, header, frames = message
                if not old or self._worth(client, header, arrived_s, 0.0):
                    self._received(client, header, frames, arrived_s)
                now = time.monotonic()
                if now > ends_s:
                    break
            if not old:
                self._inbox.processed(count, now - began_s)
        elif self._has_read:
            self._has_read = False
            self._work_off()
            return True
        self._has_read = True
        self._read_on(sock, arrived_s, now)
        if self.strained:
            self._resting = self._hub.loop.call_later(REST_S, self._rested, sock)
            return bool(self._inbox)
        return True

    def _rested(self, sock: "zmq.Socket[bytes]") -> None:
        self._resting = None
        self._hub.read_again(sock)

    def _read_on(self, sock: "zmq.Socket[bytes]", arrived_s: float, now: float) -> None:
        """Reads what has arrived, for a while, so that it is known how long it waits. What finds no room is refused."""
        ends_s = now + READ_S
        inbox = self._inbox
        self._read_s = now
        for i in range(1, INBOX_MAX):
            message = self._next(sock)
            if message is None:
                self._emptied()
                return
            client, header, frames = message
            wait_s = inbox.wait_s(client)
            if wait_s > TARGET_S and not self._worth(client, header, arrived_s, wait_s):
                pass
            elif not inbox.put(client, header, frames, arrived_s) and self._worth(client, header, arrived_s, INFINITE):
                self._received(client, header, frames, arrived_s)
            if i % LOOK_EVERY == 0 and time.monotonic() > ends_s:
                return

    def _work_off(self) -> None:
        """Processes what waits, for a while."""
        inbox = self._inbox
        began_s = now = time.monotonic()
        ends_s = now + WORK_S
        count = 0
        while (taken := inbox.take()) is not None:
            client, message = taken
            arrived_s = message.arrived_s
            if now - arrived_s <= TARGET_S or self._worth(client, message.header, arrived_s, 0.0):
                self._received(client, message.header, message.frames, arrived_s)
                count += 1
            now = time.monotonic()
            if now > ends_s:
                break
        if count:
            inbox.processed(count, now - began_s)

    def _arrived_s(self, now: float) -> float:
        """The instant before which nothing can have come that is read now."""
        seen_s = max(self._empty_s, self._read_s)
        if self._inbox or now - seen_s < NEWS_S:
            return seen_s
        arrived_s = max(seen_s, now - (self._awake.seconds() - self._awake_s))
        return arrived_s if now - arrived_s > CHARGED_S else now

    def _turn(self, now: float) -> None:
        """What this process did for others while no client said anything is not counted as a wait."""
        sock = self._sock
        if sock is None or now - self._empty_s < UNSEEN_S:
            return
        self._hub.sent(sock)  # looking consumes the edge of what has arrived
        if not int(sock.getsockopt(SOCKET_EVENTS)) & POLLIN:
            self._emptied()

    def _emptied(self) -> None:
        """The socket is seen to be empty."""
        now = self._empty_s = time.monotonic()
        if now - self._awake_at_s > NEWS_S:
            self._awake_s, self._awake_at_s = self._awake.seconds(), now

    def _next(self, sock: "zmq.Socket[bytes]") -> Message | None:
        """The next message that a client may say; None if there is none at present."""
        while True:
            try:
                identity = sock.recv(NOBLOCK)
            except zmq.Again:
                return None
            connection = self._connections.drawn.get(identity)
            first = None
            if connection is None:
                self._learn()
                # while that is there, no other connection is heard by this name
                connection = self._connections.chosen.get(identity)
            if connection is None:
                first = sock.recv(NOBLOCK, copy=False)
                header = first.bytes
            else:
                header = sock.recv(NOBLOCK)  # a ROUTER never delivers the identity without a message
            delimited = False
            frames: list[Buffer] = []
            if sock.getsockopt(RCVMORE):
                delimited = not header
                if delimited:
                    header = sock.recv(NOBLOCK)
                while sock.getsockopt(RCVMORE):
                    frames.append(sock.recv(NOBLOCK, copy=False).buffer)
            if self._closing and identity in self._closing:
                self.unheard += 1
                continue
            if connection is None:
                assert first is not None
                met = self._admit(identity, delimited, first)
                if met is None:
                    continue
                return met, header, frames
            client = connection.clients[0]  # all of one connection are equal but for that:
            if client.delimited is not delimited:
                client = connection.client(delimited)
            return client, header, frames

    def _admit(self, identity: bytes, delimited: bool, first: zmq.Frame) -> ClientId | None:
        """The client of this first message, or of one whose connection has ended; None: it is not heard."""
        descriptor = _descriptor_of(first)
        if descriptor is None:
            self._too_old()
            return None
        holder = Holder.read(str(first.get("User-Id"))) if self._asks_keys else None
        if holder is not None and not self._may_speak(holder, descriptor):
            return None
        return self._meet(identity, delimited, descriptor, holder)

    def _meet(self, identity: bytes, delimited: bool, descriptor: int, holder: Holder | None) -> ClientId | None:
        """The client that speaks through this connection, whose holder may; None: its identity is not one to be had."""
        if is_reserved(identity) and not self._connections.is_drawn(identity):
            number = self._connections.number(descriptor)
            if number is not None:
                told = self.connections_refused % REFUSALS_UNTOLD == 0
                self._refuse(Refusal(descriptor, number, IdentityRefusal.RESERVED), told=told)
            return None
        client, left = self._connections.spoke(identity, delimited, descriptor)
        if holder is not None:
            self._connections.met(identity, holder)
        if left:
            self._left += left
            self._hub.loop.call_soon(self._farewell)
        return client

    def _may_speak(self, holder: Holder, descriptor: int) -> bool:
        """Whether the connection's key still may call; if not, the connection is ended."""
        if self._hub.admits(holder):
            return True
        number = self._connections.number(descriptor)
        if number is not None:
            self._refuse(Refusal(descriptor, number, IdentityRefusal.KEY_REVOKED), told=True)
        return False

    def _revoked(self, keys: set[str]) -> None:
        """The connections of these keys are ended, and what they asked is asked by nobody."""
        self._learn()
        for descriptor, number in self._connections.held_by(keys):
            self._refuse(Refusal(descriptor, number, IdentityRefusal.KEY_REVOKED), told=True)

    def names_sources(self, identity: bytes) -> bool:
        """Whether this client may say for whom it asks, as a gateway does: where clients have no keys, anybody may."""
        if not self._asks_keys:
            return True
        connection = self._connections.of(identity)
        holder = connection.holder if connection is not None else None
        return holder is not None and not SOURCES.isdisjoint(holder.roles)

    def _too_old(self) -> None:
        """A peer that does not speak ZMTP 3, or garbage that reads as ZMTP 1, is not heard."""
        self.unreadable += 1
        if self.unreadable % REFUSALS_UNTOLD == 1:
            log.warning("old_protocol", total=self.unreadable)

    def _farewell(self) -> None:
        """Tells which clients have left."""
        left, self._left = self._left, []
        for client in left:
            self.unheard += self._inbox.drop(client)
            self._closing.discard(client.identity)
            if self._gone is not None:
                self._gone(client)
        self._hub.schedule_turn()

    # -- connections --------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """All that ZeroMQ has told about connections by now is known."""
        if self._monitor is not None:
            self._hub.drain(self._monitor)

    def _event(self, event: int, value: int) -> None:
        """Notes what ZeroMQ says; what follows from it comes a little later, as this may come in the midst of it."""
        match event:
            case zmq.EVENT_ACCEPTED:
                self.connections += 1
                number = self._connections.accepted(value, time.monotonic())
                self._look_later()
                if len(self._connections) > self._shortage.clients_max:
                    self._surplus.append((value, number))
                    self._hub.loop.call_soon(self._shed)
            case zmq.EVENT_ACCEPT_FAILED:
                self._shortage.tell(os.strerror(value), len(self._connections))
            case zmq.EVENT_DISCONNECTED:
                self.disconnections += 1
                self._tell_disconnections(time.monotonic())
                self._left += self._connections.ended(value)
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
            self._shortage.tell("as many clients are here as it allows", len(self._connections))

    def _look_later(self) -> None:
        at = self._connections.unheard.wake_at()
        if at is not None and self._looking is None:
            self._looking = self._hub.loop.call_later(max(0.0, at - time.monotonic()), self._look)

    def _look(self) -> None:
        """Closes the connections that can never be heard."""
        self._looking = None
        if self._sock is None:
            return
        self._learn()
        refusals = self._connections.unheard.examine(received_by, time.monotonic())
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
            return self._connections.number(descriptor) == number

        return close_connection(descriptor, is_there)
