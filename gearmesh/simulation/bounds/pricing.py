"""What device time costs when every instant has a price: the cheapest place for a batch inside its window. Pure.

Times are ns, prices answers per ns. The price of a batch is a piecewise linear function of its start, so the least
over a window is at one of its ends, or where the batch begins or ends on an edge of the price steps.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.bounds.sharing import range_extreme

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """Prices in steps."""

    edges: Floats  # ns [slots + 1]
    paid: Floats  # answers from the first edge to each [slots + 1]

    @classmethod
    def of(cls, edges: Floats, prices: Floats) -> "Market":
        """`prices` [slots], per ns."""
        return cls(edges, np.concatenate([[0.0], np.cumsum(prices * np.diff(edges))]))

    def price(self, start: Floats, length: float) -> Floats:
        """Of [start, start + length]; nothing is charged outside the edges."""
        later = np.interp(start + length, self.edges, self.paid)
        return np.asarray(later - np.interp(start, self.edges, self.paid))

    def corners(self, length: float) -> Floats:
        """Starts where the price of a batch of this length may be least, sorted."""
        starts = np.concatenate([self.edges, self.edges - length])
        return np.unique(starts[(starts >= self.edges[0]) & (starts + length <= self.edges[-1])])

    def cheapest(self, length: float, earliest: Floats, latest: Floats) -> Floats:
        """Least price of a batch that starts from `earliest` to `latest` [batches]."""
        least = np.minimum(self.price(earliest, length), self.price(latest, length))
        corners = self.corners(length)
        first, after = np.searchsorted(corners, earliest), np.searchsorted(corners, latest, side="right")
        inside = np.flatnonzero(after > first)
        if len(inside):
            found = range_extreme(self.price(corners, length), first[inside], after[inside], np.minimum)
            least[inside] = np.minimum(least[inside], found)
        return least

    def cheapest_start(self, length: float, earliest: Floats, latest: Floats) -> Floats:
        """Where `cheapest` is found."""
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
    """Device time that batches take from each slot, times their weights [slots]."""

    def since(instants: Floats) -> Floats:
        order = np.argsort(instants, kind="stable")
        sorted_at, weight = instants[order], weights[order]
        before = np.searchsorted(sorted_at, edges)
        counts = np.concatenate([[0.0], np.cumsum(weight)])[before]
        moments = np.concatenate([[0.0], np.cumsum(weight * sorted_at)])[before]
        return np.asarray(counts * edges - moments)

    return np.diff(since(starts) - since(starts + lengths))
