"""Runs a scenario on the virtual mesh: a trace of requests, and faults. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from controller.core.policies.registry import make_policy
from controller.core.scheduler import Parameters, Scheduler
from controller.core.state import ShardState
from gearmesh.simulation.arrivals.loads import Trace
from gearmesh.simulation.bounds.belady import Clairvoyant
from gearmesh.simulation.devices import AllPrepared, Durations, prepared
from gearmesh.simulation.mesh import CONTROLLER, VirtualMesh
from gearmesh.simulation.outcome import Outcome
from gearmesh.simulation.scenario import InjectedFault, Noise, Scenario
from gearmesh.simulation.workers import SimWorker
from mesh import wire
from mesh.codes import AnswerStatus

OK = AnswerStatus.OK
FRONTEND = "frontend"
PROGRESS_EVERY = 1000  # requests


@dataclass(slots=True)
class Simulation:
    """One run of one policy on one trace."""

    scenario: Scenario
    trace: Trace
    policy: str
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    clairvoyant: bool = False  # it evicts what is asked for last from now on; see belady.py
    check: bool = False  # every core restates its invariants after every event: for tests
    progress: Callable[[float], None] | None = None  # told the share done, now and again

    def run(self) -> Outcome:
        """The outcome of every request. Raises: SettingsError (the policy or a parameter of it is unknown)."""
        return _Run(self).run()


class NoisyNetwork:
    """Each message takes the network's time, and an exponential part on top; messages may overtake each other."""

    def __init__(self, noise: Noise, rng: np.random.Generator) -> None:
        self._mean_ms, self._jitter_ms = noise.network_ms, noise.network_jitter_ms
        self._rng = rng

    def delay_s(self, sender: str, receiver: str, message: object, now: float) -> float:
        """Seconds until the message arrives, with the noise of the scenario; nothing is lost."""
        if not self._mean_ms and not self._jitter_ms:
            return 0.0
        jitter_ms = self._rng.exponential(self._jitter_ms) if self._jitter_ms else 0.0
        return float(self._mean_ms + jitter_ms) / 1e3


class _Run:
    """One frontend with all requests, and a mesh that is driven from one instant to the next."""

    def __init__(self, given: Simulation) -> None:
        scenario = self.scenario = given.scenario
        self.given = given
        self.rng = np.random.default_rng([given.seed, 77])
        self.refs = [f"{model.name}:1" for model in scenario.models]
        self.outcome = Outcome()
        self.asked: list[wire.Submit] = []  # by request: as it was sent last
        network = NoisyNetwork(scenario.noise, self.rng)
        self.mesh = VirtualMesh(
            self._scheduler, network, self, page_bytes=scenario.devices.page_bytes, checked=given.check
        )
        self.devices = [Durations(scenario, self.rng) for _ in range(scenario.devices.count)]
        reports = [prepared(model, scenario) for model in scenario.models]
        exact = not any(model.open is not None and model.open.padded for model in scenario.models)
        for index, device in enumerate(self.devices):
            name, pages = f"worker-{index:04}", scenario.devices.pages
            versions, timeline = AllPrepared(reports), self.mesh.timeline
            worker = SimWorker(name, timeline, pages, versions, device.duration_s, checked=given.check, any_batch=exact)
            self.mesh.add(worker)
        self.workers = list(self.mesh.workers.values())

    def _scheduler(self, now: float) -> Scheduler:
        """The scheduler of a controller that has just started."""
        given, noise = self.given, self.scenario.noise
        way_s = _way_s(noise)
        state = ShardState(dispatch_s=way_s, noise=noise.exec_cv)
        policy = make_policy(given.policy, state, given.parameters)
        if given.clairvoyant:
            policy = Clairvoyant.of(policy, state, self.refs, given.trace)
        return Scheduler(policy, state, Parameters(return_allowance_s=way_s, queue_max=1 << 40), started_s=now)

    def run(self) -> Outcome:
        mesh, timeline = self.mesh, self.mesh.timeline
        mesh.begin(self.refs, [FRONTEND])
        for fault in self.scenario.faults:
            timeline.at(fault.at_s, lambda fault=fault: self._fault(fault))  # type: ignore[misc]
        trace = self.given.trace
        times = trace.time_s.tolist()
        columns = [column.tolist() for column in (trace.model, trace.slo_s, trace.weight, trace.rows, trace.extents)]
        position = 0
        while position < len(times) or timeline.next_s() < math.inf:
            arrival_s = times[position] if position < len(times) else math.inf
            timeline.advance(min(arrival_s, timeline.next_s()))
            while position < len(times) and times[position] <= timeline.now:
                self._arrive(*(column[position] for column in columns))
                position += 1
                if self.given.progress is not None and position % PROGRESS_EVERY == 0:
                    self.given.progress(position / len(times))
            mesh.run_due()
        self.outcome.busy_s = sum([device.busy_s for device in self.devices], 0.0)
        self.outcome.load_s = sum([device.load_s for device in self.devices], 0.0)
        return self.outcome

    # -- requests -----------------------------------------------------------------------------------------------------

    def _arrive(self, model: int, slo_s: float, weight: float, rows: int, given: Sequence[int]) -> None:
        """A request arrives. `given`: its extents, 0 in dimensions that its model does not have."""
        outcome, now = self.outcome, self.mesh.timeline.now
        i = len(outcome.status)
        ref = self.refs[model]
        known = self.mesh.scheduler.state.models.get(ref)
        outcome.slo_s.append(slo_s)
        outcome.arrived_s.append(now)
        outcome.status.append(None)
        outcome.latency_s.append(math.nan)
        outcome.batch.append(0)
        outcome.heard.append(0)
        outcome.model.append(model)
        outcome.cold.append(known is None or not known.hosts)
        extents = tuple(extent for extent in given if extent)
        outcome.extents.append(extents)
        message = wire.Submit(request=i, attempt=0, ref=ref, rows=rows, budget_s=slo_s, weight=weight, extents=extents)
        self.asked.append(message)
        self._send(message)
        self.mesh.timeline.at(now + slo_s + 1e-6, lambda: self._deadline(i))

    def _send(self, message: wire.Submit) -> None:
        mesh = self.mesh
        delay_s = mesh.network.delay_s(FRONTEND, CONTROLLER, message, mesh.now) or 0.0
        if delay_s:
            mesh.timeline.at(mesh.now + delay_s, lambda: mesh.submit(message, FRONTEND, delay_s))
        else:
            mesh.submit(message, FRONTEND, 0.0)

    def _deadline(self, i: int) -> None:
        """The frontend's timer: it answers the client if nothing else did, and tells the controller."""
        if self.outcome.status[i] is None:
            self._answer(i, AnswerStatus.TIMED_OUT)
            self.mesh.cancel(FRONTEND, i)

    def _answer(self, i: int, status: str, batch: int = 0) -> None:
        outcome, load = self.outcome, self.scenario.load
        if outcome.status[i] is not None:
            return
        now = self.mesh.timeline.now
        outcome.status[i] = status
        outcome.latency_s[i] = now - outcome.arrived_s[i]
        outcome.batch[i] = batch
        outcome.ends_s = now
        if load.kind == "closed" and now < load.seconds:
            pause_s = float(self.rng.exponential(load.think_s)) if load.think_s else 0.0
            self.mesh.timeline.at(now + pause_s, lambda: self._ask_again(i))

    def _ask_again(self, i: int) -> None:
        """In a closed loop, the client of request i, which was answered, sends another one just like it."""
        first, model = self.asked[i], self.outcome.model[i]
        extents, opened = first.extents, self.scenario.models[model].open
        if opened is not None and opened.sizes is not None:  # it is as long as the client's next request happens to be
            extents = tuple(opened.sizes.draw(1, opened.dims, self.rng)[0].tolist())
        self._arrive(model, self.outcome.slo_s[i], first.weight, first.rows, extents)

    def answered(self, action: wire.Infer) -> None:
        """Each request in the batch has its outcome: outputs have arrived."""
        rows = sum(part.rows for part in action.parts)  # without padding
        if action.extents:
            self.outcome.computed += action.batch * math.prod(action.extents)
            self.outcome.asked += sum(part.rows * math.prod(part.extents) for part in action.parts)
        for part in action.parts:
            self.outcome.heard[part.request] += 1
            self._answer(part.request, OK, rows)

    def refused(self, frontend: str, refused: wire.Refused) -> None:
        """The request has its outcome, unless the refusal is of an earlier attempt."""
        if refused.attempt == self.asked[refused.request].attempt:
            self.outcome.heard[refused.request] += 1
            self._answer(refused.request, refused.status)

    # -- faults -------------------------------------------------------------------------------------------------------

    def _fault(self, fault: InjectedFault) -> None:
        mesh, worker, device = self.mesh, self.workers[fault.device], self.devices[fault.device]
        over_s = mesh.now + fault.seconds
        mesh.happened()
        if fault.kind == "restart":
            mesh.lose_controller()
            mesh.timeline.at(over_s, self._take_over)
        elif fault.kind == "lose":
            worker.losing += fault.count
        elif fault.kind == "slow":
            device.slow = fault.factor
            mesh.timeline.at(over_s, lambda: setattr(device, "slow", 1.0))
        elif fault.kind == "hang":
            worker.hung = True
            mesh.timeline.at(over_s, worker.resume)
        else:
            mesh.kill(worker)
            if fault.seconds:
                mesh.timeline.at(over_s, lambda: mesh.link(worker))

    def _take_over(self) -> None:
        """Another controller takes over, and the frontend submits again what is unanswered."""
        self.mesh.take_over(self.refs, [FRONTEND])
        for i, status in enumerate(self.outcome.status):
            if status is None:
                left_s = self.outcome.arrived_s[i] + self.outcome.slo_s[i] - self.mesh.now
                message = self.asked[i]
                message = msgspec.structs.replace(message, attempt=message.attempt + 1, budget_s=left_s)
                self.asked[i] = message
                self._send(message)


def _way_s(noise: Noise) -> float:
    """Seconds of one way through the network, with its usual jitter: the controller's margins start from it."""
    return (noise.network_ms + noise.network_jitter_ms) / 1e3
