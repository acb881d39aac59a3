"""A Python client's socket and the requests in flight on it; the blocking and the asyncio client wait differently."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import zmq

from frontend.conversation import Conversation, Failed, Invalid, Target, TimedOut, tensor

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"
GRACE_S = 1.0  # after its deadline a request without an answer is given up here; the frontend promises 20 ms
CALL_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Flight:
    """One request in flight."""

    message: dict[str, Any]
    frames: list[Any]
    deadline_s: float  # given up here at
    budget_s: float | None  # as asked for; None: the model's
    asked_s: float
    again: bool = False  # asked more than once
    future: "asyncio.Future[Any] | None" = None
    result: Any = None


class Connection:
    """The socket and the requests in flight on it; shared by both clients, which differ in how they wait."""

    def __init__(self, addresses: str | Sequence[str], keys: tuple[bytes, bytes, bytes] | None) -> None:
        self.talk = Conversation()
        self.flights: dict[int, Flight] = {}  # {id: request}, not answered
        self.context = zmq.Context()
        self.sock: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.sock.setsockopt(zmq.LINGER, 0)
        self.sock.setsockopt(zmq.SNDHWM, 100_000)
        self.sock.setsockopt(zmq.RCVHWM, 100_000)
        self.sock.setsockopt(zmq.RECONNECT_IVL, 20)
        self.sock.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        if keys is not None:
            self.sock.setsockopt(zmq.CURVE_SERVERKEY, keys[0])
            self.sock.setsockopt(zmq.CURVE_PUBLICKEY, keys[1])
            self.sock.setsockopt(zmq.CURVE_SECRETKEY, keys[2])
        self.monitor: zmq.Socket[bytes] = self.sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        for address in [addresses] if isinstance(addresses, str) else addresses:
            self.sock.connect(address)

    def ask(self, flight: Flight) -> None:
        """The request leaves, or waits for the connection."""
        body = msgpack.packb(flight.message)
        parts = [body, *flight.frames]
        self.sock.send_multipart(parts, zmq.NOBLOCK, copy=len(parts) == 1)

    def ask_all_again(self) -> None:
        """The connection broke: what was not answered is asked again, with what is left of its budget."""
        now = time.monotonic()
        for flight in list(self.flights.values()):
            flight.again = True
            if flight.budget_s is not None:
                left_s = flight.budget_s - (now - flight.asked_s)
                if left_s <= 0:
                    continue
                flight.message["slo_ms"] = left_s * 1e3
            self.ask(flight)

    def read(self) -> Iterable[tuple[Flight, Any]]:
        """(request, outcome) of every answer that has arrived."""
        while True:
            try:
                parts = self.sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                header = msgpack.unpackb(parts[0])
                flight = self.flights.get(header.get("id"))
            except Exception:
                continue
            if flight is None:
                continue
            try:
                outcome = self.talk.understand(header, parts[1:])
            except Exception as error:
                outcome = Failed({"status": "failed", "error": {"code": "bad_answer", "message": str(error)}})
            if flight.again and isinstance(outcome, Invalid) and outcome.code == "duplicate_id":
                continue  # the connection only seemed broken; the first asking goes on
            del self.flights[header["id"]]
            yield flight, outcome

    def broke(self) -> bool:
        """The connection was lost since the last call."""
        lost = False
        while True:
            try:
                self.monitor.recv_multipart(zmq.NOBLOCK)
                lost = True
            except zmq.Again:
                return lost

    def flight(self, message: dict[str, Any], frames: list[Any], slo_ms: float | None, wait_s: float) -> Flight:
        """A request about to be asked."""
        now = time.monotonic()
        budget_s = None if slo_ms is None else slo_ms / 1e3
        flight = Flight(message, frames, now + wait_s + GRACE_S, budget_s, now)
        self.flights[message["id"]] = flight
        return flight

    def expired(self, now: float) -> list[Flight]:
        """Requests given up: no answer came, nor will."""
        late = [call for call, flight in self.flights.items() if flight.deadline_s <= now]
        return [self.flights.pop(call) for call in late]

    def close(self) -> None:
        """Nothing is asked or read any more."""
        if self.sock.closed:
            return
        self.sock.disable_monitor()
        self.monitor.close(0)
        self.sock.close(0)
        self.context.term()


def no_answer() -> TimedOut:
    error = {"code": "no_answer", "message": "no answer came; is a frontend running at this address?"}
    return TimedOut({"status": "timed_out", "error": error})


def wait_s(connection: Connection, target: Target, slo_ms: float | None) -> float:
    """How long the answer may take."""
    known = connection.talk.spec(target).get("slo_ms")
    chosen = slo_ms if slo_ms is not None else known
    return min(float(chosen) / 1e3, 1e6) if isinstance(chosen, (int, float)) and chosen > 0 else CALL_TIMEOUT_S


def options_of(slo_ms: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: value for key, value in options.items() if value is not None}
    return named if slo_ms is None else {**named, "slo_ms": slo_ms}


def feedback_fields(decision_id: str, label: Any, loss: float | None, context: str | None) -> dict[str, Any]:
    named = {"label": _plain(label), "loss": _plain(loss), "context": context}
    return {"decision_id": decision_id, **{key: value for key, value in named.items() if value is not None}}


def _plain(value: Any) -> Any:
    """Numbers and lists, of numpy's."""
    return value.tolist() if hasattr(value, "tolist") else value


def definition_of(name: str, models: Sequence[str], policy: str, rest: Mapping[str, Any]) -> dict[str, Any]:
    """`default` may be {output: array of one row}."""
    default = rest.get("default")
    if isinstance(default, Mapping):
        rest = {**rest, "default": [tensor(name, array) for name, array in default.items()]}
    return {"name": name, "models": list(models), "policy": policy, **rest}
