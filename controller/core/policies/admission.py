"""Who is let in. Pure.

A request is refused at arrival in three cases:
  * It could not be served in time even alone and first ("deadline").
  * The queue of its own model, in the largest batches and with every host at its service, takes too long ("overload").
    Somebody in that queue is going to be lost, and the newest request loses least by hearing so at once. Of a model
    with open dimensions only that part of the queue counts whose requests cost no more than it (`by_extents`). Of one
    whose inputs are fetched, what is fetched before counts as well.
  * The devices have more to do than fits before its deadline, and its model is priced out ("overload"): more than
    `loss_max` of the model's admitted requests were lost lately, because other models earn more per device-second. So
    much less of it is then admitted that about that share is lost, but at least PRICE_SHARE_MIN of what arrives.

Refusals are so known at once instead of at the deadline. What that costs in attainment is in
docs/benchmarks_scheduler.md, "Refusing early". Source of the constants: docs/design/policy.md, "Admission".
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from controller.core.devices.base import RemoteDevice
from controller.core.estimation.fetching import NOTHING
from controller.core.policies.base import Verdict
from controller.core.policies.by_extents import admission_ends, fetched_before_s
from controller.core.policies.gone import gone_among
from controller.core.policies.starts import start_of, start_of_fetched
from controller.core.queues import Request
from controller.core.residency import Popularity
from controller.core.state import Model
from mesh.codes import ErrorCode

DEADLINE, OVERLOAD = ErrorCode.DEADLINE, ErrorCode.OVERLOAD
RECENT_S = 0.1  # time constant of the rate of admission that fills the last batch of a queue
PRICE_LOSS = 0.8  # largest share of admitted requests to be lost; in overload 0.8 costs 0.2 points of attainment
PRICE_BAND = 0.25  # more is admitted again once the loss is this share below its limit
PRICE_STEP = 0.03  # relative change of what is admitted, for each ended request
PRICE_SHARE_MIN = 0.05  # of arrivals; a model must still be able to show that it is served
ENOUGH = 2  # devices looked at if one of them serves the request in time; more cost time and change little
LOSS_WEIGHT = 0.05  # of one ended request in its model's loss


@dataclass(slots=True)
class Price:
    """How much is admitted of one model."""

    loss: float = 0.0  # share of admitted requests that were lost, decayed
    share: float = 1.0  # of arrivals that are admitted
    credit: float = 0.0  # the next one is admitted when this reaches 1

    def admits(self) -> bool:
        """Whether the request that has just arrived is one of those admitted."""
        if self.share >= 1.0:
            return True
        self.credit += self.share
        if self.credit < 1.0:
            return False
        self.credit -= 1.0
        return True

    def ended(self, lost: bool, loss_max: float) -> None:
        """An admitted request has ended. Less is admitted if more than `loss_max` of them are lost, more otherwise."""
        self.loss += LOSS_WEIGHT * (lost - self.loss)
        if self.loss > loss_max:
            self.share = max(PRICE_SHARE_MIN, self.share * (1 - PRICE_STEP))
        elif self.loss < loss_max * (1 - PRICE_BAND):
            self.share = min(1.0, self.share * (1 + PRICE_STEP))


@dataclass(slots=True)
class Admission:
    """Decides about every request at its arrival, and predicts its latency."""

    loss_max: float = PRICE_LOSS
    ahead: bool = True  # of models with open dimensions, what goes before a request counts
    models: Collection[str] = ()  # refs of the models that there are; of many others nothing is kept
    _arrivals: dict[str, Popularity] = field(default_factory=dict)  # {ref: admitted lately, in rows}
    _prices: dict[str, Price] = field(default_factory=dict)  # {ref: price}, models of which one has ended

    def __len__(self) -> int:
        """Models of which something is known."""
        return len(self._arrivals.keys() | self._prices.keys())

    def admit(self, model: Model, request: Request, now: float) -> Verdict:
        """Whether the request is let in, and how long it will take."""
        arrivals = self._arrivals.get(model.ref)
        if arrivals is None:
            arrivals = self._first_of(model.ref)
        asked = arrivals.value(now)
        rate = asked / arrivals.decay_s
        alone_s = own_s = behind_s = math.inf
        deadline_s, hosts = request.deadline_s, len(model.hosts) or 1
        looked_at = 0
        for known in (model.hosts, model.ready):  # its hosts first, then the others
            for worker, device in known.items():
                if looked_at >= ENOUGH and own_s <= deadline_s and behind_s <= deadline_s:
                    break
                if known is model.ready and worker in model.hosts:
                    continue
                looked_at += 1
                if device.leaving:
                    continue
                if request.kept_bytes:
                    end_s, mine_s, others_s = self._ends_of_kept(device, model, request, rate, hosts, now)
                else:
                    start_s = start_of(device, model, now)
                    end_s = start_s + device.curves[model.ref].alone_s(request.rows, request.extents)
                    if model.open:
                        mine_s, others_s = admission_ends(device, model, request, start_s, hosts)
                        mine_s = mine_s if self.ahead else end_s
                    else:
                        mine_s, others_s = self._ends(device, model, request, start_s, rate, hosts, now)
                if end_s < alone_s:
                    alone_s = end_s
                if mine_s < own_s:
                    own_s = mine_s
                if others_s < behind_s:
                    behind_s = others_s
            if len(model.ready) == len(model.hosts):
                break
        verdict = self._verdict(model, request, alone_s, own_s, behind_s, now)
        if verdict.admitted:
            arrivals.count, arrivals.at_s = asked + request.rows, now
        return verdict

    def _first_of(self, ref: str) -> Popularity:
        """What will be known of the model, of which nothing was."""
        for gone in gone_among(self._arrivals, self.models):
            del self._arrivals[gone]
        arrivals = self._arrivals[ref] = Popularity(decay_s=RECENT_S)
        return arrivals

    def _verdict(
        self, model: Model, request: Request, alone_s: float, own_s: float, behind_s: float, now: float
    ) -> Verdict:
        """The request would end then: alone and first, behind its own model's queue, and behind all that waits."""
        predicted_s = behind_s - now
        if alone_s > request.deadline_s:
            return Verdict(False, alone_s - now, DEADLINE, self._retry_s(model, request, own_s, now))
        if own_s > request.deadline_s:
            return Verdict(False, own_s - now, OVERLOAD, own_s - request.deadline_s)
        price = self._prices.get(model.ref)
        contended = behind_s > request.deadline_s  # otherwise it is in time whatever other models earn
        if contended and price is not None and not price.admits():
            return Verdict(False, predicted_s, OVERLOAD, max(request.deadline_s - now, behind_s - request.deadline_s))
        return Verdict(True, predicted_s)

    def ended(self, request: Request, in_time: bool) -> None:
        """An admitted request has ended: its model's price follows."""
        price = self._prices.get(request.ref)
        if price is None:
            for gone in gone_among(self._prices, self.models):
                del self._prices[gone]
            price = self._prices[request.ref] = Price()
        price.ended(not in_time, self.loss_max)

    def _ends(
        self, device: RemoteDevice, model: Model, request: Request, start_s: float, rate: float, hosts: int, now: float
    ) -> tuple[float, float]:
        """(end of the request's batch behind its own model's queue alone, end behind all that waits) on this device."""
        curve = device.curves[model.ref]
        top, scale, base_s, queued = curve.batch_max, curve.scale, curve.base_s, model.queue.rows
        top_s = base_s[top] * scale
        rows = request.rows
        least = rows if rows < curve.rows_max else curve.rows_max
        full, rest = divmod(queued, top)
        mine, behind = (full, rest) if hosts == 1 else divmod(queued // hosts, top)  # each host takes its share
        begin_s = start_s + mine * top_s
        coming_s = begin_s - now
        coming_s = 0.0 if coming_s < 0.0 else RECENT_S if coming_s > RECENT_S else coming_s
        filled = int(behind + rows + rate / hosts * coming_s)
        filled = max(top if filled > top else filled, least, 1)
        own_s = begin_s + base_s[filled] * scale * (1 + device.margin)
        others_s = device.backlog_s - (model.cost_s / hosts if device.worker in model.hosts else 0.0)
        last = min(top, rest + rows)
        behind_s = (
            start_s
            + (others_s if others_s > 0.0 else 0.0)
            + full * top_s / hosts
            + base_s[last if last > least else least] * scale
        )
        return own_s, behind_s

    def _ends_of_kept(
        self, device: RemoteDevice, model: Model, request: Request, rate: float, hosts: int, now: float
    ) -> tuple[float, float, float]:
        """(end alone and first, and the same two) of a request whose frontend keeps its inputs.

        If the device has to fetch them, it fetches those of the model's queue before.
        """
        size = device.far_bytes((request,))
        start_s = start_of_fetched(device, size, start_of(device, model, now), now)
        alone_s = device.curves[model.ref].alone_s(request.rows, request.extents)
        end_s = start_s + alone_s
        if model.open:
            own_s, behind_s = admission_ends(device, model, request, start_s, hosts)
            own_s = own_s if self.ahead else end_s
        else:
            own_s, behind_s = self._ends(device, model, request, start_s, rate, hosts, now)
        if size == NOTHING:
            return end_s, own_s, behind_s
        last_s = device.fetched_s(size, now) + fetched_before_s(device, model, request) / hosts + alone_s
        if self.ahead or not model.open:
            own_s = max(own_s, last_s)
        return end_s, own_s, max(behind_s, last_s)

    def _retry_s(self, model: Model, request: Request, end_s: float, now: float) -> float | None:
        """After how long the same budget would suffice if nothing else came; None if it never does."""
        idle_s = min(
            device.curves[model.ref].alone_s(request.rows, request.extents)
            + device.dispatch.value_s
            + (device.fetch.expected_s(device.far_bytes((request,))) if request.kept_bytes else 0.0)
            for device in model.ready.values()
        )
        return end_s - request.deadline_s if idle_s <= request.deadline_s - request.arrived_s else None
