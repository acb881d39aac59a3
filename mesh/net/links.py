"""Links between services: a `Port` listens, a `Link` calls; over ZeroMQ, or in memory inside one process.

Both send through the process's `Transport`, and pass on each envelope that arrives on their lines.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import msgspec
import structlog
import zmq

from mesh import wire
from mesh.clocks import OffsetFilter
from mesh.codes import LinkLoss
from mesh.net.doorkeeper import REPLACED
from mesh.net.sockets import MESSAGES_PER_DRAIN_MAX
from mesh.net.transport import MEMORY, NOBLOCK, RCVMORE, Line, Mail, Transport
from mesh.roles import Holder, PortKind, may_speak
from mesh.wire import Buffer

In = TypeVar("In")
Out = TypeVar("Out")
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
KEY_LOSSES = (LinkLoss.KEY_REFUSED, LinkLoss.OTHER_KEYS, LinkLoss.REPLACED)
KEY_AGAIN_S = 1.0  # after such a loss: until a link is opened again
NOT_HEARD_S = 10.0  # least time between two log lines of a port about peers that may not speak as they do
log = structlog.get_logger("transport")


class Port(Generic[In, Out]):
    """Listens for any number of peers, each known by its member id."""

    def __init__(
        self,
        transport: Transport,
        name: str,
        decoder: "msgspec.msgpack.Decoder[wire.Envelope[In]]",
        received: Callable[[Mail[In]], None],
        lost: Callable[[str, str], None],
        *,
        watch: bool = True,
        kind: PortKind = PortKind.CONTROL,
        key_of: Callable[[str], str] = lambda member: "",
    ) -> None:
        """`key_of(member)`: the key with which that member has registered; empty: it has not."""
        self.transport = transport
        self.name = name
        self.kind = kind
        self.not_heard = 0  # messages of peers that may not speak for the member that they name
        self._key_of = key_of
        self._told_at = float("-inf")
        self.epoch = 0  # sent with every envelope
        self.sock: zmq.Socket[bytes] | None = None
        self._decoder = decoder
        self._received = received
        self._lost = lost
        self._watch = watch
        self._lines: dict[str, Line] = {}  # {peer: line}, exactly the peers heard since they were last lost

    def listen(self, host: str, port: int, setting: str, owner: str = "") -> tuple[str, ...]:
        """Opens the port of the member `owner` and returns its addresses, the preferred one first.

        Raises: AddressInUse.
        """
        hub = self.transport.hub
        sock = hub.socket(zmq.ROUTER, size_max=self.transport.message_bytes_max)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
        address = hub.bind(sock, host, port, setting, self.kind, owner)
        self.sock = sock
        hub.on_revoked(self._revoked)
        hub.read(sock, self._drain)
        memory = f"{address.rpartition(':')[2]}/{self.name}"
        self.transport.offer(memory, self)
        return MEMORY + memory, address

    def close(self) -> None:
        """The port is closed; queued messages still get their linger time to leave."""
        self.transport.withdraw(self)
        for line in self._lines.values():
            self.transport.unwatch(line)
            far = line.other
            if far is not None:
                self.transport.hub.loop.call_soon(far.owner.line_lost, far, LinkLoss.CLOSED)
        if self.sock is not None:
            self.transport.hub.drop(self.sock, linger_ms=200)
            self.sock = None

    def send(self, peer: str, message: Out, frames: Sequence[Buffer] = ()) -> bool:
        """`message` leaves for `peer` at the end of this turn. Returns False if there is no such peer."""
        line = self._lines.get(peer)
        if line is None:
            return False
        self.transport.queue(line, message, frames)
        return True

    def knows(self, peer: str) -> bool:
        """Whether `peer` has been heard and has not been lost since."""
        return peer in self._lines

    def backlog(self, peer: str) -> int:
        """Messages that wait until `peer` reads what it was sent before. Raises: KeyError."""
        return len(self._lines[peer].outbox)

    def forget(self, peer: str) -> None:
        """`peer` is no longer watched, and nothing is sent to it until it is heard again."""
        line = self._lines.pop(peer, None)
        if line is not None:
            self.transport.unwatch(line)

    def holder(self, peer: str) -> Holder | None:
        """Whose key the peer's connection has; None: nobody was asked, or the peer is not known."""
        line = self._lines.get(peer)
        return line.holder if line is not None else None

    def recheck(self) -> None:
        """Loses the peers that may not speak for their members, by what is known of these now."""
        for line in list(self._lines.values()):
            if line.other is None and line.holder is not None and not self._may_speak(line.holder, line.peer):
                self._cut(line)

    def keep_only(self, peers: Iterable[str]) -> None:
        """Forgets all other peers; one that is heard again counts as new."""
        keep = set(peers)
        for peer in [peer for peer in self._lines if peer not in keep]:
            self.forget(peer)

    def clock(self, peer: str) -> OffsetFilter:
        """The estimated offset of the clock of `peer`. Raises: KeyError."""
        return self._lines[peer].clock

    def take(self, mail: Mail[In]) -> None:
        """Passes on mail from a peer in this process."""
        self._received(mail)

    def line_lost(self, line: Line, why: str) -> None:
        """The line's peer is gone: forgets it and calls `lost`."""
        if self._lines.get(line.peer) is line:
            del self._lines[line.peer]
        self._lost(line.peer, why)

    def join(self, peer: str, far: Line) -> Line:
        """A peer in this process connects; returns our end of the line."""
        keys = self.transport.hub.keys
        line = Line(peer, self, self, other=far, holder=keys.holder if keys is not None else None)
        self._lines[peer] = line
        return line

    def rejoin(self, line: Line) -> None:
        """A peer in this process sends on its line: the line is known again if it was forgotten."""
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
            peer = identity.decode(errors="replace")
            line = self._lines.get(peer)
            if line is None or line.other is not None:
                body, holder = self._meet(sock.recv(NOBLOCK, copy=False))
                frames = _frames(sock)
                if not self._hears(peer, holder):
                    continue
                self._arrived(peer, body, frames, holder)
            else:
                body = sock.recv(NOBLOCK)  # a ROUTER never delivers the identity without a body
                self._arrived(peer, body, _frames(sock), None)
        return True

    def _meet(self, first: zmq.Frame) -> tuple[bytes, Holder | None]:
        """(the message, whose connection it came through)."""
        if self.transport.hub.keys is None:
            return first.bytes, None
        return first.bytes, Holder.read(str(first.get("User-Id")))

    def _hears(self, peer: str, holder: Holder | None) -> bool:
        """Whether the peer, who has no line yet, may have one."""
        inside = self._lines.get(peer)
        known = "\ufffd" not in peer
        if inside is None and known and (holder is None or self._may_speak(holder, peer)):
            return True
        self._tell_not_heard(peer, holder)
        return False

    def _may_speak(self, holder: Holder, peer: str) -> bool:
        return may_speak(holder, peer, self._key_of(peer)) and self.transport.hub.admits(holder)

    def _revoked(self, keys: set[str]) -> None:
        for line in list(self._lines.values()):
            if line.other is None and line.holder is not None and line.holder.key in keys:
                self._cut(line)

    def _cut(self, line: Line) -> None:
        self._tell_not_heard(line.peer, line.holder)
        self.transport.lose(line, LinkLoss.NOT_ITS_KEY)

    def _tell_not_heard(self, peer: str, holder: Holder | None) -> None:
        self.not_heard += 1
        now = time.monotonic()
        if now - self._told_at < NOT_HEARD_S:
            return
        self._told_at = now
        who = {"key": holder.name, "roles": ",".join(sorted(holder.roles))} if holder is not None else {}
        log.warning("peer_not_heard", port=self.name, peer=peer, total=self.not_heard, **who)

    def _arrived(self, peer: str, body: bytes, frames: list[Buffer], holder: Holder | None) -> None:
        now = time.monotonic()
        try:
            envelope = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("message_refused", port=self.name, peer=repr(peer), error=str(error))
            return
        line = self._lines.get(peer)
        if line is None:
            line = Line(peer, self, self, holder=holder)
            self._lines[peer] = line
            if self._watch:
                self.transport.watch(line)
        self._received(self.transport.arrived(line, envelope, frames, now))


class Link(Generic[In, Out]):
    """Calls one peer. Once lost it stays closed: whoever wants the peer back opens another link."""

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
        to: PortKind = PortKind.CONTROL,
    ) -> None:
        """`to`: the kind of port that is called."""
        self.transport = transport
        self.identity = identity
        self.to = to
        self.sock: zmq.Socket[bytes] | None = None
        self.heard_s: float | None = None  # when something first arrived
        self._line = Line(peer, self)
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
        """The estimated offset of the peer's clock."""
        return self._line.clock

    def call(self, addresses: Sequence[str]) -> "Link[In, Out]":
        """Connects to the peer, in memory if it is in this process. Messages sent before it answers wait for it."""
        self.open = True
        port = self.transport.port_in_memory(addresses)
        if port is not None:
            self._line.other = port.join(self.identity, self._line)
            return self
        hub = self.transport.hub
        self.sock = hub.socket(zmq.DEALER, size_max=self.transport.message_bytes_max)
        self.sock.setsockopt_string(zmq.ROUTING_ID, self.identity)
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | REFUSED
        self._monitor = hub.monitor(self.sock, events, self._event)
        hub.connect(
            self.sock, next(address for address in addresses if not address.startswith(MEMORY)), self.to, self.peer
        )
        hub.read(self.sock, self._drain)
        if self._watch:
            self.transport.watch(self._line)
        return self

    def send(self, message: Out, frames: Sequence[Buffer] = ()) -> None:
        """`message` leaves at the end of this turn. Does nothing on a closed link."""
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
            self.transport.hub.loop.call_soon(far.port.line_lost, far, LinkLoss.CLOSED)

    def take(self, mail: Mail[In]) -> None:
        """Passes on mail from a peer in this process."""
        if self.heard_s is None:
            self.heard_s = mail.now
        self._received(mail)

    def line_lost(self, line: Line, why: str) -> None:
        """The peer is gone: closes the link and calls `lost`."""
        if self.open:
            self.close()
            self._lost(line.peer, why)

    def _event(self, event: int, value: int) -> None:
        match event:
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.transport.doubtful.pop(self.to, None)
                return
            case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:  # it may have died in the midst of it: no loss of its own
                self.transport.doubt(self.peer, self.to)
                return
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                why = LinkLoss.KEY_REFUSED if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH else LinkLoss.OTHER_KEYS
                if why is LinkLoss.KEY_REFUSED and value == int(REPLACED):
                    why = LinkLoss.REPLACED
                else:
                    self.transport.tell_refused(self.peer, self.to, why)
            case _:
                why = LinkLoss.CLOSED
        self.line_lost(self._line, why)
        self.transport.hub.schedule_turn()

    def _drain(self) -> bool:
        for _ in range(MESSAGES_PER_DRAIN_MAX):
            sock = self.sock
            if sock is None:
                return False  # the message just handled closed this link
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
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("message_refused", link=self.identity, peer=self.peer, error=str(error))
            return
        line = self._line
        if self.heard_s is None:
            self.heard_s = now
        self._received(self.transport.arrived(line, envelope, frames, now))


def _frames(sock: "zmq.Socket[bytes]") -> list[Buffer]:
    """The remaining frames of a multipart message: large tensors, not copied."""
    frames: list[Buffer] = []
    while sock.getsockopt(RCVMORE):
        frames.append(sock.recv(NOBLOCK, copy=False).buffer)
    return frames
