"""Apparent tardiness cost with free batch sizes: the default policy. Pure.

The next batch is the one with the highest value per device-second, discounted by its slack, the time for which it could
still wait:

    score = weight x batch / duration x exp(-slack / (k x SLO))

The look-ahead k grows with the share of requests that are lost. Near 0 the order is by slack alone (earliest deadline
first), in overload it is by value.
Source: Vepsalainen and Morton, "Priority rules for job shops with weighted tardiness costs" (1987), for the rule. For
the look-ahead in SLOs, its adaptation, the heads that are passed over and the bonus of full batches:
docs/design/policy.md, "The rule". Admission, placement, returning clients, fairness, and the batches of models with
open dimensions are modules beside this one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from controller.core.devices.base import RemoteDevice
from controller.core.estimation.estimates import Curve
from controller.core.estimation.fetching import NOTHING
from controller.core.policies.admission import PRICE_LOSS, Admission
from controller.core.policies.base import Batch, Lead, LoadPlan, SchedulingPolicy, Verdict
from controller.core.policies.by_extents import hopeless
from controller.core.policies.fairness import Fairness
from controller.core.policies.fetched_plans import FetchedPlans, expired_fetched
from controller.core.policies.gone import gone_among
from controller.core.policies.placement import Placement
from controller.core.policies.returning_clients import ReturningClients
from controller.core.policies.sized_plans import LEFT, RESERVE, SizedPlan, SizedPlans
from controller.core.policies.starts import start_of
from controller.core.queues import Request
from controller.core.state import Model, ShardState
from mesh.codes import ActionKind, ErrorCode
from mesh.sizes import Extents

DEADLINE, INFER = ErrorCode.DEADLINE, ActionKind.INFER

# Source of both: docs/design/policy.md, "Returning clients"
APART_GAIN = 1.05  # a batch waits for clients only if going apart takes so much more device time than going together
RETURN_ROOM = 0.05  # a batch that waits for clients still has this share of its SLO to spare
EXPONENT_MIN = -700.0  # exp() of less is 0


@dataclass(frozen=True, slots=True)
class AtcParameters:
    """What can be set of the policy. Source of the values: docs/design/policy.md, "Constants of the rule"."""

    window_min: float = 0.10  # look-ahead k while nothing is lost
    window_max: float = 0.25  # look-ahead k while `loss_full` or more of all requests are lost
    loss_full: float = 0.25
    loss_decay_s: float = 0.1  # time constant of the loss rate
    full_bonus: float = 0.5  # least urgency of a full batch, which cannot gain by waiting
    skip_gain: float = 1.02  # heads are passed over only if the batch then earns more than this, per second
    lead_ms: float = 0.0  # how long before a device comes free its next batch goes out; 0: learned from its delays
    depth: int = 2  # batches at a device: one running, the next bound as late as can be
    echo: bool = True  # wait for clients that are known to return, where that pays
    price_loss: float = PRICE_LOSS  # largest share of a model's admitted requests to be lost; beyond, fewer are let in
    reserve: float = RESERVE  # of device time, in which requests of unequal extents are worth what they cost
    refuse_ahead: bool = True  # they are refused at arrival if what goes before them takes too long
    refuse_left: float = LEFT  # they are refused if they are put off with less than this share of the objective left


@dataclass(slots=True)
class BatchPlan:
    """One model's candidate for a device's next batch."""

    model: Model
    count: int  # requests
    rows: int
    skip: int  # heads of the queue that are passed over
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


class Atc(SchedulingPolicy):
    """Chooses batches itself, and asks the modules beside it for the rest."""

    def __init__(self, state: ShardState, parameters: AtcParameters | None = None) -> None:
        self.state = state
        self.parameters = p = parameters or AtcParameters()
        self.lead = Lead(p.lead_ms / 1e3 if p.lead_ms else None, p.depth, loads=1)
        self.admission = Admission(p.price_loss, p.refuse_ahead, state.models)
        self._fairness = Fairness()
        self._placement = Placement(state, self._fairness)
        self._sized = SizedPlans(state, p.reserve, p.refuse_left)
        self._fetched = FetchedPlans(self._sized, p.skip_gain)
        self.clients: dict[str, ReturningClients] = {}  # {ref: its clients}, models that completed a batch
        self._look_again_s = math.inf  # a device waits until then: for returns, or for a LOAD to be nearly done
        self._in_time = 0.0  # decayed count
        self._lost = 0.0  # decayed count
        self._counted_s = 0.0  # when both were last decayed

    # -- requests -----------------------------------------------------------------------------------------------------

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """Whether the request is let in; what was refused because its model is nowhere is noted for placement."""
        clients = self.clients.get(model.ref)
        if clients is not None:
            clients.arrived(now)
        verdict = self.admission.admit(model, request, now)
        if verdict.code is DEADLINE and not model.hosts:
            self._placement.refused_unplaced(model)
        return verdict

    def expired(self, model: Model, now: float) -> int:
        """Heads that are too late even if their model ran next, alone, on the best of its devices."""
        queue = model.queue
        if queue.kept:
            return expired_fetched(model, now)
        head_s = queue.deadlines[queue.head]
        first_end_s = math.inf
        for device in (model.hosts or model.ready).values():
            first_end_s = min(first_end_s, start_of(device, model, now) + device.curves[model.ref].exec_s(1))
            if first_end_s <= head_s:
                return 0
        return queue.before(first_end_s) if first_end_s < math.inf else 0

    def hopeless(self, model: Model, now: float) -> Sequence[Request]:
        """Who is too late even if it ran next, alone, on the best of the model's devices."""
        return hopeless(model, now)

    def arrived(self, model: Model, request: Request, now: float) -> None:
        """The request waits; what its client asks of a model with open dimensions bounds the batches."""
        if model.spec.dims:
            self._sized.arrived(model, request)
            device = model.first_device
            if request.kept_bytes and device is not None:
                model.queue.starts(request, request.latest_s - device.fetch.expected_s(device.far_bytes((request,))))

    def completed(self, device: RemoteDevice, model: Model, requests: Sequence[Request], now: float) -> None:
        """The returns to the batch are counted, if all of them would come to one device."""
        if len(model.hosts) == 1 and self.parameters.echo:
            clients = self.clients.get(model.ref)
            if clients is None:
                for gone in gone_among(self.clients, self.state.models):
                    del self.clients[gone]
                clients = self.clients[model.ref] = ReturningClients()
            clients.completed(len(requests), now)

    def ended(self, request: Request, in_time: bool, now: float) -> None:
        """The loss rate follows, and fairness and the prices of admission hear of it."""
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
            self.admission.ended(request, in_time)

    # -- EXEC ---------------------------------------------------------------------------------------------------------

    def choose(self, device: RemoteDevice, now: float) -> Batch | None:
        """The model whose batch scores highest. Ties: the one that has waited in `device.waiting` longest."""
        free_s = max(device.exec.free_at(now), now + device.dispatch.value_s)
        plan: BatchPlan | SizedPlan | None = self._starving(device, free_s, now)
        if plan is None:
            best_score = 0.0
            lookahead = self._lookahead()
            horizon_s = max(free_s, now + self.lead.of(device))
            for ref in device.waiting:
                model = self.state.models[ref]
                start_s = max(free_s, device.ready_s(ref, now))
                if start_s > horizon_s and now - device.busy_until_s < start_s - now:  # it is busy: more work may come
                    self._look_again_s = min(self._look_again_s, now + start_s - horizon_s)
                    continue
                if model.queue.kept:
                    candidate = self._fetched_plan(device, model, start_s, now)
                else:
                    candidate = self._plan(device, model, start_s)
                if candidate is None:
                    continue
                score = self._score(candidate, device.curves[ref].batch_max, lookahead, free_s)
                if score > best_score:
                    plan, best_score = candidate, score
            if plan is not None and self._waits_for_clients(device, plan, now):
                return None
        return plan.batch() if plan is not None else None

    def bound(self, device: RemoteDevice, batch: Batch, now: float) -> None:
        """The model has been served."""
        self._fairness.served(batch.model.ref, now)
        if batch.model.spec.dims:
            self._sized.bound(device, batch)

    def _starving(self, device: RemoteDevice, free_s: float, now: float) -> BatchPlan | SizedPlan | None:
        """A batch of the starving model whose patience ended first, if one can be in time."""
        self._fairness.accrue(now, len(self.state.devices))
        for ref in self._fairness.first(device.waiting, now):
            model, start_s = self.state.models[ref], max(free_s, device.residency.models[ref].ready_s)
            if model.queue.kept:
                plan = self._fetched_plan(device, model, start_s, now)
            else:
                plan = self._plan(device, model, start_s)
            if plan is not None:
                self._fairness.spend(plan.expected_s)
                return plan
        return None

    def _fetched_plan(
        self, device: RemoteDevice, model: Model, start_s: float, now: float
    ) -> BatchPlan | SizedPlan | None:
        """The model's best batch if EXEC starts at `start_s`, or once the device has fetched its inputs.

        None if nobody can be in time, or who could has to wait for what is fetched now: it asks again then.
        """
        if device.far_waiting(model.queue) == NOTHING:
            return self._plan(device, model, start_s)
        if device.fetching_until_s > now:
            self._look_again_s = min(self._look_again_s, device.fetching_until_s)
        return self._fetched.plan(device, model, start_s, now)

    def _plan(self, device: RemoteDevice, model: Model, start_s: float) -> BatchPlan | SizedPlan | None:
        """The model's best batch if EXEC starts at `start_s`; None if nobody can be in time."""
        if model.spec.dims:
            return self._sized.plan(device, model, start_s)
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
        most = curve.batch_max
        cap = curve.largest(head_s * scale / guard, most)
        if queue.many:
            return self._plan_of_many(model, curve.rows_max, max(cap, 1), skip, start_s, scale, base)
        rows = min(cap, waiting)
        wider = min(waiting, most)
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
        """(rows, heads passed over) of the largest batch for which enough requests remain that can wait for it.

        It is found by halving between `low` and `high` rows.
        """
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
    ) -> BatchPlan | None:
        """Requests of several rows are kept whole: as many from the head on as fit into `cap`, or else the head alone.

        None if the head has more rows than `rows_max`.
        """
        queue = model.queue
        count = max(1, queue.count_for(cap, skip))
        rows = queue.rows_of(count, skip)
        if rows > rows_max:
            return None
        return _plan_of(model, count, rows, skip, start_s, base[rows] * scale)

    def _score(self, plan: BatchPlan | SizedPlan, batch_max: int, lookahead: float, free_s: float) -> float:
        """Value per second of device time from `free_s` on, times urgency."""
        if isinstance(plan, SizedPlan):
            head, full, weight = plan.head, plan.full, plan.weight
        else:
            queue = plan.model.queue
            head, full = queue.requests[queue.head + plan.skip], plan.rows >= batch_max
            weight = queue.weight_of(plan.count, plan.skip) * plan.rows / plan.count
        slack_s = head.deadline_s - plan.start_s - plan.expected_s
        urgency = 1.0
        if slack_s > 0:
            urgency = math.exp(max(EXPONENT_MIN, -slack_s / (lookahead * (head.deadline_s - head.arrived_s))))
        if full:
            urgency = max(urgency, self.parameters.full_bonus)
        return weight / (plan.start_s + plan.expected_s - free_s) * urgency

    def _lookahead(self) -> float:
        """The look-ahead k, from the share of requests lost lately."""
        p = self.parameters
        total = self._in_time + self._lost
        loss = self._lost / total if total > 1e-9 else 0.0
        return p.window_min + (p.window_max - p.window_min) * min(1.0, loss / p.loss_full)

    # -- returning clients --------------------------------------------------------------------------------------------

    def _waits_for_clients(self, device: RemoteDevice, plan: BatchPlan | SizedPlan, now: float) -> bool:
        """Whether the batch should wait for clients that return. Only a model that is alone on the device waits."""
        model, queue = plan.model, plan.model.queue
        clients = self.clients.get(model.ref)
        if clients is None or clients.share <= 0:
            return False
        if len(device.waiting) > 1 or len(model.hosts) > 1 or queue.many:
            return False
        running = [action for action in device.actions.values() if action.kind is INFER]
        if any(action.ref != model.ref for action in running):
            return False
        coming, left_s = clients.missing(now)
        starts_s = now + left_s
        if running:
            of_running, return_s = clients.of_running(sum(len(action.requests) for action in running))
            coming += of_running
            starts_s = device.exec.free_at(now) + return_s
        curve = device.curves[model.ref]
        count = int(coming + 0.5)
        extents = plan.extents if isinstance(plan, SizedPlan) else ()  # those who return are taken to be as long
        together = min(curve.joint_max(extents), plan.rows + count)
        if together <= plan.rows:
            return False
        head_s = queue.first().deadline_s
        slo_s = head_s - queue.first().arrived_s
        starts_s += device.dispatch.value_s
        if starts_s + curve.exec_s(together, extents) > head_s - RETURN_ROOM * slo_s:
            return False
        idle_s = starts_s - max(now, device.exec.free_at(now))
        apart_s = _total_s(curve, plan.rows, extents) + _total_s(curve, count, extents)
        if apart_s <= APART_GAIN * (idle_s + _total_s(curve, plan.rows + count, extents)):
            return False
        if not running:
            self._look_again_s = min(self._look_again_s, starts_s)
        return True

    def wake_at(self, now: float) -> float | None:
        """When a device has waited long enough, for EXEC or for a LOAD."""
        ends_s, self._look_again_s = min(self._look_again_s, self._placement.wake_at(now)), math.inf
        return ends_s if ends_s < math.inf else None

    # -- LOAD ---------------------------------------------------------------------------------------------------------

    def choose_load(self, device: RemoteDevice, now: float) -> LoadPlan | None:
        """The device's next LOAD, which placement chooses."""
        return self._placement.choose(device, now)


def _plan_of(model: Model, count: int, rows: int, skip: int, start_s: float, expected_s: float) -> BatchPlan:
    """The plan with its `latest_s`: started later, fewer than half of its requests would be in time."""
    queue = model.queue
    middle_s = queue.deadlines[queue.head + skip + count // 2]
    return BatchPlan(model, count, rows, skip, start_s, expected_s, max(middle_s - expected_s, start_s))


def _total_s(curve: Curve, rows: int, extents: Extents) -> float:
    """Expected duration of so many rows of these extents, in batches of the largest size and one of the rest."""
    if not extents:
        return curve.total_s(rows)
    full, rest = divmod(rows, curve.joint_max(extents))
    total_s = full * curve.exec_s(curve.joint_max(extents), extents) if full else 0.0
    return total_s + (curve.exec_s(rest, extents) if rest else 0.0)
