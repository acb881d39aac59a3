"""How long EXEC takes with inputs of unequal extents: the profile's cells, corrected by every result. Pure.

    EXEC of b rows with extents s = point(b, s) x exp(device + model + cell's + batch's term) x usual clock / last clock

A *cell* is a profiled combination of extents: an edge of each open dimension. Between edges, and between profiled
batches, durations are interpolated linearly where a device computes any shape, and rounded up where it does not. They
never fall in rows or in any extent: the running maximum sees to that. A batch beyond the largest that was profiled at
its extents, or at smaller ones, takes for ever: it would not fit in memory.

Policies look durations up in `tables` by *place*, a class of extents that cost about the same: a new class begins
where a row's share of the cheapest batch is CLASS_STEP times that of the class's first extent, and behind each edge. A
table is that of the greatest extents in its class, so it is too long by at most about that step, and never too short.
Source: the length study's section 1 for the classes and for what must not fall.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from controller.core.estimation.estimates import REBUILD_AT, Curve, Pace, Term, nearest_anchors
from mesh import wire
from mesh.sizes import Extents

CLASS_STEP = 1.05  # ratio of shares
CLASSES_MAX = (64, 16)  # in each dimension, of versions with one and with two; the steps are larger where that is few
SAMPLED = 2048  # extents of one dimension that are looked at for classes, at most
POINT_S_MIN = 1e-7
NEVER_S = 1e30  # in place of infinity where durations are interpolated, and ...
FITS_S = 1e12  # ... below which they are durations

Table = list[float]  # seconds by rows, from 0 rows on


@dataclass(slots=True)
class SizedCurve(Curve):
    """EXEC of one version with open dimensions on one device, by rows and extents.

    What `Curve` says by rows alone holds for the greatest extents.
    """

    dims: tuple[wire.Dim, ...] = ()
    edges: tuple[tuple[int, ...], ...] = ()  # profiled extents of each dimension, ascending
    times: list[dict[int, float]] = field(default_factory=list)  # {batch: seconds} of each cell, last dimension fastest
    equal: bool = False  # nothing is padded: shapes are executed as they are
    objective_s: float = math.inf  # a row's share is that of a batch within it
    cell_terms: list[Term] = field(default_factory=list)
    _fits: list[int] = field(default_factory=list)  # by cell: most rows of a batch, as far as is known
    _cells: list[Table] = field(default_factory=list)  # as tables, by cell
    _batches: list[list[int]] = field(default_factory=list)  # profiled, by cell, ascending
    _cells_built: list[float] = field(default_factory=list)  # the terms of cells that the tables were made with

    def __post_init__(self) -> None:
        self.rows_max = self.batch_max
        self.terms = [Term() for _ in self.sizes]
        self.cell_terms = [Term() for _ in self.times]
        self._nearest = nearest_anchors(tuple(self.sizes), self.batch_max)
        self._batches = [sorted(cell) for cell in self.times]
        self._fits = [min(max(cell, default=0), self.batch_max) for cell in self.times]
        self._point()
        self.bounds = self._classes() if self.any_batch else self.edges
        self._tabulate()

    # -- estimates ----------------------------------------------------------------------------------------------------

    def place(self, extents: Extents) -> int:
        """The class of these extents; with one dimension it never falls as the extent grows."""
        return place_in(self.bounds, extents)

    def exec_s(self, rows: int, extents: Extents = ()) -> float:
        """Expected duration of a batch of so many rows; infinite if it does not fit. Without extents: the greatest."""
        if rows > self.batch_max:
            return math.inf
        return (self._at(rows, extents) if extents else self.base_s[rows]) * self.scale

    def least_s(self) -> float:
        """Expected duration of one row of the least extents."""
        return self.tables[0][1] * self.scale

    def alone_s(self, rows: int, extents: Extents = ()) -> float:
        """Expected duration of one request's rows; infinite if they do not fit."""
        return self.exec_s(rows, extents)

    def share(self, extents: Extents) -> float:
        """Expected seconds of one row with these extents, in the cheapest batch of such rows within the objective."""
        return self.shares[self.place(extents)] * self.scale

    def total_s(self, rows: int) -> float:
        """Expected duration of so many rows of the greatest extents, in the cheapest batches."""
        return rows * self.shares[-1] * self.scale

    def shape(self, extents: Extents) -> Extents:
        """The extents that are executed for inputs of these."""
        if self.any_batch or self.equal:
            return extents
        return tuple(
            edges[min(bisect_left(edges, extent), len(edges) - 1)]
            for edges, extent in zip(self.edges, extents, strict=True)
        )

    def padded(self, rows: int, extents: Extents = ()) -> int:
        """The batch that is executed for so many rows."""
        if self.any_batch:
            return rows
        batches = self._batches[self._cell(extents) if extents else -1]
        at = bisect_left(batches, rows)
        return batches[at] if at < len(batches) else rows

    def alone_max(self, extents: Extents) -> int:
        """Rows that one request may have; 0 if not even one fits."""
        return self.limits[self.place(extents)]

    def joint_max(self, extents: Extents) -> int:
        """Rows that a batch of several requests may have."""
        return self.limits[self.place(extents)]

    def learn(self, batch: int, duration_s: float, extents: Extents = ()) -> float:
        """A batch took so long. Returns the error, log(actual / estimated), that it showed."""
        if batch > self.batch_max or self.exec_s(batch, extents) == math.inf:
            return 0.0  # it was sent before the version was profiled anew
        return Curve.learn(self, batch, duration_s, extents)

    def does_not_fit(self, rows: int, extents: Extents) -> None:
        """A batch of so many rows did not fit in memory, against what was measured: from now on half of it does."""
        cell = self._cell(extents)
        if rows <= self._fits[cell]:
            self._fits[cell] = rows // 2
            self._build()

    def _correct(self, error: float, batch: int, extents: Extents) -> None:
        nearest, cell = self._nearest[batch], self._nearest_cell(extents) if extents else -1
        self.model.learn(error, 0.3)
        self.terms[nearest].learn(error, 0.2)
        self.cell_terms[cell].learn(error, 0.3)
        moved = abs(self.terms[nearest].value - self._built[nearest])
        if max(moved, abs(self.cell_terms[cell].value - self._cells_built[cell])) > REBUILD_AT:
            self._build()

    # -- where extents lie --------------------------------------------------------------------------------------------

    def _cell(self, extents: Extents) -> int:
        """The least cell that holds these extents."""
        return place_in(self.edges, extents)

    def _nearest_cell(self, extents: Extents) -> int:
        """The cell whose term learns from these extents: that which is executed, or the nearest by ratio."""
        if not self.any_batch:
            return self._cell(extents)
        at = 0
        for edges, extent in zip(self.edges, extents, strict=True):
            i = min(bisect_left(edges, extent), len(edges) - 1)
            if i and edges[i - 1] * edges[i] > extent * extent:
                i -= 1
            at = at * len(edges) + i
        return at

    def _at(self, rows: int, extents: Extents) -> float:
        """Duration at scale 1."""
        if not self.any_batch:
            return self._cells[self._cell(extents)][rows]
        if len(extents) == 1:
            return self._on_line(rows, 0, self.edges[0], extents[0])
        edges, extent = self.edges[0], extents[0]
        width = len(self.edges[1])
        i = min(bisect_left(edges, extent), len(edges) - 1)
        high_s = self._on_line(rows, i * width, self.edges[1], extents[1])
        if i == 0 or extent >= edges[i] or high_s == math.inf:
            return high_s
        low_s = self._on_line(rows, (i - 1) * width, self.edges[1], extents[1])
        return low_s + (high_s - low_s) * (extent - edges[i - 1]) / (edges[i] - edges[i - 1])

    def _on_line(self, rows: int, first: int, edges: tuple[int, ...], extent: int) -> float:
        """Duration between the cells along the last dimension; `first`: the first of them."""
        i = min(bisect_left(edges, extent), len(edges) - 1)
        high_s = self._cells[first + i][rows]
        if i == 0 or extent >= edges[i] or high_s == math.inf:
            return high_s
        low_s = self._cells[first + i - 1][rows]
        return low_s + (high_s - low_s) * (extent - edges[i - 1]) / (edges[i] - edges[i - 1])

    # -- tables -------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """Makes all tables anew from the cells and their terms."""
        self._point()
        self._tabulate()

    def _point(self) -> None:
        """The cells' durations follow the terms."""
        self._built = [term.value for term in self.terms]
        self._cells_built = [term.value for term in self.cell_terms]
        factors = dict(zip(self.sizes, self._built, strict=True))
        rows = np.arange(1, self.batch_max + 1)
        grid = np.full((len(self.times), self.batch_max + 1), NEVER_S)
        grid[:, 0] = 0.0
        for cell, batches in enumerate(self._batches):
            if batches:
                times, own = self.times[cell], self._cells_built[cell]
                seconds = np.array([max(times[b], POINT_S_MIN) * math.exp(own + factors[b]) for b in batches])
                most = self._fits[cell]
                inside = rows[:most]
                if self.any_batch:
                    grid[cell, 1 : most + 1] = np.interp(inside, batches, seconds)
                else:
                    grid[cell, 1 : most + 1] = seconds[np.searchsorted(batches, inside)]
        grid = _never_falling(grid.reshape(*(len(edges) for edges in self.edges), -1)).reshape(grid.shape)
        self._cells = np.where(grid < FITS_S, grid, math.inf).tolist()

    def _durations(self, extents: list["np.ndarray"]) -> "np.ndarray":
        """Durations at the product of these extents of each dimension, by rows: [extents, ..., rows]."""
        grid: np.ndarray = np.minimum(np.array(self._cells), NEVER_S).reshape(*(len(edges) for edges in self.edges), -1)
        for axis, (edges, wanted) in enumerate(zip(self.edges, extents, strict=True)):
            high = np.minimum(np.searchsorted(edges, wanted), len(edges) - 1)
            low = np.maximum(high - 1, 0)
            ends = np.array(edges, float)
            width = np.maximum(ends[high] - ends[low], 1.0)
            part = np.where(high == low, 0.0, np.minimum(1.0, (wanted - ends[low]) / width))
            part = np.maximum(part, 0.0).reshape([-1 if i == axis else 1 for i in range(grid.ndim)])
            below = np.take(grid, low, axis=axis)
            grid = np.asarray(below + part * (np.take(grid, high, axis=axis) - below))
        return _never_falling(grid)  # between two ends that are nearly equal, rounding may fall below both

    def _classes(self) -> tuple[tuple[int, ...], ...]:
        """The greatest extent of each class, by dimension: along each with the others at their greatest."""
        found = []
        for axis, dim in enumerate(self.dims):
            count = min(SAMPLED, dim.most - dim.least + 1)
            sampled = np.unique(np.geomspace(dim.least, dim.most, count).round().astype(int))
            if dim.most - dim.least < SAMPLED:
                sampled = np.arange(dim.least, dim.most + 1)
            along = [np.array([edges[-1]]) for edges in self.edges]
            along[axis] = sampled
            shares = self._shares(self._durations(along).reshape(len(sampled), -1))
            most = CLASSES_MAX[len(self.dims) - 1]
            bounds = {*_class_bounds(sampled.tolist(), shares, most), *self.edges[axis]}
            found.append(tuple(sorted(bounds)))
        return tuple(found)

    def _tabulate(self) -> None:
        """The tables by place follow the cells."""
        if self.any_batch:
            grid = self._durations([np.array(bounds) for bounds in self.bounds]).reshape(-1, self.batch_max + 1)
            grid = np.where(grid < FITS_S, grid, math.inf)
        else:
            grid = np.array(self._cells)
        self.tables = grid.tolist()
        self.limits = (np.isfinite(grid).sum(axis=1) - 1).tolist()
        self.shares = self._shares(grid)
        self.base_s = self.tables[-1]

    def _shares(self, grid: "np.ndarray") -> list[float]:
        """Seconds of one row in the cheapest batch within the objective, or else alone. `grid`: [extents, rows]."""
        rows = np.arange(1, grid.shape[1])
        each = np.where(grid[:, 1:] * self.scale <= self.objective_s, grid[:, 1:] / rows, math.inf)
        each[:, 0] = grid[:, 1]
        least = each.min(axis=1)
        fits = least < FITS_S
        shares: list[float] = np.where(fits, least, least[fits].max(initial=0.0)).tolist()
        return shares


def _never_falling(grid: "np.ndarray") -> "np.ndarray":
    """The running maximum along each dimension; the shape is the same."""
    for axis in range(grid.ndim):
        grid = np.maximum.accumulate(grid, axis=axis)
    return grid


def place_in(bounds: tuple[tuple[int, ...], ...], extents: Extents) -> int:
    """The number of the least combination of bounds that holds the extents, the last dimension's bounds fastest."""
    at = 0
    for along, extent in zip(bounds, extents, strict=True):
        at = at * len(along) + min(bisect_left(along, extent), len(along) - 1)
    return at


def _class_bounds(extents: list[int], shares: list[float], most: int) -> tuple[int, ...]:
    """The greatest of the extents in each class; at most about `most` classes."""
    step = max(CLASS_STEP, (shares[-1] / shares[0]) ** (1 / most)) if shares[0] else CLASS_STEP
    bounds = []
    first = shares[0]
    for i in range(1, len(extents)):
        if shares[i] > step * first:
            bounds.append(extents[i - 1])
            first = shares[i]
    return (*bounds, extents[-1])


def make_sized_curve(
    profile: wire.Profile, spec: wire.ModelSpec, any_batch: bool, device: Term, pace: Pace | None = None
) -> SizedCurve:
    """The curve of a version with open dimensions that was just profiled by extents; `can_be_sized` says whether.

    All curves of a device share `device` and `pace`.
    """
    edges = tuple(tuple(sorted({times.extents[d] for times in profile.sizes})) for d in range(len(spec.dims)))
    known = {times.extents: dict(times.exec_s) for times in profile.sizes}
    times = [known.get(extents, {}) for extents in product(*edges)]
    largest = max(max(cell) for cell in known.values())
    sizes = sorted({batch for cell in known.values() for batch in cell})
    return SizedCurve(
        sizes,
        [],
        min(spec.batch_max, largest),
        any_batch,
        device,
        pace if pace is not None else Pace(),
        dims=spec.dims,
        edges=edges,
        times=times,
        equal=spec.exact,
        objective_s=spec.slo_ms / 1e3 if spec.slo_ms else math.inf,
    )


def can_be_sized(profile: wire.Profile | None, spec: wire.ModelSpec) -> bool:
    """Whether the profile tells durations up to the greatest extents of each of the version's open dimensions."""
    dims = len(spec.dims)
    if profile is None or not profile.sizes or any(len(times.extents) != dims for times in profile.sizes):
        return False
    return all(max(times.extents[d] for times in profile.sizes) >= spec.dims[d].most for d in range(dims))
