"""The requests of a shard that have not ended: they wait, are bound, wait anew, and end in exactly one way. Pure.

They end in one of: outputs sent by a worker, a refusal sent from here, or silence towards a frontend that is gone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.core.containers import Containers
from controller.core.fleet import Fleet
from controller.core.orders import Order, ToFrontend
from controller.core.policies.base import Policy
from controller.core.queues import Request
from controller.core.state import Action, Device, Model, State
from controller.core.telemetry.totals import Counters, Telemetry
from mesh import wire

EXPIRE_EVERY_S = 0.0005  # between looks for hopeless heads
DESERTED_S = 0.02  # before its deadline a request of a model that is ready nowhere is told so
RETRY_S = 1.0  # what is told where nothing better is known
RETRY_S_MIN = 1e-3


@dataclass(slots=True)
class OpenRequests:
    """Every request that was admitted and has not ended."""

    state: State
    policy: Policy
    fleet: Fleet
    containers: Containers
    counters: Counters
    telemetry: Telemetry
    slack_s: float  # taken off every deadline
    open: dict[tuple[str, int], Request] = field(default_factory=dict)  # {(frontend, number): it}; others only read
    _first_hopeless_s: float = float("inf")  # no head becomes hopeless before, on devices that are free
    _expire_after_s: float = 0.0  # heads are not looked through again before

    def uses(self, ref: str) -> bool:
        """Whether a request for this version has not ended."""
        return any(request.ref == ref for request in self.open.values())

    # -- waiting ------------------------------------------------------------------------------------------------------

    def admit(self, model: Model, request: Request, now: float) -> None:
        """The request is open, and waits for a batch."""
        self.open[request.frontend, request.number] = request
        self._wait(model, request, now)

    def again(self, request: Request, code: str, message: str, orders: list[Order], now: float) -> None:
        """The request's action came to nothing: it waits anew; if time is too short, it expires from there."""
        if request.closed:
            return
        request.tries += 1
        model = self.state.models.get(request.ref)
        fault = self._why_unserved(request.ref)
        if fault:
            orders.append(self._refuse_unserved(request, fault, now))
            return
        if request.tries >= self.policy.window.tries or model is None or not model.ready:
            orders.append(self.refuse(request, "failed", code, message, now))
            return
        self._wait(model, request, now)

    def unserved(self, ref: str, orders: list[Order], now: float) -> None:
        """Where no device can serve the version any more, all that waits for it is refused with the reason."""
        model, fault = self.state.models.get(ref), self._why_unserved(ref)
        if model is not None and fault:
            for request in self.state.take_first(model, len(model.queue)):
                orders.append(self._refuse_unserved(request, fault, now))

    def _why_unserved(self, ref: str) -> str:
        model = self.state.models.get(ref)
        if ref in self.fleet.contained or (model is not None and model.ready):
            return ""
        return self.fleet.reporting.why_unserved(ref)

    def _refuse_unserved(self, request: Request, fault: str, now: float) -> Order:
        return self.refuse(request, "rejected", "not_ready", f"{request.ref} cannot be served: {fault}", now)

    def worker_lost(self, actions: Iterable[Action], orders: list[Order], now: float) -> None:
        """The worker that had these actions is gone: their requests are planned again where time allows."""
        for action in actions:
            for request in action.requests:
                self.again(request, "worker_lost", "its worker was lost, and no other can serve it", orders, now)

    def _wait(self, model: Model, request: Request, now: float) -> None:
        self.state.push(model, request)
        self.policy.arrived(model, request, now)
        if not request.tries:
            self.containers.arrived(model.ref, now)
        self._first_hopeless_s = min(self._first_hopeless_s, self._hopeless_s(model, request))

    # -- endings ------------------------------------------------------------------------------------------------------

    def served(
        self, request: Request, action: Action, device: Device, result: wire.ActionResult, end_s: float, now: float
    ) -> None:
        """Its outputs were made, and ended at `end_s`."""
        in_time = end_s <= request.deadline_s + self.slack_s
        if in_time:
            self.counters.in_time += 1
        else:
            self.counters.late += 1
        self._close(request, in_time=in_time, now=now)
        self.telemetry.served(request, action, device, result, end_s, in_time)

    def cancel(self, frontend: str, number: int, now: float) -> None:
        """Nobody waits for this request any more: it is dropped, or ends with its batch, without a word from here."""
        request = self.open.get((frontend, number))
        if request is not None:
            self._abandon(request, "cancelled", now)

    def frontend_lost(self, frontend: str, now: float) -> None:
        """Nobody waits for this frontend's requests any more."""
        for request in [request for request in self.open.values() if request.frontend == frontend]:
            self._abandon(request, "frontend_lost", now)

    def _abandon(self, request: Request, outcome: str, now: float) -> None:
        model = self.state.models.get(request.ref)
        if model is not None:
            self.state.remove(model, request)
        self._close(request, in_time=False, now=now)
        self.telemetry.abandoned(request, outcome, now)

    def refuse(
        self,
        request: Request,
        status: str,
        code: str,
        message: str,
        now: float,
        *,
        predicted_s: float | None = None,
        retry_s: float | None = None,
    ) -> Order:
        """It is rejected or failed (`status`), whether it was admitted or not."""
        self._close(request, in_time=False, now=now)
        self.counters.refused[code] = self.counters.refused.get(code, 0) + 1
        self.telemetry.refused(request, status, code, now)
        return ToFrontend(
            request.frontend,
            wire.Refused(
                request=request.number,
                attempt=request.attempt,
                status=status,
                code=code,
                message=message,
                predicted_s=predicted_s,
                retry_after_s=retry_s,
            ),
        )

    def give_up(self, model: Model, requests: Iterable[Request], orders: list[Order], now: float) -> None:
        """These, which wait no longer, are refused so that others are in time."""
        for request in requests:
            text = "given up so that others are in time"
            orders.append(self.refuse(request, "rejected", "overload", text, now, retry_s=self._retry_s(model, now)))

    def _close(self, request: Request, *, in_time: bool, now: float) -> None:
        if not request.closed:
            request.closed = True
            self.open.pop((request.frontend, request.number), None)
            self.policy.ended(request, in_time, now)
            if request.admitted:
                self.containers.ended(request.ref, now)

    # -- too late to be served ----------------------------------------------------------------------------------------

    def expire(self, now: float, reach_s: float, orders: list[Order]) -> None:
        """Heads that have become hopeless are refused. Looked for now and again, not after every event.

        `reach_s`: devices were never busy for longer.
        """
        if now < self._expire_after_s or now + reach_s < self._first_hopeless_s:
            return
        self._expire_after_s = now + EXPIRE_EVERY_S
        first = float("inf")
        for model in list(self.state.active.values()):
            count = self.policy.expired(model, now) if model.ready else model.queue.before(now + DESERTED_S)
            for request in self.state.take_first(model, count) if count else ():
                code, text = "deadline", "it can no longer be served in time"
                if not model.ready and model.ref in self.fleet.contained:
                    code, text = "no_replica", self.fleet.reporting.why_no_replica(model.ref)
                retry_s = self._retry_s(model, now)
                orders.append(self.refuse(request, "rejected", code, text, now, retry_s=retry_s))
            if len(model.queue):
                first = min(first, self._hopeless_s(model, model.queue.first()))
        self._first_hopeless_s = first

    def expire_at(self) -> float:
        """When `expire` next has work, if requests wait."""
        return max(self._first_hopeless_s, self._expire_after_s)

    def _hopeless_s(self, model: Model, request: Request) -> float:
        """From when on the request is hopeless, if its devices are free by then; earlier, if they are not."""
        device = next(iter(model.hosts.values()), None) or next(iter(model.ready.values()), None)
        return request.deadline_s - (device.curves[model.ref].exec_s(1) if device is not None else DESERTED_S)

    def _retry_s(self, model: Model, now: float) -> float:
        """When the first of the model's devices has done what it has and what waits for it."""
        devices = model.hosts or model.ready
        ends = (device.exec.free_at(now) - now + device.backlog_s for device in devices.values())
        return max(RETRY_S_MIN, min(ends, default=RETRY_S))

    def check(self) -> None:
        """Every invariant holds."""
        waiting = {id(r) for model in self.state.models.values() for r in model.queue.requests[model.queue.head :]}
        bound = {id(r) for d in self.state.devices.values() for a in d.actions.values() for r in a.requests}
        opened = {id(request) for request in self.open.values()}
        assert not waiting & bound, "a request is both waiting and bound"
        assert waiting <= opened, "a request waits that has ended"
        assert opened <= waiting | bound, "a request is neither waiting nor bound"
