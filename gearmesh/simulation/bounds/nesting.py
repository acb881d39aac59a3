"""What a model's requests can earn at given prices: parts of the bound in `packing`, which explains them. Pure."""

from collections.abc import Iterable
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.bounds.pricing import PricedTime
from gearmesh.simulation.bounds.sharing import Bools, Longs, Requests, range_extreme

Floats: TypeAlias = npt.NDArray[np.float64]


class Places(Protocol):
    """What this module needs of packing.BatchPlaces."""

    @property
    def batch(self) -> int: ...
    @property
    def length(self) -> float: ...
    @property
    def last(self) -> Longs: ...
    @property
    def earliest(self) -> Floats: ...
    @property
    def latest(self) -> Floats: ...


def whole_or_skipped(
    requests: Requests, orderly: Bools, earned: Floats, reward: Floats
) -> tuple[float, npt.NDArray[np.int64]]:
    """Dynamic program over the requests of each model, in order of arrival; all models advance together, step by step.

    `earned` [requests, sizes]: of the group of size column + 1 that ends with the request, or -inf. `reward`
    [requests]: of skipping the request. Returns (the most that all orderly models earn; the size of the group that ends
    with each request, -1 if it is skipped, 0 if neither [requests]).
    """
    sizes = np.bincount(requests.model[orderly], minlength=int(requests.model.max()) + 1)
    by_size = np.argsort(-sizes, kind="stable")
    first = requests.find(np.zeros_like(by_size), by_size, "left")
    sizes = sizes[by_size]
    steps, widest = int(sizes[0]), earned.shape[1]
    best = np.full((len(sizes), steps + widest), -np.inf)  # best[m, widest - 1 + k]: the most from the first k requests
    best[:, widest - 1] = 0.0
    choice = np.zeros(len(requests), np.int64)
    going = np.searchsorted(-sizes, -np.arange(steps), side="left")  # models with more than k requests
    for k in range(steps):
        some = slice(0, int(going[k]))
        at = first[some] + k
        options = best[some, k : k + widest][:, ::-1] + earned[at]
        size = options.argmax(axis=1)
        grouped = options[np.arange(len(at)), size]
        skipped = best[some, widest - 1 + k] + reward[at]
        choice[at] = np.where(grouped > skipped, size + 1, 0)
        best[some, widest + k] = np.maximum(grouped, skipped)
    total = float(best[np.arange(len(sizes)), widest - 1 + sizes].sum())
    return total, _walk_back(choice, first, sizes)


def _walk_back(choice: Longs, first: Longs, sizes: Longs) -> Longs:
    """Follows the choices back from each model's last request; returns the groups as in `whole_or_skipped`."""
    chosen = np.zeros_like(choice)
    at, begin = (first + sizes - 1)[sizes > 0], first[sizes > 0]
    while len(at):
        chosen[at] = np.where(choice[at] > 0, choice[at], -1)
        at = at - np.maximum(choice[at], 1)
        going = at >= begin
        at, begin = at[going], begin[going]
    return chosen


def cheapest_share(requests: Requests, market: PricedTime, alone: Iterable[Places]) -> tuple[Floats, Longs]:
    """(least price of a request as part of a batch, that batch's size) [requests]; inf for those without places."""
    share, size = np.full(len(requests), np.inf), np.zeros(len(requests), np.int64)
    for offers in alone:
        price = market.cheapest(offers.length, offers.earliest, offers.latest)
        part = price / offers.batch * requests.rows[offers.last]
        better = part < share[offers.last]
        share[offers.last[better]] = part[better]
        size[offers.last[better]] = offers.batch
    return share, size


def nested_rewards(own: Floats, after: Longs) -> Floats:
    """The lowest rewards from `own` up, of which none inside a stretch exceeds rewards on both its sides [requests].

    The stretch of request i reaches to before after[i]. In it, the run at the end that never falls is left out, because
    nothing lower follows it. All before that run is followed by something lower, and i is raised to the highest of it.
    """
    index = np.arange(len(own))
    falls = np.concatenate([[True], own[1:] < own[:-1]])
    run = np.maximum.accumulate(np.where(falls, index, 0))  # start of the non-falling run that includes a request
    end = run[after - 1]
    result = own.copy()
    some = np.flatnonzero(end > index + 1)
    if len(some):
        result[some] = np.maximum(own[some], range_extreme(own, some + 1, end[some], np.maximum))
    return result
