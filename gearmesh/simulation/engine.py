"""Runs the production scheduler and the workers' production lanes on virtual time. Nothing of either is copied here.

A message takes the network's time, an action the device's; everything else takes none. What happens at one instant is
handed on before anything is decided, as in production, where a turn drains its sockets first.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from controller.core.orders import Order, ToFrontend, ToWorker
from controller.core.policies.registry import make_policy
from controller.core.scheduler import Parameters, Scheduler
from controller.core.state import State
from gearmesh.simulation.arrivals.loads import Trace
from gearmesh.simulation.bounds.belady import Clairvoyant
from gearmesh.simulation.devices import SimDevice
from gearmesh.simulation.scenario import Fault, Noise, Scenario
from gpu_worker.core.lanes import Effect, Lanes, Report
from mesh import wire

FRONTEND = "frontend"
PROGRESS_EVERY = 1000  # requests


@dataclass(slots=True)
class Outcome:
    """What became of every request, in the order of arrival."""

    slo_s: list[float] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    status: list[str | None] = field(default_factory=list)  # ok | rejected | failed | timed_out
    latency_s: list[float] = field(default_factory=list)  # from arrival to the answer
    batch: list[int] = field(default_factory=list)  # size of the batch that answered it, 0 for none
    heard: list[int] = field(default_factory=list)  # outputs and refusals that came for it
    model: list[int] = field(default_factory=list)
    cold: list[bool] = field(default_factory=list)  # its model was nowhere when it arrived
    busy_s: float = 0.0  # EXEC time, of all devices
    load_s: float = 0.0  # LOAD time, of all devices
    ends_s: float = 0.0  # when the last answer was given

    def in_time(self, i: int) -> bool:
        """The request was served within its SLO."""
        return self.status[i] == "ok" and self.latency_s[i] <= self.slo_s[i] + 1e-9

    def record(self, policy: str, seed: int, devices: int, seconds: float) -> dict[str, Any]:
        """One line of the results."""
        offered = len(self.status)
        good = sum(map(self.in_time, range(offered)))
        told = list(zip(self.status, self.latency_s, strict=True))
        answered = sorted(latency for status, latency in told if status == "ok")
        refused = sorted(latency for status, latency in told if status == "rejected")
        batches = [size for size in self.batch if size]
        device_s = devices * max(self.ends_s, 1e-9)
        return {
            "policy": policy,
            "seed": seed,
            "offered": offered,
            "attainment": good / offered if offered else 1.0,
            "goodput_rps": good / seconds,
            "p99_ms": answered[min(len(answered) - 1, int(0.99 * len(answered)))] * 1e3 if answered else None,
            "rejected": len(refused),
            "cold_starts": sum(c and status == "ok" for c, status in zip(self.cold, self.status, strict=True)),
            "device_utilisation": self.busy_s / device_s,
            "load_utilisation": self.load_s / device_s,
            "mean_batch": len(batches) / sum(1 / size for size in batches) if batches else 0.0,
            "rejected_after_ms_p50": refused[len(refused) // 2] * 1e3 if refused else None,
        }


@dataclass(slots=True)
class Simulation:
    """One run of one policy on one trace."""

    scenario: Scenario
    trace: Trace
    policy: str
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    clairvoyant: bool = False  # it evicts what is asked for last from now on; see belady.py
    check: bool = False  # every core restates its invariants after every turn: for tests
    progress: Callable[[float], None] | None = None  # told the share done, now and again

    def run(self) -> Outcome:
        """The outcome of every request. Raises: SettingsError (the policy or a parameter of it is unknown)."""
        return _Run(self).run()


class _Run:
    def __init__(self, given: Simulation) -> None:
        scenario = self.scenario = given.scenario
        self.given = given
        self.trace = given.trace
        self.rng = np.random.default_rng([given.seed, 77])
        self.devices = [SimDevice(i, scenario, self.rng) for i in range(scenario.devices.count)]
        self.by_worker = {device.worker: device for device in self.devices}
        self.refs = [f"{model.name}:1" for model in scenario.models]
        self.scheduler = self._scheduler(0.0)
        self.epoch = 1  # of the controller
        self.down = False  # it is gone, and no other one has taken over
        self.outcome = Outcome()
        self.again = scenario.load.kind == "closed"  # whoever is answered asks again
        self.asked: list[wire.Submit] = []  # by request: as it was sent last
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = 0
        self.now = 0.0
        self.wake_at = math.inf
        self.dirty = False  # something happened since the last decision

    def _scheduler(self, now: float) -> Scheduler:
        """A controller that has just started."""
        given, noise = self.given, self.scenario.noise
        way_s = _way_s(noise)
        state = State(dispatch_s=way_s, noise=noise.exec_cv)
        policy = make_policy(given.policy, state, given.parameters)
        if given.clairvoyant:
            policy = Clairvoyant.of(policy, state, self.refs, given.trace)
        return Scheduler(policy, state, Parameters(return_allowance_s=way_s, queue_max=1 << 40), started_s=now)

    def _begin(self) -> None:
        """The controller meets everybody."""
        self.scheduler.fleet.want(self.refs, lambda ref: False, now=self.now)
        self.scheduler.frontend_joined(FRONTEND)
        for device in self.devices:
            if device.alive:
                device.welcome(self.epoch)
                self._obey(self.scheduler.worker_joined(device.hello(), now=self.now))

    def run(self) -> Outcome:
        self._begin()
        for fault in self.scenario.faults:
            self._at(fault.at_s, lambda fault=fault: self._fault(fault))  # type: ignore[misc]
        trace = self.trace
        times = trace.time_s.tolist()
        columns = [column.tolist() for column in (trace.model, trace.slo_s, trace.weight, trace.rows)]
        position = 0
        while position < len(times) or self.events:
            arrival_s = times[position] if position < len(times) else math.inf
            event_s = self.events[0][0] if self.events else math.inf
            self.now = max(self.now, min(arrival_s, event_s))
            while position < len(times) and times[position] <= self.now:
                self._arrive(*(column[position] for column in columns))
                position += 1
                if self.given.progress is not None and position % PROGRESS_EVERY == 0:
                    self.given.progress(position / len(times))
            while self.events and self.events[0][0] <= self.now:
                heapq.heappop(self.events)[2]()
            if self.dirty:
                self._decide()
        self.outcome.busy_s = sum(device.busy_s for device in self.devices)
        self.outcome.load_s = sum(device.load_s for device in self.devices)
        return self.outcome

    def _at(self, time_s: float, do: Callable[[], None]) -> None:
        """`do` happens then; at the same instant, in the order of these calls."""
        self.numbers += 1
        heapq.heappush(self.events, (time_s, self.numbers, do))

    def _later(self, do: Callable[[], None]) -> None:
        """`do` happens when a message sent now arrives."""
        delay_s = self._network_s()
        if delay_s:
            self._at(self.now + delay_s, do)
        else:
            do()

    def _network_s(self) -> float:
        noise = self.scenario.noise
        if not noise.network_ms and not noise.network_jitter_ms:
            return 0.0
        jitter_ms = self.rng.exponential(noise.network_jitter_ms) if noise.network_jitter_ms else 0.0
        return float(noise.network_ms + jitter_ms) / 1e3

    # -- requests -----------------------------------------------------------------------------------------------------

    def _arrive(self, model: int, slo_s: float, weight: float, rows: int) -> None:
        outcome = self.outcome
        i = len(outcome.status)
        ref = self.refs[model]
        known = self.scheduler.state.models.get(ref)
        outcome.slo_s.append(slo_s)
        outcome.arrived_s.append(self.now)
        outcome.status.append(None)
        outcome.latency_s.append(math.nan)
        outcome.batch.append(0)
        outcome.heard.append(0)
        outcome.model.append(model)
        outcome.cold.append(known is None or not known.hosts)
        message = wire.Submit(request=i, attempt=0, ref=ref, rows=rows, budget_s=slo_s, weight=weight)
        self.asked.append(message)
        self._send(message)
        self._at(self.now + slo_s + 1e-6, lambda: self._deadline(i))

    def _send(self, message: wire.Submit) -> None:
        delay_s = self._network_s()
        if delay_s:
            self._at(self.now + delay_s, lambda: self._submit(message, delay_s))
        else:
            self._submit(message, 0.0)

    def _submit(self, message: wire.Submit, age_s: float) -> None:
        if self.down:
            return  # submitted again when there is a controller
        self._obey(self.scheduler.submit(message, FRONTEND, (), age_s=age_s, now=self.now))
        self.dirty = True

    def _deadline(self, i: int) -> None:
        """The frontend's timer: it answers if nothing else did, and tells the controller."""
        if self.outcome.status[i] is None:
            self._answer(i, "timed_out")
            if not self.down:
                self.scheduler.cancel(FRONTEND, i, now=self.now)
                self.dirty = True

    def _answer(self, i: int, status: str, batch: int = 0) -> None:
        if self.outcome.status[i] is None:
            self.outcome.status[i] = status
            self.outcome.latency_s[i] = self.now - self.outcome.arrived_s[i]
            self.outcome.batch[i] = batch
            self.outcome.ends_s = self.now
            if self.again and self.now < self.scenario.load.seconds:
                think_s = self.scenario.load.think_s
                pause_s = float(self.rng.exponential(think_s)) if think_s else 0.0
                self._at(self.now + pause_s, lambda: self._ask_again(i))

    def _ask_again(self, i: int) -> None:
        """The client of request i, which was answered, has another one just like it."""
        first = self.asked[i]
        model = self.outcome.model[i]
        self._arrive(model, self.outcome.slo_s[i], first.weight, first.rows)

    def _answer_all(self, action: wire.Infer) -> None:
        for part in action.parts:
            self.outcome.heard[part.request] += 1
            self._answer(part.request, "ok", action.batch)

    # -- controller ---------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        self.dirty = False
        if self.down:
            return
        self._obey(self.scheduler.wake(now=self.now))
        if self.given.check:
            self.scheduler.check()
            for device in self.devices:
                device.lanes.check()
        wake_at = self.scheduler.wake_at()
        if wake_at is not None and (wake_at < self.wake_at or self.wake_at <= self.now):
            self.wake_at = wake_at
            self._at(wake_at, self._woken)

    def _woken(self) -> None:
        if self.now >= self.wake_at:
            self.wake_at = math.inf
        self.dirty = True

    def _obey(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, ToWorker):
                self._post(order)
            elif isinstance(order, ToFrontend) and isinstance(order.message, wire.Refused):
                self._refused(order.message)

    def _post(self, order: ToWorker) -> None:
        device, epoch = self.by_worker[order.worker], self.epoch
        lanes = device.lanes
        self._later(lambda: self._deliver(device, lanes, order.message, epoch))

    def _refused(self, refused: wire.Refused) -> None:
        self._later(lambda: self._refusal(refused))

    def _refusal(self, refused: wire.Refused) -> None:
        if refused.attempt == self.asked[refused.request].attempt:
            self.outcome.heard[refused.request] += 1
            self._answer(refused.request, refused.status)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _deliver(self, device: SimDevice, lanes: Lanes, message: wire.FromControllerToWorker, epoch: int) -> None:
        if device.lanes is not lanes or not device.alive:
            return  # sent to an earlier life of the worker
        if isinstance(message, wire.Infer):
            self._apply(device, lanes.infer(message, epoch, now=self.now))
        elif isinstance(message, wire.Load):
            self._apply(device, lanes.load(message, epoch, now=self.now))
        elif isinstance(message, wire.Unload):
            self._apply(device, lanes.unload(message, epoch, now=self.now))

    def _apply(self, device: SimDevice, effects: list[Effect]) -> None:
        waiting = list(effects)
        lanes = device.lanes
        for effect in waiting:  # grows as it goes
            if isinstance(effect, Report):
                self._report(device, effect)
                continue
            done = device.emulator.begin(effect.phase, effect.job, self.now)
            if done is not None:
                waiting.extend(lanes.finished(effect.phase, effect.job, done, now=self.now))
        for wake_at in (device.emulator.wake_at(), lanes.wake_at()):
            if wake_at is not None:
                self._at(max(wake_at, self.now), lambda: self._wake(device, lanes))

    def _wake(self, device: SimDevice, lanes: Lanes) -> None:
        if device.lanes is not lanes or device.hung:
            return
        for phase, job, done in device.emulator.due(self.now):
            self._apply(device, lanes.finished(phase, job, done, now=self.now))
        effects = lanes.wake(now=self.now)
        if effects:
            self._apply(device, effects)

    def _report(self, device: SimDevice, report: Report) -> None:
        result, job = report.result, report.job
        action = job.action if job is not None else None
        if result.code == "ok" and isinstance(action, wire.Infer):
            self._later(lambda: self._answer_all(action))
        if device.losing:
            device.losing -= 1
            return
        epoch = self.epoch
        self._later(lambda: self._result(device.worker, result, epoch))

    def _result(self, worker: str, result: wire.ActionResult, epoch: int) -> None:
        if self.down or epoch != self.epoch:
            return  # the link it was sent on is gone
        self._obey(self.scheduler.result(worker, result, now=self.now))
        self.dirty = True

    # -- faults -------------------------------------------------------------------------------------------------------

    def _fault(self, fault: Fault) -> None:
        device = self.devices[fault.device]
        self.dirty = True
        if fault.kind == "restart":
            self.down = True
            self._at(self.now + fault.seconds, self._take_over)
        elif fault.kind == "lose":
            device.losing += fault.count
        elif fault.kind == "slow":
            device.slow = fault.factor
            self._at(self.now + fault.seconds, lambda: setattr(device, "slow", 1.0))
        elif fault.kind == "hang":
            device.hung = True
            self._at(self.now + fault.seconds, lambda: self._unhang(device))
        else:
            device.alive = False
            device.renew()
            if not self.down:
                self._obey(self.scheduler.worker_lost(device.worker, now=self.now))
            if fault.seconds:
                self._at(self.now + fault.seconds, lambda: self._revive(device))

    def _unhang(self, device: SimDevice) -> None:
        device.hung = False
        self._wake(device, device.lanes)

    def _revive(self, device: SimDevice) -> None:
        device.alive = True
        device.welcome(self.epoch)
        if not self.down:
            self._obey(self.scheduler.worker_joined(device.hello(), now=self.now))
        self.dirty = True

    def _take_over(self) -> None:
        """Another controller: the workers tell it what they hold, the frontend submits again what is unanswered."""
        self.epoch += 1
        self.down, self.dirty = False, True
        self.wake_at = math.inf
        self.scheduler = self._scheduler(self.now)
        self._begin()
        for i, status in enumerate(self.outcome.status):
            if status is None:
                left_s = self.outcome.arrived_s[i] + self.outcome.slo_s[i] - self.now
                message = self.asked[i]
                message = msgspec.structs.replace(message, attempt=message.attempt + 1, budget_s=left_s)
                self.asked[i] = message
                self._send(message)


def _way_s(noise: Noise) -> float:
    """One way through the network, with its usual jitter: what margins start from."""
    return (noise.network_ms + noise.network_jitter_ms) / 1e3
