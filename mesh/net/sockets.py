"""Plain ZeroMQ sockets on the event loop, processed in turns.

In one turn all that has arrived is drained and passed on, then every service in this process decides once, then all
that has to leave is sent. `zmq.asyncio` is not used: it is several times slower, and a time-out around its receive
loses messages (zeromq/pyzmq issue 1925). Measurements: docs/design/transport.md.
"""

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Callable

import structlog
import zmq

from mesh.errors import AddressInUse, SettingsError
from mesh.net.channels import Channel, open_channel
from mesh.net.doorkeeper import ADDRESS, Doorkeeper
from mesh.net.keys import Keys
from mesh.roles import Holder, PortKind

MESSAGES_PER_DRAIN_MAX = 512  # then the other sockets and the timers get their turn
DRAIN_S_MAX = 0.02  # likewise: what takes long to handle must not keep back heartbeats
DRAINS_AT_ONCE_MAX = 8  # of one socket; a monitor holds no more
ROUNDS_PER_TURN_MAX = 8  # in-memory messages may cause more of them; after so many rounds the sockets get their turn
EVENT = struct.Struct("=HI")  # of a monitor's message: the event, its value
HIGH_WATER_MARK = 10_000  # messages queued for one peer
KEEPALIVE_IDLE_S, KEEPALIVE_PROBE_S, KEEPALIVE_PROBES = 10, 5, 3  # an idle connection that leads nowhere ends in 25 s
REVOKED_WITHIN_S = 1.0  # after a key was revoked: then its connections are heard no more

log = structlog.get_logger("sockets")


def _seed_libzmq() -> None:
    """The numbers that libzmq draws are not the same in every process: it takes them from C's rand, and sets no seed.

    A peer that chooses, as its ROUTING_ID, the number that a ROUTER gives to its next connection ends this process
    (source: libzmq 4.3.5, router.cpp, `identify_peer`, and socket_base.cpp, `add_out_pipe`, which asserts).
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4))))


def _may_yield() -> bool:
    """Whether ZeroMQ's thread may be one that does not interrupt the one that it works for.

    Where both share a processor, it would be woken, and run, for every single message that is sent; so it takes many at
    a time, which costs a fraction. With a processor to spare it makes no difference. libzmq ends the process if it may
    not be set: it is tried first.
    """
    try:
        now = os.sched_getscheduler(0)
        reset_on_fork = now & os.SCHED_RESET_ON_FORK  # kept: not everybody may take it back
        if now != os.SCHED_OTHER | reset_on_fork:
            return False  # somebody has chosen already
        os.sched_setscheduler(0, os.SCHED_BATCH | reset_on_fork, os.sched_param(0))
        os.sched_setscheduler(0, now, os.sched_param(0))
    except (OSError, AttributeError):  # not allowed, or not Linux
        return False
    return True


class Hub:
    """Owns every ZeroMQ socket of this process, and runs the turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, keys: Keys | None = None) -> None:
        self.loop = loop
        self.keys = keys
        _seed_libzmq()
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        if _may_yield():
            self._context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
        self._drains: dict[zmq.Socket[bytes], Callable[[], bool]] = {}  # {socket: drain; True: there may be more}
        self._channels: dict[zmq.Socket[bytes], Channel] = {}  # {socket: its channel}: those of `_drains`
        self._edgeless: set[zmq.Socket[bytes]] = set()  # whose edge may have been consumed in this turn
        self._soon: set[zmq.Socket[bytes]] = set()  # that are drained in the loop's next round
        self._hooks: list[Callable[[float], None]] = []  # decide(now) of each service, in order of start
        self._deliver: list[Callable[[], bool]] = []  # deliver in-memory mail; True if there was any
        self._flushes: list[Callable[[], None]] = []
        self._turn_scheduled = False
        self._deciding = False  # a turn runs, and has not sent yet
        self._closed = False
        self.door = Doorkeeper(keys) if keys is not None else None  # None: every port is open
        self._zap: zmq.Socket[bytes] | None = None  # where libzmq asks the doorkeeper, once a port listens
        self._revoking: list[Callable[[set[str]], None]] = []
        self._looking: asyncio.TimerHandle | None = None

    def socket(
        self,
        kind: int,
        *,
        size_max: int,
        high_water_mark: int = HIGH_WATER_MARK,
        unread_max: int | None = None,
        dead_s: float | None = None,
    ) -> zmq.Socket[bytes]:
        """A socket with all relevant options set; not yet bound or connected.

        `unread_max`: messages of one peer that may wait to be read, if not as many as to be sent. `dead_s`: the system
        closes a connection whose other end has not acknowledged what was sent for so long (TCP_USER_TIMEOUT).
        """
        sock = self._context.socket(kind)
        sock.setsockopt(zmq.LINGER, 500)
        sock.setsockopt(zmq.SNDHWM, high_water_mark)
        sock.setsockopt(zmq.RCVHWM, high_water_mark if unread_max is None else unread_max)
        sock.setsockopt(zmq.MAXMSGSIZE, size_max)
        sock.setsockopt(zmq.RECONNECT_IVL, 50)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        if dead_s is not None:
            sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)
            sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_PROBE_S)
            sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)
            sock.setsockopt(zmq.TCP_MAXRT, max(1, round(dead_s * 1e3)))
        return sock

    def bind(self, sock: zmq.Socket[bytes], host: str, port: int, setting: str, kind: PortKind, owner: str = "") -> str:
        """Listens on host:port (port 0: the system chooses one) and returns the address.

        Only who has a key for this kind of port, which is `owner`'s, is let in. Raises: AddressInUse, SettingsError (no
        key with which a port may listen).
        """
        if self.door is not None:
            try:
                self.door.guard(sock, kind, owner)
            except ValueError as error:
                sock.close(0)
                raise SettingsError([str(error)]) from error
            self._open_door(self.door)
        address = f"tcp://{host}:{port or '*'}"
        try:
            sock.bind(address)
        except zmq.ZMQError as error:
            sock.close(0)
            raise AddressInUse(address, setting, str(error)) from error
        return sock.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect(self, sock: zmq.Socket[bytes], address: str, kind: PortKind, peer: str) -> None:
        """Connects to the port of this kind that `peer` has at `address`, and retries until it answers."""
        if self.keys is not None:
            self.keys.present(sock, kind, peer)
        sock.connect(address)

    def admits(self, holder: Holder) -> bool:
        """Whether this caller's key has not been revoked since it was let in."""
        return self.door is None or self.door.admits(holder)

    def on_revoked(self, revoked: Callable[[set[str]], None]) -> None:
        """Calls `revoked(keys)` with those that may not call any more, within REVOKED_WITHIN_S."""
        self._revoking.append(revoked)

    def _open_door(self, door: Doorkeeper) -> None:
        if self._zap is not None:
            return
        zap = self._zap = self._context.socket(zmq.ROUTER)
        zap.setsockopt(zmq.LINGER, 0)
        zap.bind(ADDRESS)

        def drain() -> bool:
            for _ in range(MESSAGES_PER_DRAIN_MAX):
                asked = channel.take()
                if asked is None:
                    return False
                asker, empty, request = asked
                channel.send(asker, empty, door.answer([bytes(part) for part in request]))
                self.look_again(zap)
            return True

        channel = self.read(zap, drain)
        if not door.keys.local:
            self._look_for_revoked()

    def _look_for_revoked(self) -> None:
        """Connections whose keys were revoked are heard no more; comes back later."""
        assert self.door is not None
        revoked = self.door.revoked()
        if revoked:
            log.warning("keys_revoked", count=len(revoked))
            for tell in self._revoking:
                tell(revoked)
            self.schedule_turn()
        self._looking = self.loop.call_later(REVOKED_WITHIN_S, self._look_for_revoked)

    def read(self, sock: zmq.Socket[bytes], drain: Callable[[], bool]) -> Channel:
        """Calls `drain` whenever `sock` may hold messages, and returns the channel to take them from.

        `drain` returns True if it stopped before the last one.
        """
        channel = self._channels[sock] = open_channel(sock)
        self._drains[sock] = drain
        self.loop.add_reader(_fd(sock), self._readable, sock)
        self._drain_soon(sock)  # messages that came before the reader was set raise no edge
        return channel

    def drop(self, sock: zmq.Socket[bytes], linger_ms: int = 0) -> None:
        """Closes `sock` and stops reading it."""
        if self._drains.pop(sock, None) is not None:
            self.loop.remove_reader(_fd(sock))
        self._channels.pop(sock, None)
        self._edgeless.discard(sock)
        sock.close(linger_ms)

    def monitor(self, sock: zmq.Socket[bytes], events: int, tell: Callable[[int, int], None]) -> zmq.Socket[bytes]:
        """Calls `tell(event, value)` for each of the socket's connection events.

        Returns the monitor, which the caller has to drop. `value`: what libzmq says of that event: the connection's
        file descriptor, or the error.
        """
        monitor: zmq.Socket[bytes] = sock.get_monitor_socket(events)

        def drain() -> bool:
            for _ in range(MESSAGES_PER_DRAIN_MAX):
                message = channel.take()
                if message is None:
                    return False
                if monitor in self._drains:
                    tell(*EVENT.unpack(message[1]))  # then comes the address: for accepted connections, it is our own
                if monitor not in self._drains:
                    return False  # `tell` dropped the monitor
            return True

        channel = self.read(monitor, drain)
        return monitor

    def drain(self, sock: zmq.Socket[bytes]) -> None:
        """Passes on at once what has arrived at `sock` by now; the reader takes what comes later."""
        drain = self._drains.get(sock)
        if drain is None or not self._channels[sock].readable():
            return
        for _ in range(DRAINS_AT_ONCE_MAX):
            if not drain():
                break
        self.look_again(sock)
        self.schedule_turn()

    def read_again(self, sock: "zmq.Socket[bytes]") -> None:
        """What `drain` left when it returned False is passed on now, unless the socket was dropped."""
        self._readable(sock)

    def look_again(self, sock: zmq.Socket[bytes]) -> None:
        """Looks at `sock` at the end of the turn, which has to come.

        To be called after whatever may consume its FD's readable edge: a send, even one that fails, or a look.
        """
        self._edgeless.add(sock)

    def on_turn(self, decide: Callable[[float], None]) -> None:
        """Calls `decide(now)` once in every turn, after all that has arrived was drained."""
        self._hooks.append(decide)

    def on_deliver(self, deliver: Callable[[], bool]) -> None:
        """Calls `deliver` after the decisions, and decides again as long as something was delivered."""
        self._deliver.append(deliver)

    def on_flush(self, flush: Callable[[], None]) -> None:
        """Calls `flush` at the end of every turn."""
        self._flushes.append(flush)

    def schedule_turn(self) -> None:
        """A turn will run soon; calling again changes nothing."""
        if not self._turn_scheduled and not self._closed:
            self._turn_scheduled = True
            self.loop.call_soon(self._turn)

    def schedule_send(self) -> None:
        """What was queued leaves at the end of the turn that runs, or else of one that will run soon."""
        if not self._deciding:
            self.schedule_turn()

    def close(self) -> None:
        """Closes all sockets; messages they still hold get their linger time to leave."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        for sock in list(self._drains):
            self.loop.remove_reader(_fd(sock))
            sock.close()
        self._drains.clear()
        self._channels.clear()
        self._context.destroy(linger=200)

    def _readable(self, sock: zmq.Socket[bytes]) -> None:
        drain = self._drains.get(sock)
        if drain is None or sock in self._soon:  # in one round of the loop a socket is drained once
            return
        more = True
        try:
            more = drain()
        finally:
            if more:
                self._drain_soon(sock)
            self.schedule_turn()

    def _drain_soon(self, sock: zmq.Socket[bytes]) -> None:
        if sock not in self._soon:
            self._soon.add(sock)
            self.loop.call_soon(self._drain_now, sock)

    def _drain_now(self, sock: zmq.Socket[bytes]) -> None:
        self._soon.discard(sock)
        self._readable(sock)

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._closed:
            return
        self._deciding = True
        try:
            self._decide()
        finally:
            self._deciding = False
        for flush in self._flushes:
            flush()
        if self._edgeless:
            self._look()

    def _decide(self) -> None:
        """Every service decides, and once more as long as others in this process have sent it something."""
        for _ in range(ROUNDS_PER_TURN_MAX):
            now = time.monotonic()
            for decide in self._hooks:
                decide(now)
            delivered = False
            for deliver in self._deliver:
                delivered = deliver() or delivered
            if not delivered:
                return
        self.schedule_turn()

    def _look(self) -> None:
        edgeless, self._edgeless = self._edgeless, set()
        for sock in edgeless:
            channel = self._channels.get(sock)
            if channel is not None and channel.readable():
                self._drain_soon(sock)


def _fd(sock: "zmq.Socket[bytes]") -> int:
    """The file descriptor that the loop watches. It turns readable once per change of the socket's state."""
    return int(sock.getsockopt(zmq.FD))
