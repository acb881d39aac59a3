"""Where the edges of open dimensions are placed: inputs that are padded to the next edge shall cost little more. Pure.

Nothing is known of the traffic when a version is prepared. So its extents count as log-uniform over the dimension's
range, as many between 8 and 16 as between 256 and 512, and the edges minimise

    sum over s of w(s) share(edge(s)) / share(s)^LEANING,   share(s) = min over b of l(b, s) / b

with share(s) the device's time for a row in a good batch of its own extent. With LEANING 0 that is the cost of all
requests together, which the long ones make; with 1 it is the mean of what each costs more than it would alone.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mesh import wire
from mesh.sizes import Extents

CANDIDATES = {1: 128, 2: 40}  # {open dimensions: places for an edge in one of them}, at about equal ratios
OTHERS = 5  # extents of the other dimension over which the share is averaged
LOSS = 0.02  # no further edge is placed once padding costs so little of what exact shapes would
LEANING = 0.5  # Source: tests/gpu_worker/core/test_edges.py, of 0 to 1 the least over-cost on five kinds of traffic
EDGES_MAX = {1: 16, 2: 5}  # {open dimensions: edges of each}

Shares = Callable[[Sequence[Extents]], npt.NDArray[np.float64]]  # share of each


def geometric(least: int, most: int, count: int) -> tuple[int, ...]:
    """Returns at most `count` extents, ascending at about equal ratios; the last is the greatest, the first the least.

    One alone is the greatest.
    """
    if count == 1 or least == most:
        return (most,)
    step = (most / least) ** (1.0 / (count - 1))
    return tuple(sorted({round(least * step**i) for i in range(count - 1)} | {most}))


def edges_of(dims: Sequence[wire.Dim], share: Shares, most: int) -> tuple[tuple[int, ...], ...]:
    """Returns the edges of each dimension, ascending, at most so many of each; the last is the greatest extent.

    With two dimensions the share of an extent is the mean over extents of the other one.
    """
    found = []
    for i, dim in enumerate(dims):
        places = geometric(dim.least, dim.most, CANDIDATES[len(dims)])
        others = [geometric(other.least, other.most, OTHERS) for j, other in enumerate(dims) if j != i]
        beside = others[0] if others else (0,)
        points = [_beside(place, other, i, len(dims)) for place in places for other in beside]
        costs = share(points).reshape(len(places), len(beside)).mean(axis=1)
        found.append(best_edges(dim.least, places, np.maximum.accumulate(costs), most))
    return tuple(found)


def _beside(place: int, other: int, at: int, count: int) -> Extents:
    if count == 1:
        return (place,)
    return (place, other) if at == 0 else (other, place)


def best_edges(
    least: int, places: Sequence[int], costs: npt.NDArray[np.float64], most: int, *, leaning: float = LEANING
) -> tuple[int, ...]:
    """Returns the edges, ascending, of the ascending `places`: the best for log-uniform extents from `least` on.

    `costs`: share of a row of each place's extent; they never fall. At most `most` edges, and no more than keep the
    loss; the last place is always one. By dynamic programming over the places.
    """
    ends = [math.log((place + 0.5) / (least - 0.5)) for place in places]
    weights = np.diff([0.0, *ends]) / costs**leaning
    below = np.concatenate(([0.0], weights.cumsum()))  # weight of all extents up to a place; index 0: of none
    exact = float((costs * weights).sum())
    count = len(places)
    best = np.full(count + 1, np.inf)  # cost of all up to a place, which is an edge
    best[0] = 0.0
    steps = []  # per number of edges, the place before each
    for _ in range(min(most, count)):
        # [from, to]: the extents between two places, padded to the upper one
        total = best[:, None] + costs[None, :] * (below[None, 1:] - below[:, None])
        total[np.arange(count + 1)[:, None] > np.arange(count)[None, :]] = np.inf
        before = total.argmin(axis=0)
        steps.append(before)
        best = np.concatenate(([np.inf], total[before, np.arange(count)]))
        if best[-1] <= exact * (1.0 + LOSS):
            break
    edges, at = [], count
    for before in steps[::-1]:
        edges.append(places[at - 1])
        at = int(before[at - 1])
    return tuple(reversed(edges))
