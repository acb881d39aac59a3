"""How large the batches of a black box may become, and how long a batch takes. Pure.

Nothing is ever run with inputs that nobody sent: all that is known comes from clients' own batches. The first batches
are small. Each replica has a limit of rows, which follows one of these methods:

    aimd       it grows by STEP rows after a full batch within the objective, and shrinks to BACK_OFF of its size after
               a batch that missed the objective for its size; the steps are smaller for a while after a miss
    quantile   the size whose 99th percentile of durations, a line fitted to recent batches, meets the objective
    fixed      the size that the operator gave
    none       1

Source of aimd (additive step, back-off by 10 %) and of quantile regression: Clipper (NSDI'17), section 4.3.1. Which
batches raise the limit, which misses count and how large the step is are ours: docs/design/policy.md, "Black boxes".
scripts/bench_batching.py shows how the limit converges.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import numpy as np

from controller.core.estimation.estimates import Curve, Term
from controller.core.estimation.lines import MIXED, DurationLine
from mesh import wire
from mesh.sizes import Extents

STEP = 4.0  # rows
STEP_NEAR = 1 / 40  # a step shortly after a miss is at most this part of the limit, ...
STEP_MIN = 0.1  # ... but at least so many rows
QUIET = 16  # full batches without a miss after which steps are whole again
BACK_OFF = 0.9  # what a miss leaves of the limit
RECENT = 15  # batches that a miss is compared with ...
ALIKE_MIN = 5  # ... if at least so many of them were about as large
QUANTILE = 0.99
FITTED = 256  # latest batches that the quantile is fitted to
REFIT_EVERY = 8  # batches
REACH = 1.5  # the fitted size may exceed the largest that was seen by this factor
FIRST_S = 1e-4  # expected of one row before any was seen: the first request is let in and shows how long it takes
CAUTION = 16  # before anything was seen, each further row is expected to need this part of the objective
OUTLIER = 4.0  # a batch that took longer than this many times its expected duration counts as that long
REBUILD_AT = 0.01  # share by which the line may move before the table of sizes is made anew


class Limit(Protocol):
    """The largest batch that one replica is given."""

    rows: int

    def ran(self, rows: float, duration_s: float) -> None:
        """A batch of so many rows took so long."""


@dataclass(slots=True)
class Aimd:
    """Additive increase, multiplicative decrease."""

    objective_s: float
    rows_max: int
    rows: int = 1
    exact: float = 1.0  # the limit before it is rounded down to `rows`
    _good: int = QUIET  # full batches within the objective since the last miss
    _recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RECENT))  # (rows, duration)

    def ran(self, rows: float, duration_s: float) -> None:
        """The limit follows. A batch that was not full says nothing about larger ones, and leaves it as it is."""
        self._recent.append((rows, duration_s))
        if duration_s > self.objective_s:
            if self._stalled(rows):
                return
            self._good = 0
            if rows * BACK_OFF < self.exact:  # otherwise it was sent before the limit was last lowered
                self.exact = max(1.0, self.exact * BACK_OFF)
        elif rows >= self.rows:
            self._good += 1
            step = STEP if self._good > QUIET else min(STEP, max(STEP_MIN, self.exact * STEP_NEAR))
            self.exact = min(float(self.rows_max), self.exact + step)
        self.rows = int(self.exact)

    def _stalled(self, rows: float) -> bool:
        """Whether such batches usually take less than half of the objective: this one missed it, but not for its size.

        Where something else takes the processor now and then, the limit would otherwise fall to 1 and stay there.
        """
        alike = [duration_s for size, duration_s in self._recent if 2 * size >= rows]
        return len(alike) >= ALIKE_MIN and median(alike) < self.objective_s / 2


@dataclass(slots=True)
class QuantileLine:
    """The largest size whose QUANTILE of durations, linear in the size, meets the objective."""

    objective_s: float
    rows_max: int
    rows: int = 1
    _batches: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=FITTED))
    _new: int = 0  # batches since the last fit

    def ran(self, rows: float, duration_s: float) -> None:
        """The limit follows, by a new fit now and then and after a miss."""
        self._batches.append((rows, duration_s))
        self._new += 1
        missed = duration_s > self.objective_s
        if self._new >= REFIT_EVERY or (missed and self._new > 1) or len(self._batches) <= REFIT_EVERY:
            self._new = 0
            self._fit()

    def _fit(self) -> None:
        sizes, durations = (np.array(column, float) for column in zip(*self._batches, strict=True))
        base_s, row_s = fit_quantile(sizes, durations, QUANTILE)
        reach = max(2.0, REACH * float(sizes.max()))
        if row_s > 0:
            size = (self.objective_s - base_s) / row_s
        else:
            size = reach if base_s <= self.objective_s else self.rows * BACK_OFF
        self.rows = int(max(1.0, min(size, reach, self.rows_max)))


@dataclass(slots=True)
class Fixed:
    """A size that does not move."""

    rows: int

    def ran(self, rows: float, duration_s: float) -> None:
        """The limit stays."""


def make_limit(batching: wire.Batching, rows_max: int) -> Limit:
    """The limit that the operator asked for."""
    if batching.method == "aimd":
        return Aimd(batching.objective_s, rows_max)
    if batching.method == "quantile":
        return QuantileLine(batching.objective_s, rows_max)
    return Fixed(min(rows_max, batching.size) if batching.method == "fixed" else 1)


def fit_quantile(sizes: "np.ndarray", durations: "np.ndarray", quantile: float) -> tuple[float, float]:
    """(seconds of a batch, seconds of each row) of the line below which `quantile` of the durations lie.

    Neither is negative. `sizes` and `durations` have shape [batches].

    Iteratively reweighted least squares on the pinball loss. Source: Koenker and Bassett (1978) for the loss;
    Schlossmacher, "An iterative technique for absolute deviations curve fitting" (1973), for the iteration.
    """
    scale = float(durations.mean()) or 1e-9
    y = durations / scale
    weights = np.ones_like(y)
    base = row = 0.0
    for _ in range(30):
        total = float(weights.sum())
        mean_x, mean_y = float(weights @ sizes) / total, float(weights @ y) / total
        spread = float(weights @ (sizes - mean_x) ** 2) / total
        slope = 0.0 if spread < 1e-12 else float(weights @ ((sizes - mean_x) * (y - mean_y))) / total / spread
        if spread < (MIXED * mean_x) ** 2 / 4:
            slope = mean_y / mean_x  # one size only: in proportion, which is never too short for larger ones
        row = min(max(0.0, slope), mean_y / mean_x)
        base = mean_y - row * mean_x
        error = y - base - row * sizes
        weights = np.where(error > 0, quantile, 1 - quantile) / np.maximum(np.abs(error), 1e-3)
    return base * scale, row * scale


@dataclass(slots=True)
class BlackBoxCurve(Curve):
    """EXEC on one replica of a container, by rows, learned from clients' batches. `batch_max` is that of the limit."""

    limit: Limit = field(default_factory=lambda: Fixed(1))
    objective_s: float = 0.05
    wait_s: float = 0.0  # how long a batch that is not full may wait
    batch_s: float = FIRST_S  # of a batch, whatever it holds
    _line: DurationLine = field(default_factory=DurationLine)
    _seen: int = 0  # batches
    _largest: int = 0  # rows of the largest batch seen

    def __post_init__(self) -> None:
        self._prior()

    @property
    def scale(self) -> float:
        """Factor on `base_s`: always 1, because the line has all corrections in it."""
        return 1.0

    @property
    def cold(self) -> bool:
        """Whether no batch has ended in this process yet."""
        return self._seen == 0

    def padded(self, rows: int, extents: Extents = ()) -> int:
        """The rows themselves: a container is never given rows that nobody sent."""
        return rows

    def learn(self, batch: int, duration_s: float, extents: Extents = ()) -> float:
        """A batch took so long. Returns the error, log(actual / estimated), that it showed.

        The first batch of a process teaches nothing: it may have loaded, compiled or cached what no later one has to.
        """
        self._seen += 1
        if self._seen == 1:
            return 0.0
        expected_s = self.exec_s(batch, extents)
        error = math.log(max(duration_s, 1e-9) / expected_s) if self._line.weight else 0.0
        known = self._line.weight >= 4
        work = self._work(batch, extents)
        self._line.add(work, min(duration_s, OUTLIER * expected_s) if known else duration_s)
        self._largest = max(self._largest, math.ceil(work))
        self.limit.ran(self.limit.rows if self._is_full(batch, extents) else work, duration_s)
        self.batch_max = self.limit.rows
        self._build()
        return error

    def _work(self, batch: int, extents: Extents) -> float:
        """What the line and the limit count: the rows."""
        return batch

    def _is_full(self, batch: int, extents: Extents) -> bool:
        """Whether a batch was as large as the limit allows, though it has not that many rows."""
        return False

    def forget(self) -> None:
        """The estimates are out of date: the next request is let in and shows how long it takes now."""
        self._line = DurationLine()
        self._largest = 0
        self._prior()

    def inherit(self, other: "BlackBoxCurve") -> None:
        """It starts from what another process of the same code has shown, but is cold itself."""
        line = other._line
        self._line = DurationLine(min(line.weight, 8.0), line.rows, line.duration_s, line.rows_squared, line.product)
        self._largest = other._largest
        self.base_s, self.batch_s = list(other.base_s), other.batch_s
        if isinstance(self.limit, Aimd) and isinstance(other.limit, Aimd):
            self.limit.rows, self.limit.exact = other.limit.rows, other.limit.exact
        self.batch_max = self.limit.rows

    def _prior(self) -> None:
        row_s = self.objective_s / CAUTION
        self.batch_s = FIRST_S
        self.base_s = [0.0, *(FIRST_S + row_s * i for i in range(self.rows_max))]

    def _build(self) -> None:
        """Makes `base_s` anew if the line has moved."""
        base_s, row_s = self._line.fit()
        if all(abs(base_s + row_s * n - self.base_s[n]) <= REBUILD_AT * self.base_s[n] for n in (1, self._largest)):
            return
        sizes = np.arange(self.rows_max + 1, dtype=float)
        table = base_s + row_s * sizes
        edge = min(self._largest, self.rows_max)
        table[edge + 1 :] = np.maximum(table[edge + 1 :], table[edge] * sizes[edge + 1 :] / edge)
        table = np.maximum(table, 1e-6)
        table[0] = 0.0
        self.base_s, self.batch_s = table.tolist(), base_s


def make_black_box(batching: wire.Batching, rows_max: int) -> BlackBoxCurve:
    """The curve of a container of which nothing is known yet."""
    limit = make_limit(batching, rows_max)
    return BlackBoxCurve(
        [],
        [],
        limit.rows,
        True,
        Term(),
        limit=limit,
        objective_s=batching.objective_s,
        wait_s=batching.wait_s,
        rows_max=rows_max,
    )
