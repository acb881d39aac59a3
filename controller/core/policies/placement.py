"""Which model a device loads next, and who makes room. Pure.

A device is given the first of these that there is:
  * A LOAD that requests wait for. While all such LOADs can be done in time, they go in the order of their deadlines,
    and a model that makes room is loaded again when it is asked. Once they cannot, they are ranked by the value that a
    second of copying saves: of the requests that wait, and of those that come until a later LOAD could be done. A LOAD
    is only done if it saves more, until its model leaves again, than its victims would have served. Unplaced models
    whose requests were all refused, because the LOAD takes longer than a request may, are ranked with the others.
  * A replica of a model whose hosts are far behind this device.
  * A model for free pages (`prefetch.py`). Nobody makes room for it.

Models with waiting or running work are never victims. Source: docs/design/policy.md, "Placement".
"""

import math
from dataclasses import dataclass, field

from controller.core.devices.base import RemoteDevice
from controller.core.policies.base import LoadPlan
from controller.core.policies.fairness import Fairness
from controller.core.policies.prefetch import Prefetch
from controller.core.policies.starts import start_of
from controller.core.residency import DECAY_S
from controller.core.state import Model, ShardState

HORIZON_S = 0.5  # a model's future requests count at most so far ahead
STAY = 0.25  # a model is taken to stay for this share of the time in which LOADs fill the device anew
AGE_S_MIN = 0.05  # rates are taken from requests that were counted for at least so long
HYSTERESIS = 1.5  # x a victim's future requests, so that what was just loaded stays
REPLICATE_BELOW = 0.9  # a device with less than this share of the mean backlog also takes models that others have
RELIEVE_AT = 0.25  # a model whose hosts are behind by this share of its SLO gets another one
REFUSED_MAX = 64  # unplaced models with refused requests that are remembered
VICTIMS_LOOKED_AT = 32  # least recently used models among which victims are chosen


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that a device could load next."""

    model: Model
    urgent: float  # value of the requests that are in time if it is loaded now, and not a LOAD later
    gain: float  # value of the requests that are in time if it is loaded, and stays
    slack_s: float  # how much longer the LOAD could wait for the first of the requests
    load_s: float  # duration of the LOAD


def ahead_of(device: RemoteDevice, now: float) -> float:
    """Seconds of EXEC that the device has ahead: what it was sent, and its share of what waits."""
    return device.exec.free_at(now) - now + device.backlog_s


@dataclass(slots=True)
class Placement:
    """Chooses LOADs for all devices."""

    state: ShardState
    fairness: Fairness
    _prefetch: Prefetch = field(init=False)
    _began_s: float = math.inf  # the first search: nothing was counted before
    _refused: dict[str, None] = field(default_factory=dict)  # unplaced refs whose requests were refused, latest last
    _turn: int = 0  # for which both below are right, but for what has shifted since
    _lacking: dict[str, None] = field(default_factory=dict)  # refs whose hosts do not get all done that waits
    _behind: dict[str, None] = field(default_factory=dict)  # refs whose hosts are all far behind
    _backlog_s: float | None = None  # of all devices together; None: it was not asked for since one has changed

    def __post_init__(self) -> None:
        self._prefetch = Prefetch(self.state)

    def choose(self, device: RemoteDevice, now: float) -> LoadPlan | None:
        """The device's next LOAD."""
        self._began_s = min(self._began_s, now)
        self._prefetch.searched(device)
        self._follow(now)
        plan = self._starving(device, now)
        if plan is not None:
            return plan
        wanted = self.state.unplaced or self._refused or self._lacking or self._behind
        if not wanted and device.residency.free <= 0:
            return None  # as most searches end
        candidates = []
        for model in self._wanted(device):
            if device.may_load(model.ref, now):
                saved, slack_s = self._saved(device, model, now)
                if saved > 0:
                    candidates.append(self._candidate(device, model, saved, slack_s, now))
        for model in self._refused_and_nowhere():
            if device.may_load(model.ref, now):
                candidates.append(self._candidate(device, model, 0.0, -math.inf, now))
        relaxed = self._rank(candidates)
        for candidate in candidates:
            plan = self._make_room(device, candidate.model, candidate.gain, now, relaxed=relaxed)
            if plan is not None:
                self._prefetch.waited(device, now, pressed=candidate.slack_s < candidate.load_s)
                return plan
        return self.relieve(device, now) or self._prefetch.choose(device, now)

    def _follow(self, now: float) -> None:
        """The models that another host would help are known.

        Each turn looks once at every model that waits, and then only at those on devices with more or less to do since.
        """
        state = self.state
        if state.turn != self._turn or not state.turn:
            self._turn = state.turn
            self._lacking.clear()
            self._behind.clear()
            self._backlog_s = None
            state.shifted.clear()
            for model in state.active.values():
                if model.hosts:
                    self._judge(model, now)
        elif state.shifted:
            shifted = list(state.shifted.values())
            self._backlog_s = None
            state.shifted.clear()
            for device in shifted:
                for ref in device.waiting:
                    self._judge(state.models[ref], now)

    def _judge(self, model: Model, now: float) -> None:
        """Whether the model, which waits and has hosts, lacks one, and whether all that it has are far behind."""
        first = model.queue.first()
        limit_s = RELIEVE_AT * (first.deadline_s - first.arrived_s)
        for host in model.hosts.values():
            if ahead_of(host, now) <= limit_s:
                self._behind.pop(model.ref, None)
                break
        else:
            self._behind[model.ref] = None
        if self._kept(model, now) < model.queue.rows:
            self._lacking[model.ref] = None
        else:
            self._lacking.pop(model.ref, None)

    def _kept(self, model: Model, now: float) -> float:
        """Rows that the hosts get done in time, as many as wait or fewer."""
        queue, kept = model.queue, 0.0
        last_s = queue.deadlines[-1]
        for host in model.hosts.values():
            kept += self._served_by(host, model, last_s, now)
            if kept >= queue.rows:
                break
        return kept

    def _rate(self, model: Model, now: float) -> float:
        """Requests per second: the decayed count by the time it is made of, which at first is the time so far."""
        age_s = max(AGE_S_MIN, now - self._began_s)
        return model.popularity.value(now) / (DECAY_S * -math.expm1(-age_s / DECAY_S))

    def _stay_s(self, device: RemoteDevice, model: Model) -> float:
        """How long the model is taken to stay: a share of the time in which LOADs like its own fill the device anew."""
        room = device.residency.total // device.pages[model.ref]
        return min(HORIZON_S, STAY * room * device.loads[model.ref].load_s())

    def refused_unplaced(self, model: Model) -> None:
        """A request was refused because the model is on no device, and its LOAD takes longer than the request may."""
        self._refused.pop(model.ref, None)
        self._refused[model.ref] = None
        if len(self._refused) > REFUSED_MAX:
            del self._refused[next(iter(self._refused))]

    def wake_at(self, now: float) -> float:
        """When a LOAD is due that no event will cause; infinity if there is no such time."""
        return self._prefetch.wake_at(now)

    def _refused_and_nowhere(self) -> list[Model]:
        """Models on no device that nobody waits for, though they were asked."""
        found = []
        for ref in list(self._refused):
            model = self.state.models.get(ref)
            if model is None or model.hosts:
                del self._refused[ref]
            elif not len(model.queue):
                found.append(model)
        return found

    def _candidate(self, device: RemoteDevice, model: Model, saved: float, slack_s: float, now: float) -> Candidate:
        rate, load_s = self._rate(model, now) / (1 + len(model.hosts)), device.loads[model.ref].load_s()
        return Candidate(model, saved + rate * load_s, saved + rate * self._stay_s(device, model), slack_s, load_s)

    def _rank(self, candidates: list["Candidate"]) -> bool:
        """Sorts them by deadline if all can be in time, or else by what a second of copying saves. Whether all can."""
        candidates.sort(key=lambda candidate: candidate.slack_s)
        devices = max(1, len(self.state.devices))
        before_s = 0.0
        for candidate in candidates:
            if before_s / devices > candidate.slack_s:
                candidates.sort(key=lambda candidate: -candidate.urgent / candidate.load_s)
                return False
            before_s += candidate.load_s
        return True

    def _starving(self, device: RemoteDevice, now: float) -> LoadPlan | None:
        """The unplaced model whose patience ended first, whichever models have to leave for it."""
        self.fairness.forget_others(self.state.models)
        self.fairness.accrue(now, len(self.state.devices))
        for ref in self.fairness.first(self.state.unplaced, now):
            model = self.state.models[ref]
            if device.may_load(ref, now) and self._saved(device, model, now)[0] > 0:
                plan = self._make_room(device, model, math.inf, now)
                if plan is not None:
                    self.fairness.spend(device.loads[ref].load_s())
                    return plan
        return None

    def _wanted(self, device: RemoteDevice) -> list[Model]:
        """Models whose requests wait for a LOAD, and those with hosts if this device has less to do than others."""
        models, devices = self.state.models, self.state.devices
        wanted = [models[ref] for ref in self.state.unplaced]
        if len(devices) > 1 and self._lacking:
            if self._backlog_s is None:
                self._backlog_s = sum([other.backlog_s for other in devices.values()], 0.0)
            if device.backlog_s * len(devices) <= REPLICATE_BELOW * self._backlog_s:
                wanted += [model for ref, model in self.state.active.items() if ref in self._lacking and model.hosts]
        return wanted

    def _saved(self, device: RemoteDevice, model: Model, now: float) -> tuple[float, float]:
        """(value of what a LOAD here and now saves, seconds that the LOAD could wait for the first of these requests).

        It saves the waiting requests that are in time with it and not otherwise.
        """
        queue = model.queue
        curve = device.curves[model.ref]
        start_s = start_of(device, model, now)
        end_s = start_s + curve.least_s()
        too_late = queue.before(end_s)
        count = len(queue) - too_late
        if count <= 0:
            return 0.0, 0.0
        first = queue.requests[queue.head + too_late]
        value = queue.weight_of(count, too_late)
        if model.hosts:
            kept = self._kept(model, now)
            if kept >= queue.rows:
                return 0.0, 0.0
            value *= 1 - kept / queue.rows
        return value, first.deadline_s - end_s

    def relieve(self, device: RemoteDevice, now: float) -> LoadPlan | None:
        """A replica of the model whose hosts are furthest behind, if this device has much less to do than any of them.

        It is loaded before anything is lost, because later it would save only what waits by then.
        """
        self._follow(now)
        if not self._behind:
            return None
        least_s = 2 * ahead_of(device, now)
        behind: list[tuple[float, str]] = []
        for ref in self._behind:
            model = self.state.active.get(ref)
            if model is not None and model.hosts and device.may_load(ref, now):
                theirs_s = min([ahead_of(host, now) for host in model.hosts.values()])
                if theirs_s > least_s + device.loads[ref].load_s():
                    behind.append((-theirs_s, ref))
        for _, ref in sorted(behind):
            model = self.state.models[ref]
            gain = self._rate(model, now) / (1 + len(model.hosts)) * self._stay_s(device, model)
            plan = self._make_room(device, model, gain, now)
            if plan is not None:
                return plan
        return None

    def _served_by(self, host: RemoteDevice, model: Model, deadline_s: float, now: float) -> float:
        """Rows of the model that a host gets done by the deadline, behind half of what waits there for other models."""
        curve = host.curves[model.ref]
        mine_s = model.cost_s / len(model.hosts)
        left_s = deadline_s - host.start_s(model.ref, now) - 0.5 * max(0.0, host.backlog_s - mine_s)
        if left_s <= 0:
            return 0.0
        if model.open:
            return left_s / (model.queue.share_s * curve.scale) * model.queue.rows if model.queue.share_s else 0.0
        top_s = curve.exec_s(curve.batch_max)
        return left_s // top_s * curve.batch_max + curve.largest(left_s % top_s, curve.batch_max)

    def _make_room(
        self, device: RemoteDevice, model: Model, gain: float, now: float, *, relaxed: bool = False
    ) -> LoadPlan | None:
        """The plan with its victims, if what they would have served is worth less than the gain.

        `relaxed`: there is time for more LOADs. A victim that is asked less than once in a LOAD's time then loses
        nothing, because it is loaded again when it is asked.
        """
        residency = device.residency
        missing = device.pages[model.ref] - residency.free
        if missing <= 0:
            return LoadPlan(model, ())
        candidates = []
        for ref, place in residency.models.items():  # least recently used first
            if place.loading is None and not place.bound and not self.state.is_asked(ref):
                known = self.state.models.get(ref)
                rate = self._rate(known, now) if known is not None and ref in device.curves else 0.0
                others = max(0, len(known.hosts) - 1) if known is not None else 0
                candidates.append((rate / (1 + others) / place.pages, ref, place.pages, rate / (1 + others)))
                if len(candidates) >= VICTIMS_LOOKED_AT + missing:
                    break
        chosen = []
        lost = 0.0
        for _, ref, pages, rate in sorted(candidates):
            if missing <= 0:
                break
            chosen.append(ref)
            missing -= pages
            if not relaxed or rate * device.loads[model.ref].load_s() >= 1:
                lost += rate * self._stay_s(device, model) * HYSTERESIS
        if missing > 0 or lost > gain:
            return None
        return LoadPlan(model, tuple(chosen))

    def check(self, now: float) -> None:
        """Every invariant holds: what is followed from change to change in a turn is what a look at all would find."""
        if not self.state.turn or self._turn != self.state.turn:
            return
        self._follow(now)
        waiting = {ref: model for ref, model in self.state.active.items() if model.hosts}
        lacking = {ref for ref, model in waiting.items() if self._kept(model, now) < model.queue.rows}
        assert self._lacking.keys() & waiting.keys() == lacking
        behind = set()
        for ref, model in waiting.items():
            first = model.queue.first()
            limit_s = RELIEVE_AT * (first.deadline_s - first.arrived_s)
            if min(ahead_of(host, now) for host in model.hosts.values()) > limit_s:
                behind.add(ref)
        assert self._behind.keys() & waiting.keys() == behind
        backlog_s = sum([device.backlog_s for device in self.state.devices.values()], 0.0)
        assert self._backlog_s is None or self._backlog_s == backlog_s
