"""A port: listens for any number of peers, over ZeroMQ, and in memory for those inside this process."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import structlog
import zmq

from mesh import wire
from mesh.addresses import MEMORY
from mesh.clocks import OffsetFilter
from mesh.codes import LinkLoss, LinkRefusal
from mesh.identities import Identity, claimed
from mesh.net.channels import Channel
from mesh.net.connections import shut
from mesh.net.sockets import DRAIN_S_MAX, MESSAGES_PER_DRAIN_MAX
from mesh.net.transport import Line, Mail, Transport, hand_on
from mesh.refusals import Refusals
from mesh.roles import Holder, PortKind, may_speak
from mesh.salvage import read_envelope
from mesh.wire import Buffer

STRANGER_BYTES_MAX = 16 << 20  # of the first envelope of a connection: a worker's Hello with all that it has prepared
UNREAD_MAX = 1000  # envelopes of one peer that wait to be read; then its connection is not read until there is room
NOT_HEARD_S = 10.0  # least time between two log lines of a port about peers that may not speak as they do
In = TypeVar("In")
Out = TypeVar("Out")
log = structlog.get_logger("transport")


class Port(Generic[In, Out]):
    """Listens for any number of peers, each known by its member id.

    A member has one line here. When it opens a newer link, that takes the place of the older one, of which nothing is
    read any more: its connection may be half dead, and what it still brings was sent again.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        decoder: "msgspec.msgpack.Decoder[wire.Envelope[In]]",
        received: Callable[[Mail[In]], None],
        lost: Callable[[str, str], None],
        *,
        kind: PortKind = PortKind.CONTROL,
        me: str = "",
        key_of: Callable[[str], str] = lambda member: "",
        met: Callable[[str], None] = lambda peer: None,
        beat: Callable[[str], Out] | None = None,
    ) -> None:
        """`me`: the member whose port it is, and whoever calls somebody else is not heard; empty: anybody is.

        `key_of(member)`: the key with which that member has registered; empty: it has not. `met` is called with each
        peer on a new line, before its first mail. `beat(peer)` is sent as the heartbeat.
        """
        self.transport = transport
        self.name = name
        self.kind = kind
        self.not_heard = 0  # messages of peers that may not speak for the member that they name
        self._key_of = key_of
        self._told_at = float("-inf")
        self.epoch = 0  # sent with every envelope
        self.sock: zmq.Socket[bytes] | None = None
        self.channel: Channel | None = None  # of the same
        self.superseded = 0  # lines whose place a newer link took
        self.refusals = Refusals()
        self._decoder = decoder
        self._received = received
        self._lost = lost
        self._me = me
        self._met = met
        self._beat = beat
        self._lines: dict[str, Line] = {}  # {peer: line}, exactly the peers heard since they were last lost
        self._named: dict[bytes, Line] = {}  # {name of the connection: line}: those of `_lines` that are not in memory

    def listen(self, host: str, port: int, setting: str, size_max: int | None = None) -> tuple[str, ...]:
        """Opens the port and returns its addresses, the preferred one first. Raises: AddressInUse.

        `size_max`: the largest frame, if that is less than the transport's.
        """
        hub = self.transport.hub
        most = self.transport.message_bytes_max
        sock = hub.socket(
            zmq.ROUTER, size_max=min(size_max or most, most), dead_s=self.transport.silence_s_max, unread_max=UNREAD_MAX
        )
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.ROUTER_HANDOVER, 1)  # decides nothing, as nobody can know another link's name; without it
        # libzmq would keep what a connection sends whose name is in use, unread, for good
        address = hub.bind(sock, host, port, setting, self.kind, self._me)
        self.sock = sock
        self.channel = hub.read(sock, self._drain)
        hub.on_revoked(self._revoked)
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
        self._lines.clear()
        self._named.clear()
        if self.sock is not None:
            self.transport.hub.drop(self.sock, linger_ms=200)
            self.sock = self.channel = None

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

    def peers(self) -> list[str]:
        """All peers that are known, in the order in which they came."""
        return list(self._lines)

    def heard_s(self, peer: str) -> float | None:
        """When something last arrived from `peer`; None if it is in this process. Raises: KeyError."""
        return self.transport.heard_s(self._lines[peer])

    def backlog(self, peer: str) -> int:
        """Messages that wait until `peer` reads what it was sent before. Raises: KeyError."""
        return self._lines[peer].waiting

    def forget(self, peer: str) -> None:
        """`peer` is no longer watched, and nothing is sent to it until it is heard again."""
        line = self._lines.get(peer)
        if line is not None:
            self._drop(line)

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

    # -- lines --------------------------------------------------------------------------------------------------------

    def take(self, mail: Mail[In]) -> None:
        """Passes on mail from a peer in this process."""
        hand_on(self._received, mail)

    def beat(self, line: Line) -> Any:
        """The heartbeat for this peer."""
        return wire.Heartbeat() if self._beat is None else self._beat(line.peer)

    def line_lost(self, line: Line, why: str) -> None:
        """The line's peer is gone: forgets it and calls `lost`. Nothing happens if another line took its place."""
        if self._lines.get(line.peer) is line:
            self._drop(line)
            self._lost(line.peer, why)

    def hung_up(self, line: Line, why: str) -> None:
        """A peer in this process has closed its end: nothing is sent to it from now on, and `lost` is called soon."""
        if self._lines.get(line.peer) is line:
            self._drop(line)
            self.transport.hub.loop.call_soon(self._lost, line.peer, why)

    def join(self, identity: Identity, far: Line) -> Line | None:
        """A peer in this process connects; returns our end of the line. None: it calls somebody else."""
        keys = self.transport.hub.keys
        holder = keys.holder if keys is not None else None
        if self._refusal(identity, None) is not None:
            return None
        return self._meet(Line(identity.member, self, self, other=far, number=identity.number, holder=holder))

    def rejoin(self, line: Line) -> bool:
        """A peer in this process sends on its line: the line is known again if it was forgotten.

        Returns False if another line of that peer is known, or the port is closed.
        """
        if self.sock is None:
            return False
        if line.peer not in self._lines:
            self._meet(line)
        return self._lines[line.peer] is line

    def _refusal(self, identity: Identity, holder: Holder | None) -> LinkRefusal | None:
        """Why this link may not speak for the member that it names, the only place where that is decided; None: it may.

        `holder`: whose connection it is; None: it is in this process, or nobody was asked.
        """
        if self._me and identity.peer and identity.peer != self._me:
            return LinkRefusal.CALLS_ANOTHER
        line = self._lines.get(identity.member)
        if holder is not None and not self._holds(holder, identity.member, line):
            return LinkRefusal.NOT_ITS_KEY
        if line is None or identity.number > line.number or line.number == identity.number == 0:
            return None
        return LinkRefusal.OLDER

    def _holds(self, holder: Holder, member: str, line: Line | None) -> bool:
        """Whether a connection with this key may speak for the member, who has this line now."""
        if not self._may_speak(holder, member):
            return False
        if line is None or line.holder is None:
            return True
        if line.other is not None:
            return False  # from outside nobody poses as a member in this process
        # of those who may speak for a member that has not registered yet, the first one stays
        return line.holder.key == holder.key or self._key_of(member) == holder.key

    def _may_speak(self, holder: Holder, member: str) -> bool:
        return may_speak(holder, member, self._key_of(member)) and self.transport.hub.admits(holder)

    def _meet(self, line: Line) -> Line:
        """The member is on this line from now on."""
        older = self._lines.get(line.peer)
        if older is not None:
            self.superseded += 1
            log.info("link_superseded", port=self.name, peer=line.peer, unsent=older.waiting)
            self._drop(older)
        self._lines[line.peer] = line
        if line.other is None:
            self._named[line.name] = line
            self.transport.watch(line)
        self._met(line.peer)
        return line

    def _drop(self, line: Line) -> None:
        self.transport.unwatch(line)
        self._named.pop(line.name, None)
        del self._lines[line.peer]

    # -- what arrives -------------------------------------------------------------------------------------------------

    def _drain(self) -> bool:
        ends_s = time.monotonic() + DRAIN_S_MAX
        for _ in range(MESSAGES_PER_DRAIN_MAX):
            channel = self.channel
            if channel is None:
                return False
            message = channel.take()
            if message is None:
                return False
            name, body, frames = message
            if self.refusals.cuts and self.refusals.is_cut(name, time.monotonic()):
                self.transport.stirred(time.monotonic())
                shut(channel.descriptor(), channel.said("Peer-Address"))  # unread; it may have connected again
                continue
            self._arrived(name, body, frames, None if name in self._named else self._holder_of(channel))
            if time.monotonic() > ends_s:
                break
        return True

    def _holder_of(self, channel: Channel) -> Holder | None:
        """Whose connection the last message came through; None: nobody was asked."""
        return None if self.transport.hub.keys is None else Holder.read(channel.said("User-Id"))

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

    def _arrived(self, name: bytes, body: Buffer, frames: list[Buffer], holder: Holder | None) -> None:
        """`holder`: whose connection it is, if there is no line of that name yet."""
        now = time.monotonic()
        line = self._named.get(name)
        identity = None
        if line is None:
            identity = claimed(name)
            if identity is None:
                self._refused(name, "it gives no readable name", now)
                return
            refusal = self._refusal(identity, holder)
            if refusal is not None:
                if refusal is LinkRefusal.NOT_ITS_KEY:
                    self._tell_not_heard(identity.member, holder)
                self._refused(name, refusal, now)
                return
            if len(body) > STRANGER_BYTES_MAX:
                self._refused(name, f"its first message has {len(body)} bytes", now)
                return
        try:
            envelope, unread = read_envelope(self._decoder, body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._refused(name, str(error), now)
            return
        if line is None:
            assert identity is not None
            line = self._meet(Line(identity.member, self, self, name=name, number=identity.number, holder=holder))
        if unread:
            log.warning("messages_refused", port=self.name, peer=line.peer, tag=unread[0].tag, error=unread[0].why)
            frames = []  # whose they are is not known
        mail = self.transport.arrived(line, envelope, frames, now)
        mail.unread = unread
        hand_on(self._received, mail)

    def _refused(self, name: bytes, error: str, now: float) -> None:
        """What arrived is not taken. A connection that goes on like this is cut off for a while."""
        self.transport.stirred(now)
        follows = self.refusals.refused(name, now)
        if follows.told:
            cut = {"cut_off": True} if follows.cut else {}
            log.warning("message_refused", port=self.name, peer=repr(name), error=error, times=follows.told, **cut)
        line = self._named.get(name)
        if follows.cut and line is not None:
            self.line_lost(line, LinkLoss.GARBAGE)
