"""The generator's socket: one DEALER to all frontends, and whether they are connected."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import zmq

from mesh.net.keys import Keys
from mesh.roles import PortKind

CONNECT_S = 5.0
QUEUED_MAX = 1_000_000  # messages each way; a message without room is reported as not sent, never waited for
EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class GeneratorSocket:
    """Sends requests to the frontends in turn, and receives their answers. Only `connect` waits."""

    def __init__(self, addresses: Sequence[str], keys_dir: str = "") -> None:
        self._addresses = tuple(addresses)
        self._keys = Keys.read(Path(keys_dir)) if keys_dir else None
        self._context = zmq.Context()
        self._sock = self._socket()
        self._monitor: zmq.Socket[bytes] = self._sock.get_monitor_socket(EVENTS)
        self._connections = 0
        self.broken = 0  # connections lost since the start
        self.down_s: float | None = None  # since when no frontend is connected; None: one is, or none has been yet

    def _socket(self) -> "zmq.Socket[bytes]":
        sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.SNDHWM, QUEUED_MAX), (zmq.RCVHWM, QUEUED_MAX)):
            sock.setsockopt(option, value)
        if self._keys is not None:
            self._keys.present(sock, PortKind.CLIENTS)
        return sock

    def connect(self, within_s: float = CONNECT_S) -> None:
        """Waits until a frontend answers at each address. Raises: TimeoutError, which names those without an answer."""
        silent: dict[zmq.Socket[bytes], str] = {}
        poller = zmq.Poller()
        for address in self._addresses:
            sock = self._socket()
            sock.connect(address)
            sock.send(msgspec.msgpack.encode({"op": "ping", "id": 0}))
            poller.register(sock, zmq.POLLIN)
            silent[sock] = address
        ends_s = time.monotonic() + within_s
        try:
            while silent and (left_s := ends_s - time.monotonic()) > 0:
                for sock, _ in poller.poll(int(left_s * 1e3) + 1):
                    poller.unregister(sock)
                    del silent[sock]
                    sock.close(0)
        finally:
            for sock in silent:
                sock.close(0)
        if silent:
            raise TimeoutError(f"nobody answers at {', '.join(silent.values())} within {within_s:g} s")
        for address in self._addresses:
            self._sock.connect(address)

    @property
    def fd(self) -> int:
        """The file descriptor; turns readable once when something may have arrived."""
        return int(self._sock.getsockopt(zmq.FD))

    def send(self, head: bytes, frames: Sequence[bytes] = ()) -> bool:
        """Sends the request. Returns False if there was no room for it; then it was not sent."""
        try:
            if frames:
                self._sock.send(head, zmq.SNDMORE | zmq.NOBLOCK)
                self._sock.send_multipart(frames, zmq.NOBLOCK, copy=False)
            else:
                self._sock.send(head, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """The first frame of the next message; None if there is none."""
        try:
            return self._sock.recv_multipart(zmq.NOBLOCK)[0]
        except zmq.Again:
            return None

    def look(self, now_s: float) -> None:
        """Counts connections gained and lost since the last call."""
        while True:
            try:
                event = int.from_bytes(self._monitor.recv_multipart(zmq.NOBLOCK)[0][:2], "little")
            except zmq.Again:
                break
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connections += 1
                self.down_s = None
            elif self._connections:
                self._connections -= 1
                self.broken += 1
                if not self._connections:
                    self.down_s = now_s

    def close(self) -> None:
        """Closes the socket; nothing is sent or received any more."""
        self._sock.disable_monitor()
        self._monitor.close(0)
        self._sock.close(0)
        self._context.term()
