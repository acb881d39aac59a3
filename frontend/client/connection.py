"""A Python client's sockets and requests in flight, shared by the blocking and the asyncio client.

Requests that cannot be sent yet wait here and not in ZeroMQ, so that their budgets shrink while they wait and they
leave through the first connection that is up.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import zmq
import zmq.backend

from .codes import AnswerStatus, ErrorCode
from .conversation import (
    Conversation,
    Disconnected,
    Failed,
    Invalid,
    Rejected,
    RequestTarget,
    TimedOut,
    error_answer,
    tensor,
)
from .defaults import CurveKeys, default_frontend

GRACE_S = 1.0  # a request without an answer is given up so long after its deadline; the frontend promises 20 ms
CALL_TIMEOUT_S = 10.0
INFER = "infer"
BUDGET_S_MAX = 1e6  # longest budget that is waited for
UNSENT_MAX = 100_000  # requests that may wait here
CANCELS_MAX = 100_000  # that may wait for room on one connection; what exceeds them ends with its budget
TOGETHER_MAX = 256  # requests of one turn of a loop that wait for its end
SENDING_MAX = 1_000  # requests queued in ZeroMQ per connection; their budgets no longer shrink
FULL_RETRY_MS = 100.0
NOBLOCK, READABLE = int(zmq.NOBLOCK), int(zmq.POLLIN)  # plain numbers: those of an enum take longer
# without the layer of pyzmq that looks for options nobody has set
plain_send, plain_recv = zmq.backend.Socket.send, zmq.backend.Socket.recv
EVENT = struct.Struct("=H")  # of a monitor's message: the event
EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_SUCCEEDED


class PendingRequest:
    """One request in flight."""

    __slots__ = (
        "again", "asked_s", "body", "budget_s", "call", "deadline_s", "frames", "future", "late", "op", "result",
        "socket", "timeout_s",
    )  # fmt: skip

    def __init__(
        self,
        call: int,
        op: str,
        body: bytes,
        frames: Sequence[Any],
        deadline_s: float,
        budget_s: float | None,
        asked_s: float,
        timeout_s: float | None = None,
    ) -> None:
        self.call = call  # its id
        self.op = op
        self.body = body  # the message, packed
        self.frames = frames
        self.deadline_s = deadline_s  # when the client gives it up
        self.budget_s = budget_s  # as requested, or the target's own; None: not known
        self.asked_s = asked_s
        self.timeout_s = timeout_s  # after this its caller gives it up; None: a grace after its budget, or call's time
        self.socket: FrontendSocket | None = None  # on which it was sent
        self.late = False  # it is sent later than it was asked, with what is left of its budget
        self.again = False  # sent more than once
        self.future: asyncio.Future[Any] | None = None
        self.result: Any = None


class FrontendSocket:
    """The socket to one frontend.

    It is used only while `up`: otherwise messages would wait for a frontend that may be gone.
    """

    def __init__(self, context: "zmq.Context[Any]", address: str, keys: CurveKeys | None) -> None:
        self.address = address
        self.up = False
        self.cancels: deque[int] = deque()  # ids of requests sent here that nobody waits for; they wait for room
        self._known = False  # it was up, and its loss has not been reported since
        self.sock: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.sock.setsockopt(zmq.LINGER, 0)
        self.sock.setsockopt(zmq.SNDHWM, SENDING_MAX)
        self.sock.setsockopt(zmq.RCVHWM, 100_000)
        self.sock.setsockopt(zmq.RECONNECT_IVL, 20)
        self.sock.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        if keys is not None:
            self.sock.setsockopt(zmq.CURVE_SERVERKEY, keys[0])
            self.sock.setsockopt(zmq.CURVE_PUBLICKEY, keys[1])
            self.sock.setsockopt(zmq.CURVE_SECRETKEY, keys[2])
        self.monitor: zmq.Socket[bytes] = self.sock.get_monitor_socket(EVENTS)
        self._connect()

    def _connect(self) -> None:
        self.sock.connect(self.address)
        self._endpoint = self.sock.getsockopt_string(zmq.LAST_ENDPOINT)

    def lost(self) -> bool:
        """Whether the connection was lost since the last call. All that arrived on it can then be read."""
        lost = False
        while True:
            try:
                event = self.monitor.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.Again:
                return lost
            (kind,) = EVENT.unpack_from(event)
            self.up = kind == zmq.EVENT_HANDSHAKE_SUCCEEDED and not lost
            if kind == zmq.EVENT_CONNECT_RETRIED:  # follows the last message; EVENT_DISCONNECTED may come earlier
                lost, self._known = lost or self._known, False
            self._known = self._known or self.up

    def forget(self) -> None:
        """Drops messages that were not sent on the lost connection, so that the next one does not send them."""
        self.cancels.clear()
        self.sock.disconnect(self._endpoint)
        self._connect()

    def send(self, body: bytes, frames: Sequence[Any] = ()) -> bool:
        """Sends the message; its frames are not copied. Returns False if there is no room."""
        try:
            if frames:
                self.sock.send_multipart([body, *frames], NOBLOCK, copy=False)
            else:
                plain_send(self.sock, body, NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self, found: list[list[Any]], most: int) -> bool:
        """Adds at most so many messages that have arrived, each as its frames. Returns whether there may be more."""
        sock = self.sock
        try:
            while most > 0:
                frame = plain_recv(sock, NOBLOCK, False)
                parts = [frame.buffer]
                while frame.more:
                    frame = plain_recv(sock, NOBLOCK, False)
                    parts.append(frame.buffer.toreadonly())  # arrays that are made of it are nobody's to change
                found.append(parts)
                most -= 1
        except zmq.Again:
            return False
        return True

    def cancel(self, call: int) -> None:
        """The frontend is told that nobody waits for this request, now or when there is room."""
        if len(self.cancels) < CANCELS_MAX:
            self.cancels.append(call)
            self.send_cancels()

    def send_cancels(self) -> bool:
        """Sends the cancels that there is room for. Returns whether there was any."""
        waited = len(self.cancels)
        while self.cancels and self.send(packed({"op": "cancel", "id": self.cancels[0]})):
            self.cancels.popleft()
        return len(self.cancels) < waited

    @property
    def is_ready(self) -> bool:
        """Whether a message can be read, or sent, now."""
        return bool(int(self.sock.getsockopt(zmq.EVENTS)) & (zmq.POLLIN | zmq.POLLOUT if self.up else zmq.POLLIN))

    @property
    def is_readable(self) -> bool:
        """Whether a message can be read now."""
        return bool(int(self.sock.getsockopt(zmq.EVENTS)) & READABLE)

    def close(self) -> None:
        """The socket is closed."""
        self.sock.disable_monitor()
        self.monitor.close(0)
        self.sock.close(0)


class Connection:
    """Connections to all frontends, and the requests in flight. The two clients differ in how they wait."""

    def __init__(self, addresses: str | Sequence[str] | None, keys: CurveKeys | None) -> None:
        if addresses is None:
            addresses, keys = default_frontend(keys=keys)
        self.talk = Conversation()
        self.flights: dict[int, PendingRequest] = {}  # {id: request}, unanswered ones
        self._unsent: dict[int, PendingRequest] = {}  # {id: request}, those that wait for a connection, oldest first
        self._together: list[PendingRequest] = []  # of this turn of the loop, in order; sent at its end
        self._refused: list[tuple[PendingRequest, Any]] = []  # of the earlier ones of this turn, with their outcomes
        self._context = zmq.Context()
        each = [addresses] if isinstance(addresses, str) else addresses
        self.sockets = [FrontendSocket(self._context, address, keys) for address in each]
        self._turn = 0  # index of the socket for the next request
        self.closed = False

    def ask(self, flight: PendingRequest, *, together: bool = False) -> None:
        """Sends the request, or queues it for a connection. Raises: Rejected (too many wait), Invalid, Disconnected.

        `together`: it may wait for `send_together`, which is called soon; what is sent at once is received at once.
        """
        call = flight.call
        if self.closed:
            raise closed()
        refusal = self.talk.too_large(flight.frames) if flight.frames else None
        if refusal is not None:
            raise refusal
        self.flights[call] = flight  # first: Ctrl-C may come as soon as it has left
        if together and not self._unsent:
            if len(self._together) >= TOGETHER_MAX:
                self._refused = self.send_together()
            self._together.append(flight)
            return
        full = self._ask(flight)
        if full is not None:
            raise full

    def _ask(self, flight: PendingRequest) -> Rejected | None:
        """Sends the request, or queues it. Returns its outcome if there is no room."""
        if self._unsent or not self._send(flight):
            if len(self._unsent) >= UNSENT_MAX:
                del self.flights[flight.call]
                return self._full()
            flight.late = True
            self._unsent[flight.call] = flight
        return None

    def send_together(self) -> list[tuple[PendingRequest, Any]]:
        """Sends the requests that were to be sent together. Returns those that are refused, each with its outcome."""
        flights, self._together = self._together, []
        refused, self._refused = self._refused, []
        for flight in flights:
            if self.flights.get(flight.call) is flight:
                refusal = self._ask(flight)
                if refusal is not None:
                    refused.append((flight, refusal))
        return refused

    def _full(self) -> Rejected:
        text = (
            f"{UNSENT_MAX} requests of this client wait to be sent: no frontend is reached at {self.addresses}, or it "
            "reads more slowly than it is asked"
        )
        return Rejected(error_answer(AnswerStatus.REJECTED, ErrorCode.CLIENT_FULL, text, retry_after_ms=FULL_RETRY_MS))

    def cancel(self, flight: PendingRequest) -> None:
        """Nobody waits for the request any more: it is forgotten, and the frontend that has it is told."""
        call = flight.call
        if self.flights.get(call) is not flight:
            return
        del self.flights[call]
        self._unsent.pop(call, None)
        socket = flight.socket
        if socket is None or flight.op != INFER or self.closed:
            return  # only an infer is work that can be spared
        socket.cancel(call)

    @property
    def addresses(self) -> str:
        """Where frontends are called, for a sentence."""
        return ", ".join(socket.address for socket in self.sockets)

    def no_answer(self, flight: PendingRequest) -> TimedOut:
        """The outcome of a request that is given up."""
        if flight.timeout_s is not None:
            return gave_up(flight.timeout_s)
        text = f"no answer came from {self.addresses}"
        if not any(socket.up for socket in self.sockets):
            text = f"no frontend is reached at {self.addresses}; is the mesh up, and are these its address and keys?"
        return TimedOut(error_answer(AnswerStatus.TIMED_OUT, ErrorCode.NO_ANSWER, text))

    def ask_waiting(self) -> bool:
        """Sends waiting requests while there is room, with what is left of their budgets; before them, cancels.

        Returns whether any was sent.
        """
        freed = [socket.send_cancels() for socket in self.sockets if socket.cancels]
        sent = []
        for call, flight in self._unsent.items():
            if call in self.flights and not self._send(flight):
                break
            sent.append(call)
        for call in sent:
            del self._unsent[call]
        return bool(sent) or any(freed)

    def waits(self, socket: FrontendSocket) -> bool:
        """Whether requests wait for a connection, or for room on one, or cancels for room on this one."""
        return bool(self._unsent or socket.cancels)

    @property
    def can_go_on(self) -> bool:
        """Whether something waits, and can be sent now, or something can be read.

        The attempt to send may have consumed the edge of the FD that announced it.
        """
        return any(self.waits(socket) and socket.is_ready for socket in self.sockets)

    def _send(self, flight: PendingRequest) -> bool:
        """Sends the request, or drops it if its budget is used up. Returns False if no connection has room for it."""
        if flight.late and flight.budget_s is not None:
            left_s = flight.budget_s - (time.monotonic() - flight.asked_s)
            if left_s <= 0:
                return True
            message = msgpack.unpackb(flight.body, strict_map_key=False)
            message["slo_ms"] = left_s * 1e3
            flight.body = packed(message)
        for _ in self.sockets:
            socket = self.sockets[self._turn]
            self._turn = (self._turn + 1) % len(self.sockets)
            if socket.up:
                flight.socket = socket
                if socket.send(flight.body, flight.frames):
                    return True
        flight.socket = None
        return False

    def read(self) -> list[tuple[PendingRequest, Any]]:
        """(request, outcome) for every answer that has arrived."""
        found: list[tuple[PendingRequest, Any]] = []
        for socket in self.sockets:
            if socket.is_readable:
                self._read(socket, found)
        return found

    def watch(self) -> list[tuple[PendingRequest, Any]]:
        """To be called when a monitor is readable.

        As `read`; requests open on a lost connection then wait to be sent again.
        """
        found: list[tuple[PendingRequest, Any]] = []
        for socket in self.sockets:
            if socket.lost():
                self._read(socket, found)
                socket.forget()
                open_ = {call: flight for call, flight in self.flights.items() if flight.socket is socket}
                for flight in open_.values():
                    flight.socket = None
                    flight.late = flight.again = True
                self._unsent = {**open_, **self._unsent}
        return found

    def _read(self, socket: FrontendSocket, found: list[tuple[PendingRequest, Any]]) -> None:
        """Adds (request, outcome) for all that has arrived on this connection."""
        more = True
        while more:
            messages: list[list[Any]] = []
            # an empty socket says so by an exception: it is not asked once more if no answer is missing
            more = socket.receive(messages, len(self.flights) or 1)
            for parts in messages:
                self._understand(parts, found)
            more = more and (bool(self.flights) or socket.is_readable)

    def _understand(self, parts: list[Any], found: list[tuple[PendingRequest, Any]]) -> None:
        """Adds (request, outcome) if the message is the answer to a request in flight."""
        try:
            header = msgpack.unpackb(parts[0])
            flight = self.flights.get(header.get("id"))
        except Exception:
            return
        if flight is None:
            return
        try:
            outcome = self.talk.understand(header, parts[1:])
        except Exception as error:
            outcome = Failed(error_answer(AnswerStatus.FAILED, ErrorCode.BAD_ANSWER, str(error)))
        if flight.again and isinstance(outcome, Invalid) and outcome.code == ErrorCode.DUPLICATE_ID:
            return  # the connection only seemed lost; the first copy is still being answered
        del self.flights[flight.call]
        found.append((flight, outcome))

    def infer(
        self, target: RequestTarget, x: Any, slo_ms: Any, timeout_s: float | None, options: Mapping[str, Any]
    ) -> PendingRequest:
        """A new infer request for a model or an application, ready for `ask`. Raises: Invalid; TypeError.

        It is given up after `timeout_s`, or a grace after its budget, whichever comes first.
        """
        talk = self.talk
        call = talk.next_id()
        form = talk.form(target)
        made = None if form is None else form.infer(call, x, slo_ms, options)
        if made is None:
            message, frames = talk.infer(call, target, x, options_of(slo_ms, options))
            made = packed(message), frames
        budget_s = budget_of(self, target, slo_ms)
        return self.request(call, made[0], made[1], budget_s, timeout_s)

    def request(
        self, call: int, body: bytes, frames: Sequence[Any], budget_s: float | None, timeout_s: float | None = None
    ) -> PendingRequest:
        """The infer request with this id and message, ready for `ask`."""
        now = time.monotonic()
        wait_s = (CALL_TIMEOUT_S if budget_s is None else budget_s) + GRACE_S
        if timeout_s is not None and timeout_s >= wait_s:
            timeout_s = None
        deadline_s = now + (wait_s if timeout_s is None else timeout_s)
        return PendingRequest(call, INFER, body, frames, deadline_s, budget_s, now, timeout_s)

    def call(self, op: str, fields: Mapping[str, Any], timeout_s: float) -> PendingRequest:
        """A new request of any other kind, ready for `ask`. Raises: Invalid; TypeError."""
        call, now = self.talk.next_id(), time.monotonic()
        return PendingRequest(call, op, packed({"op": op, "id": call, **fields}), [], now + timeout_s, None, now)

    def expired(self, now: float) -> list[PendingRequest]:
        """Gives up and returns the requests whose time is over without an answer."""
        late = [flight for flight in self.flights.values() if flight.deadline_s <= now]
        for flight in late:
            self.cancel(flight)
        return late

    def close(self) -> None:
        """Closes all sockets; nothing is sent or read any more."""
        if self.closed:
            return
        self.closed = True
        for socket in self.sockets:
            socket.close()
        self._context.term()


def closed() -> Disconnected:
    return Disconnected(error_answer(AnswerStatus.FAILED, ErrorCode.CLOSED, "the client was closed"))


def gave_up(timeout_s: float | None) -> TimedOut:
    """The outcome of a request that was given up after the time that its caller gave it."""
    text = f"no answer came within {timeout_s or 0.0:.3g} s (timeout_s), and the request was given up"
    return TimedOut(error_answer(AnswerStatus.TIMED_OUT, ErrorCode.NO_ANSWER, text))


def time_left(timeout_s: float | None, began_s: float) -> float | None:
    """What is left of this time, which began then; None: there is no limit."""
    return None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - began_s))


def budget_of(connection: Connection, target: RequestTarget, slo_ms: float | None) -> float | None:
    """The budget in seconds: as requested, or the target's own; None if it is not known."""
    chosen = _plain(slo_ms) if slo_ms is not None else connection.talk.spec(target).get("slo_ms")
    return min(float(chosen) / 1e3, BUDGET_S_MAX) if isinstance(chosen, (int, float)) and chosen > 0 else None


def options_of(slo_ms: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: value for key, value in options.items() if value is not None}
    return named if slo_ms is None else {**named, "slo_ms": slo_ms}


def feedback_fields(decision_id: str, label: Any, loss: float | None, context: str | None) -> dict[str, Any]:
    named = {"label": _plain(label), "loss": _plain(loss), "context": context}
    return {"decision_id": decision_id, **{key: value for key, value in named.items() if value is not None}}


def packed(message: Mapping[str, Any]) -> bytes:
    """The message in msgpack, with numpy's numbers and arrays as plain ones. Raises: Invalid; TypeError."""
    try:
        body: bytes = msgpack.packb(message, default=_known)
    except (OverflowError, UnicodeEncodeError) as error:
        field = next(name for name, value in message.items() if not _writable(value))
        text = f"{field}: a message cannot hold it: {error}"
        raise Invalid(error_answer(AnswerStatus.INVALID, ErrorCode.BAD_FIELD, text, field=field)) from None
    return body


def _writable(value: Any) -> bool:
    try:
        msgpack.packb(value, default=_known)
    except (OverflowError, UnicodeEncodeError):
        return False
    return True


def _known(value: Any) -> Any:
    if isinstance(value, int):
        raise OverflowError("a whole number beyond 64 bits")
    if not hasattr(value, "tolist"):
        raise TypeError(f"a request holds numbers, strings, lists and arrays, no {type(value).__name__}")
    return value.tolist()


def _plain(value: Any) -> Any:
    """A number or list from numpy's types."""
    return value.tolist() if hasattr(value, "tolist") else value


def definition_of(name: str, models: Sequence[str], policy: str, rest: Mapping[str, Any]) -> dict[str, Any]:
    """The definition as a map for the protocol. `default` may be {output: array of one row}."""
    default = rest.get("default")
    if isinstance(default, Mapping):
        rest = {**rest, "default": [tensor(name, array) for name, array in default.items()]}
    return {"name": name, "models": [models] if isinstance(models, str) else list(models), "policy": policy, **rest}
