"""The clients' socket: a plain ROUTER, which has to withstand any client. What arrives is read before all else."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import zmq

from frontend.awake import AwakeTime
from frontend.core.connections import ClientId as ClientId
from frontend.core.inbox import TARGET_S, Inbox
from frontend.outbox import Outbox
from frontend.reception import Reception
from mesh.net.channels import Channel
from mesh.net.sockets import MESSAGES_PER_DRAIN_MAX, Hub
from mesh.roles import PortKind
from mesh.wire import Buffer

ANSWERS_QUEUED_MAX = 2_000  # in ZeroMQ, per client; further ones wait here, as the client may only be slow for a moment
REQUESTS_QUEUED_MAX = 256  # in ZeroMQ, per client, until they are read, which goes before all else; never changed:
# where the mark is lowered, libzmq 4.3.5 may wait for room that it has already, and reads the connection no more
SLICE_S = 0.004  # messages are processed for so long; then other sockets and timers get a turn
READ_S, WORK_S = 0.004, 0.0015  # the same where they wait: for reading, or refusing; then for processing
REST_S = 0.002  # from one reading to the next, while services need the processors to serve what was let in
CHARGED_S = 0.015  # what may have waited for less, before it was read, is taken for new: an answer may be 20 ms late
LOOK_EVERY = 32  # messages that are read between two looks at the clock
INFINITE = float("inf")
INBOX_MAX = 8192  # messages of all clients that were read and wait
UNSEEN_S = 0.005  # if it is so long ago that the socket was seen empty, it is looked at again at the end of a turn
LAST_MAX = 2 * INBOX_MAX  # messages that are read at the end, to be refused
NEWS_S = 0.001  # what is known of the time that this thread has not slept may be so old
HEARTBEAT_S = 2.0  # ZeroMQ asks each client so often whether it is there
SILENCE_S_MAX = 4.0  # a client that has not answered for so long is gone: 6 s after its host froze, at most
CLIENTS_PATIENCE_S = 6.0  # a client that hears nothing of this frontend for so long connects anew
Message = tuple[ClientId | None, Buffer, list[Buffer]]  # None: it is not heard
Received = Callable[[ClientId, Buffer, list[Buffer], float], None]
Worth = Callable[[ClientId, Buffer, float, float], bool]


class ClientPort:
    """Listens for clients. Calls `received(client, header, frames, arrived_s)` with every message. If it has to wait,
    calls `worth(client, header, arrived_s, more_s)` before: it will wait for so much longer (infinite: there is no room
    to wait), or has waited. Returns that False, it was refused there, and no more becomes of it.

    `arrived_s`: it did not come before. Messages that wait take `inbox_bytes_max` at most.

    Calls `gone(client)` when a client's connection has ended, after its last message. A message that was still on its
    way comes later; then so does another `gone`.
    """

    def __init__(
        self,
        hub: Hub,
        received: Received,
        worth: Worth,
        gone: Callable[[ClientId], None] | None = None,
        *,
        inbox_bytes_max: int = 64 << 20,
    ) -> None:
        self._hub = hub
        self._received = received
        self._gone = gone
        self._worth = worth
        self.reception = Reception(hub, self._left)
        self.outbox = Outbox(hub, self.reception)
        self._inbox: Inbox[ClientId] = Inbox(INBOX_MAX, inbox_bytes_max)
        self._awake = AwakeTime()
        self._empty_s = 0.0  # when the socket was last seen empty
        # when it was last begun to read all that is there: what one connection has sent since is new, unless it sends
        # faster than it is read; then up to REQUESTS_QUEUED_MAX of its messages are older
        self._read_s = 0.0
        self._awake_s, self._awake_at_s = 0.0, 0.0  # how long the thread had not slept at an instant not after that
        self._has_read = False  # the last time; then what waits is worked off, the next time
        # services are behind: more is read, and refused, only after a rest; TCP holds senders back
        self.strained = False
        self._resting: asyncio.TimerHandle | None = None  # set while nothing is read
        self.unheard = 0  # messages dropped because their client had left, or was being closed, when their turn came
        self._sock: zmq.Socket[bytes] | None = None
        self._channel: Channel | None = None  # of the same; None: the port is closed

    def listen(self, host: str, port: int, size_max: int) -> str:
        """Opens the port and returns its address. Raises: AddressInUse."""
        hub = self._hub
        sock = hub.socket(zmq.ROUTER, size_max=size_max, high_water_mark=ANSWERS_QUEUED_MAX)
        sock.setsockopt(zmq.RCVHWM, REQUESTS_QUEUED_MAX)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.HEARTBEAT_IVL, int(HEARTBEAT_S * 1e3))
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(SILENCE_S_MAX * 1e3))
        sock.setsockopt(zmq.HEARTBEAT_TTL, int(CLIENTS_PATIENCE_S * 1e3))
        self.reception.watch(sock, HEARTBEAT_S)
        address = hub.bind(sock, host, port, "GEARMESH_FRONTEND_PORT", PortKind.CLIENTS)
        channel = hub.read(sock, self._drain)
        self.reception.open(channel)
        self.outbox.open(sock, channel)
        self._sock, self._channel = sock, channel
        self._emptied()
        hub.on_turn(self._turn)
        hub.on_flush(self.outbox.flush)
        return address

    def answer(self, client: ClientId, header: bytes, frames: Sequence[Buffer] = ()) -> None:
        """Sends the answer at the end of this turn, or once the client has read the earlier ones.

        A client that is gone, or does not read for long, loses its own answers and no others.
        """
        self.outbox.answer(client, header, frames)

    def flush(self) -> None:
        """Sends what was answered, without waiting for the end of the turn."""
        self.outbox.flush()

    def expel(self, client: ClientId) -> None:
        """The client is heard no more, and its connection closed a moment later: what was answered may still leave."""
        if self.reception.expel(client):
            self.outbox.flush()  # the moment begins now, however long this turn lasts
            self.unheard += self._inbox.drop(client)

    @property
    def requests_waiting(self) -> int:
        """The number of messages that were read and wait for their turn."""
        return len(self._inbox)

    def waiting(self) -> Iterator[tuple[ClientId, Buffer]]:
        """(client, header) of all messages that wait, for their turn or to be read, in the order of each client's.

        Each waits no more once it is given. What comes as fast as it is read ends after LAST_MAX.
        """
        while (taken := self._inbox.take()) is not None:
            client, message = taken
            yield client, message.header
        for _ in range(LAST_MAX):
            unread = None if self._channel is None else self._next(self._channel)
            if unread is None:
                return
            sender, header, _ = unread
            if sender is not None:
                yield sender, header

    def close(self) -> None:
        """Closes the port; answers on their way still get their linger time."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self.outbox.close()
        self.reception.close()
        if self._sock is not None:
            self._hub.drop(self._sock, linger_ms=200)
        self._awake.close()
        self._sock = self._channel = None

    def _left(self, client: ClientId) -> None:
        """The client's connection has ended."""
        self.unheard += self._inbox.drop(client)
        if self._gone is not None:
            self._gone(client)

    # -- messages -----------------------------------------------------------------------------------------------------

    def _drain(self) -> bool:
        """Takes in messages for a while. Returns True if there may be more."""
        sock, channel = self._sock, self._channel
        if sock is None or channel is None:
            return False
        now = time.monotonic()
        arrived_s = self._arrived_s(now)
        if self._resting is not None:
            if self._inbox:
                self._work_off()
            else:
                channel.readable()  # who does not ask has the descriptor call again, and again, until the rest is over
            return bool(self._inbox)
        if not self._inbox:
            ends_s = now + SLICE_S
            began_s, old = now, now - arrived_s > TARGET_S
            heard = 0
            for _ in range(MESSAGES_PER_DRAIN_MAX):
                message = self._next(channel)
                if message is None:
                    self._emptied()
                    return False
                client, header, frames = message
                if client is not None:
                    heard += 1
                    if not old or self._worth(client, header, arrived_s, 0.0):
                        self._received(client, header, frames, arrived_s)
                now = time.monotonic()
                if now > ends_s:
                    break
            if heard and not old:
                self._inbox.processed(heard, now - began_s)
        elif self._has_read:
            self._has_read = False
            self._work_off()
            return True
        self._has_read = True
        self._read_on(channel, arrived_s, now)
        if self.strained:
            self._resting = self._hub.loop.call_later(REST_S, self._rested, sock)
            return bool(self._inbox)
        return True

    def _rested(self, sock: "zmq.Socket[bytes]") -> None:
        self._resting = None
        self._hub.read_again(sock)

    def _read_on(self, channel: Channel, arrived_s: float, now: float) -> None:
        """Reads what has arrived, for a while, so that it is known how long it waits. What finds no room is refused."""
        ends_s = now + READ_S
        inbox = self._inbox
        self._read_s = now
        for i in range(1, INBOX_MAX):
            message = self._next(channel)
            if message is None:
                self._emptied()
                return
            client, header, frames = message
            if client is None:
                pass  # its reading took time all the same
            elif (wait_s := inbox.wait_s(client)) > TARGET_S and not self._worth(client, header, arrived_s, wait_s):
                pass
            elif not inbox.put(client, header, frames, arrived_s) and self._worth(client, header, arrived_s, INFINITE):
                self._received(client, header, frames, arrived_s)
            if i % LOOK_EVERY == 0 and time.monotonic() > ends_s:
                return

    def _work_off(self) -> None:
        """Processes what waits, for a while."""
        inbox = self._inbox
        began_s = now = time.monotonic()
        ends_s = now + WORK_S
        count = 0
        while (taken := inbox.take()) is not None:
            client, message = taken
            arrived_s = message.arrived_s
            if now - arrived_s <= TARGET_S or self._worth(client, message.header, arrived_s, 0.0):
                self._received(client, message.header, message.frames, arrived_s)
                count += 1
            now = time.monotonic()
            if now > ends_s:
                break
        if count:
            inbox.processed(count, now - began_s)

    def _arrived_s(self, now: float) -> float:
        """The instant before which nothing can have come that is read now."""
        seen_s = max(self._empty_s, self._read_s)
        if self._inbox or now - seen_s < NEWS_S:
            return seen_s
        arrived_s = max(seen_s, now - (self._awake.seconds() - self._awake_s))
        return arrived_s if now - arrived_s > CHARGED_S else now

    def _turn(self, now: float) -> None:
        """What this process did for others while no client said anything is not counted as a wait."""
        sock, channel = self._sock, self._channel
        if sock is None or channel is None or now - self._empty_s < UNSEEN_S or self._resting is not None:
            return
        self._hub.look_again(sock)  # looking consumes the edge of what has arrived
        if not channel.readable():
            self._emptied()

    def _emptied(self) -> None:
        """The socket is seen to be empty."""
        now = self._empty_s = time.monotonic()
        if now - self._awake_at_s > NEWS_S:
            self._awake_s, self._awake_at_s = self._awake.seconds(), now

    def _next(self, channel: Channel) -> Message | None:
        """The next message; None if there is none at present.

        One that is not heard is handed on, too, without its client: whoever counts messages has to count it, or those
        that send nothing else would be read without end.
        """
        taken = channel.take()
        if taken is None:
            return None
        identity, header, frames = taken
        delimited = False
        if frames and not header:
            delimited = True
            header = frames.pop(0)
        reception = self.reception
        if reception.closing and identity in reception.closing:
            self.unheard += 1
            return None, header, frames
        connection = reception.drawn.get(identity)
        if connection is not None:
            client = connection.clients[0]
            if client.delimited is delimited:
                return client, header, frames
        return reception.client_of(identity, delimited), header, frames
