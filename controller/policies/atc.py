"""Apparent tardiness cost with free batch sizes: the default policy. Pure.

The next batch is the one with the highest value per device-second, discounted by how long it could still wait:

    score = weight x batch / duration x exp(-slack / (k x SLO))

k grows with the share of requests being lost: near 0 the order is by slack alone (EDF), in overload by value.
Source: Vepsalainen and Morton, "Priority rules for job shops with weighted tardiness costs" (1987), for the rule; the
window per SLO, its adaptation, the skipping of heads and the bonus for full batches: policy_study, section 1.
"""

import math
from dataclasses import dataclass

from controller.policies.base import Batch, LoadPlan, Verdict
from controller.queues import Request
from controller.state import Device, Model, State


@dataclass(frozen=True, slots=True)
class AtcParameters:
    """Source of the values: policy_study section 1; each is flat around its optimum there."""

    window_min: float = 0.10  # k while nothing is lost
    window_max: float = 0.25  # k while `loss_full` or more of all requests are lost
    loss_full: float = 0.25
    loss_decay_s: float = 0.1  # time constant of the loss rate
    full_bonus: float = 0.5  # least urgency of a full batch: it cannot gain by waiting
    skip_gain: float = 1.02  # heads are given up only if the batch then earns more than this, per second
    margin: float = 0.05  # on every duration, against noise


class Atc:
    """See policies.base.Policy."""

    def __init__(self, state: State, parameters: AtcParameters | None = None) -> None:
        self.state = state
        self.parameters = parameters or AtcParameters()
        self._in_time = 0.0  # decayed count
        self._lost = 0.0  # decayed count
        self._counted_s = 0.0

    # -- admission ----------------------------------------------------------------------------------------------------

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """Refused: what could not make it even alone and first, or is predicted to come too late behind what waits."""
        alone_s = behind_s = math.inf
        for device in model.ready.values():
            if device.leaving:
                continue
            curve = device.curves[model.ref]
            start_s = self._start_s(device, model, now)
            own_s = curve.exec_s(min(request.rows, curve.batch_max))
            alone_s = min(alone_s, start_s + own_s)
            behind_s = min(behind_s, self._end_behind(device, model, request, start_s))
        late_s = behind_s - request.deadline_s
        if late_s <= 0:
            return Verdict(True, behind_s - now)
        if alone_s > request.deadline_s:
            budget_s = request.deadline_s - now
            idle_s = min(device.curves[model.ref].exec_s(request.rows) for device in model.ready.values())
            retry_s = alone_s - request.deadline_s if idle_s <= budget_s else None
            return Verdict(False, behind_s - now, "deadline", retry_s)
        return Verdict(False, behind_s - now, "overload", late_s)

    def _end_behind(self, device: Device, model: Model, request: Request, start_s: float) -> float:
        """End of the request's batch on this device if all that waits for the device goes first."""
        curve = device.curves[model.ref]
        hosts = len(model.hosts) or 1
        mine_s = model.cost_s / hosts if device.worker in model.hosts else 0.0
        full, rest = divmod(model.queue.rows, curve.batch_max)
        rows = min(rest + request.rows, curve.batch_max)
        ahead_s = device.backlog_s - mine_s + full * curve.exec_s(curve.batch_max) / hosts
        return start_s + ahead_s + curve.exec_s(rows)

    def _start_s(self, device: Device, model: Model, now: float) -> float:
        """When EXEC could start, the LOAD included if the model is not there."""
        if model.ref in device.residency.models:
            return device.start_s(model.ref, now)
        there_s = device.load.free_at(now) + device.loads[model.ref].load_s() + device.dispatch.value_s
        return max(there_s, device.exec.free_at(now))

    def expired(self, model: Model, now: float) -> int:
        """Heads that are too late even if their model ran next, alone, on the best of its devices."""
        devices = model.hosts or model.ready
        if not devices:
            return 0
        first_end_s = min(
            self._start_s(device, model, now) + device.curves[model.ref].exec_s(1) for device in devices.values()
        )
        return model.queue.before(first_end_s)

    # -- EXEC ---------------------------------------------------------------------------------------------------------

    def choose(self, device: Device, now: float) -> Batch | None:
        """The model whose batch scores highest. Ties: the one that has waited in `device.waiting` longest."""
        best: Batch | None = None
        best_score = 0.0
        window = self._window(now)
        free_s = max(device.exec.free_at(now), now + device.dispatch.value_s)
        for ref in device.waiting:
            model = self.state.models[ref]
            start_s = max(free_s, device.residency.models[ref].ready_s)
            batch = self._batch(device, model, start_s)
            if batch is None:
                continue
            score = self._score(batch, device.curves[ref].batch_max, window)
            if score > best_score:
                best, best_score = batch, score
        return best

    def _batch(self, device: Device, model: Model, start_s: float) -> Batch | None:
        """The model's best batch if EXEC starts at `start_s`."""
        queue = model.queue
        curve = device.curves[model.ref]
        scale = curve.scale * (1 + self.parameters.margin)
        base = curve.base_s
        skip = queue.before(start_s + base[1] * scale)
        waiting = len(queue) - skip
        if waiting <= 0:
            return None
        head_s = queue.deadlines[queue.head + skip] - start_s
        cap = curve.largest(head_s * curve.scale / scale, curve.batch_max)
        if queue.many:
            return self._batch_of_many(model, curve.batch_max, max(cap, 1), skip, start_s, scale, base)
        rows = min(cap, waiting)
        wider = min(waiting, curve.batch_max)
        if rows < wider:
            more, given_up = self._without_heads(model, skip, rows, wider, start_s, scale, base)
            if rows == 0 or more / base[more] > self.parameters.skip_gain * rows / base[rows]:
                rows, skip = more, skip + given_up
        if rows < 1:
            return None
        return self._planned(model, rows, rows, skip, start_s, base[rows] * scale, curve.exec_s(rows))

    def _without_heads(
        self, model: Model, skip: int, low: int, high: int, start_s: float, scale: float, base: list[float]
    ) -> tuple[int, int]:
        """(rows, heads given up): the largest batch for which enough requests remain that can wait for it."""
        queue = model.queue
        waiting = len(queue)
        while low < high:
            rows = (low + high + 1) // 2
            if waiting - queue.before(start_s + base[rows] * scale) >= rows:
                low = rows
            else:
                high = rows - 1
        return low, max(0, queue.before(start_s + base[low] * scale) - skip) if low else 0

    def _batch_of_many(
        self, model: Model, batch_max: int, cap: int, skip: int, start_s: float, scale: float, base: list[float]
    ) -> Batch | None:
        """Requests of several rows are kept whole: as many from the head on as fit."""
        queue = model.queue
        count = queue.count_for(cap, skip)
        if count == 0:
            count = 1  # the head alone is larger than what its deadline allows: it is tried, it was admitted
        rows = queue.rows_of(count, skip)
        if rows > batch_max:
            return None
        return self._planned(model, count, rows, skip, start_s, base[rows] * scale, base[rows] * scale)

    def _planned(
        self, model: Model, count: int, rows: int, skip: int, start_s: float, guarded_s: float, expected_s: float
    ) -> Batch:
        """`latest_s`: started later, fewer than half of the batch would be in time."""
        queue = model.queue
        middle_s = queue.deadlines[queue.head + skip + count // 2]
        return Batch(model, count, rows, skip, start_s, expected_s, max(middle_s - expected_s, start_s))

    def _score(self, batch: Batch, batch_max: int, window: float) -> float:
        queue = batch.model.queue
        head = queue.requests[queue.head + batch.skip]
        slack_s = head.deadline_s - batch.start_s - batch.expected_s
        urgency = 1.0
        if slack_s > 0:
            urgency = math.exp(-slack_s / (window * (head.deadline_s - head.arrived_s)))
        if batch.rows == batch_max:
            urgency = max(urgency, self.parameters.full_bonus)
        weight = queue.weight_of(batch.count, batch.skip) * batch.rows / batch.count
        return weight / batch.expected_s * max(urgency, 1e-300)

    def _window(self, now: float) -> float:
        p = self.parameters
        total = self._in_time + self._lost
        loss = self._lost / total if total > 1e-9 else 0.0
        return p.window_min + (p.window_max - p.window_min) * min(1.0, loss / p.loss_full)

    def answered(self, requests: int, in_time: int, now: float) -> None:
        """See Policy."""
        decay = math.exp((self._counted_s - now) / self.parameters.loss_decay_s)
        self._counted_s = now
        self._in_time = self._in_time * decay + in_time
        self._lost = self._lost * decay + requests - in_time

    # -- LOAD ---------------------------------------------------------------------------------------------------------

    def choose_load(self, device: Device, now: float) -> LoadPlan | None:
        """The model whose LOAD saves most requests per second of copying; if none, one that fits into free pages."""
        plan: LoadPlan | None = None
        best_score = 0.0
        for ref in self.state.homeless:
            if ref not in device.curves or ref in device.residency.models:
                continue
            model = self.state.models[ref]
            score = self._load_score(device, model, now)
            if score > best_score:
                evict = self._evict(device, ref, now)
                if evict is not None:
                    plan, best_score = LoadPlan(model, tuple(evict)), score
        return plan or self._prefetch(device, now)

    def _load_score(self, device: Device, model: Model, now: float) -> float:
        """Requests saved per second of copying."""
        load_s = device.loads[model.ref].load_s()
        start_s = max(device.load.free_at(now) + load_s, device.exec.free_at(now))
        too_late = model.queue.before(start_s + device.curves[model.ref].exec_s(1))
        waiting = len(model.queue)
        return model.queue.weight_of(waiting - too_late, too_late) / load_s

    def _evict(self, device: Device, ref: str, now: float) -> list[str] | None:
        models = self.state.models

        def worth(resident: str) -> float:
            model = models.get(resident)
            if model is None or resident not in device.curves:
                return 0.0
            return model.popularity.rate(now) * device.curves[resident].exec_s(1)

        return device.residency.victims(
            device.pages[ref], lambda resident: resident in models and len(models[resident].queue) > 0, worth
        )

    def _prefetch(self, device: Device, now: float) -> LoadPlan | None:
        """A model that is nowhere yet, the most popular first, as long as nobody has to leave for it."""
        if not device.room_for_more or len(device.load):
            return None
        candidates = [
            model
            for ref, model in self.state.models.items()
            if not model.hosts and ref in device.curves and device.pages[ref] <= device.residency.free
        ]
        if not candidates:
            return None
        return LoadPlan(max(candidates, key=lambda model: (model.popularity.value(now), model.ref)), ())

    def wake_at(self, now: float) -> float | None:
        """See Policy: everything this policy waits for is an event."""
        return None
