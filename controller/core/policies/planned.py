"""What batches of unequal extents cost on one device, who waits for them, and batches of these. Pure.

All times are *table seconds*: durations as the device's tables have them, and what is left until a deadline in the same
measure. By how much the device is slower than its tables, and what may be added by chance, has been divided out.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, field

CLASS_STEP = 1.05  # a class ends where a row costs this many times what it does in the first of its places ...
CLASS_STEP_TWO = 1.3  # ... and so much with two dimensions, where few requests are of one place


@dataclass(slots=True)
class Costs:
    """What batches of one version cost on one device, by the place of their greatest extents and by rows."""

    tables: list[list[float]]  # [place][rows], from 0 rows on; falls neither in rows nor in extents; inf: does not fit
    limits: list[int]  # by place: most rows of a batch of several requests
    cap_s: float = math.inf  # a batch of several requests takes no longer, unless all cost about the same
    width: int = 0  # places along the second dimension, which varies fastest; 0: there is one dimension
    shares: list[float] = field(default_factory=list)  # by place: least time per row, of batches within the cap
    full: list[int] = field(default_factory=list)  # by place: rows of the batch that has this least time per row
    most: list[int] = field(default_factory=list)  # by place: most rows within the cap
    classes: list[int] = field(default_factory=list)  # by place: its class, the cheapest first

    def __post_init__(self) -> None:
        for table, limit in zip(self.tables, self.limits, strict=True):
            most = max(1, bisect_right(table, self.cap_s, 1, min(limit, len(table) - 1) + 1) - 1)
            full, share = 1, table[1]
            for rows in range(2, most + 1):
                if table[rows] < share * rows:
                    full, share = rows, table[rows] / rows
            self.shares.append(share)
            self.full.append(full)
            self.most.append(most)
        self.classes = [0] * len(self.tables)
        at, first, step = -1, -math.inf, CLASS_STEP_TWO if self.width else CLASS_STEP
        for place in sorted(range(len(self.tables)), key=self.shares.__getitem__):
            if self.shares[place] > step * first:
                at, first = at + 1, self.shares[place]
            self.classes[place] = at

    def both(self, place: int, other: int) -> int:
        """The place that holds the extents of both."""
        if not self.width:
            return place if place > other else other
        height = max(place // self.width, other // self.width)
        return height * self.width + max(place % self.width, other % self.width)


@dataclass(slots=True)
class Waiting:
    """Requests that wait, in order of their deadlines. The lists belong together: one entry for each request."""

    places: list[int]
    rows: list[int]  # each fits alone into a batch, or is never in time
    left_s: list[float]  # from when the batch would start until the deadline; ascending
    values: list[float]  # what each is worth in this decision
    kinds: list[int] = field(default_factory=list)  # only requests of one kind share a batch; empty: all are


@dataclass(slots=True)
class PlannedBatch:
    """Requests that would be one batch."""

    members: list[int]  # indexes of the waiting
    place: int  # that holds the extents of all
    rows: int
    length_s: float
    left_s: float  # until the first of their deadlines
    value: float


@dataclass(slots=True)
class Composed:
    """The plan: the batch that runs next, and what comes after it."""

    first: PlannedBatch
    later: list[
        PlannedBatch
    ]  # kept, in the order in which they run; what has joined the first batch may still be in them
    passed: list[int]  # those whose deadlines were passed over for a larger batch


def batch_of(members: list[int], waiting: Waiting, costs: Costs) -> PlannedBatch:
    """These requests as one batch."""
    place = waiting.places[members[0]]
    rows, left, value = 0, math.inf, 0.0
    for i in members:
        place = costs.both(place, waiting.places[i])
        rows += waiting.rows[i]
        left = min(left, waiting.left_s[i])
        value += waiting.values[i]
    return PlannedBatch(members, place, rows, costs.tables[place][rows], left, value)
