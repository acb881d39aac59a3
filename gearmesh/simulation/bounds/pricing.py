"""The price of device time when every instant has a price: the cheapest place for a batch inside its span. Pure.

Times are in ns, prices in answers per ns. The price of a batch is piecewise linear in its start, so its minimum over a
span is at an end of the span, or where the batch begins or ends on an edge of the price steps.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.bounds.sharing import range_extreme

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PricedTime:
    """Prices as a step function."""

    edges: Floats  # ns [slots + 1]
    paid: Floats  # price of the time from the first edge to each edge, in answers [slots + 1]

    @classmethod
    def of(cls, edges: Floats, prices: Floats) -> "PricedTime":
        """A market with these prices. `prices` [slots], per ns."""
        return cls(edges, np.concatenate([[0.0], np.cumsum(prices * np.diff(edges))]))

    def price(self, start: Floats, length: float) -> Floats:
        """The price of [start, start + length]; time outside the edges is free."""
        later = np.interp(start + length, self.edges, self.paid)
        return np.asarray(later - np.interp(start, self.edges, self.paid))

    def corners(self, length: float) -> Floats:
        """Starts, sorted, at which the price of a batch of this length may have a minimum."""
        starts = np.concatenate([self.edges, self.edges - length])
        return np.unique(starts[(starts >= self.edges[0]) & (starts + length <= self.edges[-1])])

    def cheapest(self, length: float, earliest: Floats, latest: Floats) -> Floats:
        """The lowest price of a batch that starts from `earliest` to `latest` [batches]."""
        least = np.minimum(self.price(earliest, length), self.price(latest, length))
        corners = self.corners(length)
        first, after = np.searchsorted(corners, earliest), np.searchsorted(corners, latest, side="right")
        inside = np.flatnonzero(after > first)
        if len(inside):
            found = range_extreme(self.price(corners, length), first[inside], after[inside], np.minimum)
            least[inside] = np.minimum(least[inside], found)
        return least

    def cheapest_start(self, length: float, earliest: Floats, latest: Floats) -> Floats:
        """A start at which the batch has the price `cheapest` [batches]."""
        at_begin, at_end = self.price(earliest, length), self.price(latest, length)
        start, least = np.where(at_begin <= at_end, earliest, latest), np.minimum(at_begin, at_end)
        corners = self.corners(length)
        first, after = np.searchsorted(corners, earliest), np.searchsorted(corners, latest, side="right")
        inside = np.flatnonzero(after > first)
        if len(inside):
            prices = self.price(corners, length)
            order = np.argsort(prices, kind="stable")
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order))
            found = order[range_extreme(rank, first[inside], after[inside], np.minimum)]
            better = prices[found] < least[inside]
            start[inside[better]] = corners[found[better]]
        return start


def usage(starts: Floats, lengths: Floats, weights: Floats, edges: Floats) -> Floats:
    """Device time that the batches take from each slot, times their weights [slots]."""

    def since(instants: Floats) -> Floats:
        order = np.argsort(instants, kind="stable")
        sorted_at, weight = instants[order], weights[order]
        before = np.searchsorted(sorted_at, edges)
        counts = np.concatenate([[0.0], np.cumsum(weight)])[before]
        moments = np.concatenate([[0.0], np.cumsum(weight * sorted_at)])[before]
        return np.asarray(counts * edges - moments)

    return np.diff(since(starts) - since(starts + lengths))
