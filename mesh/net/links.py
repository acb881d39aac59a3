"""A link: calls one peer's port, over ZeroMQ, or in memory if that is inside this process."""

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec
import structlog
import zmq

from mesh import wire
from mesh.addresses import MEMORY
from mesh.clocks import OffsetFilter
from mesh.codes import LinkLoss
from mesh.identities import Identity, named
from mesh.net.channels import Channel
from mesh.net.doorkeeper import REPLACED
from mesh.net.sockets import DRAIN_S_MAX, MESSAGES_PER_DRAIN_MAX
from mesh.net.transport import Line, Mail, Transport, hand_on
from mesh.refusals import Refusals
from mesh.roles import PortKind
from mesh.salvage import read_envelope
from mesh.wire import Buffer

In = TypeVar("In")
Out = TypeVar("Out")
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
KEY_LOSSES = (LinkLoss.KEY_REFUSED, LinkLoss.OTHER_KEYS, LinkLoss.REPLACED)
KEY_AGAIN_S = 1.0  # after such a loss: until a link is opened again
log = structlog.get_logger("transport")
_numbers = itertools.count(1)  # of the links of this process


class Link(Generic[In, Out]):
    """Calls one peer. Once lost it stays closed: whoever wants the peer back opens another link."""

    def __init__(
        self,
        transport: Transport,
        member: str,
        peer: str,
        decoder: "msgspec.msgpack.Decoder[wire.Envelope[In]]",
        received: Callable[[Mail[In]], None],
        lost: Callable[[str, str], None],
        *,
        to: PortKind = PortKind.CONTROL,
        silence_s: float | None = None,
    ) -> None:
        """`member`: who calls. `to`: the kind of port that is called. `silence_s`: after so much silence it is lost, if
        not after the transport's.
        """
        self.transport = transport
        self.member = member
        self.number = next(_numbers)
        self.to = to
        self.sock: zmq.Socket[bytes] | None = None
        self.channel: Channel | None = None  # of the same
        self.heard_s: float | None = None  # when something first arrived
        self._line = Line(peer, self)
        self._decoder = decoder
        self._received = received
        self._lost = lost
        self._silence_s = silence_s
        self._monitor: zmq.Socket[bytes] | None = None
        self._refusals = Refusals()
        self.open = False

    @property
    def peer(self) -> str:
        """Member id of the peer (or its role, where there is only one)."""
        return self._line.peer

    @property
    def in_memory(self) -> bool:
        """Whether the peer is in this process: then nothing is ever lost on the way."""
        return self._line.other is not None

    @property
    def clock(self) -> OffsetFilter:
        """The estimated offset of the peer's clock."""
        return self._line.clock

    @property
    def last_heard_s(self) -> float | None:
        """When something last arrived, or when it was called; None if it is closed, or in this process."""
        return self.transport.heard_s(self._line)

    def call(self, addresses: Sequence[str]) -> "Link[In, Out]":
        """Connects to the peer, in memory if it is in this process. Messages sent before it answers wait for it.

        If none of the addresses can be called, the link is lost soon (`UNUSABLE`).
        """
        self.open = True
        port = self.transport.port_in_memory(addresses)
        far = None if port is None else port.join(Identity(self.member, self.number, self.peer), self._line)
        if far is not None:
            self._line.other = far
            return self
        try:
            self._connect(next(address for address in addresses if not address.startswith(MEMORY)))
        except (StopIteration, ValueError, zmq.ZMQError) as error:
            log.warning("cannot_be_called", peer=self.peer, addresses=list(addresses)[:8], error=str(error))
            self.transport.hub.loop.call_soon(self.line_lost, self._line, LinkLoss.UNUSABLE)
        return self

    def _connect(self, address: str) -> None:
        """Raises: ValueError, zmq.ZMQError."""
        hub, transport = self.transport.hub, self.transport
        name = named(self.member, self.number, secrets.token_hex(8), self.peer)
        self.sock = hub.socket(zmq.DEALER, size_max=transport.message_bytes_max, dead_s=transport.silence_s_max)
        self.sock.setsockopt(zmq.ROUTING_ID, name)
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | REFUSED
        self._monitor = hub.monitor(self.sock, events, self._event)
        hub.connect(self.sock, address, self.to, self.peer)
        self.channel = hub.read(self.sock, self._drain)
        transport.watch(self._line, self._silence_s)

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
        self.sock = self.channel = self._monitor = None
        far = self._line.other
        if far is not None and far.port is not None:
            far.port.hung_up(far, LinkLoss.CLOSED)

    def take(self, mail: Mail[In]) -> None:
        """Passes on mail from a peer in this process."""
        if self.heard_s is None:
            self.heard_s = mail.now
        hand_on(self._received, mail)

    def beat(self, line: Line) -> wire.Heartbeat:
        """The heartbeat for the peer."""
        return wire.Heartbeat()

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
        ends_s = time.monotonic() + DRAIN_S_MAX
        for _ in range(MESSAGES_PER_DRAIN_MAX):
            channel = self.channel
            if channel is None:
                return False  # the message just handled closed this link
            message = channel.take()
            if message is None:
                return False
            _, body, frames = message
            self._arrived(body, frames)
            if time.monotonic() > ends_s:
                break
        return True

    def _arrived(self, body: Buffer, frames: list[Buffer]) -> None:
        now = time.monotonic()
        try:
            envelope, unread = read_envelope(self._decoder, body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            follows = self._refusals.refused(b"", now)
            if follows.told:
                log.warning("message_refused", member=self.member, peer=self.peer, error=str(error), times=follows.told)
            if follows.cut:
                self.line_lost(self._line, LinkLoss.GARBAGE)
            return
        if unread:
            log.warning("messages_refused", member=self.member, peer=self.peer, tag=unread[0].tag, error=unread[0].why)
            frames = []  # whose they are is not known
        line = self._line
        if self.heard_s is None:
            self.heard_s = now
        mail = self.transport.arrived(line, envelope, frames, now)
        mail.unread = unread
        hand_on(self._received, mail)
