"""Batches of models with open dimensions: the default policy has a plan for each model on each device. Pure.

`composing.py` makes the plan, from the requests with the nearest deadlines, the tables of the device, the objectives
that the model's clients have lately, and the reserve. The reserve is device time in which a request is worth what it
costs: so long ones, which otherwise lose to short ones whenever not all can be in time, get that much of it.
Source of the constants: docs/design/policy.md, "Batches of unequal length".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.core.devices.base import RemoteDevice
from controller.core.estimation.estimates import Curve
from controller.core.policies.base import Batch
from controller.core.policies.composing import compose
from controller.core.policies.planned import Composed, Costs, Waiting
from controller.core.queues import Request
from controller.core.state import Model, ShardState
from mesh.sizes import Extents, joint

LOOKED_AT = 256  # requests that a plan is made of, those with the nearest deadlines
SCANNED = 1024  # requests among which they are searched, while there are any that could be in time
LEFT = 0.25  # who is put off with less than this share of the objective left is refused at once
PLACES_MAX = 4096  # extents whose place is remembered
RESERVE = 0.1  # of device time
LONGER = 0.01  # by the reserve, the longest requests are worth so much more than they cost
RESERVED_OBJECTIVES = 2.0  # x the longest objective: most of the reserve that is saved up
OBJECTIVES = 128  # latest requests whose objectives are known
OBJECTIVES_EVERY = 16  # requests after which the least and the most of them are looked for anew
RARE = 0.1  # share of requests whose objectives, the shortest and the longest, are left out of that
ALIKE = 1.05  # objectives differ if their ratio is more
CAP_MOVED = 0.05  # share by which the least objective may move before the costs are made anew


@dataclass(slots=True)
class SizedPlan:
    """One model's candidate for a device's next batch, of requests that need not wait one behind the other.

    Of a model without open dimensions, whose requests need not because inputs are fetched, it has no extents.
    """

    model: Model
    requests: Sequence[Request]
    given_up: Sequence[Request]  # whose deadlines are passed over
    rows: int
    extents: Extents
    start_s: float
    expected_s: float
    latest_s: float
    weight: float  # of the requests, each as often as it has rows
    head: Request  # the one with the first deadline
    full: bool  # with more rows each would hardly cost less

    def batch(self) -> Batch:
        """The plan as a batch of requests."""
        return Batch(
            self.model, self.requests, self.given_up, self.rows, self.start_s, self.expected_s, self.latest_s,
            self.extents,
        )  # fmt: skip


@dataclass(slots=True)
class Objectives:
    """Objectives of a model's latest requests, without the rarest: one client's alone must not rule all batches."""

    least_s: float = math.inf
    most_s: float = 0.0
    _latest: list[float] = field(default_factory=list)
    _seen: int = 0

    @property
    def differ(self) -> bool:
        """Whether they are not all about the same."""
        return self.most_s > ALIKE * self.least_s

    def arrived(self, objective_s: float) -> None:
        """A request with this objective waits."""
        if len(self._latest) < OBJECTIVES:
            self._latest.append(objective_s)
        else:
            self._latest[self._seen % OBJECTIVES] = objective_s
        self._seen += 1
        if len(self._latest) < OBJECTIVES_EVERY or self._seen % OBJECTIVES_EVERY == 0:
            ordered = sorted(self._latest)
            rare = int(RARE * len(ordered))
            self.least_s, self.most_s = ordered[rare], ordered[-1 - rare]


@dataclass(slots=True)
class Books:
    """What is known of one model on one device."""

    costs: Costs
    tables: list[list[float]]  # the curve's, of which the costs were made
    places: dict[Extents, int] = field(default_factory=dict)
    credit_s: float = 0.0  # of the reserve; below 0: more was taken than was there
    reserved: bool = False  # the last plan was made of the reserve


@dataclass(slots=True)
class SizedPlans:
    """Makes the plans."""

    state: ShardState
    reserve: float = RESERVE
    left: float = LEFT
    _objectives: dict[str, Objectives] = field(default_factory=dict)  # {ref: ...}
    _books: dict[tuple[str, str], Books] = field(default_factory=dict)  # {(worker, ref): ...}

    def arrived(self, model: Model, request: Request) -> None:
        """A request of a model with open dimensions waits."""
        objectives = self._objectives.get(model.ref)
        if objectives is None:
            objectives = self._objectives[model.ref] = Objectives()
        objectives.arrived(request.deadline_s - request.arrived_s)

    def bound(self, device: RemoteDevice, batch: Batch) -> None:
        """The batch was sent: the reserve grows by its share of the batch's time, and pays for it if it was its own."""
        books = self._books.get((device.worker, batch.model.ref))
        if books is None:
            return
        if books.reserved:
            books.credit_s -= batch.expected_s
            books.reserved = False
        most_s = RESERVED_OBJECTIVES * self._objectives[batch.model.ref].most_s
        books.credit_s = min(most_s, books.credit_s + self.reserve * batch.expected_s)

    def plan(
        self, device: RemoteDevice, model: Model, start_s: float, among: Sequence[Request] | None = None
    ) -> SizedPlan | None:
        """The model's best batch if EXEC starts at `start_s`; None if nobody can be in time.

        `among`: of these waiting requests, in order of their deadlines; None: of all.
        """
        curve = device.curves[model.ref]
        objectives = self._objectives.setdefault(model.ref, Objectives())
        books = self._open(device, model, curve, objectives)
        requests, waiting = _waiting(model, curve, books, start_s, curve.scale * (1 + device.margin), among)
        if not requests:
            return None
        books.reserved = self.reserve > 0 and books.credit_s > 0
        if books.reserved:
            worth = _worth(books.costs)
            waiting.values = [value * worth[place] for value, place in zip(waiting.values, waiting.places, strict=True)]
        composed = compose(waiting, books.costs, hosts=max(1, len(model.hosts)), differ=objectives.differ)
        if composed is None:
            return None
        plan = _plan_of(model, curve, composed, requests, books.costs, start_s)
        if not books.reserved and len(model.hosts) == 1:
            plan.given_up = [*plan.given_up, *_without_hope(composed, requests, start_s, self.left)]
        return plan

    def _open(self, device: RemoteDevice, model: Model, curve: Curve, objectives: Objectives) -> Books:
        """The books of the model on the device, with costs as its curve has them now."""
        key = (device.worker, model.ref)
        books = self._books.get(key)
        cap_s = objectives.least_s / curve.scale
        if books is None:
            self._forget()
            books = self._books[key] = Books(_costs(curve, model, cap_s), curve.tables)
        elif books.tables is not curve.tables:
            books.costs, books.tables, books.places = _costs(curve, model, cap_s), curve.tables, {}
        elif not (1 - CAP_MOVED) * books.costs.cap_s <= cap_s <= (1 + CAP_MOVED) * books.costs.cap_s:
            books.costs = _costs(curve, model, cap_s)
        return books

    def _forget(self) -> None:
        """Nothing is kept of devices that are gone, and of versions that they do not serve any more."""
        devices, models = self.state.devices, self.state.models
        for worker, ref in list(self._books):
            if worker not in devices or ref not in devices[worker].curves:
                del self._books[worker, ref]
        for ref in [ref for ref in self._objectives if ref not in models]:
            del self._objectives[ref]


def _costs(curve: Curve, model: Model, cap_s: float) -> Costs:
    dims = model.spec.dims
    width = curve.place((dims[0].least, dims[1].most)) + 1 if len(dims) == 2 else 0
    return Costs(curve.tables, curve.limits, cap_s, width)


def _worth(costs: Costs) -> list[float]:
    """By place: what a row is worth by the reserve: per second, full batches of all lengths about the same."""
    most = max(costs.classes) or 1
    return [share * (1 + LONGER * name / most) for share, name in zip(costs.shares, costs.classes, strict=True)]


def _waiting(
    model: Model, curve: Curve, books: Books, start_s: float, guard: float, among: Sequence[Request] | None
) -> tuple[list[Request], Waiting]:
    """The requests that a plan is made of, if EXEC starts at `start_s`. `guard`: seconds in a second of the tables."""
    queue, places, tables = model.queue, books.places, books.tables
    chosen: list[Request] = []
    waiting = Waiting([], [], [], [])
    requests, first = among, 0
    if requests is None:
        requests, first = queue.requests, queue.head + queue.before(start_s + tables[0][1] * guard)
    for at in range(first, len(requests)):
        if len(chosen) == LOOKED_AT or (chosen and at - first >= SCANNED):
            break
        request = requests[at]
        place = places.get(request.extents, -1)
        if place < 0:
            if len(places) >= PLACES_MAX:
                places.clear()
            place = places[request.extents] = curve.place(request.extents)
        left_s = (request.deadline_s - start_s) / guard
        rows, table = request.rows, tables[place]
        if rows < len(table) and table[rows] <= left_s:
            chosen.append(request)
            waiting.places.append(place)
            waiting.rows.append(rows)
            waiting.left_s.append(left_s)
            waiting.values.append(request.weight * rows)
    if model.spec.exact:
        names: dict[Extents, int] = {}
        waiting.kinds = [names.setdefault(request.extents, len(names)) for request in chosen]
    return chosen, waiting


def _without_hope(composed: Composed, waiting: list[Request], start_s: float, left: float) -> list[Request]:
    """Those whom the plan does not keep, and who have too little time left for much to change: they hear of it now."""
    kept = {i for group in (composed.first, *composed.later) for i in group.members}.union(composed.passed)
    return [
        request
        for i, request in enumerate(waiting)
        if i not in kept and request.deadline_s - start_s < left * (request.deadline_s - request.arrived_s)
    ]


def _plan_of(
    model: Model, curve: Curve, composed: Composed, waiting: list[Request], costs: Costs, start_s: float
) -> SizedPlan:
    """The plan with its `latest_s`: started later, fewer than half of its requests would be in time."""
    first = composed.first
    requests = [waiting[i] for i in sorted(first.members)]
    extents = joint([request.extents for request in requests])
    expected_s = min(curve.exec_s(first.rows, extents), first.length_s * curve.scale)
    latest_s = max(requests[len(requests) // 2].deadline_s - expected_s, start_s)
    given_up = [waiting[i] for i in composed.passed] if len(model.hosts) == 1 else []
    weight = sum([request.weight * request.rows for request in requests], 0.0)
    full = first.rows >= costs.full[first.place]
    return SizedPlan(
        model, requests, given_up, first.rows, extents, start_s, expected_s, latest_s, weight, requests[0], full
    )
