"""All lines of one process. All messages to one peer in one turn leave at the end of the turn, most in one envelope.

Each line knows the offset of the peer's clock and whether the peer is alive, from what arrives on it; idle lines carry
heartbeats. The two ends of a line are in `ports.py` and `links.py`. Why it works so: docs/design/transport.md.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog
import zmq

from mesh import wire
from mesh.addresses import MEMORY
from mesh.clocks import OffsetFilter
from mesh.codes import LinkLoss
from mesh.doing import note
from mesh.identities import Identity
from mesh.liveness import Liveness
from mesh.net.channels import NO_ROOM, Channel
from mesh.net.memory import give_back, resident_bytes
from mesh.net.sockets import Hub
from mesh.net.unsent import Held, Unsent
from mesh.roles import Holder, PortKind, who_may_call
from mesh.salvage import RefusedMessage
from mesh.trimming import QUIET_S, Trimming
from mesh.wire import Buffer

BACKLOG_MAX = 100_000  # messages waiting for one peer; a peer with more is taken for lost
BACKLOG_BYTES_MAX = 256 << 20  # of tensors, and of what was encoded, that wait for one peer; likewise
RETRY_S, RETRY_S_MAX = 0.001, 0.05  # until what a peer had no room for is tried again: first, and at most
BEATS = (wire.Heartbeat, wire.Taken)
DOUBTS_MAX = 5  # handshakes ended by ports of one kind; then it is told that their keys must be others
REFUSAL_TOLD_S = 10.0  # least time between two log lines about ports of one kind that refuse our key

In = TypeVar("In")
log = structlog.get_logger("transport")


class Mail(Generic[In]):
    """One envelope that arrived."""

    __slots__ = ("age_s", "clock", "epoch", "frames", "messages", "now", "peer", "unread")

    def __init__(
        self,
        peer: str,
        messages: list[In],
        frames: list[Buffer],
        age_s: float,
        epoch: int,
        now: float,
        clock: OffsetFilter,
        unread: tuple[RefusedMessage, ...] = (),
    ) -> None:
        self.peer = peer
        self.messages = messages
        self.frames = frames  # tensors too large to travel inline, in the order of the messages that own them
        self.age_s = age_s  # seconds since it was sent, by our clock
        self.epoch = epoch
        self.now = now  # when it was received
        self.clock = clock
        self.unread = unread  # messages of it that are none, or out of range


def hand_on(received: Callable[[Mail[In]], None], mail: Mail[In]) -> None:
    """Calls `received(mail)`. An exception that comes out of it is known to be of this mail."""
    try:
        received(mail)
    except Exception as error:
        note(error, mail.messages, mail.peer)
        raise


class End(Protocol):
    """One end of a line: who takes what arrives on it. There are two kinds: `Port` and `Link`."""

    sock: "zmq.Socket[bytes] | None"  # None: closed, or the peer is in this process
    channel: "Channel | None"  # of the same

    def take(self, mail: Mail[Any]) -> None:
        """Mail from a peer in this process has arrived."""

    def beat(self, line: "Line") -> object:
        """The heartbeat for the peer at the other end."""

    def line_lost(self, line: "Line", why: str) -> None:
        """The peer at the other end is gone."""


class Listener(End, Protocol):
    """An end that any number of peers may call."""

    name: str
    epoch: int  # goes out with every envelope

    def join(self, identity: Identity, far: "Line") -> "Line | None":
        """A peer in this process calls. Returns this end's line to it; None if it wants somebody else."""

    def rejoin(self, line: "Line") -> bool:
        """A peer in this process speaks: it is known again if it was forgotten. False: a newer line took its place."""

    def hung_up(self, line: "Line", why: str) -> None:
        """A peer in this process has closed its end."""


class Line:
    """One direction to one peer: messages to send, the peer's clock offset and whether it is alive."""

    __slots__ = (
        "clock", "holder", "key", "name", "number", "other", "owner", "peer", "port", "unsent"
    )  # fmt: skip

    def __init__(
        self,
        peer: str,
        owner: End,
        port: Listener | None = None,
        *,
        other: "Line | None" = None,
        name: bytes = b"",
        number: int = 0,
        holder: Holder | None = None,
    ) -> None:
        self.peer = peer
        self.owner = owner  # receives what arrives on this line
        self.port = port  # the owner, if it is a port
        self.unsent = Unsent()
        self.clock = OffsetFilter()
        self.other = other  # the other end, if both are in this process
        self.name = name  # of the peer's connection, as a port's socket knows it
        self.number = number  # of the peer's link: see `Identity`
        self.holder = holder  # who called, as the handshake found; None: we did, or nobody was asked
        self.key = f"{port.name if port is not None else ''}>{peer}>{id(self)}"  # unique among those of this process

    @property
    def waiting(self) -> int:
        """Messages that have not left."""
        return len(self.unsent)


class Transport:
    """All lines of one process."""

    def __init__(self, hub: Hub, *, heartbeat_s: float, silence_s_max: float, message_bytes_max: int) -> None:
        self.hub = hub
        self.message_bytes_max = message_bytes_max
        self._liveness = Liveness(heartbeat_s, silence_s_max)
        self._watched: dict[str, Line] = {}  # {key of a line: line}
        self._dirty: dict[int, Line] = {}  # {id: line with something to send}
        self._memory: dict[str, Listener] = {}  # {name: port that can be reached in memory}
        self._encoder = msgspec.msgpack.Encoder()
        self.silence_s_max = silence_s_max
        self.ending = False  # this process was asked to end: peers that end, too, are no reason for a warning
        self._full = False  # whether, in the last flush, a peer had no room for what was sent to it
        self._retry_s = RETRY_S  # how long to wait before the next try
        self._retry: asyncio.TimerHandle | None = None
        self._busy_s = time.monotonic()  # when a message came last that was no heartbeat
        self._looked_s = self._busy_s  # when the size of this process was looked at last
        self._trimming = Trimming(resident_bytes())
        self.doubtful: dict[PortKind, int] = {}  # {kind of port: handshakes that failed since the last that did not}
        self._refusals: dict[PortKind, float] = {}  # {kind of port: when it was told that one refused our key}
        self._tick_s = heartbeat_s / 2
        self._ticked_at = time.monotonic()
        hub.on_deliver(self._deliver)
        hub.on_flush(self._flush)
        self._timer = hub.loop.call_later(self._tick_s, self._tick)

    def close(self) -> None:
        """Stops the heartbeats. The hub closes the sockets."""
        self._timer.cancel()
        if self._retry is not None:
            self._retry.cancel()

    # -- sending ------------------------------------------------------------------------------------------------------

    def queue(self, line: Line, message: object, frames: Sequence[Buffer] = ()) -> None:
        """`message` leaves at the end of this turn."""
        line.unsent.add(message, frames)
        self._dirty[id(line)] = line
        self.hub.schedule_send()

    def _deliver(self) -> bool:
        """Delivers messages to peers in this process. Returns True if there were any."""
        local = [line for line in self._dirty.values() if line.other is not None]
        for line in local:
            if self._dirty.pop(id(line), None) is None:
                continue  # a message on another line closed it
            messages, frames = line.unsent.all()
            far = line.other
            assert far is not None
            if far.port is not None and not far.port.rejoin(far):
                continue
            epoch = line.port.epoch if line.port is not None else 0
            now = time.monotonic()
            far.owner.take(Mail(far.peer, messages, frames, 0.0, epoch, now, far.clock))
        return bool(local)

    def _flush(self) -> None:
        """All that waits leaves. What becomes of one line changes nothing for the others.

        Lines that turn out to be lost are told of afterwards, as who hears that may send, and close other lines. So is
        a fault of ours, which ends the process.
        """
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, {}
        self._full = False
        lost: list[tuple[Line, str]] = []
        fault: Exception | None = None
        for line in dirty.values():
            if line.other is not None:
                self._dirty[id(line)] = line  # the rounds of this turn are used up: it is delivered in the next
                continue
            try:
                why = self._flush_line(line)
            except Exception as error:
                fault = fault or error
                continue
            if why:
                lost.append((line, why))
        if not self._full:
            self._retry_s = RETRY_S
        for line, why in lost:
            self.lose(line, why)
        if fault is not None:
            raise fault

    def _flush_line(self, line: Line) -> str:
        """What waits on the line leaves, or is held until there is room. Returns why the line is lost, or ""."""
        sock, channel = line.owner.sock, line.owner.channel
        if sock is None or channel is None:
            return ""
        self.hub.look_again(sock)  # a send that fails consumes the edge of what arrived from others as well
        to = None if line.port is None else line.name
        now = time.monotonic()
        unsent = line.unsent
        while unsent:
            held = unsent.held or self._encoded(line, now)
            if len(held.body) > self.message_bytes_max:
                return f"does not read: {held.messages} messages of {len(held.body)} bytes wait for it"
            code = channel.send(to, held.body, held.frames)
            if code == NO_ROOM:
                unsent.held = held
                return self._hold(line)
            if code:
                return f"cannot be reached: {zmq.strerror(code)}"
            unsent.held = None
        self._liveness.sent(line.key, now)
        return ""

    def _encoded(self, line: Line, now: float) -> Held:
        """The line's next envelope, with its frames and the number of its messages."""
        epoch = line.port.epoch if line.port is not None else 0
        messages, frames = line.unsent.next()
        body = self._encoder.encode(wire.Envelope(now, line.clock.smallest_s, epoch, messages))
        return Held(body, frames, len(messages))

    def _hold(self, line: Line) -> str:
        """The peer's pipe is full: its messages are tried again, up to a limit. Returns why the line is lost, or ""."""
        waiting = line.waiting
        if waiting > BACKLOG_MAX:
            return f"does not read: {waiting} messages wait for it"
        size = line.unsent.size
        if size > BACKLOG_BYTES_MAX:
            return f"does not read: {size} bytes wait for it"
        self._full = True
        self._dirty[id(line)] = line
        if self._retry is None:
            self._retry = self.hub.loop.call_later(self._retry_s, self._try_again)
            self._retry_s = min(RETRY_S_MAX, 2 * self._retry_s)
        return ""

    def _try_again(self) -> None:
        self._retry = None
        self.hub.schedule_turn()

    # -- liveness -----------------------------------------------------------------------------------------------------

    def watch(self, line: Line, silence_s_max: float | None = None) -> None:
        """The line carries heartbeats, and its peer is lost when silent for too long, or for the limit given here."""
        self._watched[line.key] = line
        self._liveness.watch(line.key, time.monotonic(), silence_s_max)

    def unwatch(self, line: Line) -> None:
        """The line is no longer watched and carries no heartbeats."""
        self._watched.pop(line.key, None)
        self._liveness.forget(line.key)
        self._dirty.pop(id(line), None)

    def arrived(self, line: Line, envelope: "wire.Envelope[In]", frames: list[Buffer], now: float) -> Mail[In]:
        """Takes in an envelope that arrived on the line: the peer is alive, and its clock offset is updated."""
        self._liveness.heard(line.key, now)
        if type(envelope.messages[-1] if envelope.messages else None) not in BEATS:
            self._busy_s = now
        line.clock.heard(envelope.sent_s, envelope.delta_s, now)
        age_s = line.clock.age_s(envelope.sent_s, now)
        return Mail(line.peer, envelope.messages, frames, age_s, envelope.epoch, now, line.clock)

    def stirred(self, now: float) -> None:
        """Something came that is no heartbeat, though it was not taken: this process is not quiet."""
        self._busy_s = now

    def _tick(self) -> None:
        now = time.monotonic()
        late = now - self._ticked_at > 4 * self._tick_s
        due = self._liveness.wake(now, blind=late)
        self._ticked_at = now
        for key in due.beats:
            line = self._watched.get(key)
            if line is not None and not line.unsent:
                self.queue(line, line.owner.beat(line))
        for key in due.lost:
            line = self._watched.get(key)
            if line is not None:
                self.lose(line, LinkLoss.SILENT)
        if now - self._looked_s >= QUIET_S and not late:
            self._looked_s = now
            self._look_at_memory(now)
        self._timer = self.hub.loop.call_later(self._tick_s, self._tick)

    def _look_at_memory(self, now: float) -> None:
        """What a flood left is given back to the system, once it is quiet."""
        before = resident_bytes()
        if self._trimming.due(before, now - self._busy_s, now):
            give_back()
            log.debug("memory_given_back", bytes=resident_bytes(), before=before)

    def heard_s(self, line: Line) -> float | None:
        """When something last arrived on a watched line."""
        return self._liveness.heard_s(line.key)

    def doubt(self, peer: str, kind: PortKind) -> None:
        """A port of this kind has ended the handshake: once it may have died; if it goes on, its keys are others."""
        self.doubtful[kind] = self.doubtful.get(kind, 0) + 1
        if self.doubtful[kind] >= DOUBTS_MAX:
            self.tell_refused(peer, kind, LinkLoss.OTHER_KEYS)

    def tell_refused(self, peer: str, kind: PortKind, why: str) -> None:
        """It is logged that a port of this kind has not let us in, and what it asks for; not more often than useful."""
        now = time.monotonic()
        if now - self._refusals.get(kind, float("-inf")) < REFUSAL_TOLD_S:
            return
        self._refusals[kind] = now
        keys = self.hub.keys
        log.warning(
            "key_refused_by",
            peer=peer,
            why=str(why),
            needed=who_may_call(kind),
            keys=str(keys.folder) if keys is not None else "",
            advice=keys.advice if keys is not None else "",
        )

    def lose(self, line: Line, why: str) -> None:
        """The line's peer is taken for gone, and its owner is told so."""
        self.unwatch(line)
        line.unsent.clear()
        line.owner.line_lost(line, why)
        self.hub.schedule_turn()

    # -- memory -------------------------------------------------------------------------------------------------------

    def offer(self, name: str, port: Listener) -> None:
        """`port` can be reached in memory as ``memory://name``."""
        self._memory[name] = port

    def withdraw(self, port: Listener) -> None:
        """`port` can no longer be reached in memory."""
        self._memory = {name: known for name, known in self._memory.items() if known is not port}

    def port_in_memory(self, addresses: Sequence[str]) -> Listener | None:
        """The port of the first of the addresses that is in this process; None if there is none."""
        for address in addresses:
            if address.startswith(MEMORY) and address[len(MEMORY) :] in self._memory:
                return self._memory[address[len(MEMORY) :]]
        return None
