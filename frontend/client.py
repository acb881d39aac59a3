"""Python clients: `Client` (blocking) and `AsyncClient`. They need pyzmq, msgpack and numpy, nothing else of gearmesh.

    with Client() as client:
        prediction = client.infer("digits_mlp", pixels, slo_ms=50)
        print(prediction["scores"].argmax(), prediction.latency_ms)

An answer other than ok is raised: `Rejected` (refused before any work, with `retry_after_ms`), `TimedOut`, `Failed` or
`Invalid`. A connection that breaks is made again, and what was not answered is asked again with what is left of its
budget.
"""

import asyncio
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import zmq

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"
GRACE_S = 1.0  # after its deadline a request without an answer is given up here; the frontend promises 20 ms
FRAMED_BYTES = 64 * 1024  # larger tensors travel as frames of their own, not copied
CALL_TIMEOUT_S = 10.0

Array = npt.NDArray[Any]
Inputs = Array | Mapping[str, Array] | Sequence[Any]


class RequestError(Exception):
    """A request was answered otherwise than ok. `str()` is the sentence."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        error = answer.get("error") or {}
        self.status: str = answer.get("status", "failed")
        self.code: str = error.get("code", "unknown")
        self.message: str = error.get("message", "")
        self.field: str | None = error.get("field")
        self.retry_after_ms: float | None = error.get("retry_after_ms")
        self.predicted_ms: float | None = answer.get("predicted_ms")
        self.latency_ms: float | None = answer.get("latency_ms")
        super().__init__(f"{self.status} ({self.code}): {self.message}")


class Rejected(RequestError):
    """Refused before any work was done: the budget cannot be met. `retry_after_ms`: when it could be."""


class TimedOut(RequestError):
    """The deadline came first."""


class Failed(RequestError):
    """Something broke: the model, or a worker that could not be replaced in time."""


class Invalid(RequestError):
    """The request cannot be obeyed; `field` says what is wrong with it."""


class Disconnected(RequestError):
    """The client was closed while the request was in flight."""


_ERRORS = {"rejected": Rejected, "timed_out": TimedOut, "failed": Failed, "invalid": Invalid}


@dataclass(frozen=True, slots=True)
class Prediction:
    """An ok answer."""

    outputs: dict[str, Array]  # {name: [rows, ...]}
    model: str
    version: str
    latency_ms: float  # at the frontend, from receipt to answer
    predicted_ms: float | None  # as admission predicted it
    batch_size: int | None
    device: str | None
    answer: Mapping[str, Any] = field(repr=False)  # everything that came, tensors' data excepted

    def __getitem__(self, name: str) -> Array:
        """One output. Raises: KeyError."""
        return self.outputs[name]

    @property
    def output(self) -> Array:
        """The first output."""
        return next(iter(self.outputs.values()))


class _Conversation:
    """What both clients share: words requests, understands answers. Knows nothing of sockets or time."""

    def __init__(self) -> None:
        self.specs: dict[str, dict[str, Any]] = {}  # {model: its entry in the answer to "models"}
        self._ids = itertools.count(1)

    def next_id(self) -> int:
        """An id that this client has not used."""
        return next(self._ids)

    def learn(self, answer: Mapping[str, Any]) -> None:
        """Takes in what is deployed."""
        self.specs = {model["name"]: model for model in answer["models"]}

    def infer(self, call: int, model: str, x: Inputs, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """(header, frames) of an infer request; tensors are inside the header if they are small."""
        tensors = self._tensors(model, x)
        message: dict[str, Any] = {"op": "infer", "id": call, "model": model, **options}
        frames: list[Any] = []
        framed = sum(array.nbytes for _, array in tensors) > FRAMED_BYTES
        inputs = []
        for name, array in tensors:
            entry: dict[str, Any] = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
            if framed:
                frames.append(array.reshape(-1).view(np.uint8).data)
            else:
                entry["data"] = array.tobytes()
            inputs.append(entry)
        message["inputs"] = inputs
        return message, frames

    def _tensors(self, model: str, x: Inputs) -> list[tuple[str, Array]]:
        """Named arrays in the dtype that the model takes, contiguous and little endian; a single row gets its batch."""
        specs = self.specs.get(model, {}).get("inputs", [])
        if not isinstance(x, Mapping):
            x = {specs[0]["name"] if specs else "x": np.asarray(x)}
        by_name = {spec["name"]: spec for spec in specs}
        tensors = []
        for name, value in x.items():
            array = np.asarray(value)
            spec = by_name.get(name)
            if spec is not None:
                wanted = np.dtype(spec["dtype"])
                whole = array.dtype.kind in "iu" and wanted.kind == "f"
                if array.dtype != wanted and (whole or np.can_cast(array.dtype, wanted, "same_kind")):
                    array = array.astype(wanted)
                if array.ndim == len(spec["shape"]) - 1:
                    array = array[np.newaxis]
            tensors.append((name, np.ascontiguousarray(array, array.dtype.newbyteorder("<"))))
        return tensors

    def understand(self, header: Any, frames: Sequence[Any]) -> Prediction | RequestError | Mapping[str, Any]:
        """A prediction, an error to be raised, or the answer to anything but infer as it is."""
        status = header.get("status")
        if status in _ERRORS:
            return _ERRORS[status](header)
        if "outputs" not in header:
            answer: Mapping[str, Any] = header
            return answer
        outputs = {}
        for i, tensor in enumerate(header.pop("outputs")):
            data = frames[i] if frames else tensor["data"]
            dtype = np.dtype(tensor["dtype"]).newbyteorder("<")
            outputs[tensor["name"]] = np.frombuffer(data, dtype).reshape(tensor["shape"])
        return Prediction(
            outputs,
            header.get("model", ""),
            header.get("version", ""),
            header.get("latency_ms", 0.0),
            header.get("predicted_ms"),
            header.get("batch_size"),
            header.get("device"),
            header,
        )


@dataclass(slots=True)
class _Flight:
    """One request in flight."""

    message: dict[str, Any]
    frames: list[Any]
    deadline_s: float  # given up here at
    budget_s: float | None  # as asked for; None: the model's
    asked_s: float
    again: bool = False  # asked more than once
    future: "asyncio.Future[Any] | None" = None
    result: Any = None


class _Connection:
    """The socket and the requests in flight on it; shared by both clients, which differ in how they wait."""

    def __init__(self, addresses: str | Sequence[str], keys: tuple[bytes, bytes, bytes] | None) -> None:
        self.talk = _Conversation()
        self.flights: dict[int, _Flight] = {}  # {id: request}, not answered
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

    def ask(self, flight: _Flight) -> None:
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

    def read(self) -> Iterable[tuple[_Flight, Any]]:
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

    def flight(self, message: dict[str, Any], frames: list[Any], slo_ms: float | None, wait_s: float) -> _Flight:
        """A request about to be asked."""
        now = time.monotonic()
        budget_s = None if slo_ms is None else slo_ms / 1e3
        flight = _Flight(message, frames, now + wait_s + GRACE_S, budget_s, now)
        self.flights[message["id"]] = flight
        return flight

    def expired(self, now: float) -> list[_Flight]:
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


def _no_answer() -> TimedOut:
    error = {"code": "no_answer", "message": "no answer came; is a frontend running at this address?"}
    return TimedOut({"status": "timed_out", "error": error})


def _wait_s(connection: _Connection, model: str, slo_ms: float | None) -> float:
    """How long the answer may take."""
    known = connection.talk.specs.get(model, {}).get("slo_ms")
    chosen = slo_ms if slo_ms is not None else known
    return min(float(chosen) / 1e3, 1e6) if isinstance(chosen, (int, float)) and chosen > 0 else CALL_TIMEOUT_S


def _options(slo_ms: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: value for key, value in options.items() if value is not None}
    return named if slo_ms is None else {**named, "slo_ms": slo_ms}


class Client:
    """Blocking client, for one thread. Use it as a context manager, or call `close`."""

    def __init__(
        self, addresses: str | Sequence[str] = DEFAULT_ADDRESS, *, keys: tuple[bytes, bytes, bytes] | None = None
    ) -> None:
        """`addresses`: one frontend or several; `keys`: (server's public, own public, own secret) CURVE keys."""
        self._connection = _Connection(addresses, keys)
        self._poller = zmq.Poller()
        self._poller.register(self._connection.sock, zmq.POLLIN)
        self._poller.register(self._connection.monitor, zmq.POLLIN)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The connection is closed; what was in flight is not answered."""
        self._connection.close()

    def infer(self, model: str, x: Inputs, *, slo_ms: float | None = None, **options: Any) -> Prediction:
        """The model's answer to `x`: an array [rows, ...] (or one row) for its one input, or {name: array}.

        `slo_ms`: budget from receipt to answer; the model's own if None. Raises: RequestError, one of its subclasses.
        """
        (outcome,) = self.infer_many([(model, x)], slo_ms=slo_ms, **options)
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    def infer_many(
        self, requests: Iterable[tuple[str, Inputs]], *, slo_ms: float | None = None, **options: Any
    ) -> list[Prediction | RequestError]:
        """All requests, in flight together; their outcomes in the same order. Nothing is raised for a single one."""
        connection = self._connection
        flights = []
        for model, x in requests:
            if model not in connection.talk.specs:
                self.models()
            call = connection.talk.next_id()
            message, frames = connection.talk.infer(call, model, x, _options(slo_ms, options))
            flight = connection.flight(message, frames, slo_ms, _wait_s(connection, model, slo_ms))
            connection.ask(flight)
            flights.append(flight)
        self._wait(flights)
        return [flight.result for flight in flights]

    def models(self) -> list[dict[str, Any]]:
        """What is deployed. Raises: RequestError."""
        answer = self.call("models")
        self._connection.talk.learn(answer)
        models: list[dict[str, Any]] = answer["models"]
        return models

    def call(self, op: str, *, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> Mapping[str, Any]:
        """The answer to any other message of the protocol. Raises: RequestError."""
        connection = self._connection
        message = {"op": op, "id": connection.talk.next_id(), **fields}
        flight = connection.flight(message, [], None, timeout_s - GRACE_S)
        connection.ask(flight)
        self._wait([flight])
        if isinstance(flight.result, RequestError):
            raise flight.result
        answer: Mapping[str, Any] = flight.result
        return answer

    def _wait(self, flights: Sequence[_Flight]) -> None:
        connection = self._connection
        left = {id(flight) for flight in flights if flight.result is None}
        while left:
            now = time.monotonic()
            for flight in connection.expired(now):
                flight.result = _no_answer()
                left.discard(id(flight))
            if not left:
                return
            first_s = min(flight.deadline_s for flight in connection.flights.values())
            self._poller.poll(max(1, int((first_s - now) * 1e3) + 1))
            if connection.broke():
                connection.ask_all_again()
            for flight, outcome in connection.read():
                flight.result = outcome
                left.discard(id(flight))


class AsyncClient:
    """Client for one event loop. Use it as an asynchronous context manager, or call `close`."""

    def __init__(
        self, addresses: str | Sequence[str] = DEFAULT_ADDRESS, *, keys: tuple[bytes, bytes, bytes] | None = None
    ) -> None:
        """See `Client`. Made inside a running loop."""
        self._loop = asyncio.get_running_loop()
        self._connection = _Connection(addresses, keys)
        self._fds = [int(sock.getsockopt(zmq.FD)) for sock in (self._connection.sock, self._connection.monitor)]
        for fd in self._fds:
            self._loop.add_reader(fd, self._readable)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0  # when it rings
        self._check_scheduled = False
        self._learning: asyncio.Future[Any] | None = None
        self._closed = False

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The connection is closed; what was in flight is answered `Disconnected`."""
        if self._closed:
            return
        self._closed = True
        for fd in self._fds:
            self._loop.remove_reader(fd)
        if self._timer is not None:
            self._timer.cancel()
        self._connection.close()
        error = {"code": "closed", "message": "the client was closed"}
        for flight in self._connection.flights.values():
            self._settle(flight, Disconnected({"status": "failed", "error": error}))
        self._connection.flights.clear()

    async def infer(self, model: str, x: Inputs, *, slo_ms: float | None = None, **options: Any) -> Prediction:
        """See `Client.infer`. Cancelling it is safe: the answer is dropped when it comes."""
        if model not in self._connection.talk.specs:
            await self._learn()
        outcome = await self.submit(model, x, slo_ms=slo_ms, **options)
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    def submit(
        self, model: str, x: Inputs, *, slo_ms: float | None = None, **options: Any
    ) -> "asyncio.Future[Prediction | RequestError]":
        """The request leaves now; the future gets its outcome, an error as a value. `models` was awaited before."""
        connection = self._connection
        call = connection.talk.next_id()
        message, frames = connection.talk.infer(call, model, x, _options(slo_ms, options))
        return self._ask(connection.flight(message, frames, slo_ms, _wait_s(connection, model, slo_ms)))

    async def models(self) -> list[dict[str, Any]]:
        """What is deployed. Raises: RequestError."""
        answer = await self.call("models")
        self._connection.talk.learn(answer)
        models: list[dict[str, Any]] = answer["models"]
        return models

    async def call(self, op: str, *, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> Mapping[str, Any]:
        """The answer to any other message of the protocol. Raises: RequestError."""
        message = {"op": op, "id": self._connection.talk.next_id(), **fields}
        outcome: Any = await self._ask(self._connection.flight(message, [], None, timeout_s - GRACE_S))
        if isinstance(outcome, RequestError):
            raise outcome
        answer: Mapping[str, Any] = outcome
        return answer

    async def _learn(self) -> None:
        """One question for all who wait to know what is deployed."""
        if self._learning is None:
            self._learning = asyncio.ensure_future(self.models())
            self._learning.add_done_callback(lambda _: setattr(self, "_learning", None))
        await asyncio.shield(self._learning)

    def _ask(self, flight: _Flight) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        flight.future = future
        self._connection.ask(flight)
        self._check_soon()
        self._arm()
        return future

    def _check_soon(self) -> None:
        """A send may consume the edge that says there is something to read."""
        if not self._check_scheduled:
            self._check_scheduled = True
            self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        self._check_scheduled = False
        if self._closed:
            return
        if self._connection.broke():
            self._connection.ask_all_again()
            self._check_soon()
        for flight, outcome in self._connection.read():
            self._settle(flight, outcome)

    def _settle(self, flight: _Flight, outcome: Any) -> None:
        if flight.future is not None and not flight.future.done():
            flight.future.set_result(outcome)

    def _arm(self) -> None:
        if not self._connection.flights:
            return
        first_s = min(flight.deadline_s for flight in self._connection.flights.values())
        if self._timer is not None:
            if first_s >= self._timer_s:
                return
            self._timer.cancel()
        self._timer_s = first_s
        self._timer = self._loop.call_later(max(0.0, first_s - time.monotonic()) + 0.001, self._ring)

    def _ring(self) -> None:
        self._timer = None
        for flight in self._connection.expired(time.monotonic()):
            self._settle(flight, _no_answer())
        self._arm()
