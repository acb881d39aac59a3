"""Python clients: `Client` (blocking), here, and `AsyncClient`, in `async_client.py`.

They need pyzmq, msgpack and numpy, nothing else of gearmesh.

    with Client() as client:
        prediction = client.infer("digits_mlp", pixels, slo_ms=50)
        print(prediction["scores"].argmax(), prediction.latency_ms)

An answer other than ok is raised: `Rejected` (refused before any work, with `retry_after_ms`), `TimedOut`, `Failed` or
`Invalid`; a closed client raises `Disconnected`. A connection that breaks is made again, and unanswered requests are
sent again, through any frontend that is reachable, with what is left of their budgets. Requests wait in the client
while no frontend is reachable; beyond 100,000 they are `Rejected` at once, with code `client_full`.

A request that is given up is cancelled: the mesh drops what it has not begun of it. That is so after `timeout_s`, when
Ctrl-C interrupts a `Client` that waits, and when the task that awaits an `AsyncClient` is cancelled.
"""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import zmq

from .connection import (
    CALL_TIMEOUT_S,
    Connection,
    PendingRequest,
    definition_of,
    feedback_fields,
    time_left,
)
from .conversation import (
    Disconnected,
    Failed,
    Inputs,
    Invalid,
    Prediction,
    Rejected,
    RequestError,
    RequestTarget,
    TimedOut,
    target_of,
)
from .defaults import CurveKeys

__all__ = [
    "Client", "Disconnected", "Failed", "Invalid", "Prediction", "Rejected", "RequestError", "TimedOut",
]  # fmt: skip


class Client:
    """Blocking client, for one thread. Use it as a context manager, or call `close`."""

    def __init__(self, addresses: str | Sequence[str] | None = None, *, keys: CurveKeys | None = None) -> None:
        """`addresses`: one frontend or several; None: the settings' one, with its keys (gearmesh.toml, GEARMESH_HOST,
        GEARMESH_FRONTEND_PORT, GEARMESH_KEYS_DIR). `keys`: (server's public, own public, own secret) CURVE keys.

        Nothing is read of the settings where an address is given. Raises: ValueError, if a setting is wrong.
        """
        self._connection = Connection(addresses, keys)
        self._poller = zmq.Poller()
        for socket in self._connection.sockets:
            self._poller.register(socket.monitor, zmq.POLLIN)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; requests in flight are not answered."""
        self._connection.close()

    def infer(
        self,
        model: str | Inputs | None = None,
        x: Inputs | None = None,
        *,
        app: str | None = None,
        slo_ms: float | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Prediction:
        """The answer of a model, or of the application `app`, to `x`: [rows, ...] or one row, or {name: array}.

        Arrays have any extents in the model's open dimensions. Strings are lists or arrays of `str` or `bytes`, and
        come back as arrays of the dtype `object`.
        `slo_ms`: budget from receipt to answer; None: the model's or application's own. `timeout_s`: it is given up
        after so long, with code `no_answer`; None: a second after its budget. `options`: context, cache, weight,
        version. Raises: RequestError, one of its subclasses.
        """
        target, x = target_of(model, x, app)
        (outcome,) = self._infer_all([(target, x)], slo_ms, timeout_s, options)
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    def infer_many(
        self,
        requests: Iterable[tuple[str, Inputs]],
        *,
        slo_ms: float | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> list[Prediction | RequestError]:
        """Sends all requests at once. Returns their outcomes in the same order; an error is returned, not raised."""
        return self._infer_all([(RequestTarget(model), x) for model, x in requests], slo_ms, timeout_s, options)

    def _infer_all(
        self,
        requests: Sequence[tuple[RequestTarget, Inputs]],
        slo_ms: float | None,
        timeout_s: float | None,
        options: Mapping[str, Any],
    ) -> list[Prediction | RequestError]:
        connection = self._connection
        began_s = time.monotonic()
        flights: list[PendingRequest] = []
        unknown = {target.app: target for target, _ in requests if not connection.talk.spec(target)}  # one of each kind
        for target in unknown.values():  # before the first request is sent: none waits until another is answered
            self._learn(target, time_left(timeout_s, began_s))
        try:
            for target, x in requests:
                flight = connection.infer(target, x, slo_ms, time_left(timeout_s, began_s), options)
                flights.append(flight)  # first: Ctrl-C may come as soon as it has left
                try:
                    connection.ask(flight)
                except RequestError as error:
                    flight.result = error
            self._wait()
        except BaseException:  # nobody gets the outcomes of those that are on their way
            for flight in flights:
                connection.cancel(flight)
            raise
        return [flight.result for flight in flights]

    def _learn(self, target: RequestTarget, timeout_s: float | None) -> None:
        """Asks what there is, for so long or for the usual time. Raises: RequestError."""
        wait_s = CALL_TIMEOUT_S if timeout_s is None else min(timeout_s, CALL_TIMEOUT_S)
        if target.app:
            self._connection.talk.learn_apps(self.call("apps", timeout_s=wait_s, context=None))
        else:
            self._connection.talk.learn(self.call("models", timeout_s=wait_s))

    def feedback(
        self, decision_id: str, *, label: Any = None, loss: float | None = None, context: str | None = None
    ) -> Mapping[str, Any]:
        """Sends the truth about an application's answer. Returns `applied`, or why not. Raises: RequestError."""
        return self.call("feedback", **feedback_fields(decision_id, label, loss, context))

    def apps(self, context: str | None = None) -> list[dict[str, Any]]:
        """The applications, and what they learned in `context`. Raises: RequestError."""
        answer = self.call("apps", context=context)
        self._connection.talk.learn_apps(answer)
        apps: list[dict[str, Any]] = answer["apps"]
        return apps

    def create_app(self, name: str, models: Sequence[str], policy: str = "single", **rest: Any) -> Mapping[str, Any]:
        """Creates an application. `rest`: policy_args, slo_ms, default, confidence_min. Raises: RequestError."""
        return self.call("create_app", app=definition_of(name, models, policy, rest))

    def update_app(self, name: str, models: Sequence[str], policy: str = "single", **rest: Any) -> Mapping[str, Any]:
        """Replaces an application's definition; what was learned of models that stay is kept. Raises: RequestError."""
        self._connection.talk.apps.pop(name, None)
        return self.call("update_app", app=definition_of(name, models, policy, rest))

    def delete_app(self, name: str) -> Mapping[str, Any]:
        """Deletes the application and what it learned. Raises: RequestError."""
        self._connection.talk.apps.pop(name, None)
        return self.call("delete_app", app=name)

    def models(self) -> list[dict[str, Any]]:
        """Descriptions of the deployed models. Raises: RequestError."""
        answer = self.call("models")
        self._connection.talk.learn(answer)
        models: list[dict[str, Any]] = answer["models"]
        return models

    def call(self, op: str, *, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> Mapping[str, Any]:
        """The answer to any other message of the protocol. Raises: RequestError."""
        connection = self._connection
        flight = connection.call(op, fields, timeout_s)
        try:
            connection.ask(flight)
            self._wait()
        except BaseException:
            connection.cancel(flight)
            raise
        if isinstance(flight.result, RequestError):
            raise flight.result
        answer: Mapping[str, Any] = flight.result
        return answer

    def _wait(self) -> None:
        """Returns when all requests in flight have their outcomes."""
        connection = self._connection
        first_s = 0.0  # no deadline is earlier
        while connection.flights:
            now = time.monotonic()
            if now >= first_s:
                for flight in connection.expired(now):
                    flight.result = connection.no_answer(flight)
                first_s = min((flight.deadline_s for flight in connection.flights.values()), default=now)
                continue
            for socket in connection.sockets:
                self._poller.register(
                    socket.sock, zmq.POLLIN | zmq.POLLOUT if socket.up and connection.waits(socket) else zmq.POLLIN
                )
            ready = dict(self._poller.poll(max(1, int((first_s - now) * 1e3) + 1)))
            watched = connection.watch() if any(socket.monitor in ready for socket in connection.sockets) else ()
            for flight, outcome in itertools.chain(watched, connection.read()):
                flight.result = outcome
            connection.ask_waiting()
