"""Requests as they arrive: admitted, kept for a worker that may be on its way, or refused at once. Pure."""

from dataclasses import dataclass, field

from controller.core.isolation.isolation import Isolation
from controller.core.orders import Order
from controller.core.policies.base import SchedulingPolicy, Verdict
from controller.core.queues import Request
from controller.core.requests import OpenRequests
from controller.core.state import Model, ShardState
from controller.core.telemetry.totals import Counters
from controller.core.versions.reasons import Reasons
from mesh import wire
from mesh.codes import ActionCode, AnswerStatus, ErrorCode, RequestOutcome
from mesh.sizes import Extents

REJECTED, DEADLINE, QUEUE_FULL = AnswerStatus.REJECTED, ErrorCode.DEADLINE, ErrorCode.QUEUE_FULL
QUEUE_FULL_RETRY_S = 0.05  # what a client is told when too many requests wait


@dataclass(frozen=True, slots=True)
class EarlyRequest:
    """A request that came before any worker that can serve it."""

    message: wire.Submit
    request: Request
    frontend: str
    hollow: bool
    sent_s: float


@dataclass(slots=True)
class Intake:
    """Decides about a request at its arrival."""

    state: ShardState
    policy: SchedulingPolicy
    reasons: Reasons
    requests: OpenRequests
    isolation: Isolation
    counters: Counters
    workers_come_until_s: float  # until then requests wait for workers, which may be on their way from our predecessor
    return_allowance_s: float  # part of every deadline kept for the way back to the client
    queue_max: int  # requests waiting; more are refused
    hosts: dict[str, str] = field(default_factory=dict)  # {frontend: its host}, those that are there
    _early: dict[tuple[str, int], EarlyRequest] = field(default_factory=dict)  # {(frontend, number): it}, oldest first

    def __len__(self) -> int:
        """Requests that wait for a worker to come."""
        return len(self._early)

    def submit(self, message: wire.Submit, frontend: str, hollow: bool, age_s: float, now: float) -> list[Order]:
        """A request arrived, `age_s` after it was sent. It is refused at once if it cannot be served in time.

        `hollow`: it has no inputs, as in a simulation.
        """
        requests = self.requests
        known = requests.open.get((frontend, message.request))
        if known is not None:
            known.attempt = max(known.attempt, message.attempt)
            return []
        self.counters.submitted += 1
        deadline_s = now + message.budget_s - age_s - self.return_allowance_s
        kept = message.kept
        request = Request(
            frontend, message.request, message.attempt, message.ref, message.rows,
            now - age_s, deadline_s, message.weight, message.extents, message.client,
            message.asked_id, message.call, message.inline, kept,
            self.hosts.get(frontend, "") if kept is not None else "",
        )  # fmt: skip
        model = self.state.models.get(message.ref)
        if model is None or not model.ready:
            if now < self.workers_come_until_s and len(self._early) < self.queue_max:
                key = frontend, message.request
                self.counters.submitted -= key in self._early  # it comes again
                self._early[key] = EarlyRequest(message, request, frontend, hollow, now - age_s)
                return []
            return [requests.reject(request, self.reasons.now(message.ref), now)]
        model.popularity.add(now)
        request.cold = not model.hosts
        if message.rows > model.spec.batch_max:
            text = f"{message.rows} rows are more than the largest batch, {model.spec.batch_max}"
            return [requests.refuse(request, AnswerStatus.FAILED, ActionCode.BAD_BATCH, text, now)]
        if model.open or message.extents:
            refused = self._refuse_extents(model, request, now)
            if refused is not None:
                return [refused]
        if not hollow and not model.fits(message):
            text = f"its inputs are not those of {message.rows} rows of {message.ref}"
            return [requests.refuse(request, AnswerStatus.FAILED, ActionCode.BAD_INPUT, text, now)]
        if self.isolation.watched:
            reason = self.isolation.refusal(request, now)
            if reason is not None:
                return [requests.reject(request, reason, now)]
        if self.state.waiting + self.state.waiting_apart >= self.queue_max:
            text = "too many requests wait"
            return [requests.refuse(request, REJECTED, QUEUE_FULL, text, now, retry_s=QUEUE_FULL_RETRY_S)]
        verdict = self.policy.admit(model, request, now)
        if verdict.code is DEADLINE and self._doubt(model, request, now):
            verdict = self.policy.admit(model, request, now)
        request.predicted_s = verdict.predicted_s + age_s
        if not verdict.admitted:
            return [self._refuse_at_arrival(request, verdict, now)]
        requests.admit(model, request, now)
        return []

    def _refuse_extents(self, model: Model, request: Request, now: float) -> Order | None:
        """The refusal of a request of extents that the model does not take, or that do not fit into any memory."""
        fault = model.extents_fault(request.extents)
        if fault:
            return self.requests.refuse(request, AnswerStatus.FAILED, ActionCode.BAD_INPUT, fault, now)
        most = max(device.curves[model.ref].alone_max(request.extents) for device in model.ready.values())
        if request.rows <= most:
            return None
        text = f"{request.rows} rows with {sizes_text(model.spec, request.extents)} do not fit; at most {most} do"
        return self.requests.refuse(request, AnswerStatus.FAILED, ActionCode.BAD_BATCH, text, now)

    def submit_early(self, now: float) -> list[Order]:
        """Requests that waited for a worker are taken or refused, if their worker came or the time for it is over."""
        orders: list[Order] = []
        early, self._early = self._early, {}
        for key, waiting in early.items():
            model = self.state.models.get(waiting.message.ref)
            if now < self.workers_come_until_s and (model is None or not model.ready):
                self._early[key] = waiting
                continue
            self.counters.submitted -= 1  # `submit` counts it once more
            orders.extend(self.submit(waiting.message, waiting.frontend, waiting.hollow, now - waiting.sent_s, now))
        return orders

    def cancel(self, frontend: str, number: int, outcome: RequestOutcome, now: float) -> bool:
        """A request that waits for a worker to come is dropped. Returns False if there is none of this number."""
        waiting = self._early.pop((frontend, number), None)
        if waiting is None:
            return False
        self.requests.withdraw(waiting.request, outcome, now)
        return True

    def frontend_lost(self, frontend: str, now: float) -> None:
        """Nobody waits for this frontend's requests any more."""
        self.hosts.pop(frontend, None)
        for key in [key for key in self._early if key[0] == frontend]:
            self.requests.withdraw(self._early.pop(key).request, RequestOutcome.FRONTEND_LOST, now)

    def _doubt(self, model: Model, request: Request, now: float) -> bool:
        """Whether some device's estimate, by which the request would be too late, was out of date and is lowered."""
        return any([device.doubt(request, now) for device in model.ready.values()])

    def _refuse_at_arrival(self, request: Request, verdict: Verdict, now: float) -> Order:
        assert verdict.code is not None
        left_ms = max(0.0, request.deadline_s - request.arrived_s + self.return_allowance_s) * 1e3
        took = f"{request.predicted_s * 1e3:.1f} ms"
        took = f"{took} even alone" if verdict.code is DEADLINE else f"up to {took} behind what runs and waits"
        text = (
            f"it would take {took}, and {self.return_allowance_s * 1e3:.1f} ms for the way back; "
            f"{left_ms:.1f} ms of the budget are left"
        )
        return self.requests.refuse(
            request, REJECTED, verdict.code, text, now, predicted_s=request.predicted_s, retry_s=verdict.retry_after_s
        )


def sizes_text(spec: wire.ModelSpec, extents: Extents) -> str:
    """The extents as a person reads them: "h 480, w 640"."""
    return ", ".join(f"{dim.name} {extent}" for dim, extent in zip(spec.dims, extents, strict=True))
