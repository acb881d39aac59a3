"""The scheduler: events in, orders out. The same object runs in production and on the simulator's virtual time. Pure.

Events are noted as they come. `wake` decides once for all that has come: which batches, LOADs and measuring runs go to
which device. The scheduler joins the modules that know more: `intake.py` and `requests.py` decide what becomes of
requests, `results.py` what results change, `fleet.py` and `readiness.py` who is there and serves what.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.core.actions import Actions
from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice
from controller.core.fleet import Fleet
from controller.core.intake import Intake
from controller.core.isolation.isolation import LOST_TEXT, Isolation
from controller.core.isolation.planning import ApartPlanning
from controller.core.orders import Order
from controller.core.policies.base import Batch, Lead, LoadPlan, SchedulingPolicy
from controller.core.requests import OpenRequests
from controller.core.results import Results
from controller.core.state import ShardState
from controller.core.telemetry.totals import Counters, Telemetry
from controller.core.versions.contents import VersionContents
from controller.core.versions.measuring import Measuring
from controller.core.versions.ordering import VersionOrders
from controller.core.versions.preparation import Preparation, Terms
from controller.core.versions.readiness import Readiness
from controller.core.versions.reasons import Reasons
from controller.core.versions.reporting import Reporting
from controller.core.versions.unclaimed import UnclaimedVersions
from controller.core.versions.wanted import WantedVersions
from mesh import wire
from mesh.codes import ActionCode, RequestOutcome

WORKERS_COME_S = 3.0  # after the start requests wait so long for workers, on their way from our predecessor
PREPARE_S = 0.1  # between two looks whether a device has time for measuring
GONE_HEARTBEATS = 2  # missed: what is sent to a worker then, and is never heard of, it has not begun
FETCHES = 2  # x the depth: most batches at a device, with those whose inputs are fetched
WAKE_S_MIN = 50e-6  # between two decisions that no event causes


@dataclass(frozen=True, slots=True)
class Parameters:
    """What can be set of the scheduler. docs/operations.md says where the values come from."""

    return_allowance_s: float = 0.001  # part of every deadline kept for the way back to the client
    queue_max: int = 20_000  # requests waiting; more are refused
    heartbeat_s: float = 0.25  # a worker that lives is heard so often


class Scheduler:
    """One shard: its devices, its models, its requests."""

    def __init__(
        self,
        policy: SchedulingPolicy,
        state: ShardState,
        parameters: Parameters | None = None,
        *,
        name: str = "",
        started_s: float = 0.0,
    ) -> None:
        parameters = parameters or Parameters()
        return_allowance_s = parameters.return_allowance_s
        self.policy = policy
        self.state = state
        self.counters = Counters()
        self.telemetry = Telemetry(return_allowance_s)
        self._actions = Actions(state)
        self._preparations: dict[str, Preparation] = {}  # {worker: its versions}; the fleet's
        self.versions = WantedVersions()
        contents = VersionContents(self._preparations)
        self.reporting = Reporting(state, contents, name)
        numbered, self._unclaimed = VersionOrders(name), UnclaimedVersions()
        self._readiness = Readiness(
            state, self.versions, self._preparations, contents, self.reporting, numbered, self._unclaimed
        )
        self.fleet = Fleet(
            state, self.versions, self._preparations, contents, self._readiness, self.reporting, numbered,
            self._unclaimed,
        )  # fmt: skip
        self._measuring = Measuring(state, self._actions, contents, self._preparations, numbered)
        reasons = Reasons(state, self.versions, contents)
        self._requests = OpenRequests(state, policy, reasons, self.counters, self.telemetry, return_allowance_s)
        self.isolation = Isolation(state, self._requests)
        self._apart = ApartPlanning(state, self._requests, self.isolation)
        self._intake = Intake(
            state, policy, reasons, self._requests, self.isolation, self.counters, started_s + WORKERS_COME_S,
            return_allowance_s, parameters.queue_max,
        )  # fmt: skip
        self._results = Results(
            state, policy, self._actions, self._readiness, self._requests, self.isolation, self.counters,
            self.telemetry,
        )  # fmt: skip
        self._gone_s = GONE_HEARTBEATS * parameters.heartbeat_s  # a worker that was silent for longer is gone
        self._now = 0.0  # of the last wake
        self._load_sent = False  # in the last wake: what waited for that LOAD can be sent behind it
        self._reach_s = 0.0  # the longest time ahead that a device was ever busy

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests.open) + len(self._intake)

    # -- events: requests ---------------------------------------------------------------------------------------------

    def submit(
        self, message: wire.Submit, frontend: str, *, age_s: float, now: float, hollow: bool = False
    ) -> list[Order]:
        """A request arrived, `age_s` after it was sent. It is refused at once if it cannot be served in time.

        `hollow`: it has no inputs, as in a simulation.
        """
        return self._intake.submit(message, frontend, hollow, age_s, now)

    def cancel(
        self, frontend: str, number: int, outcome: RequestOutcome = RequestOutcome.CANCELLED, *, now: float
    ) -> None:
        """Nobody waits for this request any more: it is dropped, or ends with its batch, without a word from here.

        A batch of which nobody waits for any request is taken back by the next `wake`, unless it has begun. If the
        request has ended already, what was told of it is amended. `outcome`: what became of it for its client.
        """
        if not (len(self._intake) and self._intake.cancel(frontend, number, outcome, now)):
            self._requests.cancel(frontend, number, outcome, now)

    # -- events: peers ------------------------------------------------------------------------------------------------

    def frontend_joined(self, frontend: str, host: str = "") -> list[Order]:
        """A frontend is there, on this host; empty: it is not known which."""
        self._intake.hosts[frontend] = host
        return self.reporting.frontend_joined(frontend)

    def frontend_lost(self, frontend: str, *, now: float) -> None:
        """A frontend is gone, and so is everybody who waited there."""
        self.reporting.frontend_lost(frontend)
        self._intake.frontend_lost(frontend, now)
        self._requests.frontend_lost(frontend, now)

    def worker_joined(self, hello: wire.WorkerHello, *, now: float) -> list[Order]:
        """A worker is there, with what it has prepared and loaded."""
        actions, orders = self._leave(hello.member, now)
        orders.extend(self.fleet.join(hello, now=now))
        self._requests.worker_lost(actions, orders, now)
        orders.extend(self._intake.submit_early(now))
        self.state.touch_all()
        return orders

    def worker_leaving(self, worker: str) -> list[Order]:
        """A worker finishes what it has and takes nothing more."""
        self.state.touch_all()
        return self.fleet.leaving(worker)

    def worker_lost(self, worker: str, *, now: float) -> list[Order]:
        """A worker is gone: what it had is planned again where time allows, and has failed where not.

        What it executed may have been the reason, unless it had said goodbye, or had been silent for so long when that
        was sent that it must have been gone already: so where a host dies, its workers do not go one after the other
        because of what each of them was given when the one before was missed.
        """
        device = self.state.devices.get(worker)
        executed = device.executed() if device is not None and not device.leaving else None
        gone_s = math.inf if device is None else device.heard_s + self._gone_s
        if device is not None and not device.leaving and (executed is None or executed.sent_s > gone_s):
            self.isolation.lost_idle(device, now)
        actions, orders = self._leave(worker, now)
        if executed is not None and executed.requests and executed.sent_s <= gone_s:
            actions.remove(executed)
            self.isolation.died(executed, ActionCode.WORKER_LOST, LOST_TEXT, orders, now)
        self._requests.worker_lost(actions, orders, now)
        self.state.touch_all()
        return orders

    def _leave(self, worker: str, now: float) -> tuple[list[Action], list[Order]]:
        device = self.state.devices.get(worker)
        actions, orders = self.fleet.leave(worker)
        if device is not None:
            self.telemetry.lost(device, actions, waiting=self.state.waiting, now=now)
        return actions, orders

    def prepared(self, worker: str, report: wire.Prepared, *, now: float) -> list[Order]:
        """A worker says how far a version is."""
        orders = self._readiness.reported(worker, report, now=now)
        if not report.ok:
            self._requests.unserved(report.ref, orders, now)
        orders.extend(self._intake.submit_early(now))
        self.state.touch_all()
        return orders

    def clock(self, worker: str, offset_s: float, heard_s: float = math.inf) -> None:
        """The worker's clock is ahead of ours by so much. `heard_s`: when it was heard; infinity: nobody watches it."""
        device = self.state.devices.get(worker)
        if device is not None:
            device.heard(offset_s, heard_s)

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
        self.telemetry.models.deploy(refs)
        self.state.touch_all()
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
        self.state.next_turn()
        orders: list[Order] = []
        if len(self._intake) and now >= self._intake.workers_come_until_s:
            orders.extend(self._intake.submit_early(now))
        if self._requests.left_bound:
            self._requests.left_bound = False
            for device in self.state.devices.values():
                orders.extend(self._actions.revoke(device))
        if self.state.waiting:
            self._requests.expire(now, self._reach_s, orders)
        if self.isolation.watched:
            self._apart.wake(orders, now)
        for device in self.state.devices.values():
            if device.quiet_until_s <= now or self.state.unplaced:
                self._fill(device, now, orders)
        if self.versions.draining or self._unclaimed.kept:
            orders.extend(self.fleet.drain(self._requests.uses, now))
        return orders

    def _fill(self, device: RemoteDevice, now: float, orders: list[Order]) -> None:
        """The device gets all that is due, and is left alone until something changes."""
        preparation = self._preparations[device.worker]
        if device.is_overdue(now):
            self._results.lose_overdue(device, orders, now)
            self.state.next_turn()
            self.state.touch_all()
        if not device.leaving:
            if device.waiting or device.apart:
                self._fill_exec(device, now, orders)
            if self.state.unplaced or device.room_for_more or device.looks_for_load(now):
                self._fill_load(device, now, orders)
            if self._measuring.due(device, now):
                self._measuring.advance(device, now, orders)
        if preparation.complete:
            device.rest(preparation.again_at())
        else:
            device.touch()

    def wake_at(self) -> float | None:
        """When `wake` next has work that no event will cause; None: never."""
        now, lead = self._now, self.policy.lead
        times = [now] if self._load_sent else []
        quiet_s = math.inf
        for device in self.state.devices.values():
            if device.quiet_until_s == -math.inf:
                self._add_times(device, now, lead, times)
            elif device.quiet_wake_s < quiet_s:
                quiet_s = device.quiet_wake_s
        if quiet_s < math.inf:
            times.append(quiet_s)
        if self.state.waiting:
            times.append(self._requests.expire_at())
        if self.state.apart:
            times.append(self._apart.wake_at(now))
        if len(self._intake):
            times.append(self._intake.workers_come_until_s)
        if self.state.unplaced:
            retries = [fault.retry_s for d in self.state.devices.values() for fault in d.load_faults.values()]
            times += [retry_s for retry_s in retries if retry_s > now]
        times += [until_s for until_s in self.versions.draining.values() if until_s > now]
        if self._unclaimed.kept:
            times.append(self._unclaimed.due_at())
        policy_s = self.policy.wake_at(now)
        if policy_s is not None:
            times.append(policy_s)
        return max(min(times), now + WAKE_S_MIN) if times else None

    def _add_times(self, device: RemoteDevice, now: float, lead: Lead, times: list[float]) -> None:
        """The times at which the device, which is not quiet, has to be looked at are added."""
        preparation = self._preparations[device.worker]
        again_s = preparation.again_at()
        if again_s < math.inf and not device.leaving:
            times.append(again_s)
        if device.actions:
            times.append(device.overdue_s)
            if (device.waiting or device.apart) and device.exec.ready(now) < lead.depth and not self._holds(device):
                times.append(device.next_batch_at(device.exec.free_at(now) - lead.of(device), now))
            if device.waiting and device.fetching_until_s > now:
                times.append(device.fetching_until_s)
        elif not preparation.complete:
            times.append(now + PREPARE_S)
        if device.waiting and device.held_until_s < math.inf:
            times.append(device.held_until_s)

    def _fill_exec(self, device: RemoteDevice, now: float, orders: list[Order]) -> None:
        """The device gets the batches that are due."""
        lead = self.policy.lead
        while device.exec.ready(now) < lead.depth and len(device.exec) < FETCHES * lead.depth:
            if len(device.exec) and device.exec.free_at(now) - now > lead.of(device):
                return
            if self.isolation.watched and self._apart.holds(device):
                return
            held = device.holds_back(self.state.models, now)
            if device.apart and not (held and len(device.exec)):  # what waits apart waits for no other requests
                batch = self._apart.next_batch(device, orders, now)
                if batch is not None:
                    self._send_batch(device, batch, now, orders)
                    continue
            if held:
                return
            batch = self.policy.choose(device, now)
            if batch is None:
                return
            self._bind(device, batch, now, orders)

    def _holds(self, device: RemoteDevice) -> bool:
        """Whether the device executes what may end its process, so that nothing is sent behind it."""
        return bool(self.isolation.watched) and self._apart.holds(device)

    def _bind(self, device: RemoteDevice, batch: Batch, now: float, orders: list[Order]) -> None:
        """The batch is sent, without those of its requests that are to be executed apart."""
        model, given_up = batch.model, batch.given_up
        sound: Batch | None = batch
        if self.isolation.watched:
            sound = self._apart.sort(device, batch, orders, now)
        self.state.take(model, [*given_up, *sound.requests] if sound is not None else given_up)
        self._requests.give_up(model, given_up, orders, now)
        if sound is not None:
            self._send_batch(device, sound, now, orders)

    def _send_batch(self, device: RemoteDevice, batch: Batch, now: float, orders: list[Order]) -> None:
        model, curve = batch.model, device.curves[batch.model.ref]
        order = self._actions.infer(
            device,
            model.ref,
            curve.padded(batch.rows, batch.extents),
            list(batch.requests),
            start_s=batch.start_s,
            expected_s=batch.expected_s,
            latest_s=device.latest_s(batch.start_s, batch.latest_s, len(model.hosts)),
            now=now,
            extents=curve.shape(batch.extents) if batch.extents else (),
        )
        self.policy.bound(device, batch, now)
        self._reach_s = max(self._reach_s, device.busy_until_s - now)
        self.counters.batches += 1
        self.counters.batched_rows += batch.rows
        orders.append(order)

    def _fill_load(self, device: RemoteDevice, now: float, orders: list[Order]) -> None:
        """The device gets the LOADs that are due."""
        lead = self.policy.lead
        while len(device.load) < lead.loads:
            if len(device.load) and device.load.free_at(now) - now > lead.load_s:
                return
            plan = self.policy.choose_load(device, now)
            if plan is None:
                device.no_load_found()
                return
            self._send_load(device, plan, now, orders)

    def _send_load(self, device: RemoteDevice, plan: LoadPlan, now: float, orders: list[Order]) -> None:
        for ref in plan.evict:
            orders.append(self._actions.unload(device, ref, now=now))
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
        self.isolation.check()
        for device in self.state.devices.values():
            preparation = self._preparations[device.worker]
            device.check_rest(preparation.complete, preparation.again_at())
