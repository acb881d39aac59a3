"""The scheduler: events in, orders out. The same object runs in production and on the simulator's virtual time. Pure.

Events are noted as they come; `wake` decides, once for all that has come. Every request that is submitted ends in
exactly one of: outputs sent by a worker, a refusal sent from here, or silence towards a frontend that is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from broker import wire
from controller.actions import Actions
from controller.fleet import Fleet
from controller.orders import Order, ToFrontend
from controller.policies.base import Batch, LoadPlan, Policy
from controller.queues import Request
from controller.state import Action, Device, State

TRIES_MAX = 3  # actions that may take a request up; then it is failed
SETTLE_S = 3.0  # after the start: requests wait for workers, which may be on their way back from our predecessor
PREPARE_S = 0.1  # between looks whether there is slack for measuring
WAKE_S_MIN = 50e-6  # between decisions that no event causes


@dataclass(frozen=True, slots=True)
class Parameters:
    """What can be set of the scheduler. docs/operations.md says where the values come from."""

    lead_s: float = 0.0015  # a device gets its next batch this long before it comes free
    depth: int = 2  # batches at a device
    loads: int = 1  # LOADs at a device
    slack_s: float = 0.001  # part of every deadline kept for the way back to the client
    queue_max: int = 20_000  # requests waiting; more are refused


@dataclass(slots=True)
class Counters:
    """Totals since the start, for status."""

    submitted: int = 0
    in_time: int = 0
    late: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # {code: count}
    batches: int = 0
    batched_rows: int = 0
    loads: int = 0
    unloads: int = 0
    failed_actions: dict[str, int] = field(default_factory=dict)  # {code: count}


@dataclass(frozen=True, slots=True)
class Early:
    """A request that came before any worker that can serve it."""

    message: wire.Submit
    frontend: str
    tensors: Sequence[Any]
    sent_s: float


class Scheduler:
    """One shard: its devices, its models, its requests."""

    def __init__(
        self,
        policy: Policy,
        state: State,
        parameters: Parameters | None = None,
        *,
        name: str = "",
        started_s: float = 0.0,
    ) -> None:
        self.policy = policy
        self.state = state
        self.parameters = parameters or Parameters()
        self.counters = Counters()
        self._actions = Actions()
        self.fleet = Fleet(state, self._actions, name)
        self._settled_s = started_s + SETTLE_S
        self._early: list[Early] = []  # requests that came before any worker, oldest first
        self._requests: dict[tuple[str, int], Request] = {}  # {(frontend, number): request}, every one not ended
        self._now = 0.0  # of the last wake

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests) + len(self._early)

    # -- events: requests ---------------------------------------------------------------------------------------------

    def submit(
        self, message: wire.Submit, frontend: str, tensors: Sequence[Any], *, age_s: float, now: float
    ) -> list[Order]:
        """A request arrived, `age_s` after it was sent. Refused at once if it cannot be served in time."""
        key = (frontend, message.request)
        known = self._requests.get(key)
        if known is not None:
            known.attempt = max(known.attempt, message.attempt)
            return []
        self.counters.submitted += 1
        deadline_s = now + message.budget_s - age_s - self.parameters.slack_s
        request = Request(
            frontend, message.request, message.attempt, message.ref, message.rows,
            now - age_s, deadline_s, message.weight, tensors, message.frames > 0,
        )  # fmt: skip
        model = self.state.models.get(message.ref)
        if model is None or not model.ready:
            if now < self._settled_s and len(self._early) < self.parameters.queue_max:
                self._early.append(Early(message, frontend, tensors, now - age_s))
                return []
            return [self._refuse_not_ready(request)]
        model.popularity.add(now)
        if message.rows > model.spec.batch_max:
            text = f"{message.rows} rows are more than the largest batch, {model.spec.batch_max}"
            return [self._refuse(request, "failed", "bad_batch", text)]
        if self.state.waiting >= self.parameters.queue_max:
            return [self._refuse(request, "rejected", "queue_full", "too many requests wait", None, 0.05)]
        verdict = self.policy.admit(model, request, now)
        request.predicted_s = verdict.predicted_s + age_s
        if not verdict.admitted:
            self.policy.answered(1, 0, now)
            return [self._refuse_at_arrival(request, verdict.code, request.predicted_s, verdict.retry_after_s)]
        self._requests[key] = request
        self.state.push(model, request)
        return []

    def cancel(self, frontend: str, number: int) -> None:
        """Nobody waits for this request any more: if it still waits for its batch it is dropped, without an answer."""
        request = self._requests.get((frontend, number))
        if request is not None and self.state.remove(self.state.models[request.ref], request):
            self._close(request)

    # -- events: peers ------------------------------------------------------------------------------------------------

    def frontend_joined(self, frontend: str) -> list[Order]:
        """A frontend is there."""
        return self.fleet.frontend_joined(frontend)

    def frontend_lost(self, frontend: str) -> None:
        """A frontend is gone, and so is everybody who waited there."""
        self.fleet.frontends.pop(frontend, None)
        self._early = [waiting for waiting in self._early if waiting.frontend != frontend]
        for key, request in list(self._requests.items()):
            if key[0] == frontend:
                self.state.remove(self.state.models[request.ref], request)
                self._close(request)

    def worker_joined(self, hello: wire.WorkerHello, *, now: float) -> list[Order]:
        """A worker is there, with what it has prepared and loaded."""
        actions, orders = self.fleet.leave(hello.member)
        orders.extend(self.fleet.join(hello, now=now))
        self._plan_again(actions, orders, now)
        orders.extend(self._submit_early(now))
        return orders

    def worker_leaving(self, worker: str) -> list[Order]:
        """A worker finishes what it has and takes nothing more."""
        return self.fleet.leaving(worker)

    def worker_lost(self, worker: str, *, now: float) -> list[Order]:
        """A worker is gone: what it had is planned again where time allows, and failed where not."""
        actions, orders = self.fleet.leave(worker)
        self._plan_again(actions, orders, now)
        return orders

    def prepared(self, worker: str, report: wire.Prepared, *, now: float) -> list[Order]:
        """A worker says how far a version is."""
        return [*self.fleet.prepared(worker, report), *self._submit_early(now)]

    def clock(self, worker: str, offset_s: float) -> None:
        """The worker's clock is ahead of ours by so much."""
        device = self.state.devices.get(worker)
        if device is not None:
            device.offset_s = offset_s

    def want(self, refs: list[str]) -> list[Order]:
        """These versions are to be ready; others are let go when their last request has ended."""
        return self.fleet.want(refs, self._still_used)

    def _submit_early(self, now: float) -> list[Order]:
        """Requests that waited for a worker are taken or refused, if their worker came or the time for it is over."""
        orders: list[Order] = []
        early, self._early = self._early, []
        for waiting in early:
            model = self.state.models.get(waiting.message.ref)
            if now < self._settled_s and (model is None or not model.ready):
                self._early.append(waiting)
                continue
            self.counters.submitted -= 1  # it is counted once more
            age_s = now - waiting.sent_s
            orders.extend(self.submit(waiting.message, waiting.frontend, waiting.tensors, age_s=age_s, now=now))
        return orders

    # -- events: results ----------------------------------------------------------------------------------------------

    def result(self, worker: str, result: wire.ActionResult, *, now: float) -> list[Order]:
        """An action has ended, one way or another."""
        device = self.state.devices.get(worker)
        action = device.actions.pop(result.action, None) if device is not None else None
        if device is None or action is None:
            return []  # of an earlier life of ours, or taken for lost
        orders: list[Order] = []
        if result.code != "ok":
            counts = self.counters.failed_actions
            counts[result.code] = counts.get(result.code, 0) + 1
        if action.kind == "infer":
            self._inferred(device, action, result, orders, now)
        elif action.kind == "load":
            self._loaded(device, action, result, now)
        return orders

    def _inferred(
        self, device: Device, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> None:
        end_s = now if result.end_s is None else min(now, result.end_s - device.offset_s)
        device.exec.ended(action.id, end_s)
        place = device.residency.models.get(action.ref)
        if place is not None and place.bound:
            place.bound -= 1
        duration_s = result.duration_s if result.code == "ok" else None
        if not action.requests:
            self.fleet.preparations[device.worker].measured(action.ref, action.batch, duration_s, now)
            return
        if duration_s is None:
            self._infer_failed(device, action, result, orders, now)
            return
        curve = device.curves.get(action.ref)
        if curve is not None:
            curve.learn(action.batch, duration_s)
        if result.begin_s is not None:
            self._learn_dispatch(device, action, result.begin_s - device.offset_s)
        in_time = sum(end_s <= request.deadline_s + self.parameters.slack_s for request in action.requests)
        self.policy.answered(len(action.requests), in_time, now)
        self.counters.in_time += in_time
        self.counters.late += len(action.requests) - in_time
        for request in action.requests:
            self._close(request)

    def _learn_dispatch(self, device: Device, action: Action, begin_s: float) -> None:
        """How long after sending EXEC began, where nothing but the way there was planned to delay it."""
        planned_s = action.expected_end_s - action.expected_s - action.sent_s
        if planned_s <= device.dispatch.value_s * 1.5:
            device.dispatch.learn(max(0.0, begin_s - action.sent_s))

    def _infer_failed(
        self, device: Device, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> None:
        if result.code in ("weights_missing", "unknown_model", "wrong_version"):
            self.fleet.not_resident(device, action.ref)
        final = result.code in ("device_error", "bad_input", "bad_batch")
        for request in action.requests:
            if final:
                self.policy.answered(1, 0, now)
                orders.append(self._refuse(request, "failed", result.code, result.message))
            else:
                self._again(request, result.code, result.message, orders, now)

    def _loaded(self, device: Device, action: Action, result: wire.ActionResult, now: float) -> None:
        end_s = now if result.end_s is None else min(now, result.end_s - device.offset_s)
        device.load.ended(action.id, end_s)
        device.room_for_more = True
        if result.code == "ok":
            estimate = device.loads.get(action.ref)
            if device.residency.loaded(action.ref, action.id, end_s) and estimate and result.duration_s is not None:
                estimate.learn(result.duration_s)
        elif result.code != "already_loaded":
            self.fleet.not_resident(device, action.ref)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def wake(self, *, now: float) -> list[Order]:
        """Everything that is to be decided by now is. Calling early is harmless."""
        self._now = now
        orders: list[Order] = []
        if self._early and now >= self._settled_s:
            orders.extend(self._submit_early(now))
        if self.state.waiting:
            self._expire(now, orders)
        for device in self.state.devices.values():
            if device.actions and now >= next(iter(device.actions.values())).overdue_s:
                self._lose_overdue(device, now, orders)
            if device.leaving:
                continue
            if device.waiting:
                self._fill_exec(device, now, orders)
            if self.state.homeless or device.room_for_more:
                self._fill_load(device, now, orders)
            if not self.fleet.preparations[device.worker].complete:
                self.fleet.prepare(device, now, orders)
        if self.fleet.draining:
            orders.extend(self.fleet.drain(self._still_used))
        return orders

    def wake_at(self) -> float | None:
        """When `wake` next has work that no event will cause."""
        times = []
        for device in self.state.devices.values():
            if device.actions:
                times.append(next(iter(device.actions.values())).overdue_s)
                if device.waiting and len(device.exec) < self.parameters.depth:
                    times.append(device.exec.free_at(self._now) - self.parameters.lead_s)
            elif not self.fleet.preparations[device.worker].complete:
                times.append(self._now + PREPARE_S)
        if self.state.waiting:
            times.append(self._next_expiry())
        if self._early:
            times.append(self._settled_s)
        policy_s = self.policy.wake_at(self._now)
        if policy_s is not None:
            times.append(policy_s)
        return max(min(times), self._now + WAKE_S_MIN) if times else None

    def _next_expiry(self) -> float:
        """When the first of the heads may have become hopeless: a lower bound, checked again then."""
        first = float("inf")
        for model in self.state.active.values():
            device = next(iter(model.hosts.values()), None) or next(iter(model.ready.values()), None)
            alone_s = device.curves[model.ref].exec_s(1) if device is not None else 0.0
            first = min(first, model.queue.first().deadline_s - alone_s)
        return first

    def _expire(self, now: float, orders: list[Order]) -> None:
        for model in list(self.state.active.values()):
            count = self.policy.expired(model, now) if model.ready else model.queue.before(now)
            for request in self.state.take(model, count) if count else ():
                self.policy.answered(1, 0, now)
                orders.append(self._refuse(request, "rejected", "deadline", "it can no longer be served in time"))

    def _fill_exec(self, device: Device, now: float, orders: list[Order]) -> None:
        while len(device.exec) < self.parameters.depth:
            if len(device.exec) and device.exec.free_at(now) - now > self.parameters.lead_s:
                return
            batch = self.policy.choose(device, now)
            if batch is None:
                return
            self._send_batch(device, batch, now, orders)

    def _send_batch(self, device: Device, batch: Batch, now: float, orders: list[Order]) -> None:
        model = batch.model
        taken = self.state.take(model, batch.skip + batch.count)
        for request in taken[: batch.skip]:
            self.policy.answered(1, 0, now)
            orders.append(self._refuse(request, "rejected", "overload", "given up so that others are in time"))
        order = self._actions.infer(
            device,
            model.ref,
            device.curves[model.ref].padded(batch.rows),
            taken[batch.skip :],
            start_s=batch.start_s,
            expected_s=batch.expected_s,
            latest_s=batch.latest_s,
            now=now,
        )
        device.busy_until_s = device.exec.free_at(now)
        self.counters.batches += 1
        self.counters.batched_rows += batch.rows
        orders.append(order)

    def _fill_load(self, device: Device, now: float, orders: list[Order]) -> None:
        while len(device.load) < self.parameters.loads:
            plan = self.policy.choose_load(device, now)
            if plan is None:
                device.room_for_more = device.room_for_more and len(device.load) > 0
                return
            self._send_load(device, plan, now, orders)

    def _send_load(self, device: Device, plan: LoadPlan, now: float, orders: list[Order]) -> None:
        for ref in plan.evict:
            self.fleet.unload(device, ref, now, orders)
            self.counters.unloads += 1
        ref = plan.model.ref
        orders.append(self._actions.load(device, ref, expected_s=device.loads[ref].load_s(), now=now))
        self.state.add_host(plan.model, device)
        self.counters.loads += 1

    def _lose_overdue(self, device: Device, now: float, orders: list[Order]) -> None:
        for action in list(device.actions.values()):
            if now >= action.overdue_s:
                text = f"no result for {now - action.sent_s:.1f} s"
                lost = wire.ActionResult(
                    action=action.id, kind=action.kind, code="lost", received_s=now, free_pages=0, message=text
                )
                orders.extend(self.result(device.worker, lost, now=now))

    # -- endings ------------------------------------------------------------------------------------------------------

    def _still_used(self, ref: str) -> bool:
        return any(request.ref == ref for request in self._requests.values())

    def _plan_again(self, actions: list[Action], orders: list[Order], now: float) -> None:
        for action in actions:
            for request in action.requests:
                self._again(request, "worker_lost", "its worker was lost, and no other can serve it", orders, now)

    def _again(self, request: Request, code: str, message: str, orders: list[Order], now: float) -> None:
        """The request's action came to nothing: it waits anew; if time is too short, it expires from there."""
        if request.closed:
            return
        request.tries += 1
        model = self.state.models.get(request.ref)
        if request.tries >= TRIES_MAX or model is None or not model.ready:
            self.policy.answered(1, 0, now)
            orders.append(self._refuse(request, "failed", code, message))
            return
        self.state.push(model, request)

    def _refuse_not_ready(self, request: Request) -> Order:
        ref = request.ref
        if ref not in self.fleet.wanted and ref not in self.fleet.draining:
            return self._refuse(request, "rejected", "not_deployed", f"{ref} is not deployed (any more)")
        if not self.state.devices:
            return self._refuse(request, "rejected", "no_worker", "no worker is there", None, 1.0)
        return self._refuse(request, "rejected", "not_ready", f"{ref} is still being prepared", None, 1.0)

    def _refuse_at_arrival(self, request: Request, code: str, predicted_s: float, retry_s: float | None) -> Order:
        budget_ms = (request.deadline_s - request.arrived_s + self.parameters.slack_s) * 1e3
        why = "even alone" if code == "deadline" else "behind what waits"
        text = f"it would take {predicted_s * 1e3:.1f} ms {why}; the budget is {budget_ms:.1f} ms"
        return self._refuse(request, "rejected", code, text, predicted_s, retry_s)

    def _refuse(
        self,
        request: Request,
        status: str,
        code: str,
        message: str,
        predicted_s: float | None = None,
        retry_s: float | None = None,
    ) -> Order:
        self._close(request)
        self.counters.refused[code] = self.counters.refused.get(code, 0) + 1
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

    def _close(self, request: Request) -> None:
        request.closed = True
        self._requests.pop((request.frontend, request.number), None)

    def check(self) -> None:
        """Every invariant holds."""
        self.state.check()
        self.fleet.check()
        waiting = {id(r) for model in self.state.models.values() for r in model.queue.requests[model.queue.head :]}
        bound = {id(r) for d in self.state.devices.values() for a in d.actions.values() for r in a.requests}
        opened = {id(request) for request in self._requests.values()}
        assert not waiting & bound, "a request is both waiting and bound"
        assert waiting <= opened, "a request waits that has ended"
        assert opened <= waiting | bound, "a request is neither waiting nor bound"
