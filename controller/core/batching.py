"""How large may the batches of a black-box container become, and how long will one take? Pure.

Nothing is ever run with inputs that nobody sent: all that is known comes from clients' own batches. The first batches
are small, and the limit of each replica is moved by one of

    aimd       +STEP rows after a full batch within the objective, x BACK_OFF after one that missed it for its size;
               smaller steps after a miss, when the edge is near
    quantile   the size whose 99th percentile, fitted as a line over recent batches, meets the objective
    fixed      the size that the operator gave
    none       1

Source of aimd (additive step, back-off by 10 %) and quantile regression: Clipper (NSDI'17) section 4.3.1; that only
full batches raise the limit, which misses count, and the step of 4 rows, are ours (scripts/bench_batching.py shows its
convergence).
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import numpy as np

from controller.core.estimation.estimates import Curve, Term
from mesh import wire

STEP = 4.0  # rows
STEP_NEAR = 1 / 40  # ... or this part of the limit, if that is less, after a miss
STEP_MIN = 0.1
QUIET = 16  # full batches without a miss: the edge is not near any more
BACK_OFF = 0.9
RECENT = 15  # batches that a miss is compared with, ...
ALIKE_MIN = 5  # ... if so many of them were about as large
QUANTILE = 0.99
WINDOW = 256  # batches that the quantile is fitted to
REFIT_EVERY = 8
REACH = 1.5  # the fitted size may exceed the largest that was seen by this factor
FORGET = 0.97  # weight of a batch in the line, when the next has come
FIRST_S = 1e-4  # of a row never seen: whoever is first is let in, and shows how long it takes
CAUTION = 16  # ... and each further row is taken to need this part of the objective
OUTLIER = 4.0  # a batch this many times as long as expected counts as so much longer, and no more
REBUILD_AT = 0.01  # the line may move by this part before the table of sizes is made again
MIXED = 0.1  # relative spread of sizes below which their slope says little


class Limit(Protocol):
    """The largest batch that one replica is given."""

    rows: int

    def ran(self, rows: int, duration_s: float) -> None:
        """A batch of so many rows took so long."""


@dataclass(slots=True)
class Aimd:
    """Additive increase, multiplicative decrease."""

    objective_s: float
    rows_max: int
    rows: int = 1
    _exact: float = 1.0  # rows, before rounding down
    _good: int = QUIET  # full batches within the objective since the last miss
    _recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))  # (rows, duration)

    def ran(self, rows: int, duration_s: float) -> None:
        """See Limit. A batch that was not full says nothing about larger ones, and leaves the limit as it is."""
        self._recent.append((rows, duration_s))
        if duration_s > self.objective_s:
            if self._stalled(rows):
                return
            self._good = 0
            if rows * BACK_OFF < self._exact:  # else it was sent before the last one lowered the limit
                self._exact = max(1.0, self._exact * BACK_OFF)
        elif rows >= self.rows:
            self._good += 1
            step = STEP if self._good > QUIET else min(STEP, max(STEP_MIN, self._exact * STEP_NEAR))
            self._exact = min(float(self.rows_max), self._exact + step)
        self.rows = int(self._exact)

    def _stalled(self, rows: int) -> bool:
        """Whether such batches usually take less than half of the objective: this one missed it, but not for its size.

        The limit would fall to 1 otherwise, where something takes the processor away now and again, and stay there.
        """
        alike = [duration_s for size, duration_s in self._recent if 2 * size >= rows]
        return len(alike) >= ALIKE_MIN and median(alike) < self.objective_s / 2


@dataclass(slots=True)
class QuantileLine:
    """The largest size whose QUANTILE of durations, linear in the size, meets the objective."""

    objective_s: float
    rows_max: int
    rows: int = 1
    _batches: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _new: int = 0  # batches since the last fit

    def ran(self, rows: int, duration_s: float) -> None:
        """See Limit."""
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

    def ran(self, rows: int, duration_s: float) -> None:
        """See Limit."""


def make_limit(batching: wire.Batching, rows_max: int) -> Limit:
    """The limit that the operator asked for."""
    if batching.method == "aimd":
        return Aimd(batching.objective_s, rows_max)
    if batching.method == "quantile":
        return QuantileLine(batching.objective_s, rows_max)
    return Fixed(min(rows_max, batching.size) if batching.method == "fixed" else 1)


def fit_quantile(sizes: "np.ndarray", durations: "np.ndarray", quantile: float) -> tuple[float, float]:
    """(base, per row) of the line that `quantile` of the durations lie below; neither is negative.

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
            slope = mean_y / mean_x  # one size only: in proportion, which is never too hopeful for smaller ones
        row = min(max(0.0, slope), mean_y / mean_x)
        base = mean_y - row * mean_x
        error = y - base - row * sizes
        weights = np.where(error > 0, quantile, 1 - quantile) / np.maximum(np.abs(error), 1e-3)
    return base * scale, row * scale


@dataclass(slots=True)
class Line:
    """Durations as a line over rows, by least squares over recent batches, older ones fading."""

    weight: float = 0.0
    rows: float = 0.0  # weighted means from here on
    duration_s: float = 0.0
    rows_squared: float = 0.0
    product: float = 0.0

    def add(self, rows: int, duration_s: float) -> None:
        """A batch of so many rows took so long."""
        self.weight = self.weight * FORGET + 1.0
        share = 1.0 / self.weight
        self.rows += share * (rows - self.rows)
        self.duration_s += share * (duration_s - self.duration_s)
        self.rows_squared += share * (rows * rows - self.rows_squared)
        self.product += share * (rows * duration_s - self.product)

    def fit(self) -> tuple[float, float]:
        """(base, per row). Where all batches were about equal, half of their time is taken to be in proportion."""
        variance = max(0.0, self.rows_squared - self.rows**2)
        covariance = self.product - self.rows * self.duration_s
        prior = 0.5 * self.duration_s / self.rows
        pull = (MIXED * self.rows) ** 2
        row_s = (covariance + pull * prior) / (variance + pull)
        row_s = min(max(0.0, row_s), self.duration_s / self.rows)
        return self.duration_s - row_s * self.rows, row_s


@dataclass(slots=True)
class BlackBoxCurve(Curve):
    """EXEC of a container on one replica, by rows: learned from clients' batches. `batch_max` is the limit's."""

    limit: Limit = field(default_factory=lambda: Fixed(1))
    objective_s: float = 0.05
    wait_s: float = 0.0  # a batch that is not full may wait so long
    _line: Line = field(default_factory=Line)
    _seen: int = 0  # batches
    _largest: int = 0  # rows of the largest batch seen

    def __post_init__(self) -> None:
        self._prior()

    @property
    def scale(self) -> float:
        """Factor on base_s: the device's and the model's corrections are in the line already."""
        return 1.0

    @property
    def cold(self) -> bool:
        """Nothing has ended in this process yet."""
        return self._seen == 0

    def padded(self, rows: int) -> int:
        """A container is never given rows that nobody sent."""
        return rows

    def learn(self, batch: int, duration_s: float) -> float:
        """A batch took so long. Returns the error, log(actual / estimated), that it showed.

        The very first one is not learned from: it may have loaded, compiled or cached what no later one has to.
        """
        self._seen += 1
        if self._seen == 1:
            return 0.0
        expected_s = self.exec_s(batch)
        error = math.log(max(duration_s, 1e-9) / expected_s) if self._line.weight else 0.0
        known = self._line.weight >= 4
        self._line.add(batch, min(duration_s, OUTLIER * expected_s) if known else duration_s)
        self._largest = max(self._largest, batch)
        self.limit.ran(batch, duration_s)
        self.batch_max = self.limit.rows
        self._build()
        return error

    def forget(self) -> None:
        """The estimates are out of date: the next request is let in, and shows how long it takes now."""
        self._line = Line()
        self._largest = 0
        self._prior()

    def inherit(self, other: "BlackBoxCurve") -> None:
        """Another process of the same code has shown how long it takes: start from that, but for its cold start."""
        line = other._line
        self._line = Line(min(line.weight, 8.0), line.rows, line.duration_s, line.rows_squared, line.product)
        self._largest = other._largest
        self.base_s = list(other.base_s)
        if isinstance(self.limit, Aimd) and isinstance(other.limit, Aimd):
            self.limit.rows, self.limit._exact = other.limit.rows, other.limit._exact
        self.batch_max = self.limit.rows

    def _prior(self) -> None:
        row_s = self.objective_s / CAUTION
        self.base_s = [0.0, *(FIRST_S + row_s * i for i in range(self.rows_max))]

    def _build(self) -> None:
        """Makes base_s anew, if the line has moved."""
        base_s, row_s = self._line.fit()
        if all(abs(base_s + row_s * n - self.base_s[n]) <= REBUILD_AT * self.base_s[n] for n in (1, self._largest)):
            return
        sizes = np.arange(self.rows_max + 1, dtype=float)
        table = base_s + row_s * sizes
        edge = min(self._largest, self.rows_max)
        table[edge + 1 :] = np.maximum(table[edge + 1 :], table[edge] * sizes[edge + 1 :] / edge)
        table = np.maximum(table, 1e-6)
        table[0] = 0.0
        self.base_s = table.tolist()


def make_black_box(batching: wire.Batching, rows_max: int) -> BlackBoxCurve:
    """The curve of a container that was never heard of."""
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
