"""`AsyncClient`: the client for one event loop. `client.py` beside it says what all clients do."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import zmq

from .connection import (
    CALL_TIMEOUT_S,
    Connection,
    PendingRequest,
    closed,
    definition_of,
    feedback_fields,
    gave_up,
    time_left,
)
from .conversation import (
    Inputs,
    Prediction,
    RequestError,
    target_of,
)
from .defaults import CurveKeys


class AsyncClient:
    """Client for one event loop. Use it as an asynchronous context manager, or call `close`."""

    def __init__(self, addresses: str | Sequence[str] | None = None, *, keys: CurveKeys | None = None) -> None:
        """As `Client`, but has to be made inside a running loop."""
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(addresses, keys)
        self._fds: list[int] = []
        for socket in self._connection.sockets:
            for sock, readable in ((socket.sock, self._readable), (socket.monitor, self._watched)):
                self._fds.append(int(sock.getsockopt(zmq.FD)))
                self._loop.add_reader(self._fds[-1], readable)
                self._loop.call_soon(readable)  # a socket that was never read does not announce its first message
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0  # instant of the next alarm
        self._check_scheduled = False
        self._learning: asyncio.Future[Any] | None = None
        self._closed = False

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; requests in flight end with `Disconnected`."""
        if self._closed:
            return
        self._closed = True
        for fd in self._fds:
            self._loop.remove_reader(fd)
        if self._timer is not None:
            self._timer.cancel()
        self._connection.close()
        for flight in self._connection.flights.values():
            self._resolve(flight, closed())
        self._connection.flights.clear()

    async def infer(
        self,
        model: str | Inputs | None = None,
        x: Inputs | None = None,
        *,
        app: str | None = None,
        slo_ms: float | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Prediction:
        """The answer to `x`; arguments and errors as in `Client.infer`.

        Cancel-safe: the mesh is told that nobody waits for the answer, and a later one is dropped.
        """
        target, x = target_of(model, x, app)
        if not self._connection.talk.spec(target):
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(timeout_s):
                    await (self.apps() if target.app else self._learn())
            except TimeoutError:
                raise gave_up(timeout_s) from None
            timeout_s = time_left(timeout_s, began_s)
        flight = self._connection.infer(target, x, slo_ms, timeout_s, options)
        try:
            outcome: Prediction | RequestError = await self._ask(flight)
        except asyncio.CancelledError:
            self._given_up(flight)
            raise
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    def submit(
        self,
        model: str | Inputs | None = None,
        x: Inputs | None = None,
        *,
        app: str | None = None,
        slo_ms: float | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> "asyncio.Future[Prediction | RequestError]":
        """Sends the request. The future's result is the outcome, also if it is an error. Await `models` before.

        The first request of a turn of the loop leaves at once, others together at the turn's end. Who cancels the
        future, cancels the request.
        """
        target, x = target_of(model, x, app)
        flight = self._connection.infer(target, x, slo_ms, timeout_s, options)
        future = self._ask(flight)
        future.add_done_callback(lambda future: self._given_up(flight) if future.cancelled() else None)
        return future

    def _given_up(self, flight: PendingRequest) -> None:
        """Nobody waits for this request any more."""
        self._connection.cancel(flight)
        self._check_soon()

    async def feedback(
        self, decision_id: str, *, label: Any = None, loss: float | None = None, context: str | None = None
    ) -> Mapping[str, Any]:
        """Sends the truth about an application's answer. Returns `applied`, or why not. Raises: RequestError."""
        return await self.call("feedback", **feedback_fields(decision_id, label, loss, context))

    async def apps(self, context: str | None = None) -> list[dict[str, Any]]:
        """The applications, and what they learned in `context`. Raises: RequestError."""
        answer = await self.call("apps", context=context)
        self._connection.talk.learn_apps(answer)
        apps: list[dict[str, Any]] = answer["apps"]
        return apps

    async def create_app(
        self, name: str, models: Sequence[str], policy: str = "single", **rest: Any
    ) -> Mapping[str, Any]:
        """Creates an application; `rest` as in `Client.create_app`. Raises: RequestError."""
        return await self.call("create_app", app=definition_of(name, models, policy, rest))

    async def update_app(
        self, name: str, models: Sequence[str], policy: str = "single", **rest: Any
    ) -> Mapping[str, Any]:
        """Replaces an application's definition; what was learned of models that stay is kept. Raises: RequestError."""
        self._connection.talk.apps.pop(name, None)
        return await self.call("update_app", app=definition_of(name, models, policy, rest))

    async def delete_app(self, name: str) -> Mapping[str, Any]:
        """Deletes the application and what it learned. Raises: RequestError."""
        self._connection.talk.apps.pop(name, None)
        return await self.call("delete_app", app=name)

    async def models(self) -> list[dict[str, Any]]:
        """Descriptions of the deployed models. Raises: RequestError."""
        answer = await self.call("models")
        self._connection.talk.learn(answer)
        models: list[dict[str, Any]] = answer["models"]
        return models

    async def call(self, op: str, *, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> Mapping[str, Any]:
        """The answer to any other message of the protocol. Raises: RequestError."""
        outcome: Any = await self._ask(self._connection.call(op, fields, timeout_s))
        if isinstance(outcome, RequestError):
            raise outcome
        answer: Mapping[str, Any] = outcome
        return answer

    async def _learn(self) -> None:
        """Asks once what is deployed, for all callers that wait for it."""
        if self._learning is None:
            self._learning = asyncio.ensure_future(self.models())
            self._learning.add_done_callback(self._learned)
        await asyncio.shield(self._learning)

    def _learned(self, task: "asyncio.Task[Any]") -> None:
        self._learning = None
        if not task.cancelled():
            task.exception()  # whoever asked may have been cancelled, and then nobody else looks at it

    def _ask(self, flight: PendingRequest) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        flight.future = future
        try:
            self._connection.ask(flight, together=self._check_scheduled)
        except RequestError as error:
            future.set_result(error)
            return future
        self._check_soon()
        self._arm(flight.deadline_s)
        return future

    def _check_soon(self) -> None:
        """Checks for messages soon, because a send, even one that fails, may consume the edge that announces them."""
        if not self._check_scheduled:
            self._check_scheduled = True
            self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        self._check_scheduled = False
        if self._closed:
            return
        for flight, outcome in self._connection.send_together():
            self._resolve(flight, outcome)
        for flight, outcome in self._connection.read():
            self._resolve(flight, outcome)
        if self._connection.ask_waiting() or self._connection.can_go_on:
            self._check_soon()

    def _watched(self) -> None:
        if self._closed:
            return
        for flight, outcome in self._connection.watch():
            self._resolve(flight, outcome)
        self._check_soon()

    def _resolve(self, flight: PendingRequest, outcome: Any) -> None:
        if flight.future is not None and not flight.future.done():
            flight.future.set_result(outcome)

    def _arm(self, deadline_s: float) -> None:
        """The timer rings at this deadline, or earlier."""
        if self._timer is not None:
            if deadline_s >= self._timer_s:
                return
            self._timer.cancel()
        self._timer_s = deadline_s
        self._timer = self._loop.call_later(max(0.0, deadline_s - time.monotonic()) + 0.001, self._ring)

    def _ring(self) -> None:
        self._timer = None
        for flight in self._connection.expired(time.monotonic()):
            self._resolve(flight, self._connection.no_answer(flight))
        if self._connection.flights:
            self._arm(min(flight.deadline_s for flight in self._connection.flights.values()))
