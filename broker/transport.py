"""Links between services: a `Port` listens, a `Link` calls; over ZeroMQ, or in memory inside one process.

What is sent to one peer during a turn leaves as one envelope at its end. Each line knows the offset of the peer's clock
and whether the peer is alive, from what arrives on it; idle lines carry heartbeats.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
import structlog
import zmq

from broker import wire
from broker.clocks import OffsetFilter
from broker.liveness import Liveness
from broker.sockets import MESSAGES_PER_DRAIN_MAX, Hub

FRAME_BYTES_ZERO_COPY = 64 * 1024  # smaller frames are copied: cheaper than the bookkeeping of not doing so
BACKLOG_MAX = 100_000  # messages waiting for one peer; one that lets so many lie is taken for lost
MEMORY = "memory://"
NOBLOCK, MORE, RCVMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.RCVMORE)  # enums are slow to combine

Buffer = bytes | memoryview
In = TypeVar("In")
Out = TypeVar("Out")
log = structlog.get_logger("transport")


@dataclass(slots=True)
class Mail(Generic[In]):
    """One envelope that arrived."""

    peer: str
    messages: list[In]
    frames: list[Buffer]  # tensors too large to ride inside, in the order of the messages that own them
    age_s: float  # since it was sent, by our clock
    epoch: int
    now: float  # when it was received
    clock: OffsetFilter


@dataclass(slots=True)
class Line:
    """One direction to one peer, and what is known of it."""

    peer: str
    port: "Port[Any, Any] | None"  # None: the line of a link
    outbox: list[Any] = field(default_factory=list)
    frames: list[Buffer] = field(default_factory=list)
    clock: OffsetFilter = field(default_factory=OffsetFilter)
    other: "Line | None" = None  # the far end, where both are in this process
    owner: "Link[Any, Any] | Port[Any, Any] | None" = None  # who takes what arrives on this line
    key: str = ""  # names the line among all of this process

    def __post_init__(self) -> None:
        self.key = f"{self.port.name if self.port is not None else ''}>{self.peer}>{id(self)}"


class Transport:
    """All lines of one process."""

    def __init__(self, hub: Hub, *, heartbeat_s: float, silence_s_max: float, message_bytes_max: int) -> None:
        self.hub = hub
        self.message_bytes_max = message_bytes_max
        self._liveness = Liveness(heartbeat_s, silence_s_max)
        self._watched: dict[str, Line] = {}  # {key of a line: line}
        self._dirty: dict[int, Line] = {}  # {id: line with something to send}
        self._memory: dict[str, Port[Any, Any]] = {}  # {name: port that can be called in memory}
        self._encoder = msgspec.msgpack.Encoder()
        self._tick_s = heartbeat_s / 2
        self._ticked_at = time.monotonic()
        hub.on_deliver(self._deliver)
        hub.on_flush(self._flush)
        self._timer = hub.loop.call_later(self._tick_s, self._tick)

    def close(self) -> None:
        """No more heartbeats; the sockets are the hub's to close."""
        self._timer.cancel()

    # -- sending ------------------------------------------------------------------------------------------------------

    def queue(self, line: Line, message: object, frames: Sequence[Buffer] = ()) -> None:
        """`message` leaves at the end of this turn."""
        line.outbox.append(message)
        if frames:
            line.frames.extend(frames)
        self._dirty[id(line)] = line
        self.hub.schedule_turn()

    def _deliver(self) -> bool:
        """Hands over what goes to peers in this process. True if there was some."""
        local = [line for line in self._dirty.values() if line.other is not None]
        for line in local:
            if self._dirty.pop(id(line), None) is None:
                continue  # closed by what another line brought
            messages, line.outbox = line.outbox, []
            frames, line.frames = line.frames, []
            far = line.other
            assert far is not None
            if far.port is not None:
                far.port.rejoin(far)
            assert far.owner is not None
            epoch = line.port.epoch if line.port is not None else 0
            now = time.monotonic()
            far.owner.take(Mail(far.peer, messages, frames, 0.0, epoch, now, far.clock))
        return bool(local)

    def _flush(self) -> None:
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, {}
        for line in dirty.values():
            self._flush_line(line)

    def _flush_line(self, line: Line) -> None:
        now = time.monotonic()
        port = line.port
        epoch = port.epoch if port is not None else 0
        sock = port.sock if port is not None else line.owner.sock if isinstance(line.owner, Link) else None
        if sock is None:
            return
        body = self._encoder.encode(wire.Envelope(now, line.clock.smallest_s, epoch, line.outbox))
        flags = NOBLOCK | (MORE if line.frames else 0)
        try:
            if port is not None:
                sock.send(line.peer.encode(), NOBLOCK | MORE)
            sock.send(body, flags)
        except zmq.Again:
            self._held(line)
            return
        except zmq.ZMQError as error:
            self._line_lost(line, f"cannot be reached: {error}")
            return
        last = len(line.frames) - 1
        for i, frame in enumerate(line.frames):
            copy = len(frame) < FRAME_BYTES_ZERO_COPY
            sock.send(frame, MORE if i < last else 0, copy=copy)
        line.outbox = []
        line.frames = []
        self.hub.sent(sock)
        self._liveness.sent(line.key, now)

    def _held(self, line: Line) -> None:
        """The peer's pipe is full: what waits is tried again, up to a limit."""
        if len(line.outbox) > BACKLOG_MAX:
            self._line_lost(line, f"does not read: {len(line.outbox)} messages wait for it")
            return
        self._dirty[id(line)] = line
        self.hub.loop.call_later(0.001, self.hub.schedule_turn)

    # -- liveness -----------------------------------------------------------------------------------------------------

    def watch(self, line: Line) -> None:
        """The line carries heartbeats, and its peer is lost when silent for too long."""
        self._watched[line.key] = line
        self._liveness.watch(line.key, time.monotonic())

    def unwatch(self, line: Line) -> None:
        """The line is left alone."""
        self._watched.pop(line.key, None)
        self._liveness.forget(line.key)
        self._dirty.pop(id(line), None)

    def heard(self, line: Line, now: float) -> None:
        """Something arrived on the line."""
        self._liveness.heard(line.key, now)

    def _tick(self) -> None:
        now = time.monotonic()
        late = now - self._ticked_at > 4 * self._tick_s
        due = self._liveness.wake(now, blind_since=self._ticked_at if late else None)
        self._ticked_at = now
        for key in due.beats:
            line = self._watched.get(key)
            if line is not None and not line.outbox:
                self.queue(line, wire.Heartbeat())
        for key in due.lost:
            line = self._watched.get(key)
            if line is not None:
                self._line_lost(line, "was silent for too long")
        self._timer = self.hub.loop.call_later(self._tick_s, self._tick)

    def _line_lost(self, line: Line, why: str) -> None:
        self.unwatch(line)
        line.outbox, line.frames = [], []
        if line.owner is not None:
            line.owner.line_lost(line, why)
            self.hub.schedule_turn()

    # -- memory -------------------------------------------------------------------------------------------------------

    def offer(self, name: str, port: "Port[Any, Any]") -> None:
        """`port` can be called in memory as ``memory://name``."""
        self._memory[name] = port

    def withdraw(self, port: "Port[Any, Any]") -> None:
        """`port` can no longer be called in memory."""
        self._memory = {name: known for name, known in self._memory.items() if known is not port}

    def port_in_memory(self, addresses: Sequence[str]) -> "Port[Any, Any] | None":
        """The port behind the first of the addresses that is in this process."""
        for address in addresses:
            if address.startswith(MEMORY) and address[len(MEMORY) :] in self._memory:
                return self._memory[address[len(MEMORY) :]]
        return None


class Port(Generic[In, Out]):
    """Listens for any number of peers, known by their member ids."""

    def __init__(
        self,
        transport: Transport,
        name: str,
        decoder: "msgspec.msgpack.Decoder[wire.Envelope[In]]",
        received: Callable[[Mail[In]], None],
        lost: Callable[[str, str], None],
        *,
        watch: bool = True,
    ) -> None:
        self.transport = transport
        self.name = name
        self.epoch = 0  # goes out with every envelope
        self.sock: zmq.Socket[bytes] | None = None
        self._decoder = decoder
        self._received = received
        self._lost = lost
        self._watch = watch
        self._lines: dict[str, Line] = {}  # {peer: line}, exactly those heard since they were last lost

    def listen(self, host: str, port: int, setting: str) -> tuple[str, ...]:
        """Opens the port, and returns its addresses, the preferred one first. Raises: AddressInUse."""
        hub = self.transport.hub
        sock = hub.socket(zmq.ROUTER, size_max=self.transport.message_bytes_max)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
        address = hub.bind(sock, host, port, setting)
        self.sock = sock
        hub.read(sock, self._drain)
        memory = f"{address.rpartition(':')[2]}/{self.name}"
        self.transport.offer(memory, self)
        return MEMORY + memory, address

    def close(self) -> None:
        """The port is closed; what was queued has a moment to leave."""
        self.transport.withdraw(self)
        for line in self._lines.values():
            self.transport.unwatch(line)
            far = line.other
            if far is not None and far.owner is not None:
                self.transport.hub.loop.call_soon(far.owner.line_lost, far, "closed the connection")
        if self.sock is not None:
            self.transport.hub.drop(self.sock, linger_ms=200)
            self.sock = None

    def send(self, peer: str, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """`message` leaves for `peer` at the end of this turn. False if there is no such peer."""
        line = self._lines.get(peer)
        if line is None:
            return False
        self.transport.queue(line, message, frames)
        return True

    def knows(self, peer: str) -> bool:
        """`peer` was heard and has not been lost."""
        return peer in self._lines

    def forget(self, peer: str) -> None:
        """`peer` is not watched any more, and nothing is sent to it until it is heard again."""
        line = self._lines.pop(peer, None)
        if line is not None:
            self.transport.unwatch(line)

    def keep_only(self, peers: Iterable[str]) -> None:
        """All other peers are forgotten; one that is heard again is simply new."""
        keep = set(peers)
        for peer in [peer for peer in self._lines if peer not in keep]:
            self.forget(peer)

    def clock(self, peer: str) -> OffsetFilter:
        """What is known of the clock of `peer`. Raises: KeyError."""
        return self._lines[peer].clock

    def take(self, mail: Mail[In]) -> None:
        """Mail from a peer in this process."""
        self._received(mail)

    def line_lost(self, line: Line, why: str) -> None:
        """A peer was found to be gone."""
        if self._lines.get(line.peer) is line:
            del self._lines[line.peer]
        self._lost(line.peer, why)

    def join(self, peer: str, far: Line) -> Line:
        """A peer in this process calls; returns our end of the line."""
        line = Line(peer, self, other=far, owner=self)
        self._lines[peer] = line
        return line

    def rejoin(self, line: Line) -> None:
        """A peer in this process speaks."""
        self._lines.setdefault(line.peer, line)

    def _drain(self) -> bool:
        sock = self.sock
        if sock is None:
            return False
        for _ in range(MESSAGES_PER_DRAIN_MAX):
            try:
                identity = sock.recv(NOBLOCK)
            except zmq.Again:
                return False
            body = sock.recv(NOBLOCK)  # a ROUTER never gives the identity alone
            self._arrived(identity, body, _frames(sock))
        return True

    def _arrived(self, identity: bytes, body: bytes, frames: list[Buffer]) -> None:
        now = time.monotonic()
        try:
            peer = identity.decode()
            envelope = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("message_refused", port=self.name, peer=repr(identity), error=str(error))
            return
        line = self._lines.get(peer)
        if line is None:
            line = Line(peer, self, owner=self)
            self._lines[peer] = line
            if self._watch:
                self.transport.watch(line)
        self.transport.heard(line, now)
        line.clock.heard(envelope.sent_s, envelope.delta_s, now)
        age_s = line.clock.age_s(envelope.sent_s, now)
        self._received(Mail(peer, envelope.messages, frames, age_s, envelope.epoch, now, line.clock))


class Link(Generic[In, Out]):
    """Calls one peer. Lost once, it stays closed: whoever wants the peer back opens another."""

    def __init__(
        self,
        transport: Transport,
        identity: str,
        peer: str,
        decoder: "msgspec.msgpack.Decoder[wire.Envelope[In]]",
        received: Callable[[Mail[In]], None],
        lost: Callable[[str, str], None],
        *,
        watch: bool = True,
    ) -> None:
        self.transport = transport
        self.identity = identity
        self.sock: zmq.Socket[bytes] | None = None
        self.heard_s: float | None = None  # when something first arrived
        self._line = Line(peer, None, owner=self)
        self._decoder = decoder
        self._received = received
        self._lost = lost
        self._watch = watch
        self._monitor: zmq.Socket[bytes] | None = None
        self.open = False

    @property
    def peer(self) -> str:
        """Member id of the peer (or its role, where there is only one)."""
        return self._line.peer

    @property
    def clock(self) -> OffsetFilter:
        """What is known of the peer's clock."""
        return self._line.clock

    def call(self, addresses: Sequence[str]) -> "Link[In, Out]":
        """Dials the peer, in memory where it is in this process. What is sent before it answers waits for it."""
        self.open = True
        port = self.transport.port_in_memory(addresses)
        if port is not None:
            self._line.other = port.join(self.identity, self._line)
            return self
        hub = self.transport.hub
        self.sock = hub.socket(zmq.DEALER, size_max=self.transport.message_bytes_max)
        self.sock.setsockopt_string(zmq.ROUTING_ID, self.identity)
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        self._monitor = hub.monitor(self.sock, events, self._event)
        hub.connect(self.sock, next(address for address in addresses if not address.startswith(MEMORY)))
        hub.read(self.sock, self._drain)
        if self._watch:
            self.transport.watch(self._line)
        return self

    def send(self, message: Out, frames: Sequence[Buffer] = ()) -> None:
        """`message` leaves at the end of this turn; nothing happens on a closed link."""
        if self.open:
            self.transport.queue(self._line, message, frames)

    def close(self, linger_ms: int = 0) -> None:
        """The link is closed; calling again changes nothing."""
        if not self.open:
            return
        self.open = False
        self.transport.unwatch(self._line)
        hub = self.transport.hub
        if self._monitor is not None and self.sock is not None:
            self.sock.disable_monitor()
            hub.drop(self._monitor)
        if self.sock is not None:
            hub.drop(self.sock, linger_ms)
        self.sock = self._monitor = None
        far = self._line.other
        if far is not None and far.port is not None and far.port.knows(self.identity):
            far.port.forget(self.identity)
            self.transport.hub.loop.call_soon(far.port.line_lost, far, "closed the connection")

    def take(self, mail: Mail[In]) -> None:
        """Mail from a peer in this process."""
        if self.heard_s is None:
            self.heard_s = mail.now
        self._received(mail)

    def line_lost(self, line: Line, why: str) -> None:
        """The peer was found to be gone."""
        if self.open:
            self.close()
            self._lost(line.peer, why)

    def _event(self, event: int) -> None:
        why = "closed the connection" if event == zmq.EVENT_DISCONNECTED else "refused our key"
        self.line_lost(self._line, why)
        self.transport.hub.schedule_turn()

    def _drain(self) -> bool:
        for _ in range(MESSAGES_PER_DRAIN_MAX):
            sock = self.sock
            if sock is None:
                return False  # closed by what it brought
            try:
                body = sock.recv(NOBLOCK)
            except zmq.Again:
                return False
            self._arrived(body, _frames(sock))
        return True

    def _arrived(self, body: bytes, frames: list[Buffer]) -> None:
        now = time.monotonic()
        try:
            envelope = self._decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError) as error:
            log.warning("message_refused", link=self.identity, peer=self.peer, error=str(error))
            return
        line = self._line
        if self.heard_s is None:
            self.heard_s = now
        self.transport.heard(line, now)
        line.clock.heard(envelope.sent_s, envelope.delta_s, now)
        age_s = line.clock.age_s(envelope.sent_s, now)
        self._received(Mail(line.peer, envelope.messages, frames, age_s, envelope.epoch, now, line.clock))


def _frames(sock: "zmq.Socket[bytes]") -> list[Buffer]:
    """What is left of a multipart message: large tensors, not copied."""
    frames: list[Buffer] = []
    while sock.getsockopt(RCVMORE):
        frames.append(sock.recv(NOBLOCK, copy=False).buffer)
    return frames
