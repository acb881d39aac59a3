"""The least device time that a request can cost if its model has one open dimension. Pure.

A batch takes as long as its longest member requires. Let the extents be cut into levels. A batch whose longest member
is in level k has no member above it, and takes at least l(b, the level's least extent). So a request costs at least the
least, over the batch sizes b and the levels from its own on, of l(b, the greater of both extents) / b, where only those
sizes count that some instant allows: b rows must wait then that are no longer than level k, and all of them must have
that time left. The limit by instants is that of `sharing`, with these rows alone.

Source: our own; bound B2 of study Q (docs/design/README.md, "Studies") counts companions by overlap, not by instants.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.bounds.sharing import ENDLESS_NS, NS, Longs, Requests, costs, in_one_batch

Floats: TypeAlias = npt.NDArray[np.float64]
LEVELS_MAX = 24  # of one model; more of them make the bound tighter, and take as many times as long
LEVEL_STEP = 1.1  # a level ends where a row costs so much more than at its beginning, in the best batch


def least_costs(requests: Requests) -> Floats:
    """Least seconds of device time that an answer in time costs [requests]; inf if there can be none."""
    chained = requests.chained
    if not chained.any():
        return costs(requests)
    least = np.full(len(requests), np.inf)
    if not chained.all():
        least[~chained] = costs(requests.only(~chained))
    least[chained] = _by_level(requests.only(chained))
    return least


def _by_level(requests: Requests) -> Floats:
    """The least costs of requests of models with one open dimension [requests]."""
    least = np.full(len(requests), np.inf)
    first, last = _levels(requests)
    for level in range(first.shape[1]):
        low, high = first[requests.model, level], last[requests.model, level]
        among = (low >= 0) & (requests.kind <= high)
        place = np.where(among, np.maximum(requests.kind, low), requests.kind)
        for batch in range(1, requests.durations.shape[1]):
            duration = requests.durations[place, batch]
            share = duration / NS / batch * requests.rows
            if not (among & (share < least)).any():
                continue
            possible = in_one_batch(requests, batch, duration, among)
            least = np.where(possible, np.minimum(least, share), least)
    return least


def _levels(requests: Requests) -> tuple[Longs, Longs]:
    """(first kind, last kind) of each level of each model [models, levels]; -1 where a model has fewer levels."""
    sizes = np.arange(1, requests.durations.shape[1])
    durations = np.where(requests.durations[:, 1:] < ENDLESS_NS, requests.durations[:, 1:].astype(np.float64), np.inf)
    share = (durations / sizes).min(axis=1)
    models = int(requests.model.max()) + 1
    first, last = np.full((models, LEVELS_MAX), -1, np.int64), np.full((models, LEVELS_MAX), -1, np.int64)
    for model in np.unique(requests.model).tolist():
        own = np.unique(requests.kind[requests.model == model])
        step = max(LEVEL_STEP, float(share[own[-1]] / share[own[0]]) ** (1 / LEVELS_MAX) * (1 + 1e-9))
        begin, level = int(own[0]), 0
        for kind in own.tolist():
            if share[kind] > step * share[begin] and level + 1 < LEVELS_MAX:
                begin, level = kind, level + 1
            first[model, level], last[model, level] = begin, kind
    return first, last
