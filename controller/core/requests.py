"""The requests of a shard that have not ended: they wait, are bound, wait anew, and end in exactly one way. Pure.

A request ends in one of three ways: a worker sends its outputs, it is refused from here, or nothing is said because
its frontend is gone or gave it up.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice
from controller.core.failures import NOT_PREPARED
from controller.core.orders import Order, ToFrontend
from controller.core.policies.base import SchedulingPolicy
from controller.core.queues import Request
from controller.core.state import Model, ShardState
from controller.core.telemetry.totals import Counters, Telemetry
from controller.core.versions.reasons import RETRY_S, Reason, Reasons
from mesh import wire
from mesh.codes import ActionCode, AnswerStatus, ErrorCode, RequestOutcome

REJECTED, FAILED, OVERLOAD = AnswerStatus.REJECTED, AnswerStatus.FAILED, ErrorCode.OVERLOAD
OUTCOMES = {REJECTED: RequestOutcome.REJECTED, FAILED: RequestOutcome.FAILED}
RESTARTING = ActionCode.RESTARTING
ANSWERED = (RequestOutcome.IN_TIME, RequestOutcome.LATE, RequestOutcome.FAILED)  # with outputs that a worker had sent
EXPIRE_EVERY_S = 0.0005  # between two looks for requests that are hopeless
KEPT_LOOK_S = 0.05  # ... that the policy keeps nevertheless
UNREADY_S = 0.02  # a request whose model is ready nowhere is refused so long before its deadline
RETRY_S_MIN = 1e-3


@dataclass(slots=True)
class OpenRequests:
    """Every request that was admitted and has not ended."""

    state: ShardState
    policy: SchedulingPolicy
    reasons: Reasons
    counters: Counters
    telemetry: Telemetry
    return_allowance_s: float  # taken off every deadline
    open: dict[tuple[str, int], Request] = field(default_factory=dict)  # {(frontend, number): it}; others only read
    left_bound: bool = False  # one was given up that is bound to an action, which perhaps nobody waits for now
    _first_hopeless_s: float = math.inf  # no first request of a queue is hopeless before, even if devices are free
    _expire_after_s: float = 0.0  # queues are not looked through again before

    def uses(self, ref: str) -> bool:
        """Whether a request for this version has not ended: it waits, or is bound."""
        if self.state.is_asked(ref):
            return True
        for device in self.state.devices.values():
            for action in device.actions.values():
                if action.ref == ref and action.requests and not action.needless:
                    return True
        return False

    # -- waiting ------------------------------------------------------------------------------------------------------

    def admit(self, model: Model, request: Request, now: float) -> None:
        """The request is open, and waits for a batch."""
        self.open[request.frontend, request.number] = request
        self.wait(model, request, now)
        if model.delay is not None:
            model.delay.arrived(now)

    def retry(self, action: Action, code: str, message: str, orders: list[Order], now: float) -> None:
        """The action came to nothing: its requests wait anew. One whose time is too short expires from there."""
        self.retry_all(action.requests, code, message, orders, now)

    def retry_all(self, requests: Iterable[Request], code: str, message: str, orders: list[Order], now: float) -> None:
        """The action came to nothing for these requests, which wait anew."""
        for request in requests:
            if not request.closed:
                self._retry(request, code, message, orders, now)

    def _retry(self, request: Request, code: str, message: str, orders: list[Order], now: float) -> None:
        if request.answered is not None:
            self._abandon(request, request.answered, now)
            return
        request.tries += 1
        model = self.state.models.get(request.ref)
        never = self.reasons.never(request.ref)
        if never is not None:
            orders.append(self.reject(request, never, now))
        elif model is not None and request.tries - request.apart < self.policy.lead.tries and self._serves(model, code):
            self.wait(model, request, now)
        else:
            orders.append(self.refuse(request, FAILED, code, message, now))

    def _serves(self, model: Model, code: str) -> bool:
        if code in NOT_PREPARED and model.ref in self.reasons.versions:
            return True  # it is being prepared again
        return bool(model.ready) or (code == RESTARTING and self.comes_back(model.ref))

    def comes_back(self, ref: str) -> bool:
        """Whether the version's processes are started again of themselves, so that it is worth while to wait."""
        return ref in self.reasons.versions.contained

    def unserved(self, ref: str, orders: list[Order], now: float) -> None:
        """If no device can serve the version any more, all that waits for it is rejected with the reason."""
        model, never = self.state.models.get(ref), self.reasons.never(ref)
        if model is not None and never is not None:
            for request in self.state.take_first(model, len(model.queue)):
                orders.append(self.reject(request, never, now))

    def worker_lost(self, actions: Iterable[Action], orders: list[Order], now: float) -> None:
        """The worker is gone that had these actions, and had not begun them: their requests are planned again."""
        for action in actions:
            self.retry(action, ActionCode.WORKER_LOST, "its worker was lost, and no other can serve it", orders, now)

    def wait(self, model: Model, request: Request, now: float) -> None:
        """The request, which is open, waits for a batch; what is too late expires from there."""
        self.state.push(model, request)
        self.policy.arrived(model, request, now)
        self._first_hopeless_s = min(self._first_hopeless_s, self._hopeless_s(model, request))

    # -- endings ------------------------------------------------------------------------------------------------------

    def served(self, action: Action, device: RemoteDevice, result: wire.ActionResult, end_s: float, now: float) -> None:
        """The outputs of the action's requests were made, and ended at `end_s`."""
        for request in action.requests:
            if request.closed:
                self.counters.for_nobody(request.rows)
                continue
            in_time = end_s <= request.deadline_s + self.return_allowance_s
            self.counters.served(in_time)
            self._close(request, in_time, now)
            self.telemetry.served(request, action, device, result, end_s, in_time)

    def cancel(self, frontend: str, number: int, outcome: RequestOutcome, now: float) -> None:
        """Nobody waits for this request any more: it is dropped, without a word from here.

        One that is bound to an action ends with it; `left_bound` says that an action may be needless now. If it has
        ended already, what was told of it is amended; but that others of its parts are over changes nothing.
        """
        request = self.open.get((frontend, number))
        if request is not None and outcome in ANSWERED and _bound(request):
            request.answered = outcome  # the result of its batch is on the way
        elif request is not None:
            self._abandon(request, outcome, now)
        elif outcome is not RequestOutcome.WITHDRAWN:
            self.telemetry.amended(frontend, number, outcome)

    def frontend_lost(self, frontend: str, now: float) -> None:
        """Nobody waits for this frontend's requests any more."""
        for request in [request for request in self.open.values() if request.frontend == frontend]:
            self._abandon(request, RequestOutcome.FRONTEND_LOST, now)

    def _abandon(self, request: Request, outcome: RequestOutcome, now: float) -> None:
        model = self.state.models.get(request.ref)
        waited = model is not None and self.state.remove(model, request)
        self.left_bound = self.left_bound or not waited
        self.withdraw(request, outcome, now)

    def withdraw(self, request: Request, outcome: RequestOutcome, now: float) -> None:
        """The request, which waits nowhere, has ended without an answer. It counts as lost only if it was late."""
        self._close(request, None if now <= request.deadline_s else False, now)
        self.telemetry.abandoned(request, outcome, now)

    def reject(self, request: Request, reason: Reason, now: float) -> Order:
        """The request is rejected for this reason, whether it was admitted or not."""
        return self.refuse(request, REJECTED, reason.code, reason.message, now, retry_s=reason.retry_s)

    def refuse(
        self,
        request: Request,
        status: AnswerStatus,
        code: str,
        message: str,
        now: float,
        *,
        predicted_s: float | None = None,
        retry_s: float | None = None,
        alone: bool = False,
    ) -> Order:
        """The request is rejected or failed (`status`), whether it was admitted or not.

        `alone`: it was executed by itself, and that failed.
        """
        self._close(request, False, now)
        self.counters.refuse(code)
        self.telemetry.refused(request, OUTCOMES[status], code, now)
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
                alone=alone,
            ),
        )

    def untried(self, request: Request, now: float) -> Order:
        """The request was to be executed apart, and there was no time for that."""
        if request.apart:
            text = "its batch failed, perhaps because of another request, and there was no time to try it apart"
            return self.refuse(request, FAILED, ErrorCode.BATCH_FAILED, text, now)
        if request.group is None or request.group.owner is None:  # it was alone when its worker was lost
            return self.reject(request, self.reasons.too_late(request.ref, ready=True), now)
        text = "requests of its client have failed lately; it was to be executed apart, and there was no time for that"
        return self.refuse(request, REJECTED, ErrorCode.BATCH_FAILED, text, now)

    def give_up(self, model: Model, requests: Iterable[Request], orders: list[Order], now: float) -> None:
        """These requests, which wait no longer, are refused so that others are in time."""
        for request in requests:
            text = "given up so that others are in time"
            orders.append(self.refuse(request, REJECTED, OVERLOAD, text, now, retry_s=self._retry_s(model, now)))

    def _close(self, request: Request, in_time: bool | None, now: float) -> None:
        """The request has ended; it may have been refused at its arrival. `in_time`: None, if that was never seen."""
        if request.closed:
            return
        request.closed = True
        request.let_go()
        self.open.pop((request.frontend, request.number), None)
        if in_time is None:
            self.policy.withdrawn(request, now)
        else:
            self.policy.ended(request, in_time, now)
        if request.admitted:
            model = self.state.models.get(request.ref)
            if model is not None and model.delay is not None:
                model.delay.ended(now)

    # -- too late to be served ----------------------------------------------------------------------------------------

    def expire(self, now: float, reach_s: float, orders: list[Order]) -> None:
        """First requests of queues that have become hopeless are refused. It looks now and again, not at each event.

        `reach_s`: the longest time ahead that a device was ever busy.
        """
        if now < self._expire_after_s or now + reach_s < self._first_hopeless_s:
            return
        self._expire_after_s = now + EXPIRE_EVERY_S
        first = math.inf
        for model in list(self.state.active.values()):
            ready = bool(model.ready)
            if model.open and ready:
                first = min(first, self._expire_open(model, orders, now))
                continue
            count = self.policy.expired(model, now) if ready else model.queue.before(now + UNREADY_S)
            for request in self.state.take_first(model, count) if count else ():
                orders.append(self._too_late(model, request, now, ready=ready))
            if len(model.queue):
                head = model.queue.first()
                kept = ready and head.deadline_s <= now  # the policy lets it wait though it is late
                first = min(first, now + KEPT_LOOK_S if kept else self._hopeless_s(model, head))
        self._first_hopeless_s = first

    def _expire_open(self, model: Model, orders: list[Order], now: float) -> float:
        """Those of a model with open dimensions are not the first of its queue. Returns when to look again."""
        late = self.policy.hopeless(model, now)
        if late:
            self.state.take(model, late)
            orders.extend(self._too_late(model, request, now, ready=True) for request in late)
        start_s = model.queue.first_start_s()
        return start_s if start_s > now else now + KEPT_LOOK_S  # the policy lets some wait though they are late

    def _too_late(self, model: Model, request: Request, now: float, *, ready: bool) -> Order:
        """The refusal of a request that waits no longer, because it would be late."""
        if request.group is not None:
            return self.untried(request, now)
        reason = self.reasons.too_late(model.ref, ready=ready)
        retry_s = self._retry_s(model, now)
        return self.refuse(request, REJECTED, reason.code, reason.message, now, retry_s=retry_s)

    def expire_at(self) -> float:
        """When `expire` next has work, if requests wait."""
        return max(self._first_hopeless_s, self._expire_after_s)

    def _hopeless_s(self, model: Model, request: Request) -> float:
        """From when on the request is hopeless, if its devices are free by then; it is earlier if they are not."""
        if model.open and model.ready:
            return request.latest_s
        device = model.first_device
        if device is None:
            return request.deadline_s - UNREADY_S
        latest_s = request.deadline_s - device.curves[model.ref].exec_s(1)
        if request.kept_bytes:
            latest_s -= device.fetch.expected_s(device.far_bytes((request,)))
        return latest_s

    def _retry_s(self, model: Model, now: float) -> float:
        """How long until the first of the model's devices has done what it has and what waits for it."""
        devices = model.hosts or model.ready
        ends = (device.exec.free_at(now) - now + device.backlog_s for device in devices.values())
        return max(RETRY_S_MIN, min(ends, default=RETRY_S))

    def check(self) -> None:
        """Every invariant holds."""
        waiting = {id(r) for model in self.state.models.values() for r in model.queue.requests[model.queue.head :]}
        bound = {id(r) for d in self.state.devices.values() for a in d.actions.values() for r in a.requests}
        opened = {id(request) for request in self.open.values()}
        apart = {id(r) for model in self.state.models.values() for group in model.apart for r in group.requests}
        assert not waiting & bound, "a request is both waiting and bound"
        assert not apart & (waiting | bound), "a request waits apart that is waiting or bound, too"
        assert waiting | apart <= opened, "a request waits that has ended"
        assert opened <= waiting | apart | bound, "a request is neither waiting nor bound"
        used = {request.ref for request in self.open.values()}
        assert used == {ref for ref in {*self.state.models, *used} if self.uses(ref)}


def _bound(request: Request) -> bool:
    """Whether the open request is in an action that was sent: it waits neither in its queue nor apart."""
    return not request.waiting and (request.group is None or request not in request.group.requests)
