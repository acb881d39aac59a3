"""Which model a device loads next, and who makes room. Pure.

LOADs go in the order of their deadlines while all that are wanted can be done in time; whoever makes room then is
loaded again when it is asked. Once they cannot, a LOAD is ranked by what it saves per second of copying and a LOAD
later would not: the requests that wait, and those that come meanwhile. It is done if that, and what comes while the
model stays, is more than its victims would have served. Models with waiting or running work are never victims. Models
that are nowhere and were asked in vain, because their LOAD takes longer than a request may, are ranked with the others.
Then comes a replica of a model whose hosts are far behind this device. Free pages are filled ahead of demand, in
proportion to it, while no request has waited for a LOAD lately; nobody leaves for that.
Source: gpu_and_literature section 2.4, with the figures of 2.6 (ranking by requests saved per second of copying beats
ranking by deadline where copying is the bottleneck; eviction by decayed frequency).
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from controller.core.policies.admission import start_of
from controller.core.policies.base import LoadPlan
from controller.core.policies.fairness import Fairness
from controller.core.residency import DECAY_S
from controller.core.state import Device, Model, State

HORIZON_S = 0.5  # of a model's future requests, those in this time count at most
STAY = 0.25  # x the time in which LOADs fill a device; simulation of 15 loads that swap: 0.12 alike, 1 costs 1-8 points
AGE_S_MIN = 0.05  # of the counts of requests: rates are not told from less
HYSTERESIS = 1.5  # a victim's future counts so much more than the newcomer's: what was just loaded stays
REPLICATE_BELOW = 0.9  # share of the mean backlog below which a device takes models that others have, too
RELIEVE_AT = 0.25  # share of its SLO that a model's hosts may be behind before it gets another one
MISSED_MAX = 64  # models asked in vain that are remembered
KNOWN_ASKED = 16  # requests per host that show how much a model is asked, before its LOADs are done
ASKED_MIN = 0.5  # decayed count of requests; asked less than that, free pages are for others first
FILL_AFTER = 1.0  # x its LOAD: so long must nobody have waited for a LOAD before one is done that nobody waits for
WISHES = 16  # found at once, before popularity is looked at anew
VICTIMS_LOOKED_AT = 32  # of the least recently used


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that a device could load next."""

    model: Model
    urgent: float  # value of the requests that are in time if it is loaded now, and not a LOAD later
    gain: float  # value of the requests that are in time if it is loaded, and stays
    slack_s: float  # how much longer the LOAD could wait for the first of them
    load_s: float


@dataclass(slots=True)
class Placement:
    """Chooses LOADs for all devices."""

    state: State
    fairness: Fairness
    _waited_s: dict[str, float] = field(default_factory=dict)  # {worker: its last LOAD that requests waited for}
    _pressed_s: float = -math.inf  # the last LOAD, on any device, that could not have waited for another one
    _began_s: float = math.inf  # the first look: nothing was counted before
    _spare_s: dict[str, float] = field(default_factory=dict)  # {worker: when a LOAD that nobody waits for may be done}
    _missed: dict[str, None] = field(default_factory=dict)  # refs asked in vain, the latest last
    _wishes: dict[str, deque[tuple[str, int]]] = field(default_factory=dict)  # {worker: (ref, hosts then), best first}
    _vain: dict[str, tuple[int, int]] = field(default_factory=dict)  # {worker: (free pages, versions) of a vain look}

    def choose(self, device: Device, now: float) -> LoadPlan | None:
        """The device's next LOAD."""
        self._began_s = min(self._began_s, now)
        plan = self._starving(device, now)
        if plan is not None:
            return plan
        candidates = []
        for model in self._wanted(device):
            if device.may_load(model.ref, now):
                saved, slack_s = self._saved(device, model, now)
                if saved > 0:
                    candidates.append(self._candidate(device, model, saved, slack_s, now))
        for model in self._in_vain():
            if device.may_load(model.ref, now):
                candidates.append(self._candidate(device, model, 0.0, -math.inf, now))
        relaxed = self._rank(candidates)
        for candidate in candidates:
            plan = self._make_room(device, candidate.model, candidate.gain, now, relaxed=relaxed)
            if plan is not None:
                self._waited_s[device.worker] = now
                if candidate.slack_s < candidate.load_s:
                    self._pressed_s = now
                return plan
        return self._relieve(device, now) or self._fill(device, now)

    def _rate(self, model: Model, now: float) -> float:
        """Requests per second: the decayed count, by the time that it is made of. At first that is the time so far."""
        age_s = max(AGE_S_MIN, now - self._began_s)
        return model.popularity.value(now) / (DECAY_S * -math.expm1(-age_s / DECAY_S))

    def _stay_s(self, device: Device, model: Model) -> float:
        """So much of a model's future counts: a share of the time in which LOADs like this one fill the device anew."""
        room = device.residency.total // device.pages[model.ref]
        return min(HORIZON_S, STAY * room * device.loads[model.ref].load_s())

    def missed(self, model: Model) -> None:
        """A request was refused because the model is nowhere, and its LOAD takes longer than the request may."""
        self._missed.pop(model.ref, None)
        self._missed[model.ref] = None
        if len(self._missed) > MISSED_MAX:
            del self._missed[next(iter(self._missed))]

    def wake_at(self, now: float) -> float:
        """When a LOAD that nobody waits for may be done; infinity if none is put off."""
        return min((spare_s for spare_s in self._spare_s.values() if spare_s > now), default=math.inf)

    def _in_vain(self) -> list[Model]:
        """Models that are nowhere, and nobody waits for though they were asked."""
        found = []
        for ref in list(self._missed):
            model = self.state.models.get(ref)
            if model is None or model.hosts:
                del self._missed[ref]
            elif not len(model.queue):
                found.append(model)
        return found

    def _candidate(self, device: Device, model: Model, saved: float, slack_s: float, now: float) -> Candidate:
        rate, load_s = self._rate(model, now) / (1 + len(model.hosts)), device.loads[model.ref].load_s()
        return Candidate(model, saved + rate * load_s, saved + rate * self._stay_s(device, model), slack_s, load_s)

    def _rank(self, candidates: list["Candidate"]) -> bool:
        """Sorts them by deadline if all can be in time, else by what a second of copying saves. Whether all can."""
        candidates.sort(key=lambda candidate: candidate.slack_s)
        devices = max(1, len(self.state.devices))
        before_s = 0.0
        for candidate in candidates:
            if before_s / devices > candidate.slack_s:
                candidates.sort(key=lambda candidate: -candidate.urgent / candidate.load_s)
                return False
            before_s += candidate.load_s
        return True

    def _starving(self, device: Device, now: float) -> LoadPlan | None:
        """Of the models that are nowhere, the one whose patience ended first, whoever has to leave for it."""
        self.fairness.accrue(now, len(self.state.devices))
        for ref in self.fairness.first(self.state.homeless, now):
            model = self.state.models[ref]
            if device.may_load(ref, now) and self._saved(device, model, now)[0] > 0:
                plan = self._make_room(device, model, math.inf, now)
                if plan is not None:
                    self.fairness.spend(device.loads[ref].load_s())
                    return plan
        return None

    def _wanted(self, device: Device) -> list[Model]:
        """Models with requests that wait for a LOAD, and those whose hosts cannot keep up, if this device has time."""
        models, devices = self.state.models, self.state.devices
        wanted = [models[ref] for ref in self.state.homeless]
        if len(devices) > 1:
            backlog_s = sum(other.backlog_s for other in devices.values())
            if device.backlog_s * len(devices) <= REPLICATE_BELOW * backlog_s:
                wanted += [model for model in self.state.active.values() if model.hosts]
        return wanted

    def _saved(self, device: Device, model: Model, now: float) -> tuple[float, float]:
        """(value of the waiting requests that are in time if the model is loaded here now, and are not otherwise;
        how much longer the LOAD could wait for the first of them, seconds)."""
        queue = model.queue
        curve = device.curves[model.ref]
        start_s = start_of(device, model, now)
        end_s = start_s + curve.exec_s(1)
        too_late = queue.before(end_s)
        count = len(queue) - too_late
        if count <= 0:
            return 0.0, 0.0
        first = queue.requests[queue.head + too_late]
        value = queue.weight_of(count, too_late)
        if model.hosts:
            last_s, kept = queue.deadlines[-1], 0.0
            for host in model.hosts.values():
                kept += self._served_by(host, model, last_s, now)
                if kept >= queue.rows:
                    return 0.0, 0.0
            value *= 1 - kept / queue.rows
        return value, first.deadline_s - end_s

    def _relieve(self, device: Device, now: float) -> LoadPlan | None:
        """A replica of the model whose hosts are furthest behind, if this device has much less to do than any of them.

        It comes before anything is lost: later it would save only what waits by then.
        """
        ahead_s = {
            other.worker: other.exec.free_at(now) - now + other.backlog_s for other in self.state.devices.values()
        }
        least_s = 2 * ahead_s[device.worker]
        if least_s >= max(ahead_s.values()):
            return None
        behind: list[tuple[float, str]] = []
        for model in self.state.active.values():
            if model.hosts and device.may_load(model.ref, now):
                theirs_s = min(ahead_s[worker] for worker in model.hosts)
                if theirs_s > least_s + device.loads[model.ref].load_s():
                    first = model.queue.first()
                    if theirs_s > RELIEVE_AT * (first.deadline_s - first.arrived_s):
                        behind.append((-theirs_s, model.ref))
        for _, ref in sorted(behind):
            model = self.state.models[ref]
            gain = self._rate(model, now) / (1 + len(model.hosts)) * self._stay_s(device, model)
            plan = self._make_room(device, model, gain, now)
            if plan is not None:
                return plan
        return None

    def _served_by(self, host: Device, model: Model, deadline_s: float, now: float) -> float:
        """Rows of the model that a host gets done by the deadline, behind half of what else waits there."""
        curve = host.curves[model.ref]
        mine_s = model.cost_s / len(model.hosts)
        left_s = deadline_s - host.start_s(model.ref, now) - 0.5 * max(0.0, host.backlog_s - mine_s)
        if left_s <= 0:
            return 0.0
        top_s = curve.exec_s(curve.batch_max)
        return left_s // top_s * curve.batch_max + curve.largest(left_s % top_s, curve.batch_max)

    def _make_room(
        self, device: Device, model: Model, gain: float, now: float, *, relaxed: bool = False
    ) -> LoadPlan | None:
        """The plan with its victims, if what they would have served is worth less than the gain.

        `relaxed`: there is time for more LOADs, and a victim that is asked less than once in a LOAD's time loses
        nothing by it: it is loaded again when it is asked.
        """
        residency = device.residency
        missing = device.pages[model.ref] - residency.free
        if missing <= 0:
            return LoadPlan(model, ())
        candidates = []
        for ref, place in residency.models.items():  # least recently used first
            if place.loading is None and not place.bound and ref not in self.state.active:
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

    def _fill(self, device: Device, now: float) -> LoadPlan | None:
        """A model for free pages, if there is one that fits."""
        residency = device.residency
        if len(device.load) or residency.free <= 0:
            return None
        free, versions = self._vain.get(device.worker, (0, 0))
        if residency.free <= free and len(device.curves) == versions:
            return None
        self._spare_s.pop(device.worker, None)
        wishes = self._wishes.setdefault(device.worker, deque())
        for _ in range(2):  # what is left of the last look; then a new one
            while wishes:
                ref, hosts = wishes.popleft()
                model = self.state.models.get(ref)
                if model is None or len(model.hosts) > hosts or not device.may_load(ref, now):
                    continue
                if device.pages[ref] <= residency.free:
                    waited_s = max(self._pressed_s, self._waited_s.get(device.worker, -math.inf))
                    spare_s = waited_s + FILL_AFTER * device.loads[ref].load_s()
                    if now >= spare_s or all(self.state.models[other].hosts for other in device.curves):
                        return LoadPlan(model, ())
                    wishes.appendleft((ref, hosts))
                    self._spare_s[device.worker] = spare_s
                    return None
            wishes.extend(self._wish(device, now))
        if any(pages <= residency.free and device.may_load(ref, now) for ref, pages in device.pages.items()):
            return None  # later, perhaps
        self._vain[device.worker] = (residency.free, len(device.curves))
        return None

    def _wish(self, device: Device, now: float) -> list[tuple[str, int]]:
        """Models that are not here and fit, with how many hosts they have: those asked first, most asked per host."""
        models, free = self.state.models, device.residency.free
        absent = [models[ref] for ref, pages in device.pages.items() if pages <= free and device.may_load(ref, now)]

        def order(model: Model) -> tuple[bool, float, int, str]:
            asked, hosts = model.popularity.value(now), len(model.hosts)
            return (asked < ASKED_MIN, -asked / (1 + hosts) ** 2, hosts, model.ref)

        known = [model for model in absent if not model.hosts or self._is_known(model, now)]
        return [(model.ref, len(model.hosts)) for model in heapq.nsmallest(WISHES, known, key=order)]

    def _is_known(self, model: Model, now: float) -> bool:
        """How much the model is asked is known well enough to say if it should have one more host."""
        if model.popularity.value(now) >= KNOWN_ASKED * len(model.hosts):
            return True
        return all(host.residency.models[model.ref].loading is None for host in model.hosts.values())
