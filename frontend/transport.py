"""The clients' socket: a plain ROUTER that anybody may call, however badly."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog
import zmq

from broker.sockets import MESSAGES_PER_DRAIN_MAX, Hub
from broker.transport import FRAME_BYTES_ZERO_COPY, MORE, NOBLOCK, RCVMORE, Buffer

ANSWERS_QUEUED_MAX = 2_000  # for one client that does not read; further answers to it are dropped, and counted
PER_OPEN_REQUEST = 2  # so many may be queued for each request that may be open: all of them may end at one instant
log = structlog.get_logger("clients")


class ClientId(NamedTuple):
    """One connection."""

    identity: bytes
    delimited: bool  # a REQ socket: an empty frame goes ahead of every message


class ClientPort:
    """Listens for clients. `received(client, header, frames)` gets every message as it came."""

    def __init__(self, hub: Hub, received: Callable[[ClientId, bytes, list[Buffer]], None]) -> None:
        self._hub = hub
        self._received = received
        self._sock: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self.connections = 0
        self.disconnections = 0
        self.answers_dropped = 0  # the client was gone, or did not read

    def listen(self, host: str, port: int, size_max: int, in_flight_max: int = 1) -> str:
        """Opens the port and returns its address. Raises: AddressInUse."""
        hub = self._hub
        queued_max = max(ANSWERS_QUEUED_MAX, PER_OPEN_REQUEST * in_flight_max)
        sock = hub.socket(zmq.ROUTER, size_max=size_max, high_water_mark=queued_max)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._monitor = hub.monitor(sock, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED, self._event)
        address = hub.bind(sock, host, port, "GEARMESH_FRONTEND_PORT")
        self._sock = sock
        hub.read(sock, self._drain)
        return address

    def answer(self, client: ClientId, header: bytes, frames: Sequence[Buffer] = ()) -> None:
        """The answer leaves now; a client that is gone or does not read loses it, and only it."""
        sock = self._sock
        if sock is None:
            return
        try:
            sock.send(client.identity, NOBLOCK | MORE)
            if client.delimited:
                sock.send(b"", MORE)
            sock.send(header, MORE if frames else 0)
            last = len(frames) - 1
            for i, frame in enumerate(frames):
                sock.send(frame, MORE if i < last else 0, copy=len(frame) < FRAME_BYTES_ZERO_COPY)
        except zmq.ZMQError as error:
            self.answers_dropped += 1
            if self.answers_dropped % 1000 == 1:
                log.info("answers_dropped", total=self.answers_dropped, why=str(error))
        self._hub.sent(sock)

    def close(self) -> None:
        """The port is closed; answers on their way have a moment to leave."""
        if self._monitor is not None and self._sock is not None:
            self._sock.disable_monitor()
            self._hub.drop(self._monitor)
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
            header = sock.recv(NOBLOCK)  # a ROUTER never gives the identity alone
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
