"""The least device time that each request can cost, given the requests it could share a batch with. Pure.

All times are whole nanoseconds. A batch of b rows of one model occupies a device from s to s + l(b); every member has
arrived by s and is due at s + l(b) or later. So all members wait at s, and the batch has at most as many rows as have
spans that contain [s, s + l(b)]. The size of a request's batch is therefore at most the largest b for which some s in
its span finds b such rows, that request included; this limit is exact for any mix of deadlines. A member's part of
the batch is l(b) / b per row.

Arrivals are rounded down, deadlines up, durations down. l(b) is the least duration of b or more rows, since a batch may
be padded. So rounding never makes the result invalid for a scheduler.

Requests of models with open dimensions are of as many kinds as there are extents; a batch takes at least what it would
take if all of its rows were of the kind of any one member. With one open dimension more is known, see `lengths`.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.arrivals.loads import Trace
from gearmesh.simulation.parts import Scenario
from gpu_worker.core.emulation import fits
from mesh.sizes import Extents

Floats: TypeAlias = npt.NDArray[np.float64]
Longs: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
NS = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """A trace ordered by model, then arrival, then deadline; times in ns. Arrays [requests] unless stated otherwise."""

    arrival: Longs
    deadline: Longs
    model: Longs
    rows: Longs
    batch_max: Longs  # largest batch of its model that it fits in
    durations: Longs  # [kinds, largest batch_max + 1]: least duration of b or more rows; ENDLESS_NS beyond batch_max
    origin: Longs  # index in the trace
    kind: Longs  # its row of `durations`: its model's and its extents', or extents that EXEC computes for it
    chained: Bools  # its model has one open dimension: the model's kinds are neighbours, by extent

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def band(self) -> int:
        """ns by which the times of each model are shifted so that one sort covers all models."""
        return int(self.deadline.max(initial=0)) + 1

    def find(self, instants: Longs, models: Longs, side: Literal["left", "right"]) -> Longs:
        """Index of each instant among the arrivals of its model (as np.searchsorted)."""
        band = self.band
        moved = np.clip(instants, -1, band - 1) + models * band
        return np.searchsorted(self.arrival + self.model * band, moved, side=side)

    def only(self, kept: Bools) -> "Requests":
        """The requests selected by `kept`."""
        arrays = (self.arrival, self.deadline, self.model, self.rows, self.batch_max)
        arrival, deadline, model, rows, batch_max = (array[kept] for array in arrays)
        origin, kind, chained = self.origin[kept], self.kind[kept], self.chained[kept]
        return Requests(arrival, deadline, model, rows, batch_max, self.durations, origin, kind, chained)


ENDLESS_NS = np.int64(1) << 60  # ns; longer than any duration


def requests_of(scenario: Scenario, trace: Trace) -> Requests:
    """The trace's requests, with times rounded such that no request becomes harder to answer."""
    order = np.lexsort((trace.slo_s, trace.time_s, trace.model))
    arrival = np.floor(trace.time_s[order] * NS).astype(np.int64)
    # one ns more than rounding up: simulated clocks add up floats
    deadline = np.ceil((trace.time_s + trace.slo_s)[order] * NS).astype(np.int64) + 1
    models = trace.model[order].astype(np.int64)
    kind, durations = kinds(scenario, models, trace.extents[order])
    limits = (durations < ENDLESS_NS).sum(axis=1) - 1
    chained = np.array([model.open is not None and len(model.open.dims) == 1 for model in scenario.models], np.bool_)
    rows = trace.rows[order].astype(np.int64)
    return Requests(arrival, deadline, models, rows, limits[kind], durations, order, kind, chained[models])


def kinds(scenario: Scenario, models: Longs, extents: npt.NDArray[np.int32]) -> tuple[Longs, Longs]:
    """(each request's kind [requests], ns of b or more rows by kind [kinds, largest batch_max + 1]).

    Kinds are in the order of their models, and of a model's extents.
    """
    found: list[Longs] = []
    kind = np.zeros(len(models), np.int64)
    known: dict[tuple[int, Extents], Longs] = {}  # copies of a model have its durations
    for index, model in enumerate(scenario.models):
        opened = model.open
        if opened is None:
            kind[models == index] = len(found)
            found.append(_durations(np.array(model.exec_s)))
            continue
        mine = np.flatnonzero(models == index)
        own = [opened.computed(tuple(row)) for row in extents[mine, : len(opened.dims)].tolist()]
        places = {sizes: len(found) + place for place, sizes in enumerate(sorted(set(own)))}
        kind[mine] = [places[sizes] for sizes in own]
        for sizes in places:
            key = (id(opened), sizes)
            if key not in known:
                fitting = [batch for batch in range(1, model.batch_max + 1) if fits(opened.times, batch, sizes)]
                known[key] = _durations(np.array([0.0, *(opened.exec_s(batch, sizes) for batch in fitting)]))
            found.append(known[key])
    widest = max(map(len, found))
    durations = np.full((len(found), widest), ENDLESS_NS, np.int64)
    for row, one in zip(durations, found, strict=True):
        row[: len(one)] = one
    return kind, durations


def _durations(exec_s: Floats) -> Longs:
    """ns of b or more rows [batch_max + 1], from seconds of b rows."""
    exact = np.floor(exec_s * NS).astype(np.int64)
    return np.asarray(np.minimum.accumulate(exact[::-1])[::-1])


def costs(requests: Requests) -> Floats:
    """Least seconds of device time that an answer in time costs [requests]; inf if there can be none."""
    least = np.full(len(requests), np.inf)
    for batch in range(1, requests.durations.shape[1]):
        duration = requests.durations[requests.kind, batch]
        possible = in_one_batch(requests, batch, duration)
        share = duration / NS / batch * requests.rows
        least = np.where(possible, np.minimum(least, share), least)
    return least


def in_one_batch(requests: Requests, batch: int, duration: Longs, among: Bools | None = None) -> Bools:
    """Whether each request can be in a batch of exactly `batch` rows, which takes `duration` [requests] ns or longer.

    A request with more rows than its model's largest batch is split; any part may be in any batch. `among` [requests]:
    those that may be in it at all; None: all.
    """
    whole = requests.rows <= requests.batch_max
    possible = (requests.arrival + duration <= requests.deadline) & (batch <= requests.batch_max)
    if among is not None:
        possible &= among
    waiting = most_waiting(requests, duration, possible)
    return possible & (waiting >= batch) & ~(whole & (requests.rows > batch))


def most_waiting(requests: Requests, duration: Longs, counted: Bools) -> Longs:
    """The most rows of a request's model that could be in a batch of `duration` with it, over all starts [requests].

    `counted` [requests]: rows that could be in such a batch at all; 0 for the others.
    """
    latest = requests.deadline - duration
    present = presence(requests, latest, counted)
    first = np.flatnonzero(counted)
    after = requests.find(latest[counted], requests.model[counted], "right")
    most = np.zeros(len(requests), np.int64)
    most[counted] = range_extreme(present, first, after, np.maximum)
    return most


def presence(requests: Requests, latest: Longs, counted: Bools) -> Longs:
    """Rows of a request's model that have arrived and can still start, at the moment it arrives [requests].

    `latest` [requests]: latest start of each. Between two arrivals the number only falls.
    """
    band = requests.band
    arrival = requests.arrival + requests.model * band
    gone_at = (latest + requests.model * band)[counted]
    rows = np.where(counted, requests.rows, 0)
    come = np.concatenate([[0], np.cumsum(rows)])
    order = np.argsort(gone_at, kind="stable")
    gone = np.concatenate([[0], np.cumsum(rows[counted][order])])
    return np.asarray(
        come[np.searchsorted(arrival, arrival, side="right")]
        - gone[np.searchsorted(gone_at[order], arrival, side="left")]
    )


def range_extreme(values: npt.NDArray[Any], first: Longs, after: Longs, extreme: np.ufunc) -> npt.NDArray[Any]:
    """np.minimum or np.maximum (`extreme`) of values[first[i]:after[i]] for each i; no range is empty.

    Source: sparse tables (Bender and Farach-Colton, "The LCA problem revisited", 2000).
    """
    spans = after - first
    result = np.empty((len(first), *values.shape[1:]), values.dtype)
    level, table = 0, values
    while len(first):
        chosen = np.flatnonzero((spans >> level) == 1)
        result[chosen] = extreme(table[first[chosen]], table[after[chosen] - (1 << level)])
        if not (spans >> (level + 1)).any():
            break
        half = 1 << level
        table = extreme(table[:-half], table[half:])
        level += 1
    return result
