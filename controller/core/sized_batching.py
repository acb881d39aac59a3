"""A black box whose inputs have open dimensions: how long a batch takes, and how large it may become. Pure.

What it does with long inputs is not known, but that they take longer than short ones. So durations are a line over
the *work* of a batch: rows times the weight of its extents. The weight is the number of elements as a part of those of
the greatest extents, but at least WEIGHT_MIN: a short row costs something, too. The limit that follows clients' own
batches is one of work, and so bounds the elements of a batch, the padding included.

Policies find durations in tables by place, as with `SizedCurve`; here a class of one dimension holds extents that
differ by STEPS at most. A request of more rows than a joint batch may have is executed alone.
"""

import math
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from controller.core.batching import BlackBoxCurve, Limit, make_limit
from controller.core.estimation.estimates import Term
from controller.core.estimation.sized import place_in
from mesh import wire
from mesh.sizes import Extents

WEIGHT_MIN = 1 / 16  # of a row, in rows of the greatest extents
STEPS = (1.05, 1.2)  # ratio of the bounds of neighbouring classes, of versions with one and with two open dimensions


@dataclass(slots=True)
class SizedBlackBoxCurve(BlackBoxCurve):
    """EXEC on one replica of a container with open dimensions.

    What is said by rows alone holds for the greatest extents.
    """

    dims: tuple[wire.Dim, ...] = ()
    weights: list[float] = field(default_factory=list)  # greatest weight by place
    joint_rows_max: int = 1  # rows of a joint batch, whatever its work
    _tabled: tuple[list[float], int] | None = None  # the `base_s` and the limit that the tables were made of

    def __post_init__(self) -> None:
        self.bounds = tuple(_bounds(dim, STEPS[len(self.dims) - 1]) for dim in self.dims)
        self.weights = [self.weight(extents) for extents in product(*self.bounds)]
        BlackBoxCurve.__post_init__(self)
        self._tabulate()

    # -- estimates ----------------------------------------------------------------------------------------------------

    def weight(self, extents: Extents) -> float:
        """The work of one row of these extents; without any: of the greatest."""
        if not extents:
            return 1.0
        return min(1.0, max(WEIGHT_MIN, math.prod(extents) / math.prod(dim.most for dim in self.dims)))

    def place(self, extents: Extents) -> int:
        """The class of these extents; with one dimension it never falls as the extent grows."""
        return place_in(self.bounds, extents)

    def exec_s(self, rows: int, extents: Extents = ()) -> float:
        """Expected duration of a batch of so many rows."""
        return self._work_s(rows * self.weight(extents))

    def least_s(self) -> float:
        """Expected duration of one row of the least extents."""
        return self.tables[0][1]

    def alone_s(self, rows: int, extents: Extents = ()) -> float:
        """Expected duration of one request's rows; of as many as can be executed, if they are more."""
        return self.exec_s(min(rows, self.rows_max), extents)

    def share(self, extents: Extents) -> float:
        """Expected seconds of one row with these extents in the largest batch of such rows."""
        return self.shares[self.place(extents)]

    def total_s(self, rows: int) -> float:
        """Expected duration of so many rows of the greatest extents, in the largest batches."""
        return rows * self.shares[-1]

    def joint_max(self, extents: Extents) -> int:
        """Rows that a batch of several requests may have."""
        return self._rows_within(self.weight(extents))

    def learn(self, batch: int, duration_s: float, extents: Extents = ()) -> float:
        """A batch took so long. Returns the error, log(actual / estimated), that it showed."""
        error = BlackBoxCurve.learn(self, batch, duration_s, extents)
        self._tabulate()
        return error

    def _work(self, batch: int, extents: Extents) -> float:
        """What the line and the limit count: rows of the greatest extents, or as many smaller ones as cost the same."""
        return batch * self.weight(extents)

    def _is_full(self, batch: int, extents: Extents) -> bool:
        """Whether one row more would have been too many for the limit."""
        return batch < self.joint_rows_max and self._work(batch + 1, extents) > self.batch_max

    def forget(self) -> None:
        """The estimates are out of date: the next request is let in and shows how long it takes now."""
        BlackBoxCurve.forget(self)
        self._tabulate()

    def inherit(self, other: BlackBoxCurve) -> None:
        """It starts from what another process of the same code has shown, but is cold itself."""
        BlackBoxCurve.inherit(self, other)
        self._tabulate()

    # -- tables -------------------------------------------------------------------------------------------------------

    def _work_s(self, work: float) -> float:
        """Duration of so much work: between the rows of the greatest extents."""
        base_s, at = self.base_s, int(work)
        if at + 1 >= len(base_s):
            return base_s[-1]
        low_s = base_s[at] if at else min(self.batch_s, base_s[1])
        return low_s + (base_s[at + 1] - low_s) * (work - at)

    def _rows_within(self, weight: float) -> int:
        """Rows of this weight in the largest joint batch."""
        return max(1, min(self.joint_rows_max, int(self.batch_max / weight + 1e-9)))

    def _tabulate(self) -> None:
        """The tables by place follow the line and the limit, if they have moved."""
        if self._tabled is not None and self._tabled[0] is self.base_s and self._tabled[1] == self.batch_max:
            return
        self._tabled = (self.base_s, self.batch_max)
        self.limits = [self._rows_within(weight) for weight in self.weights]
        works = np.outer(self.weights, np.arange(self.rows_max + 1))
        durations = [min(self.batch_s, self.base_s[1]), *self.base_s[1:]]
        table = np.interp(works, np.arange(len(durations)), durations)
        table[:, 0] = 0.0
        self.tables = table.tolist()
        self.shares = [
            min(table[rows] / rows for rows in (1, most)) for table, most in zip(self.tables, self.limits, strict=True)
        ]


def _bounds(dim: wire.Dim, step: float) -> tuple[int, ...]:
    """The greatest extent of each class of the dimension; the first holds all that weigh next to nothing."""
    extent, bounds = float(max(dim.least, math.ceil(dim.most * WEIGHT_MIN))), []
    while extent < dim.most:
        bounds.append(int(extent))
        extent = max(extent * step, extent + 1)
    return (*bounds, dim.most)


def make_sized_black_box(batching: wire.Batching, spec: wire.ModelSpec) -> SizedBlackBoxCurve:
    """The curve of a container with open dimensions of which nothing is known yet."""
    limit: Limit = make_limit(batching, spec.batch_max)
    joint_rows_max = limit.rows if batching.method in ("fixed", "none") else spec.batch_max
    return SizedBlackBoxCurve(
        [],
        [],
        limit.rows,
        True,
        Term(),
        limit=limit,
        objective_s=batching.objective_s,
        wait_s=batching.wait_s,
        rows_max=spec.batch_max,
        dims=spec.dims,
        joint_rows_max=joint_rows_max,
    )
