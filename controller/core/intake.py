"""Requests as they arrive: admitted, kept for a worker that may be on its way, or refused at once. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.core.batching import BlackBoxCurve
from controller.core.containers import Containers
from controller.core.fleet import Fleet
from controller.core.orders import Order
from controller.core.policies.base import Policy, Verdict
from controller.core.queues import Request
from controller.core.requests import RETRY_S, OpenRequests
from controller.core.state import Model, State
from controller.core.telemetry.totals import Counters
from mesh import wire


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A request that came before any worker that can serve it."""

    message: wire.Submit
    frontend: str
    tensors: Sequence[Any]
    sent_s: float


@dataclass(slots=True)
class Intake:
    """What is decided of a request at its arrival."""

    state: State
    policy: Policy
    fleet: Fleet
    containers: Containers
    requests: OpenRequests
    counters: Counters
    settled_s: float  # until then requests wait for workers, which may be on their way back from our predecessor
    slack_s: float  # part of every deadline kept for the way back to the client
    queue_max: int  # requests waiting; more are refused
    _early: list[Unsettled] = field(default_factory=list)  # requests that came before any worker, oldest first

    def __len__(self) -> int:
        """Requests that wait for a worker to come."""
        return len(self._early)

    def submit(
        self, message: wire.Submit, frontend: str, tensors: Sequence[Any], age_s: float, now: float
    ) -> list[Order]:
        """A request arrived, `age_s` after it was sent. Refused at once if it cannot be served in time."""
        requests = self.requests
        known = requests.open.get((frontend, message.request))
        if known is not None:
            known.attempt = max(known.attempt, message.attempt)
            return []
        self.counters.submitted += 1
        deadline_s = now + message.budget_s - age_s - self.slack_s
        request = Request(
            frontend, message.request, message.attempt, message.ref, message.rows,
            now - age_s, deadline_s, message.weight, tensors, message.frames > 0,
        )  # fmt: skip
        model = self.state.models.get(message.ref)
        if model is None or not model.ready:
            if now < self.settled_s and len(self._early) < self.queue_max:
                self._early.append(Unsettled(message, frontend, tensors, now - age_s))
                return []
            return [self._refuse_not_ready(request, now)]
        model.popularity.add(now)
        request.cold = not model.hosts
        if message.rows > model.spec.batch_max:
            text = f"{message.rows} rows are more than the largest batch, {model.spec.batch_max}"
            return [requests.refuse(request, "failed", "bad_batch", text, now)]
        if self.state.waiting >= self.queue_max:
            return [requests.refuse(request, "rejected", "queue_full", "too many requests wait", now, retry_s=0.05)]
        verdict = self.policy.admit(model, request, now)
        if verdict.code == "deadline" and self._doubts(model, request, now):
            verdict = self.policy.admit(model, request, now)
        request.predicted_s = verdict.predicted_s + age_s
        if not verdict.admitted:
            return [self._refuse_at_arrival(request, verdict, now)]
        requests.admit(model, request, now)
        return []

    def submit_early(self, now: float) -> list[Order]:
        """Requests that waited for a worker are taken or refused, if their worker came or the time for it is over."""
        orders: list[Order] = []
        early, self._early = self._early, []
        for waiting in early:
            model = self.state.models.get(waiting.message.ref)
            if now < self.settled_s and (model is None or not model.ready):
                self._early.append(waiting)
                continue
            self.counters.submitted -= 1  # it is counted once more
            orders.extend(self.submit(waiting.message, waiting.frontend, waiting.tensors, now - waiting.sent_s, now))
        return orders

    def frontend_lost(self, frontend: str) -> None:
        """Nobody waits for this frontend's requests any more."""
        self._early = [waiting for waiting in self._early if waiting.frontend != frontend]

    def _doubts(self, model: Model, request: Request, now: float) -> bool:
        """Whether an idle device's estimate, by which the request would be too late, is out of date."""
        found = self.containers.doubt(model, now)
        for device in model.hosts.values():
            curve = device.curves[model.ref]
            if not isinstance(curve, BlackBoxCurve) and not len(device.exec):
                left_s = request.deadline_s - device.start_s(model.ref, now)
                found = curve.doubt(min(request.rows, curve.rows_max), left_s, now) or found
        return found

    def _refuse_not_ready(self, request: Request, now: float) -> Order:
        ref = request.ref
        refuse = self.requests.refuse
        if ref not in self.fleet.wanted and ref not in self.fleet.draining:
            return refuse(request, "rejected", "not_deployed", f"{ref} is not deployed (any more)", now)
        if ref in self.fleet.contained:
            return refuse(
                request, "rejected", "no_replica", self.fleet.reporting.why_no_replica(ref), now, retry_s=RETRY_S
            )
        if not self.state.devices:
            return refuse(request, "rejected", "no_worker", "no worker is there", now, retry_s=RETRY_S)
        fault = self.fleet.reporting.why_unserved(ref)
        if fault:
            return refuse(request, "rejected", "not_ready", f"{ref} cannot be served: {fault}", now)
        return refuse(request, "rejected", "not_ready", f"{ref} is still being prepared", now, retry_s=RETRY_S)

    def _refuse_at_arrival(self, request: Request, verdict: Verdict, now: float) -> Order:
        left_ms = max(0.0, request.deadline_s - request.arrived_s + self.slack_s) * 1e3
        took = f"{request.predicted_s * 1e3:.1f} ms"
        took = f"{took} even alone" if verdict.code == "deadline" else f"up to {took} behind what runs and waits"
        text = (
            f"it would take {took}, and {self.slack_s * 1e3:.1f} ms for the way back; "
            f"{left_ms:.1f} ms of the budget are left"
        )
        return self.requests.refuse(
            request, "rejected", verdict.code, text, now, predicted_s=request.predicted_s, retry_s=verdict.retry_after_s
        )
