"""How long an action takes on a device: the measured profile, corrected by every result. Pure.

    EXEC of b rows = anchor(b) x exp(device term + model term + anchor's term) x usual clock / clock of the last result

An anchor is a size that was profiled. The terms follow a quantile of log(actual / estimated) by small steps of fixed
size, the stochastic gradient of the pinball loss. So one outlier, however large, moves an estimate by one step; only
errors that repeat with the same sign make the steps larger.
Source of the step rule: the gradient in Koenker and Bassett, "Regression Quantiles" (1978); the growth with a streak is
ours, after Rprop (Riedmiller and Braun, 1993). Constants: docs/design/policy.md, "Estimates".
scripts/bench_estimates.py compares the estimates with the highest of the last ten durations, which Clockwork takes.
"""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import lru_cache

from mesh import wire
from mesh.sizes import Extents

QUANTILE = 0.75  # estimates are a little longer than the median: being late costs more than being early
STEP = 0.02  # of a settled term, in log units: 2 %
STEP_MAX = 0.25
SETTLING = 8  # observations until the steps of a new term are down to STEP
GRACE_UP = 2  # under-estimates in a row before the steps grow; one more happens by chance with 0.25^3
GRACE_DOWN = 14  # over-estimates in a row before the steps grow; one more happens as rarely, with 0.75^15
PAD_GAIN = 0.05  # a batch is padded up to a profiled size that takes so much less time: some sizes run faster
SILENCE_S = 0.3  # an estimate that no result has confirmed for so long may be out of date
DOUBT_S_MAX = 60.0  # each doubt that was wrong doubles the time until the next, up to this
DOUBT_SHARE_MIN = 0.5  # less than this share of an estimate is not tried
REBUILD_AT = 0.03  # log units that an anchor's term may move before the table of sizes is made anew
CLOCK_MAX = 0.15  # log units that a clock explains at most. Drift under load is 2 to 15 %. A larger difference is that
# of a resting device, whose clock climbs faster than it is sampled, and memory has a clock of its own
CLOCK_FOLLOW = 0.01  # share of the way to each result's clock that the usual clock goes; the terms learn the rest


@dataclass(slots=True)
class Term:
    """A correction in log units that follows QUANTILE of the errors it sees."""

    value: float = 0.0
    seen: int = 0  # errors
    streak: int = 0  # errors of the same sign in a row, negative for over-estimates

    def learn(self, error: float, share: float) -> None:
        """The term follows `error`, which is log(actual / estimated), by at most STEP_MAX x share."""
        up = error > 0
        self.streak = max(self.streak, 0) + 1 if up else min(self.streak, 0) - 1
        step = max(STEP, STEP_MAX / (1 + self.seen * STEP_MAX / STEP / SETTLING))
        grown = self.streak - GRACE_UP if up else -self.streak - GRACE_DOWN
        if grown > 0:
            step = min(STEP_MAX, step * 2.0 ** min(grown, 6))
        self.seen += 1
        move = step * (QUANTILE if up else -(1 - QUANTILE))
        bound = abs(error)  # never past what was seen
        self.value += max(-bound, min(bound, move)) * share


@dataclass(slots=True)
class Pace:
    """How much slower a device runs than usual, by the clock that came with its last result.

    What a change of clock does to durations is believed at once, for all models, and no term learns it.
    Source: Clockwork's estimator (OSDI'20) multiplies durations by the clock and divides by the present one.
    """

    usual_mhz: float = 0.0  # 0: no result has told it yet
    slower: float = 0.0  # log units

    def seen(self, mhz: float) -> None:
        """A result came with this clock; 0: it did not say one."""
        if mhz <= 0:
            return
        self.usual_mhz = self.usual_mhz or mhz
        self.slower = max(-CLOCK_MAX, min(CLOCK_MAX, math.log(self.usual_mhz / mhz)))
        self.usual_mhz *= (mhz / self.usual_mhz) ** CLOCK_FOLLOW


@dataclass(slots=True)
class Curve:
    """EXEC of one version on one device, by rows. `SizedCurve` is that of a version with open dimensions.

    Extents are those of the inputs, where the version has open dimensions: otherwise they are () and not looked at.
    """

    sizes: list[int]  # profiled, ascending
    anchors_s: list[float]  # their durations in the profile
    batch_max: int
    any_batch: bool  # rows are executed as they are; False: they are padded up to a profiled size
    device: Term
    pace: Pace = field(default_factory=Pace)  # the device's
    model: Term = field(default_factory=Term)
    terms: list[Term] = field(default_factory=list)  # one for each anchor
    base_s: list[float] = field(default_factory=list)  # duration by rows, 0 to batch_max, with padding; never falls
    _padded: list[int] = field(default_factory=list)  # by rows: the batch that is executed
    _nearest: tuple[int, ...] = ()  # by rows: the anchor whose term learns from them
    _built: list[float] = field(default_factory=list)  # the terms that base_s was made with
    _scale: float = 1.0
    _scale_of: float = 0.0  # the sum of terms of which _scale was made
    bounds: tuple[tuple[int, ...], ...] = ()  # with open dimensions: greatest extent of each class, by dimension; a
    # place is a combination of classes, the last dimension's fastest
    tables: list[list[float]] = field(default_factory=list)  # with open dimensions: as base_s, by place; a new list if
    # anything in it, or in the two below, has changed
    shares: list[float] = field(default_factory=list)  # likewise: seconds of one row in the cheapest batch
    limits: list[int] = field(default_factory=list)  # likewise: rows of the largest joint batch
    rows_max: int = 0  # rows that one request may have; more than batch_max where that limits joint batches only
    learned_s: float = 0.0  # when a batch last showed how long it takes
    _doubt: float = 0.0  # log units taken off until the next batch ends
    _patience_s: float = SILENCE_S  # silence before the next doubt

    def __post_init__(self) -> None:
        self.rows_max = self.rows_max or self.batch_max
        self.terms = [Term() for _ in self.sizes]
        self._nearest = nearest_anchors(tuple(self.sizes), self.batch_max)
        self._build()

    @property
    def scale(self) -> float:
        """Factor on `base_s`."""
        total = self.device.value + self.model.value + self.pace.slower - self._doubt
        if total != self._scale_of:
            self._scale_of = total
            self._scale = math.exp(total)
        return self._scale

    def exec_s(self, rows: int, extents: Extents = ()) -> float:
        """Expected duration of a batch of so many rows."""
        return self.base_s[rows] * self.scale

    def least_s(self) -> float:
        """Expected duration of one row, of the least extents that there may be."""
        return self.exec_s(1)

    def alone_s(self, rows: int, extents: Extents = ()) -> float:
        """Expected duration of one request's rows; of as many as can be executed, if they are more."""
        return self.base_s[rows if rows < self.rows_max else self.rows_max] * self.scale

    def total_s(self, rows: int) -> float:
        """Expected duration of so many rows, in batches of the largest size and one of the rest."""
        full, rest = divmod(rows, self.batch_max)
        return (full * self.base_s[self.batch_max] + (self.base_s[rest] if rest else 0.0)) * self.scale

    def largest(self, budget_s: float, rows_max: int) -> int:
        """Most rows, up to `rows_max`, whose EXEC is expected to fit the budget; 0 if not even one row does."""
        limit = bisect_right(self.base_s, budget_s / self.scale, 1, min(rows_max, self.batch_max) + 1)
        return limit - 1

    def padded(self, rows: int, extents: Extents = ()) -> int:
        """The batch that is executed for so many rows."""
        return self._padded[rows]

    def shape(self, extents: Extents) -> Extents:
        """The extents that are executed for inputs of these."""
        return extents

    def place(self, extents: Extents) -> int:
        """The class of these extents, by which `tables`, `shares` and `limits` are ordered."""
        return 0

    def share(self, extents: Extents) -> float:
        """Expected seconds of one row in the cheapest batch of rows like it."""
        return self.exec_s(self.batch_max) / self.batch_max

    def alone_max(self, extents: Extents) -> int:
        """Rows that one request may have."""
        return self.rows_max

    def joint_max(self, extents: Extents) -> int:
        """Rows that a batch of several requests may have."""
        return self.batch_max

    def does_not_fit(self, rows: int, extents: Extents) -> None:
        """A batch of so many rows did not fit in memory. Of a version with open dimensions only half is tried again."""

    def doubt(self, rows: int, wanted_s: float, now: float, extents: Extents = ()) -> bool:
        """After a silence the estimate is lowered so that a batch of so many rows fits `wanted_s`. Whether it was.

        Otherwise an estimate that is too long would stand for ever: nobody is let in to show that it is. The doubt
        holds until a batch ends. After a doubt that was wrong, the silence before the next one has to be longer.
        """
        self.learned_s = self.learned_s or now  # the first time the profile is still news
        expected_s = self.exec_s(rows, extents)
        if now - self.learned_s < self._patience_s or not DOUBT_SHARE_MIN * expected_s <= wanted_s < expected_s:
            return False
        self.learned_s = now
        self._doubt = math.log(expected_s / wanted_s) + 1e-3
        return True

    def learn(self, batch: int, duration_s: float, extents: Extents = ()) -> float:
        """A batch took so long. Returns the error, log(actual / estimated), that it showed."""
        doubted, self._doubt = self._doubt, 0.0
        error = math.log(max(duration_s, 1e-9) / self.exec_s(batch, extents))
        if doubted:
            right = error <= -doubted
            self._patience_s = SILENCE_S if right else min(DOUBT_S_MAX, 2 * self._patience_s)
            if right:
                self.model.value += error
                return error
        self.device.learn(error, 0.2)
        self._correct(error, batch, extents)
        return error

    def _correct(self, error: float, batch: int, extents: Extents) -> None:
        """The terms of the version follow the error that a batch showed."""
        self.model.learn(error, 0.4)
        nearest = self._nearest[batch]
        term = self.terms[nearest]
        term.learn(error, 0.4)
        if abs(term.value - self._built[nearest]) > REBUILD_AT:
            self._build()

    def _build(self) -> None:
        """Makes `base_s` anew from the anchors and their terms."""
        self._built = [term.value for term in self.terms]
        points = [s * math.exp(t) for s, t in zip(self.anchors_s, self._built, strict=True)]
        table, padded = [0.0] * (self.batch_max + 1), [0] * (self.batch_max + 1)
        at = bisect_left(self.sizes, self.batch_max)
        best = min(at, len(self.sizes) - 1)  # the quickest of the profiled sizes from `rows` on
        for rows in range(self.batch_max, 0, -1):
            while at > 0 and self.sizes[at - 1] >= rows:
                at -= 1
                if points[at] <= points[best] or self.sizes[best] > self.batch_max:
                    best = at
            table[rows], padded[rows] = self._between(points, at, rows)
            if rows < self.sizes[best] <= self.batch_max and points[best] < (1 - PAD_GAIN) * table[rows]:
                table[rows], padded[rows] = points[best], self.sizes[best]
        for rows in range(1, self.batch_max + 1):
            table[rows] = max(table[rows], table[rows - 1])
        self.base_s, self._padded = table, padded

    def _between(self, points: list[float], at: int, rows: int) -> tuple[float, int]:
        """(duration, batch) of so many rows, padded no further than necessary. `at`: the first size that holds them."""
        if at == len(self.sizes):
            return points[-1] * rows / self.sizes[-1], rows  # beyond the profile: in proportion
        if not self.any_batch:
            return points[at], self.sizes[at]
        if at == 0 or rows == self.sizes[at]:
            return points[at], rows
        low, high = self.sizes[at - 1], self.sizes[at]
        return points[at - 1] + (points[at] - points[at - 1]) * (rows - low) / (high - low), rows


@lru_cache(maxsize=256)
def nearest_anchors(sizes: tuple[int, ...], batch_max: int) -> tuple[int, ...]:
    """By rows: the index of the anchor that learns from such a batch. Copies of an architecture share the result."""
    near = [min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i] / r))) for r in range(1, batch_max + 1)]
    return (0, *near)


def make_curve(profile: wire.Profile, batch_max: int, any_batch: bool, device: Term, pace: Pace | None = None) -> Curve:
    """The curve of a version that was just profiled. All curves of a device share `device` and `pace`."""
    sizes = sorted(profile.exec_s)
    if not any_batch:
        batch_max = min(batch_max, sizes[-1])
    anchors_s = [max(profile.exec_s[size], 1e-7) for size in sizes]
    return Curve(sizes, anchors_s, batch_max, any_batch, device, pace if pace is not None else Pace())


@dataclass(slots=True)
class LoadEstimate:
    """LOAD of one version on one device."""

    profile_s: float
    device: Term
    own: Term = field(default_factory=Term)
    _load_s: float = 0.0
    _load_s_of: float = math.nan  # the sum of terms of which _load_s was made

    def load_s(self) -> float:
        """Expected duration."""
        total = self.device.value + self.own.value
        if total != self._load_s_of:
            self._load_s_of = total
            self._load_s = self.profile_s * math.exp(total)
        return self._load_s

    def learn(self, duration_s: float) -> float:
        """A LOAD took so long. Returns the error that it showed."""
        error = math.log(max(duration_s, 1e-9) / self.load_s())
        self.device.learn(error, 0.5)
        self.own.learn(error, 0.5)
        return error


@dataclass(slots=True)
class Margin:
    """A quantile of some delay that is learned: of the way to a worker, or of what EXEC takes over its estimate."""

    value_s: float
    quantile: float = 0.9
    step_s: float = 20e-6
    limit_s: float = 0.02

    def learn(self, delay_s: float) -> None:
        """The delay was so long, this time."""
        step = max(self.step_s, 0.05 * self.value_s)
        if delay_s > self.value_s:
            self.value_s = min(self.limit_s, self.value_s + step * self.quantile)
        else:
            self.value_s = max(0.0, self.value_s - step * (1 - self.quantile))
