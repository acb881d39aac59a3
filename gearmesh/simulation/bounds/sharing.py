"""The least device time that each request can cost, given the requests it could share a batch with. Pure.

All times are whole nanoseconds. A batch of b rows of one model occupies a device from s to s + l(b); every member has
arrived by s and is due at s + l(b) or later. So all members wait at s, and the batch has at most as many rows as have
spans that contain [s, s + l(b)]. The size of a request's batch is therefore at most the largest b for which some s in
its span finds b such rows, that request included; this limit is exact for any mix of deadlines. A member's part of
the batch is l(b) / b per row.

Arrivals are rounded down, deadlines up, durations down. l(b) is the least duration of b or more rows, since a batch may
be padded. So rounding never makes the result invalid for a scheduler.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gearmesh.simulation.arrivals.loads import Trace
from gearmesh.simulation.parts import Scenario

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
NS = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """A trace ordered by model, then arrival, then deadline; times in ns. Arrays [requests] unless stated otherwise."""

    arrival: Longs
    deadline: Longs
    model: Longs
    rows: Longs
    batch_max: Longs  # largest batch of its model
    durations: Longs  # [models, largest batch_max + 1]: least duration of b or more rows; ENDLESS_NS beyond batch_max
    origin: Longs  # index in the trace

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
        return Requests(arrival, deadline, model, rows, batch_max, self.durations, self.origin[kept])


ENDLESS_NS = np.int64(1) << 60  # ns; longer than any duration


def requests_of(scenario: Scenario, trace: Trace) -> Requests:
    """The trace's requests, with times rounded such that no request becomes harder to answer."""
    order = np.lexsort((trace.slo_s, trace.time_s, trace.model))
    arrival = np.floor(trace.time_s[order] * NS).astype(np.int64)
    # one ns more than rounding up: simulated clocks add up floats
    deadline = np.ceil((trace.time_s + trace.slo_s)[order] * NS).astype(np.int64) + 1
    widest = max(model.batch_max for model in scenario.models)
    durations = np.full((len(scenario.models), widest + 1), ENDLESS_NS, np.int64)
    for index, model in enumerate(scenario.models):
        exact = np.floor(np.array(model.exec_s) * NS).astype(np.int64)
        durations[index, : len(exact)] = np.minimum.accumulate(exact[::-1])[::-1]
    models = trace.model[order].astype(np.int64)
    limits = np.array([model.batch_max for model in scenario.models], np.int64)
    return Requests(arrival, deadline, models, trace.rows[order].astype(np.int64), limits[models], durations, order)


def costs(requests: Requests) -> Floats:
    """Least seconds of device time that an answer in time costs [requests]; inf if there can be none."""
    least = np.full(len(requests), np.inf)
    for batch in range(1, requests.durations.shape[1]):
        duration = requests.durations[requests.model, batch]
        possible = in_one_batch(requests, batch, duration)
        share = duration / NS / batch * requests.rows
        least = np.where(possible, np.minimum(least, share), least)
    return least


def in_one_batch(requests: Requests, batch: int, duration: Longs) -> Bools:
    """Whether each request can be in a batch of exactly `batch` rows, which takes `duration` [requests] ns.

    A request with more rows than its model's largest batch is split; any part may be in any batch.
    """
    whole = requests.rows <= requests.batch_max
    fits = (requests.arrival + duration <= requests.deadline) & (batch <= requests.batch_max)
    waiting = most_waiting(requests, duration, fits)
    return fits & (waiting >= batch) & ~(whole & (requests.rows > batch))


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
