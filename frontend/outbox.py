"""Answers on their way to clients: those of one turn leave together at its end, and what finds no room waits."""

import asyncio
from collections.abc import Sequence

import structlog
import zmq

from frontend.backlog import Backlog, QueuedAnswer
from frontend.core.connections import ClientId
from frontend.reception import Reception
from mesh.net.channels import FRAME_BYTES_ZERO_COPY, NO_ROOM, Channel
from mesh.net.sockets import Hub
from mesh.wire import Buffer

CLIENT_BYTES_MAX = 32 << 20  # waiting here for one client; what exceeds it is dropped, and counted
BYTES_MAX = 256 << 20  # waiting here for all clients
FLUSH_S, FLUSH_S_MAX = 0.001, 0.1  # pause before the next try; doubles as long as nothing can be sent
FLUSHED_MAX = 2_000  # answers sent in one go; then other work gets its turn
TOGETHER_MAX = 512  # answers of a turn that leave together; more leave before its end
TOGETHER_BYTES_MAX = 1 << 20  # likewise, of these
log = structlog.get_logger("clients")


class AnswerTogether:
    """One answer that leaves at the end of the turn."""

    __slots__ = ("client", "frames", "header")

    def __init__(self, client: ClientId, header: bytes, frames: Sequence[Buffer]) -> None:
        self.client = client
        self.header = header
        self.frames = frames


class Outbox:
    """All answers of the clients' port, those of one client in their order.

    A client that is gone, or does not read for long, loses its own answers and no others.
    """

    def __init__(self, hub: Hub, reception: Reception) -> None:
        self._hub = hub
        self._reception = reception
        self._sock: zmq.Socket[bytes] | None = None
        self._channel: Channel | None = None  # of the same; None: the port is closed
        self._together: list[AnswerTogether] = []  # of this turn, in the order of their making
        self._bytes = 0  # of these
        self._backlog: Backlog[ClientId] = Backlog(CLIENT_BYTES_MAX, BYTES_MAX)
        self._flushing: asyncio.TimerHandle | None = None  # set while answers wait for room
        self._flush_s = FLUSH_S  # the next pause
        self.dropped = 0  # because the client was gone, or did not read for long

    def open(self, sock: "zmq.Socket[bytes]", channel: Channel) -> None:
        """Answers leave through this socket from now on."""
        self._sock, self._channel = sock, channel

    @property
    def waiting(self) -> int:
        """The number of answers that wait for room in their clients' connections."""
        return self._backlog.count

    def answer(self, client: ClientId, header: bytes, frames: Sequence[Buffer] = ()) -> None:
        """The answer leaves at the end of this turn, or once the client has read the earlier ones."""
        if self._channel is None:
            return
        self._together.append(AnswerTogether(client, header, frames))
        self._bytes += len(header)
        for frame in frames:
            self._bytes += len(frame)
        self._hub.schedule_send()  # also if they leave now: then the socket is looked at again
        if len(self._together) >= TOGETHER_MAX or self._bytes >= TOGETHER_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """All answers of this turn leave, or wait for room."""
        together = self._together
        sock = self._sock
        if not together or sock is None:
            return
        self._together = []
        self._bytes = 0
        for answer in together:
            client = answer.client
            if (self._backlog.count and client in self._backlog) or not self._send(
                client, answer.header, answer.frames
            ):
                self._keep(client, answer.header, answer.frames)
        self._hub.look_again(sock)

    def close(self) -> None:
        """What is still here leaves, or is dropped."""
        self.flush()
        if self._flushing is not None:
            self._flushing.cancel()
            self._try_again()
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
            log.warning("answers_dropped", waiting=self._backlog.count, why="the frontend stops")
        self._sock = self._channel = None

    def _send(self, client: ClientId, header: bytes, frames: Sequence[Buffer]) -> bool:
        """Sends the answer, or drops it if the client is gone.

        Returns False if the client has no room for it at present.
        """
        channel = self._channel
        if channel is None:
            return True
        if client.connection and not self._reception.has_its_identity(client):
            self._drop("the client's connection has ended")
            return True
        if client.delimited:
            code = channel.send(client.identity, b"", (header, *frames))
        else:
            code = channel.send(client.identity, header, frames)
        if code == NO_ROOM:
            return False
        if code:
            self._drop(zmq.strerror(code))
        return True

    def _keep(self, client: ClientId, header: bytes, frames: Sequence[Buffer]) -> None:
        # small frames are copied: a view of one would keep the whole message that it came in, which nobody counts
        answer = QueuedAnswer(
            header, [bytes(frame) if len(frame) < FRAME_BYTES_ZERO_COPY else frame for frame in frames]
        )
        if not self._backlog.put(client, answer):
            self._drop("the client does not read")
        if self._flushing is None:
            self._flush_s = FLUSH_S
            self._flushing = self._hub.loop.call_later(FLUSH_S, self._try_again)

    def _try_again(self) -> None:
        """Sends waiting answers while there is room, and comes back later for the rest."""
        self._flushing = None
        sock = self._sock
        if sock is None:
            return
        sent = self._backlog.flush(self._send_queued, FLUSHED_MAX)
        self._hub.look_again(sock)
        self._hub.schedule_turn()
        if self._backlog.count:
            self._flush_s = FLUSH_S if sent else min(2 * self._flush_s, FLUSH_S_MAX)
            self._flushing = self._hub.loop.call_later(self._flush_s, self._try_again)

    def _send_queued(self, client: ClientId, answer: QueuedAnswer) -> bool:
        return self._send(client, answer.header, answer.frames)

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if self.dropped % 1000 == 1:
            log.warning("answers_dropped", total=self.dropped, why=why)
