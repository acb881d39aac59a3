"""Plain ZeroMQ sockets on the event loop, in turns.

A turn: everything that has arrived is drained and handed on, then every service in this process decides once, then
everything that is to leave leaves. `zmq.asyncio` is not used: it is several times slower, and a time-out around its
receive loses messages (zeromq/pyzmq issue 1925).
"""

import asyncio
import time
from collections.abc import Callable

import structlog
import zmq
import zmq.auth

from mesh.errors import AddressInUse
from mesh.net.keys import Keys

MESSAGES_PER_DRAIN_MAX = 512  # then the other sockets and the timers get their turn
ROUNDS_PER_TURN_MAX = 8  # in-memory messages may cause more in-memory messages; then the sockets get their turn
HIGH_WATER_MARK = 10_000  # messages queued for one peer

log = structlog.get_logger("sockets")


class Hub:
    """Owns every ZeroMQ socket of this process, and the turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, keys: Keys | None = None) -> None:
        self.loop = loop
        self.keys = keys
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._drains: dict[zmq.Socket[bytes], Callable[[], bool]] = {}  # {socket: drain; True if there may be more}
        self._sent: set[zmq.Socket[bytes]] = set()  # sent on in this turn: their edge may be consumed
        self._hooks: list[Callable[[float], None]] = []  # decide(now), each service's, in order of start
        self._deliver: list[Callable[[], bool]] = []  # hand over in-memory mail; True if there was some
        self._flushes: list[Callable[[], None]] = []
        self._turn_scheduled = False
        self._closed = False

    def socket(self, kind: int, *, size_max: int, high_water_mark: int = HIGH_WATER_MARK) -> zmq.Socket[bytes]:
        """A socket with every option set that matters; not yet bound or connected."""
        sock = self._context.socket(kind)
        sock.setsockopt(zmq.LINGER, 500)
        sock.setsockopt(zmq.SNDHWM, high_water_mark)
        sock.setsockopt(zmq.RCVHWM, high_water_mark)
        sock.setsockopt(zmq.MAXMSGSIZE, size_max)
        sock.setsockopt(zmq.RECONNECT_IVL, 50)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
        return sock

    def bind(self, sock: zmq.Socket[bytes], host: str, port: int, setting: str) -> str:
        """Listens on host:port (0: one the system chooses) and returns the address.

        Raises: AddressInUse.
        """
        if self.keys is not None:
            self.keys.guard(sock, self._context)
        address = f"tcp://{host}:{port or '*'}"
        try:
            sock.bind(address)
        except zmq.ZMQError as error:
            sock.close(0)
            raise AddressInUse(address, setting, str(error)) from error
        return sock.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect(self, sock: zmq.Socket[bytes], address: str) -> None:
        """Dials `address`, now and again until it answers."""
        if self.keys is not None:
            self.keys.present(sock)
        sock.connect(address)

    def read(self, sock: zmq.Socket[bytes], drain: Callable[[], bool]) -> None:
        """Calls `drain` whenever `sock` may hold messages; it returns whether it stopped before the last."""
        self._drains[sock] = drain
        self.loop.add_reader(_fd(sock), self._readable, sock)
        self.loop.call_soon(self._readable, sock)  # what came before the reader was set shows no edge

    def drop(self, sock: zmq.Socket[bytes], linger_ms: int = 0) -> None:
        """`sock` is closed and no longer read."""
        if self._drains.pop(sock, None) is not None:
            self.loop.remove_reader(_fd(sock))
        self._sent.discard(sock)
        sock.close(linger_ms)

    def monitor(self, sock: zmq.Socket[bytes], events: int, tell: Callable[[int], None]) -> zmq.Socket[bytes]:
        """Calls `tell(event)` for each of the socket's connection events. Returns the monitor, to be dropped."""
        monitor: zmq.Socket[bytes] = sock.get_monitor_socket(events)

        def drain() -> bool:
            while True:
                try:
                    head = monitor.recv(zmq.NOBLOCK)
                    monitor.recv(zmq.NOBLOCK)  # the address; with accepted connections, ours
                except zmq.Again:
                    return False
                if monitor in self._drains:
                    tell(int.from_bytes(head[:2], "little"))
                if monitor not in self._drains:
                    return False  # told, and dropped by it

        self.read(monitor, drain)
        return monitor

    def sent(self, sock: zmq.Socket[bytes]) -> None:
        """A send may consume the readable edge of the socket's FD: it is looked at again at the end of the turn."""
        self._sent.add(sock)

    def on_turn(self, decide: Callable[[float], None]) -> None:
        """Calls `decide(now)` once in every turn, when all that has arrived is in."""
        self._hooks.append(decide)

    def on_deliver(self, deliver: Callable[[], bool]) -> None:
        """Calls `deliver` after the decisions, and decides again as long as it delivered something."""
        self._deliver.append(deliver)

    def on_flush(self, flush: Callable[[], None]) -> None:
        """Calls `flush` at the end of every turn."""
        self._flushes.append(flush)

    def schedule_turn(self) -> None:
        """There will be a turn soon; calling again changes nothing."""
        if not self._turn_scheduled and not self._closed:
            self._turn_scheduled = True
            self.loop.call_soon(self._turn)

    def close(self) -> None:
        """All sockets are closed; what they still hold gets their linger time to leave."""
        self._closed = True
        for sock in list(self._drains):
            self.loop.remove_reader(_fd(sock))
            sock.close()
        self._drains.clear()
        if self.keys is not None:
            self.keys.stop()
        self._context.destroy(linger=200)

    def _readable(self, sock: zmq.Socket[bytes]) -> None:
        drain = self._drains.get(sock)
        if drain is None:
            return
        more = True
        try:
            more = drain()
        finally:
            if more:
                self.loop.call_soon(self._readable, sock)
            self.schedule_turn()

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._closed:
            return
        for _ in range(ROUNDS_PER_TURN_MAX):
            now = time.monotonic()
            for decide in self._hooks:
                decide(now)
            delivered = False
            for deliver in self._deliver:
                delivered = deliver() or delivered
            if not delivered:
                break
        else:
            self.schedule_turn()
        for flush in self._flushes:
            flush()
        if self._sent:
            self._look_again()

    def _look_again(self) -> None:
        sent, self._sent = self._sent, set()
        for sock in sent:
            if not sock.closed and int(sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                self.loop.call_soon(self._readable, sock)


def _fd(sock: "zmq.Socket[bytes]") -> int:
    """What the event loop watches: readable when the socket's state may have changed, once per change."""
    return int(sock.getsockopt(zmq.FD))
