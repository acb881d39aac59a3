"""The scheduler: events in, orders out. The same object runs in production and on the simulator's virtual time. Pure.

Events are noted as they come; `wake` decides, once for all that has come: which batches, LOADs and measuring runs go to
which device. What becomes of requests is decided in `intake.py` and `requests.py`, what results change in `results.py`,
who is there in `fleet.py`; the scheduler joins them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.core.actions import Actions
from controller.core.containers import Containers
from controller.core.fleet import Fleet
from controller.core.intake import Intake
from controller.core.orders import Order
from controller.core.policies.base import Batch, LoadPlan, Policy
from controller.core.requests import OpenRequests
from controller.core.results import Results
from controller.core.state import Action, Device, State
from controller.core.telemetry.totals import Counters, Telemetry
from controller.core.versions.preparation import Terms
from mesh import wire

SETTLE_S = 3.0  # after the start: requests wait for workers, which may be on their way back from our predecessor
PREPARE_S = 0.1  # between looks whether there is slack for measuring
STUCK_LOOK_S = 0.001  # between looks at a container that may be past its expected end for long
LOOK_EVERY_S = 0.005  # between looks whether a device should have another model, though no request waits for that
WAKE_S_MIN = 50e-6  # between decisions that no event causes


@dataclass(frozen=True, slots=True)
class Parameters:
    """What can be set of the scheduler. docs/operations.md says where the values come from."""

    slack_s: float = 0.001  # part of every deadline kept for the way back to the client
    queue_max: int = 20_000  # requests waiting; more are refused


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
        parameters = parameters or Parameters()
        self.counters = Counters()
        self.telemetry = Telemetry(parameters.slack_s)
        self._actions = Actions()
        self.fleet = Fleet(state, self._actions, name)
        self._containers = Containers(state)
        self._requests = OpenRequests(
            state, policy, self.fleet, self._containers, self.counters, self.telemetry, parameters.slack_s
        )
        self._intake = Intake(
            state, policy, self.fleet, self._containers, self._requests, self.counters,
            started_s + SETTLE_S, parameters.slack_s, parameters.queue_max,
        )  # fmt: skip
        self._results = Results(state, policy, self.fleet, self._requests, self.counters, self.telemetry)
        self._now = 0.0  # of the last wake
        self._load_sent = False  # then: what waited for it can be sent behind it
        self._reach_s = 0.0  # how far ahead devices were ever busy

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests.open) + len(self._intake)

    # -- events: requests ---------------------------------------------------------------------------------------------

    def submit(
        self, message: wire.Submit, frontend: str, tensors: Sequence[Any], *, age_s: float, now: float
    ) -> list[Order]:
        """A request arrived, `age_s` after it was sent. Refused at once if it cannot be served in time."""
        return self._intake.submit(message, frontend, tensors, age_s, now)

    def cancel(self, frontend: str, number: int, *, now: float) -> None:
        """Nobody waits for this request any more: it is dropped, or ends with its batch, without a word from here."""
        self._requests.cancel(frontend, number, now)

    # -- events: peers ------------------------------------------------------------------------------------------------

    def frontend_joined(self, frontend: str) -> list[Order]:
        """A frontend is there."""
        return self.fleet.reporting.frontend_joined(frontend)

    def frontend_lost(self, frontend: str, *, now: float) -> None:
        """A frontend is gone, and so is everybody who waited there."""
        self.fleet.reporting.frontends.pop(frontend, None)
        self._intake.frontend_lost(frontend)
        self._requests.frontend_lost(frontend, now)

    def worker_joined(self, hello: wire.WorkerHello, *, now: float) -> list[Order]:
        """A worker is there, with what it has prepared and loaded."""
        actions, orders = self._leave(hello.member, now)
        orders.extend(self.fleet.join(hello, now=now))
        self._requests.worker_lost(actions, orders, now)
        orders.extend(self._intake.submit_early(now))
        return orders

    def worker_leaving(self, worker: str) -> list[Order]:
        """A worker finishes what it has and takes nothing more."""
        return self.fleet.leaving(worker)

    def worker_lost(self, worker: str, *, now: float) -> list[Order]:
        """A worker is gone: what it had is planned again where time allows, and failed where not."""
        actions, orders = self._leave(worker, now)
        self._requests.worker_lost(actions, orders, now)
        return orders

    def _leave(self, worker: str, now: float) -> tuple[list[Action], list[Order]]:
        device = self.state.devices.get(worker)
        actions, orders = self.fleet.leave(worker)
        if device is not None:
            self.telemetry.lost(device, actions, waiting=self.state.waiting, now=now)
        return actions, orders

    def prepared(self, worker: str, report: wire.Prepared, *, now: float) -> list[Order]:
        """A worker says how far a version is."""
        orders = self.fleet.prepared(worker, report, now=now)
        if not report.ok:
            self._requests.unserved(report.ref, orders, now)
        orders.extend(self._intake.submit_early(now))
        return orders

    def clock(self, worker: str, offset_s: float) -> None:
        """The worker's clock is ahead of ours by so much."""
        device = self.state.devices.get(worker)
        if device is not None:
            device.offset_s = offset_s

    def want(
        self,
        refs: list[str],
        contained: Sequence[str] = (),
        terms: Mapping[str, Terms] | None = None,
        *,
        now: float,
    ) -> list[Order]:
        """These versions are to be ready; others are let go when their last request has ended.

        `contained`: those of them that containers serve; `terms`: what the catalogue says of them.
        """
        return self.fleet.want(refs, self._requests.uses, contained, terms, now=now)

    # -- events: results ----------------------------------------------------------------------------------------------

    def result(self, worker: str, result: wire.ActionResult, *, now: float) -> list[Order]:
        """An action has ended, one way or another."""
        return self._results.take(worker, result, now)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def wake(self, *, now: float) -> list[Order]:
        """Everything that is to be decided by now is. Calling early is harmless."""
        self._now = now
        self._load_sent = False
        orders: list[Order] = []
        if len(self._intake) and now >= self._intake.settled_s:
            orders.extend(self._intake.submit_early(now))
        if self.state.waiting:
            self._requests.expire(now, self._reach_s, orders)
        for device in self.state.devices.values():
            if now >= device.overdue_s:
                self._results.lose_overdue(device, orders, now)
            if device.leaving:
                continue
            if device.waiting:
                self._fill_exec(device, now, orders)
            if self.state.homeless or device.room_for_more or self._looks_for_load(device, now):
                self._fill_load(device, now, orders)
            preparation = self.fleet.preparations[device.worker]
            if not preparation.complete or now >= preparation.again_at():
                self.fleet.prepare(device, now, orders)
        if self.fleet.draining:
            orders.extend(self.fleet.drain(self._requests.uses, now))
        return orders

    def wake_at(self) -> float | None:
        """When `wake` next has work that no event will cause."""
        times = [self._now] if self._load_sent else []
        for device in self.state.devices.values():
            again_s = self.fleet.preparations[device.worker].again_at()
            if again_s < math.inf and not device.leaving:
                times.append(again_s)
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
            times.append(self._requests.expire_at())
        if len(self._intake):
            times.append(self._intake.settled_s)
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
        self._requests.give_up(model, batch.given_up, orders, now)
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

    def check(self) -> None:
        """Every invariant holds."""
        self.state.check()
        self.fleet.check()
        self._requests.check()
