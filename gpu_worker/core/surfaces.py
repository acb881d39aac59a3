"""A quantity that grows with the rows and the extents of a batch, read between the points where it was measured. Pure.

    fit(b, s)   = c0 + c1 b + c2 A + c3 b A + c4 b A^2,   c >= 0,   A: product of the extents
                  and, with two open dimensions, + c5 b s1 + c6 b s2
    value(b, s) = fit(b, s) x exp(mean of log(measured / fit) over the measured points, weights 1 / distance^4)

The fit carries what is common to networks: a fixed part, one that is linear in the elements, and attention's, which is
quadratic in them. The second factor makes the value that of every measured point itself. Distances are in octaves.
Source of the second factor: Shepard, "A two-dimensional interpolation function for irregularly-spaced data" (1968).
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mesh.sizes import Extents

Point = tuple[int, Extents]  # (batch, extents that EXEC computes)
Floats: TypeAlias = npt.NDArray[np.float64]
SWEEPS = 200  # of the fit at most
SETTLED = 1e-5  # share of the largest coefficient: no sweep that changes less is followed by another
POWER = 4.0  # of distances: more than the dimensions of a point, so that far points lose


def work_of(point: Point) -> int:
    """Returns the elements of an input that has all open dimensions."""
    return point[0] * math.prod(point[1])


class Surface:
    """Values at some points, all positive, and what follows for others."""

    __slots__ = ("_places", "_proportional", "_ratios", "_scales", "_terms")

    def __init__(self, values: dict[Point, float], *, proportional: bool = False) -> None:
        """`proportional`: but for a fixed part the values are those of rows, each of the same: as memory is."""
        self._proportional = proportional
        points = list(values)
        measured = np.array([values[point] for point in points])
        columns = self._columns(points)
        self._scales = columns.max(axis=0)
        self._terms = _fit(columns / self._scales / measured[:, None])
        self._places = _places(points)
        self._ratios = np.log(measured / self._fitted(points))

    def at(self, points: Sequence[Point]) -> Floats:
        """Returns the values at these points."""
        if not points:
            return np.empty(0)
        weights = self._distances(points) ** -POWER
        ratios = (weights @ self._ratios) / weights.sum(axis=1)
        found: Floats = self._fitted(points) * np.exp(ratios)
        return found

    def fit(self, points: Sequence[Point]) -> Floats:
        """Returns what the formula alone says."""
        return self._fitted(points)

    def distances(self, points: Sequence[Point]) -> Floats:
        """Returns the distance of each point to the nearest measured one, in octaves."""
        nearest: Floats = self._distances(points).min(axis=1)
        return nearest

    def errors(self) -> Floats:
        """Returns by how much each measured point, in log units, is not what the others tell of it."""
        apart = _apart(self._places, self._places)
        np.fill_diagonal(apart, np.inf)
        weights = apart**-POWER
        total = weights.sum(axis=1)
        others = (weights @ self._ratios) / np.where(total > 0, total, 1.0)
        found: Floats = np.abs(self._ratios - others)
        return found

    def nearest(self, points: Sequence[Point], count: int) -> npt.NDArray[np.intp]:
        """Returns the indices of the measured points that are nearest to each of these, `[points, count]`."""
        found: npt.NDArray[np.intp] = np.argsort(self._distances(points), axis=1, kind="stable")[:, :count]
        return found

    def _fitted(self, points: Sequence[Point]) -> Floats:
        found: Floats = (self._columns(points) / self._scales) @ self._terms
        return found

    def _columns(self, points: Sequence[Point]) -> Floats:
        batch = np.array([float(point[0]) for point in points])
        extents = np.array([[float(extent) for extent in point[1]] for point in points])
        area = extents.prod(axis=1)
        columns = [np.ones(len(points)), batch * area, batch * area * area]
        if not self._proportional:
            columns += [batch, area]
        if extents.shape[1] > 1:
            columns += [batch * extents[:, i] for i in range(extents.shape[1])]
        return np.stack(columns, axis=1)

    def _distances(self, points: Sequence[Point]) -> Floats:
        found: Floats = np.maximum(_apart(_places(points), self._places), 1e-6)
        return found


def _places(points: Sequence[Point]) -> Floats:
    found: Floats = np.log2(np.array([[float(point[0]), *map(float, point[1])] for point in points]))
    return found


def _apart(these: Floats, others: Floats) -> Floats:
    found: Floats = np.sqrt(((these[:, None, :] - others[None, :, :]) ** 2).sum(axis=2))
    return found


def _fit(columns: Floats) -> Floats:
    """Returns the terms, none negative, with the least squares of the relative errors: by coordinate descent.

    `columns`: `[points, terms]`, each divided by its point's value, so that a perfect sum is 1 everywhere.
    """
    gram = (columns.T @ columns).tolist()
    wanted = columns.sum(axis=0).tolist()
    count = len(wanted)
    terms = [0.0] * count
    for _ in range(SWEEPS):
        moved = 0.0
        for i in range(count):
            row = gram[i]
            rest = wanted[i] - sum(row[j] * terms[j] for j in range(count)) + row[i] * terms[i]
            value = max(0.0, rest / row[i])
            moved = max(moved, abs(value - terms[i]))
            terms[i] = value
        if moved <= SETTLED * max(terms):
            break
    return np.array(terms)
