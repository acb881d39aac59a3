"""A tighter version of the interval program's bound: requests go into whole batches, not each into its best one. Pure.

Let every instant of device time have a price. Attained answers are at most the price of all device time, plus what each
model could earn if it might buy any time: its answers minus what its batches pay (Lagrangian relaxation of the number
of devices). The most that a model can earn is computed so:

* If the deadlines of its requests are in the order of their arrivals, and each has one row: by dynamic programming over
  groups of consecutive requests. V(k), the most that the first k can earn, is the greatest of V(k - 1) + reward(k) and,
  for each size b, V(k - b) + b - price, with the cheapest place for a batch of b between the arrival of its last
  request and the deadline of its first.
* Otherwise every request pays its share, price / b, of the cheapest batch it could be in (`sharing.in_one_batch`).

Why groups of consecutive requests suffice. Keep the batches' times and sizes, and assign the requests so that the sum
of the stretches is least; the stretch of a batch reaches from its first member to its last, in order of arrival. If the
stretches of two batches A and B overlap, their members cannot be reassigned as two separate runs. But they can be if A
begins and ends no later than B: the earlier ones go to A. They also can be if B lies inside A in time, and either no
member of B arrived after A begins (the earlier ones go to B), or none is due before A ends (the earlier ones go to A).
What remains is B inside A, with one member due before A ends and one that arrived after A begins. Then B has at least 2
rows and fewer than A, and its stretch encloses A's, so the requests of both wait while B runs. Set these inner batches
apart; the others have disjoint stretches. Any request inside a batch's stretch fits into it, so its members may be
taken to be consecutive, and the stretch's other requests are skipped.

A skipped request may be in an inner batch. An inner batch of c rows costs price / c per row, and 2 c + 1 requests or
more must wait throughout it. So skipping may earn at most 1 minus the least such price, if positive: the reward. The
step above exchanges members of a stretch with its skipped requests. This needs that no reward exceeds rewards on both
of its sides within a stretch; where one does, the rewards before it are raised to it (`nesting.raised`).

The prices start from those of the interval program and are improved by subgradient steps. Any prices give a valid
bound.

Source: our own, see docs/design/bounds.md. Subgradient steps after Polyak, "Minimization of unsmooth functionals"
(1969).
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.bounds.nesting import cheapest_share, nested_rewards, whole_or_skipped
from gearmesh.simulation.bounds.pricing import PricedTime, usage
from gearmesh.simulation.bounds.sharing import Bools, Longs, Requests, in_one_batch, most_waiting

Floats: TypeAlias = npt.NDArray[np.float64]
CELLS_MAX = 40_000_000  # requests x batch sizes; above it, requests are priced one by one
GOAL = 0.02  # a step aims at the best bound so far less this share
PATIENCE, CALMER = 3, 0.6  # after so many steps without gain, the aim is multiplied by this factor


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlaces:
    """The places that batches of one size and one profile may have; arrays [places]."""

    batch: int
    length: float  # ns
    last: Longs  # the request that a group ends with; without groups, the request itself
    earliest: Floats  # start, ns
    latest: Floats


@dataclass(slots=True, eq=False)
class Packing:
    """The places of one trace, found once and priced many times."""

    requests: Requests
    edges: Floats  # ns [slots + 1]
    devices: int
    after: Longs  # one past the last later request that may share a stretch with a request [requests]
    groups: list[BatchPlaces]
    inner: list[BatchPlaces]
    alone: list[BatchPlaces]
    orderly: Bools  # whether the dynamic program applies to the request's model [requests]
    widest: int  # rows of the largest group

    @classmethod
    def of(cls, requests: Requests, edges: Longs, devices: int) -> "Packing":
        """The places of these requests, each of which can be answered."""
        profiles, profile_of_model = np.unique(requests.durations, axis=0, return_inverse=True)
        profile_of = profile_of_model.ravel()[requests.kind]
        orderly = in_order(requests)
        if orderly.sum() * profiles.shape[1] > CELLS_MAX:
            orderly[:] = False
        groups: list[BatchPlaces] = []
        inner: list[BatchPlaces] = []
        alone: list[BatchPlaces] = []
        place = np.arange(len(requests)) - requests.find(np.zeros_like(requests.model), requests.model, "left")
        for batch in range(1, profiles.shape[1]):
            duration = profiles[profile_of, batch]
            fits = orderly & (place >= batch - 1) & (batch <= requests.batch_max)
            last = np.flatnonzero(fits)
            last = last[requests.arrival[last] + duration[last] <= requests.deadline[last - batch + 1]]
            within = np.flatnonzero(orderly & _inner(requests, batch, duration))
            loner = (
                np.flatnonzero(in_one_batch(requests, batch, duration) & ~orderly) if not orderly.all() else last[:0]
            )
            for index in range(len(profiles)):
                length = int(profiles[index, batch])
                mine = last[profile_of[last] == index]
                groups += _offers(requests, batch, length, mine, mine - batch + 1)
                for offers, some in ((inner, within), (alone, loner)):
                    mine = some[profile_of[some] == index]
                    offers += _offers(requests, batch, length, mine, mine)
        after = requests.find(requests.deadline - requests.durations[requests.kind, 1], requests.model, "right")
        widest = max((offers.batch for offers in groups), default=1)
        return cls(requests, edges.astype(np.float64), devices, after, groups, inner, alone, orderly, widest)

    def improve(self, prices: Floats, rounds: int) -> float:
        """The lowest bound, in requests, found in `rounds` of improving prices. `prices`: answers per device-second."""
        lengths = np.diff(self.edges)
        current = prices / 1e9
        best, best_prices, goal, failed = np.inf, current, GOAL, 0
        for _ in range(rounds + 1):
            bound, spare = self.evaluate(current)
            if bound < best:
                best, best_prices, failed = bound, current, 0
            else:
                failed += 1
            norm = float((spare**2 / lengths).sum())
            if norm <= 0:
                break
            if failed >= PATIENCE:
                goal, failed, current = goal * CALMER, 0, best_prices
                bound, spare = self.evaluate(current)
                norm = float((spare**2 / lengths).sum())
            step = (bound - best * (1 - goal)) / norm
            current = np.maximum(0.0, current - step * spare / lengths)
        return best

    def evaluate(self, prices: Floats) -> tuple[float, Floats]:
        """(the bound in requests, unused device time in each slot [slots], ns). `prices`: answers per ns [slots]."""
        market = PricedTime.of(self.edges, prices)
        earned = np.full((len(self.requests), self.widest), -np.inf)
        for offers in self.groups:
            price = market.cheapest(offers.length, offers.earliest, offers.latest)
            earned[offers.last, offers.batch - 1] = offers.batch - price
        charge, inner_size = cheapest_share(self.requests, market, self.inner)
        reward = nested_rewards(np.maximum(0.0, 1.0 - charge), self.after)
        value, chosen = whole_or_skipped(self.requests, self.orderly, earned, reward)
        batches = [_taken(market, o, chosen[o.last] == o.batch, 1.0) for o in self.groups]
        share, size = cheapest_share(self.requests, market, self.alone)
        value += float(np.maximum(0.0, 1.0 - share).sum())
        size = np.where(share < 1.0, size, 0)
        inner_size = np.where((chosen < 0) & (charge < 1.0), inner_size, 0)
        batches += [_taken(market, o, inner_size[o.last] == o.batch, 1.0 / o.batch) for o in self.inner]
        rows = self.requests.rows
        batches += [_taken(market, o, size[o.last] == o.batch, rows[o.last] / o.batch) for o in self.alone]
        starts, lengths, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        used = usage(starts, lengths, weights, self.edges)
        time_price = self.devices * float(market.paid[-1])
        return value + time_price, self.devices * np.diff(self.edges) - used


def in_order(requests: Requests) -> Bools:
    """Whether each request's model has deadlines in the order of arrivals, and one row per request [requests]."""
    same = np.diff(requests.model) == 0
    models = int(requests.model.max()) + 1
    bad = np.bincount(requests.model[1:][same & (np.diff(requests.deadline) < 0)], minlength=models)
    bad += np.bincount(requests.model[requests.rows != 1], minlength=models)
    return np.asarray(bad[requests.model] == 0)


def _inner(requests: Requests, batch: int, duration: Longs) -> Bools:
    """Whether each request may be in a batch of this size that is inside a larger one [requests]."""
    if batch < 2:
        return np.zeros(len(requests), np.bool_)
    fits = (requests.arrival + duration <= requests.deadline) & (batch < requests.batch_max)
    return np.asarray(most_waiting(requests, duration, fits) > 2 * batch)


def _offers(requests: Requests, batch: int, length: int, last: Longs, first: Longs) -> list[BatchPlaces]:
    """The places for batches of this size and length; empty if there are none."""
    earliest = requests.arrival[last].astype(np.float64)
    latest = (requests.deadline[first] - length).astype(np.float64)
    return [BatchPlaces(batch, float(length), last, earliest, latest)] if len(last) else []


def _taken(
    market: PricedTime, offers: BatchPlaces, which: Bools, weights: Floats | float
) -> tuple[Floats, Floats, Floats]:
    """(starts, lengths, weights) of the places that are used."""
    starts = market.cheapest_start(offers.length, offers.earliest[which], offers.latest[which])
    weight = np.broadcast_to(weights, which.shape)[which].astype(np.float64)
    return starts, np.full(len(starts), offers.length), weight
