"""Apparent tardiness cost with free batch sizes: the default policy. Pure.

The next batch is the one with the highest value per device-second, discounted by how long it could still wait:

    score = weight x batch / duration x exp(-slack / (k x SLO))

k grows with the share of requests being lost: near 0 the order is by slack alone (EDF), in overload by value.
Source: Vepsalainen and Morton, "Priority rules for job shops with weighted tardiness costs" (1987), for the rule; the
window per SLO, its adaptation, the skipping of heads and the bonus for full batches: policy_study, section 1.
Admission, placement, waiting for clients that return and fairness are in modules of their own, beside this one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from controller.core.policies.admission import PRICE_LOSS, Admission, start_of
from controller.core.policies.base import Batch, LoadPlan, Policy, Verdict, Window
from controller.core.policies.echo import Echo
from controller.core.policies.fairness import Fairness
from controller.core.policies.placement import Placement
from controller.core.queues import Request
from controller.core.state import Device, Model, State

ECHO_GAIN = 1.05  # going apart must take so much more of the device's time than waiting and going together
ECHO_SLACK = 0.05  # and leave this share of the SLO; policy_study section 6 has 0.3, which is too shy for 25 ms


@dataclass(frozen=True, slots=True)
class AtcParameters:
    """Source of the values: policy_study section 1; each is flat around its optimum there."""

    window_min: float = 0.10  # k while nothing is lost
    window_max: float = 0.25  # k while `loss_full` or more of all requests are lost
    loss_full: float = 0.25
    loss_decay_s: float = 0.1  # time constant of the loss rate
    full_bonus: float = 0.5  # least urgency of a full batch: it cannot gain by waiting
    skip_gain: float = 1.02  # heads are given up only if the batch then earns more than this, per second
    lead_ms: float = 0.0  # how long before a device comes free its next batch goes out; 0: learned from its delays
    depth: int = 2  # batches at a device: one running, the next bound as late as can be
    echo: bool = True  # wait for clients that are known to return, where that pays
    price_loss: float = PRICE_LOSS  # of a model's admitted requests; beyond, fewer are. Less: told sooner, served fewer


@dataclass(slots=True)
class Plan:
    """One model's candidate for a device's next batch."""

    model: Model
    count: int  # requests
    rows: int
    skip: int  # requests at the head of the queue that are passed over
    start_s: float
    expected_s: float
    latest_s: float

    def batch(self) -> Batch:
        """The plan as a batch of requests. Heads passed over are given up, unless another host may take them."""
        queue = self.model.queue
        first = queue.head + self.skip
        given_up = queue.requests[queue.head : first] if len(self.model.hosts) == 1 else []
        requests = queue.requests[first : first + self.count]
        return Batch(self.model, requests, given_up, self.rows, self.start_s, self.expected_s, self.latest_s)


class Atc(Policy):
    """See policies.base.Policy."""

    def __init__(self, state: State, parameters: AtcParameters | None = None) -> None:
        self.state = state
        self.parameters = p = parameters or AtcParameters()
        self.window = Window(p.lead_ms / 1e3 if p.lead_ms else None, p.depth, loads=1)
        self._admission = Admission(p.price_loss)
        self._fairness = Fairness()
        self._placement = Placement(state, self._fairness)
        self._echoes: dict[str, Echo] = {}  # {ref: its returns}, models that completed a batch
        self._look_again_s = math.inf  # a device waits until then: for returns, or for a LOAD to be nearly done
        self._in_time = 0.0  # decayed count
        self._lost = 0.0  # decayed count
        self._counted_s = 0.0

    # -- requests -----------------------------------------------------------------------------------------------------

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """See controller.core.policies.admission."""
        echo = self._echoes.get(model.ref)
        if echo is not None:
            echo.arrived(now)
        verdict = self._admission.admit(model, request, now)
        if verdict.code == "deadline" and not model.hosts:
            self._placement.missed(model)
        return verdict

    def expired(self, model: Model, now: float) -> int:
        """Heads that are too late even if their model ran next, alone, on the best of its devices."""
        queue = model.queue
        head_s = queue.deadlines[queue.head]
        first_end_s = math.inf
        for device in (model.hosts or model.ready).values():
            first_end_s = min(first_end_s, start_of(device, model, now) + device.curves[model.ref].exec_s(1))
            if first_end_s <= head_s:
                return 0
        return queue.before(first_end_s) if first_end_s < math.inf else 0

    def completed(self, device: Device, model: Model, requests: Sequence[Request], now: float) -> None:
        """See Policy."""
        if len(model.hosts) == 1 and self.parameters.echo:
            echo = self._echoes.get(model.ref)
            if echo is None:
                echo = self._echoes[model.ref] = Echo()
            echo.completed(len(requests), now)

    def ended(self, request: Request, in_time: bool, now: float) -> None:
        """See Policy."""
        if now > self._counted_s:
            decay = math.exp((self._counted_s - now) / self.parameters.loss_decay_s)
            self._in_time *= decay
            self._lost *= decay
            self._counted_s = now
        if in_time:
            self._in_time += 1
        else:
            self._lost += 1
            self._fairness.lost(request.ref, now)
        if request.admitted:
            self._admission.ended(request, in_time)

    # -- EXEC ---------------------------------------------------------------------------------------------------------

    def choose(self, device: Device, now: float) -> Batch | None:
        """The model whose batch scores highest. Ties: the one that has waited in `device.waiting` longest."""
        free_s = max(device.exec.free_at(now), now + device.dispatch.value_s)
        plan = self._starving(device, free_s, now)
        if plan is None:
            best_score = 0.0
            window = self._urgency_window()
            horizon_s = max(free_s, now + self.window.lead_of(device))
            for ref in device.waiting:
                model = self.state.models[ref]
                start_s = max(free_s, device.ready_s(ref, now))
                if start_s > horizon_s and now - device.busy_until_s < start_s - now:  # it is busy: more work may come
                    self._look_again_s = min(self._look_again_s, now + start_s - horizon_s)
                    continue
                candidate = self._plan(device, model, start_s)
                if candidate is None:
                    continue
                score = self._score(candidate, device.curves[ref].batch_max, window, free_s)
                if score > best_score:
                    plan, best_score = candidate, score
            if plan is not None and self._waits_for_returns(device, plan, now):
                return None
        return plan.batch() if plan is not None else None

    def bound(self, device: Device, batch: Batch, now: float) -> None:
        """See Policy."""
        self._fairness.served(batch.model.ref, now)

    def _starving(self, device: Device, free_s: float, now: float) -> Plan | None:
        """A batch of the model whose patience ended first, if one can be in time."""
        self._fairness.accrue(now, len(self.state.devices))
        for ref in self._fairness.first(device.waiting, now):
            plan = self._plan(device, self.state.models[ref], max(free_s, device.residency.models[ref].ready_s))
            if plan is not None:
                self._fairness.spend(plan.expected_s)
                return plan
        return None

    def _plan(self, device: Device, model: Model, start_s: float) -> Plan | None:
        """The model's best batch if EXEC starts at `start_s`."""
        queue = model.queue
        curve = device.curves[model.ref]
        scale = curve.scale
        guard = scale * (1 + device.margin)
        base = curve.base_s
        skip = queue.before(start_s + base[1] * guard)
        waiting = len(queue) - skip
        if waiting <= 0:
            return None
        head_s = queue.deadlines[queue.head + skip] - start_s
        cap = curve.largest(head_s * scale / guard, curve.batch_max)
        if queue.many:
            return self._plan_of_many(model, curve.rows_max, max(cap, 1), skip, start_s, scale, base)
        rows = min(cap, waiting)
        wider = min(waiting, curve.batch_max)
        if rows < wider:
            more, passed = self._without_heads(model, skip, rows, wider, start_s, guard, base)
            if rows == 0 or more / base[more] > self.parameters.skip_gain * rows / base[rows]:
                rows, skip = more, skip + passed
        if rows < 1:
            return None
        return _plan_of(model, rows, rows, skip, start_s, base[rows] * scale)

    def _without_heads(
        self, model: Model, skip: int, low: int, high: int, start_s: float, guard: float, base: list[float]
    ) -> tuple[int, int]:
        """(rows, heads passed over): the largest batch for which enough requests remain that can wait for it."""
        queue = model.queue
        waiting = len(queue)
        while low < high:
            rows = (low + high + 1) // 2
            if waiting - queue.before(start_s + base[rows] * guard) >= rows:
                low = rows
            else:
                high = rows - 1
        return low, max(0, queue.before(start_s + base[low] * guard) - skip) if low else 0

    def _plan_of_many(
        self, model: Model, rows_max: int, cap: int, skip: int, start_s: float, scale: float, base: list[float]
    ) -> Plan | None:
        """Requests of several rows are kept whole: as many from the head on as fit, or the head if none does."""
        queue = model.queue
        count = max(1, queue.count_for(cap, skip))
        rows = queue.rows_of(count, skip)
        if rows > rows_max:
            return None
        return _plan_of(model, count, rows, skip, start_s, base[rows] * scale)

    def _score(self, plan: Plan, batch_max: int, window: float, free_s: float) -> float:
        queue = plan.model.queue
        head = queue.requests[queue.head + plan.skip]
        slack_s = head.deadline_s - plan.start_s - plan.expected_s
        urgency = 1.0
        if slack_s > 0:
            urgency = math.exp(max(-700.0, -slack_s / (window * (head.deadline_s - head.arrived_s))))
        if plan.rows >= batch_max:
            urgency = max(urgency, self.parameters.full_bonus)
        weight = queue.weight_of(plan.count, plan.skip) * plan.rows / plan.count
        return weight / (plan.start_s + plan.expected_s - free_s) * urgency

    def _urgency_window(self) -> float:
        p = self.parameters
        total = self._in_time + self._lost
        loss = self._lost / total if total > 1e-9 else 0.0
        return p.window_min + (p.window_max - p.window_min) * min(1.0, loss / p.loss_full)

    # -- returning clients --------------------------------------------------------------------------------------------

    def _waits_for_returns(self, device: Device, plan: Plan, now: float) -> bool:
        """Whether the batch had better wait for clients that return. Only a model that is alone on the device does."""
        model = plan.model
        echo = self._echoes.get(model.ref)
        if echo is None or echo.share <= 0 or len(device.waiting) > 1 or len(model.hosts) > 1 or model.queue.many:
            return False
        running = [action for action in device.actions.values() if action.kind == "infer"]
        if any(action.ref != model.ref for action in running):
            return False
        coming, left_s = echo.missing(now)
        starts_s = now + left_s
        if running:
            count, return_s = echo.of_running(sum(len(action.requests) for action in running))
            coming += count
            starts_s = device.exec.free_at(now) + return_s
        curve = device.curves[model.ref]
        count = int(coming + 0.5)
        together = min(curve.batch_max, plan.rows + count)
        if together <= plan.rows:
            return False
        head_s = model.queue.first().deadline_s
        slo_s = head_s - model.queue.first().arrived_s
        starts_s += device.dispatch.value_s
        if starts_s + curve.exec_s(together) > head_s - ECHO_SLACK * slo_s:
            return False
        idle_s = starts_s - max(now, device.exec.free_at(now))
        apart_s = curve.total_s(plan.rows) + curve.total_s(count)
        if apart_s <= ECHO_GAIN * (idle_s + curve.total_s(plan.rows + count)):
            return False
        if not running:
            self._look_again_s = min(self._look_again_s, starts_s)
        return True

    def wake_at(self, now: float) -> float | None:
        """When a device has waited long enough, for EXEC or for a LOAD."""
        ends_s, self._look_again_s = min(self._look_again_s, self._placement.wake_at(now)), math.inf
        return ends_s if ends_s < math.inf else None

    # -- LOAD ---------------------------------------------------------------------------------------------------------

    def choose_load(self, device: Device, now: float) -> LoadPlan | None:
        """See controller.core.policies.placement."""
        return self._placement.choose(device, now)


def _plan_of(model: Model, count: int, rows: int, skip: int, start_s: float, expected_s: float) -> Plan:
    """`latest_s`: started later, fewer than half of the batch would be in time."""
    queue = model.queue
    middle_s = queue.deadlines[queue.head + skip + count // 2]
    return Plan(model, count, rows, skip, start_s, expected_s, max(middle_s - expected_s, start_s))
