"""The clients' socket: a plain ROUTER, which has to withstand any client."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog
import zmq

from frontend.backlog import Backlog, QueuedAnswer
from mesh.net.sockets import MESSAGES_PER_DRAIN_MAX, Hub
from mesh.net.transport import FRAME_BYTES_ZERO_COPY, MORE, NOBLOCK, RCVMORE
from mesh.wire import Buffer

ANSWERS_QUEUED_MAX = 2_000  # in ZeroMQ, per client; further ones wait here, as the client may only be slow for a moment
REQUESTS_QUEUED_MAX = 256  # in ZeroMQ, per client: no other bound counts them, and each may be large
CLIENT_BYTES_MAX = 32 << 20  # waiting here for one client; what exceeds it is dropped, and counted
BYTES_MAX = 256 << 20  # waiting here for all clients
FLUSH_S, FLUSH_S_MAX = 0.001, 0.1  # pause before the next try; doubles as long as nothing can be sent
FLUSHED_MAX = 2_000  # answers sent in one go; then other work gets its turn
log = structlog.get_logger("clients")


class ClientId(NamedTuple):
    """One connection."""

    identity: bytes
    delimited: bool  # a REQ socket: an empty frame precedes every message


class ClientPort:
    """Listens for clients. Calls `received(client, header, frames)` with every message.

    Calls `gone(client)` with a connection that is closed: nobody hears answers to it any more.
    """

    def __init__(
        self,
        hub: Hub,
        received: Callable[[ClientId, bytes, list[Buffer]], None],
        gone: Callable[[ClientId], None] | None = None,
    ) -> None:
        self._hub = hub
        self._received = received
        self._gone = gone
        self._sock: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self.connections = 0
        self.disconnections = 0
        self.answers_dropped = 0  # because the client was gone, or did not read for long
        self._backlog: Backlog[ClientId] = Backlog(CLIENT_BYTES_MAX, BYTES_MAX)
        self._flushing: asyncio.TimerHandle | None = None  # set while answers wait
        self._flush_s = FLUSH_S  # the next pause

    def listen(self, host: str, port: int, size_max: int) -> str:
        """Opens the port and returns its address. Raises: AddressInUse."""
        hub = self._hub
        sock = hub.socket(zmq.ROUTER, size_max=size_max, high_water_mark=ANSWERS_QUEUED_MAX)
        sock.setsockopt(zmq.RCVHWM, REQUESTS_QUEUED_MAX)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._monitor = hub.monitor(sock, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED, self._event)
        address = hub.bind(sock, host, port, "GEARMESH_FRONTEND_PORT")
        self._sock = sock
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

    @property
    def answers_waiting(self) -> int:
        """The number of answers that wait for room in their clients' connections."""
        return self._backlog.count

    def _send(self, sock: "zmq.Socket[bytes]", client: ClientId, header: bytes, frames: Sequence[Buffer]) -> bool:
        """Sends the answer, or drops it if the client is gone.

        Returns False if the client has no room for it at present.
        """
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
        if self._monitor is not None and self._sock is not None:
            self._sock.disable_monitor()
            self._hub.drop(self._monitor)
        if self._flushing is not None:
            self._flushing.cancel()
            self._flush()
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
            log.warning("answers_dropped", waiting=self._backlog.count, why="the frontend stops")
        if self._sock is not None:
            self._hub.drop(self._sock, linger_ms=200)
        self._sock = self._monitor = None

    def _drain(self) -> bool:
        sock = self._sock
        if sock is None:
            return False
        for _ in range(MESSAGES_PER_DRAIN_MAX):
            try:
                identity = sock.recv(NOBLOCK)
            except zmq.Again:
                return False
            header = sock.recv(NOBLOCK)  # a ROUTER never delivers the identity without a message
            delimited = False
            frames: list[Buffer] = []
            if sock.getsockopt(RCVMORE):
                delimited = not header
                if delimited:
                    header = sock.recv(NOBLOCK)
                while sock.getsockopt(RCVMORE):
                    frames.append(sock.recv(NOBLOCK, copy=False).buffer)
            self._received(ClientId(identity, delimited), header, frames)
        return True

    def _event(self, event: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self.connections += 1
            return
        self.disconnections += 1
        log.info("client_disconnected", disconnections=self.disconnections, connections=self.connections)
