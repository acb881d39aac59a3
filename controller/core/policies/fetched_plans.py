"""Batches of models of which some waiting requests have inputs that the device has to fetch first. Pure.

A batch starts when all of its inputs are there, so whoever takes part must be in time with what the others' inputs take
besides EXEC. Near requests, whose inputs the device reads where they lie, need not wait for others' fetches: while
something is fetched, they are planned by themselves. Nobody is given up because of what others fetch.
Source: docs/design/policy.md, "Inputs that are fetched".
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.core.devices.base import RemoteDevice
from controller.core.estimation.estimates import Curve
from controller.core.estimation.fetching import NOTHING, FarBytes
from controller.core.policies.sized_plans import LOOKED_AT, SCANNED, SizedPlan, SizedPlans
from controller.core.policies.starts import start_of, start_of_fetched
from controller.core.queues import Request
from controller.core.state import Model
from mesh.sizes import joint


@dataclass(slots=True)
class Gathered:
    """Requests that would be one batch, as they are taken into it in order of their deadlines."""

    device: RemoteDevice
    curve: Curve
    now: float
    free_s: float  # EXEC may start then, if all inputs are there
    until_s: float  # EXEC has to end by then
    requests: list[Request] = field(default_factory=list)
    rows: int = 0
    far_bytes: FarBytes = NOTHING
    start_s: float = 0.0

    def take(self, usable: Sequence[Request]) -> None:
        """Whoever is in time with those before takes part, up to a full batch. The first does, who is alone in time."""
        for request in usable:
            rows = self.rows + request.rows
            if self.requests and (rows > self.curve.batch_max or not self._in_time(self.start_s, rows)):
                return
            here, elsewhere = self.device.far_bytes((request,))
            size = self.far_bytes[0] + here, self.far_bytes[1] + elsewhere
            start_s = start_of_fetched(self.device, size, self.free_s, self.now)
            if self.requests and not self._in_time(start_s, rows):
                continue  # its inputs take too long for those before it; others' may not
            self.requests.append(request)
            self.rows, self.far_bytes, self.start_s = rows, size, start_s

    def _in_time(self, start_s: float, rows: int) -> bool:
        return start_s + self.longest_s(rows) <= min(self.requests[0].deadline_s, self.until_s)

    def longest_s(self, rows: int) -> float:
        """What EXEC of so many rows may take."""
        return self.curve.exec_s(rows) * (1 + self.device.margin)

    @property
    def rate(self) -> float:
        """Rows per second from when the device is free."""
        return self.rows / (self.start_s - self.free_s + self.curve.exec_s(self.rows))


@dataclass(slots=True)
class FetchedPlans:
    """Makes the plans."""

    sized: SizedPlans
    skip_gain: float  # heads are passed over only if the batch then earns more than this, per second

    def plan(self, device: RemoteDevice, model: Model, free_s: float, now: float) -> SizedPlan | None:
        """The model's best batch if EXEC may start at `free_s`; it does once the device has fetched the inputs.

        None if nobody can be in time, or only those who have to wait for what is fetched now.
        """
        queue, curve = model.queue, device.curves[model.ref]
        first = queue.before(free_s + curve.least_s() * (1 + device.margin))
        until_s = _next_fetched_s(device, now)
        usable = self._usable(device, curve, queue.requests, queue.head + first, free_s, until_s, now)
        if not usable:
            return None
        if model.spec.dims:
            return self._sized_plan(device, model, usable, free_s, until_s, now)
        return self._plan(device, model, usable, first, Gathered(device, curve, now, free_s, until_s))

    def _usable(
        self,
        device: RemoteDevice,
        curve: Curve,
        requests: Sequence[Request],
        first: int,
        free_s: float,
        until_s: float,
        now: float,
    ) -> list[Request]:
        """Those from the first on who would be in time alone, in order of deadline; near ones while others are fetched.

        As many as plans are made of.
        """
        usable: list[Request] = []
        fetching, slower = device.fetching_until_s > now, 1 + device.margin
        for at in range(first, min(first + SCANNED, len(requests))):
            request = requests[at]
            size = device.far_bytes((request,))
            if request.rows > curve.alone_max(request.extents) or (fetching and size != NOTHING):
                continue
            end_s = start_of_fetched(device, size, free_s, now)
            end_s += curve.alone_s(request.rows, request.extents) * slower
            if end_s <= request.deadline_s and end_s <= until_s:
                usable.append(request)
                if len(usable) == LOOKED_AT:
                    break
        return usable

    def _plan(self, device: RemoteDevice, model: Model, usable: list[Request], lost: int, batch: Gathered) -> SizedPlan:
        """As many as are in time with the first. `lost`: heads that are too late wherever their inputs are."""
        queue = model.queue
        batch.take(usable)
        given_up = queue.requests[queue.head : queue.head + lost]
        if batch.rows < min(len(usable), batch.curve.batch_max) and not queue.many:
            larger, passed = _without_heads(batch, usable)
            if larger.rate > self.skip_gain * batch.rate:
                batch = larger
                given_up += passed
        return _plan_of(model, batch, given_up)

    def _sized_plan(
        self, device: RemoteDevice, model: Model, usable: list[Request], free_s: float, until_s: float, now: float
    ) -> SizedPlan | None:
        """Who would go together if nothing had to be fetched do, as far as they are in time with the first of them."""
        plan = self.sized.plan(device, model, free_s, usable)
        if plan is None:
            return None
        requests = list(plan.requests)
        start_s = start_of_fetched(device, device.far_bytes(requests), free_s, now)
        curve, slower = device.curves[model.ref], 1 + device.margin
        if start_s <= free_s and start_s + plan.expected_s * slower <= until_s:
            return plan
        while len(requests) > 1:
            rows, extents = sum([one.rows for one in requests]), joint([one.extents for one in requests])
            if start_s + curve.exec_s(rows, extents) * slower <= min(requests[0].deadline_s, until_s):
                break
            del requests[_last_far(device, requests)]
            start_s = start_of_fetched(device, device.far_bytes(requests), free_s, now)
        plan = self.sized.plan(device, model, start_s, requests)
        if plan is not None:
            plan.start_s = start_of_fetched(device, device.far_bytes(plan.requests), free_s, now)
            plan.given_up = ()
        return plan


def _next_fetched_s(device: RemoteDevice, now: float) -> float:
    """When the next batch whose inputs are being fetched has to start, or can if that is later; infinity: none are.

    What goes before it has to have ended by then.
    """
    until_s = math.inf
    if device.fetching_until_s > now:
        for action in device.actions.values():
            if action.far_bytes is not None and action.earliest_s > now:
                first_s = min([one.deadline_s for one in action.requests if not one.closed], default=math.inf)
                latest_s = first_s - action.expected_s * (1 + device.noise.value_s)
                until_s = min(until_s, max(latest_s, action.earliest_s))
    return until_s


def _last_far(device: RemoteDevice, requests: Sequence[Request]) -> int:
    """The place of the last one behind the first whose inputs are fetched; of the last, if none are."""
    for at in range(len(requests) - 1, 0, -1):
        if device.far_bytes((requests[at],)) != NOTHING:
            return at
    return len(requests) - 1


def expired_fetched(model: Model, now: float) -> int:
    """Heads that are too late even if their inputs were fetched next, and they ran then, alone, on the best device."""
    devices = (model.hosts or model.ready).values()
    frees = [(device, start_of(device, model, now), device.curves[model.ref].exec_s(1)) for device in devices]
    if min([free_s for _, free_s, _ in frees], default=math.inf) == math.inf:
        return 0
    count = 0
    for at in range(model.queue.head, len(model.queue.requests)):
        request = model.queue.requests[at]
        for device, free_s, exec_s in frees:
            if start_of_fetched(device, device.far_bytes((request,)), free_s, now) + exec_s <= request.deadline_s:
                return count
        count += 1
    return count


def _without_heads(batch: Gathered, usable: list[Request]) -> tuple[Gathered, list[Request]]:
    """(a larger batch, heads who would be late for its EXEC if it started when `batch` does), or else (`batch`, none).

    All have one row. The largest batch for which enough remain that can wait for it is found by halving, and is smaller
    where what it fetches takes too long.
    """
    curve, deadlines = batch.curve, [request.deadline_s for request in usable]
    rows, high = batch.rows, min(len(usable), curve.batch_max)
    while rows < high:
        middle = (rows + high + 1) // 2
        if len(usable) - bisect_left(deadlines, batch.start_s + batch.longest_s(middle)) >= middle:
            rows = middle
        else:
            high = middle - 1
    while rows > batch.rows:
        first = bisect_left(deadlines, batch.start_s + batch.longest_s(rows))
        larger = Gathered(batch.device, curve, batch.now, batch.free_s, batch.until_s)
        larger.take(usable[first:])
        if larger.rows >= rows:
            return larger, usable[:first]
        rows = larger.rows
    return batch, []


def _plan_of(model: Model, batch: Gathered, lost: Sequence[Request]) -> SizedPlan:
    """The plan with its `latest_s`: started later, fewer than half of its requests would be in time."""
    requests, curve = batch.requests, batch.curve
    expected_s = curve.exec_s(batch.rows)
    latest_s = max(requests[len(requests) // 2].deadline_s - expected_s, batch.start_s)
    weight = sum([request.weight * request.rows for request in requests], 0.0)
    return SizedPlan(
        model, requests, lost if len(model.hosts) == 1 else (), batch.rows, (), batch.start_s, expected_s, latest_s,
        weight, requests[0], batch.rows >= curve.batch_max,
    )  # fmt: skip
