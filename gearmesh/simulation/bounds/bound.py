"""Upper bounds on the number of requests that any scheduler can answer in time, to compare policies with.

`interval_bound` gives every request the device time of the best batch that it could possibly be in, spread over its
span in any way. No scheduler needs less, not even a clairvoyant, preemptive or migrating one:

* A batch of b rows takes l(b) inside the spans of all its members, so each member pays at least its least cost
  (`sharing.costs`) between its arrival and its deadline. In any interval the devices can spend at most their number
  times its length. These two facts give a linear program (`network`).
* The bound is computed from the program's prices, not from its value. For any price per device-second in each slot, the
  answers in time are at most the price of all device time, plus for each request 1 minus its cost at the lowest price
  in its span, if that is positive (weak duality). It is computed here from true costs and spans, so that neither
  the grouping of requests nor the solver's tolerance can make it wrong; bad prices only make it loose.

This ignores LOADs. A second bound follows from LOADs alone (loading.py), and the lower of the two holds. Network and
noise are left out, as they only take time. Not covered: durations below the profile (noise with a coefficient of
variation draws some), and closed loops, whose arrivals depend on the scheduler.

`fluid_bound` ignores when requests arrive, `share_bound` who else waits. `packing_bound` (packing.py) forms whole
batches; it is the tightest, and takes tens of times as long. `exact` (exact.py) tries every schedule of a few requests;
`belady.py` is about eviction.

Source: docs/design/bounds.md.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.arrivals.loads import Trace
from gearmesh.simulation.bounds.lengths import least_costs
from gearmesh.simulation.bounds.loading import answered_at_most
from gearmesh.simulation.bounds.network import Slots, slot_prices
from gearmesh.simulation.bounds.packing import Packing
from gearmesh.simulation.bounds.sharing import NS, Requests, costs, range_extreme, requests_of
from gearmesh.simulation.parts import Scenario

Floats: TypeAlias = npt.NDArray[np.float64]
SLOTS_MAX = 6000
SLOTS_PER_SPAN = 16  # for the shorter spans
GROWTH = 1.25  # factor from slot to slot after the last arrival, when only deadlines are left
ROUNDS = 40  # of improving prices for whole batches; measured: each further one gains less than 0.01 % of the bound
EPSILON = 1e-6  # requests; margin for rounding errors of floats


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound on the answers in time."""

    attainment: float  # share of the offered requests
    requests: int  # offered
    seconds_taken: float
    slots: int = 0
    groups: int = 0


def interval_bound(scenario: Scenario, trace: Trace) -> Bound:
    """The bound of the interval program. Raises: ValueError for a closed loop."""
    return _bound(scenario, trace, 0, least_costs)


def packing_bound(scenario: Scenario, trace: Trace, rounds: int = ROUNDS) -> Bound:
    """The bound for whole batches, by improving the prices in rounds: at most the interval bound, often 1-4 % lower.

    It is the interval bound if some model has open dimensions: groups of consecutive requests do not suffice then.
    """
    return _bound(scenario, trace, rounds, least_costs)


def _bound(scenario: Scenario, trace: Trace, rounds: int, price: Callable[[Requests], Floats]) -> Bound:
    began_s = time.perf_counter()
    problem = Problem.of(scenario, trace, price)
    if problem is None:
        return Bound(0.0, len(trace), time.perf_counter() - began_s)
    prices, groups = problem.prices()
    answered = min(problem.at_most(prices), problem.at_most(problem.flat_prices()), problem.loadable)
    if rounds and all(model.open is None for model in scenario.models):
        packing = Packing.of(problem.requests, problem.slots.edges, scenario.devices.count)
        answered = min(answered, packing.improve(prices, rounds))
    taken_s = time.perf_counter() - began_s
    return Bound(_share(answered, len(trace)), len(trace), taken_s, len(problem.slots.lengths), groups)


def share_bound(scenario: Scenario, trace: Trace) -> Bound:
    """The bound of the interval program if each request costs what it would in a full batch of its own kind.

    Who else waits does not matter, as in the fluid bound; when requests come does. At least the interval bound.
    """
    return _bound(scenario, trace, 0, shares)


def fluid_bound(scenario: Scenario, trace: Trace) -> Bound:
    """The bound if all device time from the first arrival to the last deadline goes to the cheapest requests.

    A request costs its share of its model's most efficient batch that takes no longer than the request's budget.
    """
    began_s = time.perf_counter()
    problem = Problem.of(scenario, trace, costs)
    if problem is None:
        return Bound(0.0, len(trace), time.perf_counter() - began_s)
    spent_s = np.cumsum(np.sort(shares(problem.requests)))
    time_s = scenario.devices.count * (problem.slots.edges[-1] - problem.slots.edges[0]) / NS
    whole = int(np.searchsorted(spent_s, time_s, side="right"))
    return Bound(_share(whole, len(trace)), len(trace), time.perf_counter() - began_s)


def shares(requests: Requests) -> Floats:
    """Least seconds of device time of a request among those of its kind, in the best batch that its budget allows.

    inf if no batch is as short as its budget.
    """
    least = np.full(len(requests), np.inf)
    for batch in range(1, requests.durations.shape[1]):
        duration = requests.durations[requests.kind, batch]
        fits = duration <= requests.deadline - requests.arrival
        least = np.where(fits, np.minimum(least, duration / NS / batch * requests.rows), least)
    return least


def _share(answered: float, offered: int) -> float:
    """The attainment. The number of answers is whole, so a bound on it may be rounded down."""
    return min(1.0, float(np.floor(answered + EPSILON)) / offered)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """The requests that can be answered at all, with their costs and slots."""

    requests: Requests
    cost_s: Floats
    slots: Slots
    devices: int
    loadable: float  # requests that can be answered if only LOADs take time

    @classmethod
    def of(cls, scenario: Scenario, trace: Trace, price: Callable[[Requests], Floats]) -> "Problem | None":
        """The problem of a trace; None if no request can be answered in time. `price`: the least cost of each."""
        if scenario.load.kind == "closed":
            raise ValueError("a closed loop has no bound: what arrives depends on what is answered")
        requests = requests_of(scenario, trace)
        cost_s = price(requests)
        possible = np.isfinite(cost_s)
        if not possible.any():
            return None
        requests = requests.only(possible)
        loadable = answered_at_most(scenario, requests)
        return cls(requests, cost_s[possible], cut(requests), scenario.devices.count, loadable)

    def prices(self) -> tuple[Floats, int]:
        """(answers per device-second in each slot [slots], number of groups in the program)."""
        found = slot_prices(self.slots, self.cost_s, self.devices)
        return found.prices, found.groups

    def flat_prices(self) -> Floats:
        """One price for all slots: that of the most expensive request that fits if only total time counts."""
        cheapest = np.sort(self.cost_s)
        fit = int(np.searchsorted(np.cumsum(cheapest), self.devices * self.slots.lengths.sum() / NS, side="right"))
        return np.full(len(self.slots.lengths), 1.0 / cheapest[fit] if fit < len(cheapest) else 0.0)

    def at_most(self, prices: Floats) -> float:
        """The bound in requests that these prices prove."""
        lowest: Floats = range_extreme(prices, self.slots.first, self.slots.after, np.minimum)
        time_price = self.devices * float((prices * self.slots.lengths).sum()) / NS
        return time_price + float(np.maximum(0.0, 1.0 - self.cost_s * lowest).sum())


def cut(requests: Requests) -> Slots:
    """Slots as fine as the spans need and the program can handle; they grow after the last arrival."""
    begin, end, last = requests.arrival.min(), requests.deadline.max(), requests.arrival.max()
    span = float(np.quantile(requests.deadline - requests.arrival, 0.05))
    width = max(1, int(max(span / SLOTS_PER_SPAN, (last - begin) / SLOTS_MAX)))
    edges = list(range(int(begin), int(min(last + 1, end)), width))
    while edges[-1] + width < end:
        edges.append(edges[-1] + width)
        width = int(width * GROWTH) + 1
    if edges[-1] < end:
        edges.append(int(end))
    marks = np.array(edges, np.int64)
    first = np.searchsorted(marks, requests.arrival, side="right") - 1
    return Slots(marks, first, np.searchsorted(marks, requests.deadline, side="left"))
