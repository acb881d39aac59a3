"""The scheduler: events in, orders out. The same object runs in production and on the simulator's virtual time. Pure.

Events are noted as they come; `wake` decides, once for all that has come. Every request that is submitted ends in
exactly one of: outputs sent by a worker, a refusal sent from here, or silence towards a frontend that is gone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from broker import wire
from controller.actions import Actions
from controller.batching import BlackBoxCurve
from controller.containers import Containers
from controller.fleet import Fleet
from controller.orders import Order, ToFrontend
from controller.policies.base import Batch, LoadPlan, Policy, Verdict
from controller.queues import Request
from controller.state import Action, Device, Model, State
from controller.telemetry import Telemetry

SETTLE_S = 3.0  # after the start: requests wait for workers, which may be on their way back from our predecessor
EXPIRE_EVERY_S = 0.0005  # between looks for hopeless heads
DESERTED_S = 0.02  # before its deadline a request of a model that is ready nowhere is told so
PREPARE_S = 0.1  # between looks whether there is slack for measuring
RETRY_S = 1.0  # what is told where nothing better is known
RETRY_S_MIN = 1e-3
STUCK_LOOK_S = 0.001  # between looks at a container that may be past its expected end for long
LOOK_EVERY_S = 0.005  # between looks whether a device should have another model, though no request waits for that
WAKE_S_MIN = 50e-6  # between decisions that no event causes


@dataclass(frozen=True, slots=True)
class Parameters:
    """What can be set of the scheduler. docs/operations.md says where the values come from."""

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
        self.telemetry = Telemetry(self.parameters.slack_s)
        self._actions = Actions()
        self.fleet = Fleet(state, self._actions, name)
        self._containers = Containers(state)
        self._settled_s = started_s + SETTLE_S
        self._early: list[Early] = []  # requests that came before any worker, oldest first
        self._requests: dict[tuple[str, int], Request] = {}  # {(frontend, number): request}, every one not ended
        self._now = 0.0  # of the last wake
        self._load_sent = False  # then: what waited for it can be sent behind it
        self._first_hopeless_s = float("inf")  # no head becomes hopeless before, on devices that are free
        self._reach_s = 0.0  # how far ahead devices were ever busy
        self._expire_after_s = 0.0  # heads are not looked through again before

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
            return [self._refuse_not_ready(request, now)]
        model.popularity.add(now)
        request.cold = not model.hosts
        if message.rows > model.spec.batch_max:
            text = f"{message.rows} rows are more than the largest batch, {model.spec.batch_max}"
            return [self._refuse(request, "failed", "bad_batch", text, now)]
        if self.state.waiting >= self.parameters.queue_max:
            return [self._refuse(request, "rejected", "queue_full", "too many requests wait", now, retry_s=0.05)]
        verdict = self.policy.admit(model, request, now)
        if verdict.code == "deadline" and self._doubts(model, request, now):
            verdict = self.policy.admit(model, request, now)
        request.predicted_s = verdict.predicted_s + age_s
        if not verdict.admitted:
            return [self._refuse_at_arrival(request, verdict, now)]
        self._requests[key] = request
        self._wait(model, request, now)
        return []

    def _wait(self, model: Model, request: Request, now: float) -> None:
        self.state.push(model, request)
        self.policy.arrived(model, request, now)
        if not request.tries:
            self._containers.arrived(model.ref, now)
        self._first_hopeless_s = min(self._first_hopeless_s, self._hopeless_s(model, request))

    def cancel(self, frontend: str, number: int, *, now: float) -> None:
        """Nobody waits for this request any more: it is dropped, or ends with its batch, without a word from here."""
        request = self._requests.get((frontend, number))
        model = self.state.models.get(request.ref) if request is not None else None
        if request is not None:
            if model is not None:
                self.state.remove(model, request)
            self._close(request, in_time=False, now=now)
            self.telemetry.abandoned(request, "cancelled", now)

    # -- events: peers ------------------------------------------------------------------------------------------------

    def frontend_joined(self, frontend: str) -> list[Order]:
        """A frontend is there."""
        return self.fleet.frontend_joined(frontend)

    def frontend_lost(self, frontend: str, *, now: float) -> None:
        """A frontend is gone, and so is everybody who waited there."""
        self.fleet.frontends.pop(frontend, None)
        self._early = [waiting for waiting in self._early if waiting.frontend != frontend]
        for key, request in list(self._requests.items()):
            if key[0] == frontend:
                model = self.state.models.get(request.ref)
                if model is not None:
                    self.state.remove(model, request)
                self._close(request, in_time=False, now=now)
                self.telemetry.abandoned(request, "frontend_lost", now)

    def worker_joined(self, hello: wire.WorkerHello, *, now: float) -> list[Order]:
        """A worker is there, with what it has prepared and loaded."""
        actions, orders = self._leave(hello.member, now)
        orders.extend(self.fleet.join(hello, now=now))
        self._plan_again(actions, orders, now)
        orders.extend(self._submit_early(now))
        return orders

    def worker_leaving(self, worker: str) -> list[Order]:
        """A worker finishes what it has and takes nothing more."""
        return self.fleet.leaving(worker)

    def worker_lost(self, worker: str, *, now: float) -> list[Order]:
        """A worker is gone: what it had is planned again where time allows, and failed where not."""
        actions, orders = self._leave(worker, now)
        self._plan_again(actions, orders, now)
        return orders

    def _leave(self, worker: str, now: float) -> tuple[list[Action], list[Order]]:
        device = self.state.devices.get(worker)
        actions, orders = self.fleet.leave(worker)
        if device is not None:
            self.telemetry.lost(device, actions, waiting=self.state.waiting, now=now)
        return actions, orders

    def prepared(self, worker: str, report: wire.Prepared, *, now: float) -> list[Order]:
        """A worker says how far a version is."""
        return [*self.fleet.prepared(worker, report), *self._submit_early(now)]

    def clock(self, worker: str, offset_s: float) -> None:
        """The worker's clock is ahead of ours by so much."""
        device = self.state.devices.get(worker)
        if device is not None:
            device.offset_s = offset_s

    def want(self, refs: list[str], contained: Sequence[str] = (), *, now: float) -> list[Order]:
        """These versions are to be ready; others are let go when their last request has ended.

        `contained`: those of them that containers serve.
        """
        return self.fleet.want(refs, self._still_used, contained, now=now)

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
        action = device.actions.get(result.action) if device is not None else None
        if device is None or action is None or action.kind != result.kind:
            return []  # of an earlier life of ours, or taken for lost
        del device.actions[action.id]
        orders: list[Order] = []
        in_time = self.counters.in_time
        if result.code != "ok":
            counts = self.counters.failed_actions
            counts[result.code] = counts.get(result.code, 0) + 1
        if action.kind == "infer":
            self._inferred(device, action, result, orders, now)
        elif action.kind == "load":
            self._loaded(device, action, result, now)
        in_time = self.counters.in_time - in_time
        self.telemetry.ended(device, action, result, in_time=in_time, waiting=self.state.waiting, now=now)
        return orders

    def _inferred(
        self, device: Device, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> None:
        end_s = now if result.end_s is None else min(now, result.end_s - device.offset_s)
        device.exec.ended(action.id, end_s)
        if action.place is not None:
            action.place.bound -= 1
        if result.code in ("weights_missing", "unknown_model", "wrong_version") and self._in_place(device, action):
            self.fleet.not_resident(device, action.ref)
        duration_s = result.duration_s if result.code == "ok" else None
        if not action.requests:
            self.fleet.preparations[device.worker].measured(action.ref, action.batch, duration_s, now)
            return
        if duration_s is None:
            self._infer_failed(device, action, result, orders, now)
            return
        curve = device.curves.get(action.ref)
        if curve is not None:
            device.pace.seen(result.clock_mhz)
            error = curve.learn(action.batch, duration_s)
            curve.learned_s = now
            device.noise.learn(max(0.0, error))
        if result.begin_s is not None:
            self._learn_dispatch(device, action, result.begin_s - device.offset_s)
        model = self.state.models.get(action.ref)
        if model is not None:
            self.policy.completed(device, model, action.requests, now)
        for request in action.requests:
            if request.closed:
                continue
            in_time = end_s <= request.deadline_s + self.parameters.slack_s
            if in_time:
                self.counters.in_time += 1
            else:
                self.counters.late += 1
            self._close(request, in_time=in_time, now=now)
            self.telemetry.served(request, action, device, result, end_s, in_time)

    def _learn_dispatch(self, device: Device, action: Action, begin_s: float) -> None:
        """How long after sending EXEC began, where nothing but the way there was planned to delay it."""
        planned_s = action.expected_end_s - action.expected_s - action.sent_s
        if planned_s <= device.dispatch.value_s * 1.5:
            device.dispatch.learn(max(0.0, begin_s - action.sent_s))

    def _in_place(self, device: Device, action: Action) -> bool:
        """The model is where it was when the action was sent: it has not left and come again since."""
        return device.residency.models.get(action.ref) is action.place

    def _infer_failed(
        self, device: Device, action: Action, result: wire.ActionResult, orders: list[Order], now: float
    ) -> None:
        final = result.code in ("device_error", "model_error", "bad_input", "bad_batch")
        for request in action.requests:
            if request.closed:
                continue
            if final:
                orders.append(self._refuse(request, "failed", result.code, result.message, now))
            else:
                self._again(request, result.code, result.message, orders, now)

    def _loaded(self, device: Device, action: Action, result: wire.ActionResult, now: float) -> None:
        end_s = now if result.end_s is None else min(now, result.end_s - device.offset_s)
        device.load.ended(action.id, end_s)
        device.room_for_more = True
        place = device.residency.models.get(action.ref)
        if result.code in ("ok", "already_loaded"):
            device.load_faults.pop(action.ref, None)
            estimate = device.loads.get(action.ref)
            if device.residency.loaded(action.ref, action.id, end_s) and estimate and result.duration_s is not None:
                estimate.learn(result.duration_s)
        elif place is not None and place.loading == action.id:
            device.load_failed(action.ref, now)
            self.fleet.not_resident(device, action.ref)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def wake(self, *, now: float) -> list[Order]:
        """Everything that is to be decided by now is. Calling early is harmless."""
        self._now = now
        self._load_sent = False
        orders: list[Order] = []
        if self._early and now >= self._settled_s:
            orders.extend(self._submit_early(now))
        if self.state.waiting and now >= self._expire_after_s and now + self._reach_s >= self._first_hopeless_s:
            self._expire(now, orders)
        for device in self.state.devices.values():
            if now >= device.overdue_s:
                self._lose_overdue(device, now, orders)
            if device.leaving:
                continue
            if device.waiting:
                self._fill_exec(device, now, orders)
            if self.state.homeless or device.room_for_more or self._looks_for_load(device, now):
                self._fill_load(device, now, orders)
            if not self.fleet.preparations[device.worker].complete:
                self.fleet.prepare(device, now, orders)
        if self.fleet.draining:
            orders.extend(self.fleet.drain(self._still_used, now))
        return orders

    def wake_at(self) -> float | None:
        """When `wake` next has work that no event will cause."""
        times = [self._now] if self._load_sent else []
        for device in self.state.devices.values():
            if device.actions:
                times.append(device.overdue_s)
                if device.waiting and len(device.exec) < self.policy.window.depth:
                    at_s = device.exec.free_at(self._now) - self.policy.window.lead_of(device)
                    if device.info.container:
                        times.append(max(at_s, self._now + STUCK_LOOK_S))
                    elif at_s > self._now:  # else the policy was asked just now, and had nothing
                        times.append(at_s)
            elif not self.fleet.preparations[device.worker].complete:
                times.append(self._now + PREPARE_S)
        if self.state.waiting:
            times.append(max(self._first_hopeless_s, self._expire_after_s))
        if self._early:
            times.append(self._settled_s)
        if self.state.homeless:
            retries = [fault.retry_s for d in self.state.devices.values() for fault in d.load_faults.values()]
            times += [retry_s for retry_s in retries if retry_s > self._now]
        times += [until_s for until_s in self.fleet.draining.values() if until_s > self._now]
        policy_s = self.policy.wake_at(self._now)
        if policy_s is not None:
            times.append(policy_s)
        gathered_s = self._containers.wake_at()
        if gathered_s is not None:
            times.append(gathered_s)
        return max(min(times), self._now + WAKE_S_MIN) if times else None

    def _expire(self, now: float, orders: list[Order]) -> None:
        """Heads that have become hopeless are refused. Looked for now and again, not after every event."""
        self._expire_after_s = now + EXPIRE_EVERY_S
        first = float("inf")
        for model in list(self.state.active.values()):
            count = self.policy.expired(model, now) if model.ready else model.queue.before(now + DESERTED_S)
            for request in self.state.take_first(model, count) if count else ():
                code, text = "deadline", "it can no longer be served in time"
                if not model.ready and model.ref in self.fleet.contained:
                    code, text = "no_replica", self.fleet.why_no_replica(model.ref)
                retry_s = self._retry_s(model, now)
                orders.append(self._refuse(request, "rejected", code, text, now, retry_s=retry_s))
            if len(model.queue):
                first = min(first, self._hopeless_s(model, model.queue.first()))
        self._first_hopeless_s = first

    def _hopeless_s(self, model: Model, request: Request) -> float:
        """From when on the request is hopeless, if its devices are free by then; earlier, if they are not."""
        device = next(iter(model.hosts.values()), None) or next(iter(model.ready.values()), None)
        return request.deadline_s - (device.curves[model.ref].exec_s(1) if device is not None else DESERTED_S)

    def _fill_exec(self, device: Device, now: float, orders: list[Order]) -> None:
        window = self.policy.window
        while len(device.exec) < window.depth:
            if len(device.exec) and device.exec.free_at(now) - now > self.policy.window.lead_of(device):
                return
            if device.info.container and self._containers.holds_back(device, now):
                return
            batch = self.policy.choose(device, now)
            if batch is None:
                return
            self._send_batch(device, batch, now, orders)

    def _send_batch(self, device: Device, batch: Batch, now: float, orders: list[Order]) -> None:
        model = batch.model
        self.state.take(model, [*batch.given_up, *batch.requests])
        for request in batch.given_up:
            text = "given up so that others are in time"
            retry_s = self._retry_s(batch.model, now)
            orders.append(self._refuse(request, "rejected", "overload", text, now, retry_s=retry_s))
        order = self._actions.infer(
            device,
            model.ref,
            device.curves[model.ref].padded(batch.rows),
            list(batch.requests),
            start_s=batch.start_s,
            expected_s=batch.expected_s,
            latest_s=self._containers.latest_s(device, batch),
            now=now,
        )
        self.policy.bound(device, batch, now)
        device.busy_until_s = device.exec.free_at(now)
        self._reach_s = max(self._reach_s, device.busy_until_s - now)
        self.counters.batches += 1
        self.counters.batched_rows += batch.rows
        orders.append(order)

    def _fill_load(self, device: Device, now: float, orders: list[Order]) -> None:
        window = self.policy.window
        while len(device.load) < window.loads:
            if len(device.load) and device.load.free_at(now) - now > window.load_lead_s:
                return
            plan = self.policy.choose_load(device, now)
            if plan is None:
                device.room_for_more = device.room_for_more and len(device.load) > 0
                return
            self._send_load(device, plan, now, orders)

    def _looks_for_load(self, device: Device, now: float) -> bool:
        """Whether it is time to look if the device should have a model that nobody waits for without a host."""
        if now < device.look_s or len(device.residency.models) >= len(device.curves):
            return False
        device.look_s = now + LOOK_EVERY_S
        return True

    def _send_load(self, device: Device, plan: LoadPlan, now: float, orders: list[Order]) -> None:
        for ref in plan.evict:
            self.fleet.unload(device, ref, now, orders)
            self.counters.unloads += 1
        ref = plan.model.ref
        orders.append(self._actions.load(device, ref, expected_s=device.loads[ref].load_s(), now=now))
        self.state.add_host(plan.model, device)
        self.counters.loads += 1
        self._load_sent = True

    def _lose_overdue(self, device: Device, now: float, orders: list[Order]) -> None:
        for action in list(device.actions.values()):
            if now >= action.overdue_s:
                text = f"no result for {now - action.sent_s:.1f} s"
                lost = wire.ActionResult(
                    action=action.id, kind=action.kind, code="lost", received_s=now, free_pages=0, message=text
                )
                orders.extend(self.result(device.worker, lost, now=now))
        device.overdue_s = min((action.overdue_s for action in device.actions.values()), default=math.inf)

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
        if request.tries >= self.policy.window.tries or model is None or not model.ready:
            orders.append(self._refuse(request, "failed", code, message, now))
            return
        self._wait(model, request, now)

    def _retry_s(self, model: Model, now: float) -> float:
        """When the first of the model's devices has done what it has and what waits for it."""
        devices = model.hosts or model.ready
        ends = (device.exec.free_at(now) - now + device.backlog_s for device in devices.values())
        return max(RETRY_S_MIN, min(ends, default=RETRY_S))

    def _refuse_not_ready(self, request: Request, now: float) -> Order:
        ref = request.ref
        if ref not in self.fleet.wanted and ref not in self.fleet.draining:
            return self._refuse(request, "rejected", "not_deployed", f"{ref} is not deployed (any more)", now)
        if ref in self.fleet.contained:
            return self._refuse(request, "rejected", "no_replica", self.fleet.why_no_replica(ref), now, retry_s=1.0)
        if not self.state.devices:
            return self._refuse(request, "rejected", "no_worker", "no worker is there", now, retry_s=RETRY_S)
        return self._refuse(request, "rejected", "not_ready", f"{ref} is still being prepared", now, retry_s=RETRY_S)

    def _doubts(self, model: Model, request: Request, now: float) -> bool:
        """Whether an idle device's estimate, by which the request would be too late, is out of date."""
        found = self._containers.doubt(model, now)
        for device in model.hosts.values():
            curve = device.curves[model.ref]
            if not isinstance(curve, BlackBoxCurve) and not len(device.exec):
                left_s = request.deadline_s - device.start_s(model.ref, now)
                found = curve.doubt(min(request.rows, curve.rows_max), left_s, now) or found
        return found

    def _refuse_at_arrival(self, request: Request, verdict: Verdict, now: float) -> Order:
        left_ms = max(0.0, request.deadline_s - request.arrived_s + self.parameters.slack_s) * 1e3
        why = "even alone" if verdict.code == "deadline" else "behind what waits"
        text = f"it would take {request.predicted_s * 1e3:.1f} ms {why}; {left_ms:.1f} ms of the budget are left"
        return self._refuse(
            request, "rejected", verdict.code, text, now, predicted_s=request.predicted_s, retry_s=verdict.retry_after_s
        )

    def _refuse(
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

    def _close(self, request: Request, *, in_time: bool, now: float) -> None:
        if not request.closed:
            request.closed = True
            self._requests.pop((request.frontend, request.number), None)
            self.policy.ended(request, in_time, now)
            if request.admitted:
                self._containers.ended(request.ref, now)

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
