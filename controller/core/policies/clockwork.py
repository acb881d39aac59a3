"""The policy of Clockwork, faithful in its rules, its margins and its lead; for comparison. Pure.

Source: Clockwork (OSDI'20) and its published scheduler in the batch-queue form (INFER5), as docs/design/policy.md
describes it under "Clockwork's policy". Its two LOAD bugs are repaired: demand that is met causes no further LOAD (the
code compared a pointer), and LOAD demand ends with the request (the code stored 0). A model with work in flight is not
evicted, which the code does.

Nobody is refused at arrival. A request that is in no action by its internal deadline is refused then. A batch is padded
to its longest request.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from controller.core.devices.base import RemoteDevice
from controller.core.policies.base import Batch, Lead, LoadPlan, SchedulingPolicy, Verdict
from controller.core.policies.by_extents import Together, extents_of
from controller.core.queues import Request
from controller.core.state import Model, ShardState
from mesh.sizes import Extents

BUFFER_S = 0.005  # taken off every SLO for the way back
FUTURE_S = 0.001  # least delay from controller to worker
WEIGHTS_SLO_S_MAX = 0.025  # longest time after arrival by which a LOAD must have started
SIZES = (1, 2, 4, 8, 16)  # of batches


@dataclass(frozen=True, slots=True)
class ClockworkParameters:
    """What can be set of the policy. The values are those of Clockwork's experiments."""

    schedule_ahead_ms: float = 5.0  # how far ahead a device's queue is filled; also the width of an action's window
    default_slo_ms: float = 100.0  # the constant C of the formulas of LOAD demand
    max_exec_ms: float = 250.0  # batch sizes that take longer are not used
    batch_max: int = 16


@dataclass(slots=True)
class Instance:
    """One model as this policy sees it."""

    queues: dict[int, deque[Request]] = field(default_factory=dict)  # {batch size: FIFO}; every request is in each
    exec_demand: float = 0.0  # sum over requests from arrival to their end
    load_demand: float = 0.0  # sum over requests that wait
    used: int = 0  # stamp of the last use


class Clockwork(SchedulingPolicy):
    """Keeps a queue for each batch size of each model, and the demand for EXEC and LOAD."""

    def __init__(self, state: ShardState, parameters: ClockworkParameters | None = None) -> None:
        self.state = state
        self.parameters = p = parameters or ClockworkParameters()
        self._ahead_s = p.schedule_ahead_ms / 1e3
        self._capacity_s = p.default_slo_ms / 1e3
        self.lead = Lead(self._ahead_s, depth=1 << 30, loads=1 << 30, load_s=self._ahead_s, tries=1)
        self._instances: dict[str, Instance] = {}  # {ref: its queues and demand}
        self._demands: dict[int, tuple[float, float]] = {}  # {id of an open request: (execution, LOAD demand)}
        self._stamp = 0

    # -- requests -----------------------------------------------------------------------------------------------------

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """Everybody is let in."""
        device = next(iter(model.hosts.values()), None) or next(iter(model.ready.values()))
        return Verdict(True, device.exec.free_at(now) + device.curves[model.ref].exec_s(1, request.extents) - now)

    def arrived(self, model: Model, request: Request, now: float) -> None:
        """The request is in the queue of every batch size, and its demand counts."""
        instance = self._instances.setdefault(model.ref, Instance())
        for size in self._sizes(model, request):
            instance.queues.setdefault(size, deque()).append(request)
        if id(request) not in self._demands:
            demand = self._demand(model, request)
            self._demands[id(request)] = demand
            instance.exec_demand += demand[0]
            instance.load_demand += demand[1]

    def ended(self, request: Request, in_time: bool, now: float) -> None:
        """The request's demand counts no longer."""
        self._forget(request)

    def withdrawn(self, request: Request, now: float) -> None:
        """The request's demand counts no longer."""
        self._forget(request)

    def _forget(self, request: Request) -> None:
        demand = self._demands.pop(id(request), None)
        if demand is not None:
            instance = self._instances[request.ref]
            instance.exec_demand = max(0.0, instance.exec_demand - demand[0])
            instance.load_demand = max(0.0, instance.load_demand - demand[1])

    def expired(self, model: Model, now: float) -> int:
        """Those whose internal deadline has come: they are refused now, not before."""
        queue = model.queue
        count = 0
        for request in queue.requests[queue.head :]:
            if self._deadline_s(request) > now:
                break
            count += 1
        return count

    def wake_at(self, now: float) -> float | None:
        """When the next internal deadline is due. What is past is looked for when the scheduler says."""
        firsts = (self._deadline_s(model.queue.first()) for model in self.state.active.values())
        return min((first_s for first_s in firsts if first_s > now), default=None)

    def _deadline_s(self, request: Request) -> float:
        """The internal deadline. Its floor lies behind the real one for SLOs under some 10 ms."""
        slo_s = request.deadline_s - request.arrived_s
        tight_s = slo_s - BUFFER_S if slo_s >= BUFFER_S else slo_s
        return request.arrived_s + max(tight_s, self._ahead_s + BUFFER_S)

    def _demand(self, model: Model, request: Request) -> tuple[float, float]:
        """(execution, LOAD) demand of one request: the time of a batch of one, scaled to the time there is for it."""
        device = next(iter(model.ready.values()))
        alone_s = device.curves[model.ref].exec_s(1, request.extents)
        slo_s = request.deadline_s - request.arrived_s
        floor_s = self._ahead_s + BUFFER_S
        start_s = slo_s - (device.loads[model.ref].load_s() + alone_s + BUFFER_S + self._ahead_s)
        weights_s = max(min(WEIGHTS_SLO_S_MAX, start_s if start_s >= 0 else slo_s), floor_s)
        exec_s = self._deadline_s(request) - request.arrived_s
        return alone_s * self._capacity_s / exec_s, alone_s * self._capacity_s / weights_s

    def _sizes(self, model: Model, request: Request) -> Iterator[int]:
        """Sizes of its batches: all of them, for what waits anew after its last device has gone."""
        device = next(iter(model.ready.values()), None)
        curve = device.curves[model.ref] if device is not None else None
        extents = request.extents
        largest = curve.joint_max(extents) if curve is not None else model.spec.batch_max
        for size in SIZES:
            if size > min(self.parameters.batch_max, largest):
                return
            if size == 1 or curve is None or curve.exec_s(size, extents) <= self.parameters.max_exec_ms / 1e3:
                yield size

    # -- EXEC ---------------------------------------------------------------------------------------------------------

    def choose(self, device: RemoteDevice, now: float) -> Batch | None:
        """The first batch that can be filled, over models and sizes by latest start of the oldest request."""
        start_s = max(device.exec.free_at(now), now + FUTURE_S)
        strategies = sorted(self._strategies(device))
        unfilled: dict[str, int] = {}  # {ref: batches of this size and more could not be filled}
        for _, size, ref in strategies:
            if size >= unfilled.get(ref, 1 << 30):
                continue
            requests = self._dequeue(device, ref, start_s, size)
            if requests:
                return self._batch(device, ref, requests, start_s, now)
            unfilled[ref] = size
        return None

    def _strategies(self, device: RemoteDevice) -> Iterator[tuple[float, int, str]]:
        """(latest start, size, ref) for each model whose weights are there, and each size with a request that waits."""
        for ref in device.waiting:
            if device.residency.models[ref].loading is not None:
                continue
            curve = device.curves[ref]
            for size, queue in self._instances[ref].queues.items():
                _drop_taken(queue)
                if queue:
                    exec_s = curve.exec_s(size, _longest(queue, size))
                    yield self._deadline_s(queue[0]) - exec_s, size, ref

    def _dequeue(self, device: RemoteDevice, ref: str, start_s: float, least: int) -> list[Request]:
        """The requests of the largest batch that can be filled; none if it is smaller than `least`."""
        curve = device.curves[ref]
        queues = self._instances[ref].queues
        sizes = sorted(queues)
        for size in sizes:
            queue = queues[size]
            _drop_taken(queue)
            while queue and self._deadline_s(queue[0]) < start_s + curve.exec_s(size, _longest(queue, size)):
                queue.popleft()
                _drop_taken(queue)
        at = 0
        while at + 1 < len(sizes) and _count(queues[sizes[at + 1]], sizes[at + 1]) >= sizes[at + 1]:
            at += 1
        size = sizes[at]
        if size < least or _count(queues[size], size) < size:
            return []
        batch = Together(self.state.models[ref], curve)
        for request in queues[size]:
            if request.waiting:
                if not batch.add(request) or batch.rows > curve.joint_max(batch.extents):
                    break
                if len(batch.requests) == size:
                    break
        taken = batch.requests
        if not taken or batch.rows > curve.joint_max(batch.extents):
            return []
        for queue in queues.values():  # whoever is not younger than the youngest taken leaves every queue
            while queue and queue[0].arrived_s <= taken[-1].arrived_s:
                queue.popleft()
        return taken

    def _batch(self, device: RemoteDevice, ref: str, requests: list[Request], start_s: float, now: float) -> Batch:
        latest_s = max(now + FUTURE_S + self._ahead_s, start_s + self._ahead_s)
        rows = sum(request.rows for request in requests)
        extents = extents_of(requests)
        expected_s = device.curves[ref].exec_s(rows, extents)
        return Batch(self.state.models[ref], requests, (), rows, start_s, expected_s, latest_s, extents)

    def bound(self, device: RemoteDevice, batch: Batch, now: float) -> None:
        """The batch's requests need no LOAD any more."""
        instance = self._instances[batch.model.ref]
        for request in batch.requests:
            execution, load = self._demands[id(request)]
            instance.load_demand = max(0.0, instance.load_demand - load)
            self._demands[id(request)] = (execution, 0.0)
        self._use(instance)

    # -- LOAD ---------------------------------------------------------------------------------------------------------

    def choose_load(self, device: RemoteDevice, now: float) -> LoadPlan | None:
        """The model with most unmet LOAD demand. First models without demand make room, least recently used first."""
        best: tuple[float, int, str] | None = None
        for ref, instance in self._instances.items():
            if instance.load_demand <= 1e-12 or ref not in device.curves or ref in device.residency.models:
                continue
            unmet = self._unmet(ref, instance)
            if unmet > 1e-9 and (best is None or (unmet, instance.used, ref) > best):
                best = (unmet, instance.used, ref)
        if best is None:
            return None
        evict = self._victims(device, device.pages[best[2]])
        return None if evict is None else LoadPlan(self.state.models[best[2]], tuple(evict))

    def _unmet(self, ref: str, instance: Instance) -> float:
        """The LOAD demand that the model's hosts do not serve."""
        hosts = self.state.models[ref].hosts.values()
        if not hosts:
            return instance.load_demand
        weights = [self._capacity_s / self._load_of(host) for host in hosts]
        total = sum(weights, 0.0)
        served = [
            self._capacity_s * (instance.load_demand * weight / total) / self._load_of(host)
            for host, weight in zip(hosts, weights, strict=True)
        ]
        return instance.load_demand - sum(served, 0.0)

    def _load_of(self, device: RemoteDevice) -> float:
        """Load of a device: 1 ms, plus its equal share of the execution demand of each of its models."""
        total = 0.001
        for ref in device.residency.models:
            instance, model = self._instances.get(ref), self.state.models.get(ref)
            if instance is not None and instance.exec_demand > 0 and model is not None:  # it may have been let go
                total += instance.exec_demand / max(1, len(model.hosts))
        return total

    def _victims(self, device: RemoteDevice, pages: int) -> list[str] | None:
        def worth(ref: str) -> float:
            instance = self._instances.get(ref)
            if instance is None:
                return -math.inf
            wanted = instance.exec_demand > 1e-12 or instance.load_demand > 1e-12
            return instance.used + (1e12 if wanted else 0.0)

        return device.residency.victims(pages, lambda ref: False, worth)

    def _use(self, instance: Instance) -> None:
        self._stamp += 1
        instance.used = self._stamp


def _drop_taken(queue: deque[Request]) -> None:
    """Requests that wait no longer leave the head of the queue."""
    while queue and not queue[0].waiting:
        queue.popleft()


def _count(queue: deque[Request], enough: int) -> int:
    """How many wait in it, counted up to `enough`."""
    count = 0
    for request in queue:
        count += request.waiting
        if count >= enough:
            break
    return count


def _longest(queue: deque[Request], count: int) -> Extents:
    """The greatest extents of the first so many who wait in it; none, of a model without open dimensions."""
    if not queue or not queue[0].extents:
        return ()
    return extents_of(islice((request for request in queue if request.waiting), count))
